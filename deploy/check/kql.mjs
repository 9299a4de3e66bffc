// Holds the KQL of docs/telemetry.md against Microsoft's own parser and binder, with the columns that the
// tables have (learn.microsoft.com, "Azure Monitor Logs reference"): KQL MARKDOWN...

import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(import.meta.url);
// The package is made for browsers.
globalThis.window = globalThis;
require("@kusto/language-service-next/bridge.min.js");
require("@kusto/language-service-next/Kusto.Language.Bridge.min.js");
const { KustoCode, GlobalState, Symbols } = globalThis.Kusto.Language;

const span = `TimeGenerated: datetime, Id: string, Name: string, OperationId: string, ParentId: string,
  OperationName: string, DurationMs: real, Success: bool, ResultCode: string, Properties: dynamic,
  Measurements: dynamic, AppRoleName: string, AppRoleInstance: string, ItemCount: int`;
const tables = {
  AppDependencies: `${span}, Target: string, DependencyType: string, Data: string`,
  AppRequests: `${span}, Url: string, Source: string`,
  AppMetrics: `TimeGenerated: datetime, Name: string, ItemCount: int, Sum: real, Min: real, Max: real,
    Properties: dynamic, AppRoleName: string, AppRoleInstance: string, OperationId: string`,
  ContainerAppConsoleLogs_CL: `TimeGenerated: datetime, Log_s: string, ContainerAppName_s: string,
    ContainerName_s: string, RevisionName_s: string, Stream_s: string`,
};
const symbols = Object.entries(tables).map(
  ([name, columns]) => new Symbols.TableSymbol.$ctor7(name, `(${columns})`, null),
);
const database = new Symbols.DatabaseSymbol.ctor("workspace", symbols);
const globals = GlobalState.Default.WithDatabase(database);

let queries = 0;
let faults = 0;
for (const path of process.argv.slice(2)) {
  for (const [, query] of readFileSync(path, "utf8").matchAll(/^```kql\n(.*?)^```$/gms)) {
    queries += 1;
    const diagnostics = KustoCode.ParseAndAnalyze(query, globals).GetDiagnostics();
    for (let n = 0; n < diagnostics.Count; n += 1) {
      const { Start, Message, Severity } = diagnostics.getItem(n);
      if (Severity !== "Error") continue;
      faults += 1;
      console.error(`${path}: ${Message}: ${query.slice(Start, Start + 40)}`);
    }
  }
}
if (queries === 0 || faults > 0) process.exit(1);
console.log(`${queries} queries`);
