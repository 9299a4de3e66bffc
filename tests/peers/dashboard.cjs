// Works with the dashboard as a person would, in a headless Chromium.
//
// node dashboard.cjs URL PICTURES
// The server has a batch `night` that is being worked on, and a batch `broken` whose three jobs are
// dead letters. Prints a line for each thing that was seen; fails with what is wrong.

const assert = require("assert");
const path = require("path");
const { chromium } = require("playwright-core");
const axe = require.resolve("axe-core/axe.min.js");

const [url, pictures] = process.argv.slice(2);
const LONG = 60_000;

async function ended(page, batch) {
  return page.$eval(`article[data-batch="${batch}"] .bar`, (bar) => {
    const widths = [...bar.children].map((part) => parseFloat(part.style.width || "0"));
    return widths.reduce((sum, width) => sum + width, 0);
  });
}

async function until(page, what, happened) {
  const began = Date.now();
  while (!(await happened())) {
    assert(Date.now() - began < LONG, `did not happen: ${what}`);
    await page.waitForTimeout(100);
  }
  console.log(what);
}

async function accessible(page, what) {
  // The page's policy lets no foreign script in; a script of the driver is none.
  await page.evaluate(require("fs").readFileSync(axe, "utf8"));
  const { violations } = await page.evaluate(() => window.axe.run());
  const grave = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  assert.deepStrictEqual(grave.map(({ id, nodes }) => [id, nodes[0].html]), [], what);
  console.log(`accessible: ${what}`);
}

const state = (page, batch) => page.textContent(`article[data-batch="${batch}"] .state`);
const button = (page, name) => page.getByRole("button", { name, exact: true });

async function work(page) {
  await page.waitForSelector('article[data-batch="night"]');
  const before = await ended(page, "night");
  await until(page, "the bar moves", async () => (await ended(page, "night")) > before);

  await button(page, "Pause batch night").focus();
  await page.keyboard.press("Enter");
  await until(page, "paused by the keyboard", async () => (await state(page, "night")) === "paused");
  let still = -1;
  await until(page, "it stands still", async () => {
    const now = await ended(page, "night");
    await page.waitForTimeout(5_000);
    still = await ended(page, "night");
    return still === now;
  });
  assert(still < 100, "it was paused in the midst");
  await button(page, "Resume batch night").click();
  await until(page, "resumed", async () => (await ended(page, "night")) > still);
}

async function retry(page) {
  const cause = page.locator('article[data-cause="RetriesExhausted"]');
  await cause.locator("summary").click();
  await until(page, "three dead letters", async () => (await cause.locator("tbody tr").count()) === 3);
  await button(page, "Retry job-0").click();
  await until(page, "one is retried", async () => (await cause.locator("tbody tr").count()) === 2);
  await button(page, "Retry RetriesExhausted").click();
  await until(page, "all are retried", async () => (await cause.count()) === 0);
  await until(page, "they succeed", async () => (await state(page, "broken")) === "done");
}

async function drillDown(page) {
  const batch = page.locator('article[data-batch="broken"]');
  await batch.locator("summary").click();
  await batch.getByRole("button", { name: "job-1", exact: true }).click();
  const job = page.locator("dialog#job");
  await until(page, "a job is shown", async () => (await job.textContent()).includes("succeeded"));
  const text = await job.textContent();
  assert(text.includes("show_content = true"), text);
  assert(!text.includes("prompt 1") && !text.includes("choices"), text);
  await accessible(page, "a job");
  await page.keyboard.press("Escape");
  await until(page, "closed by the keyboard", async () => !(await job.isVisible()));
}

async function count(page) {
  await page.selectOption("#usage-by", "batch");
  await button(page, "Count").click();
  await until(page, "usage by batch", async () => (await page.textContent("#usage-table")).includes("night"));
}

async function open(browser, options) {
  const context = await browser.newContext({ viewport: { width: 1180, height: 900 }, locale: "en-US", ...options });
  const page = await context.newPage();
  const wrong = [];
  page.on("console", (said) => said.type() === "error" && wrong.push(said.text()));
  page.on("pageerror", (error) => wrong.push(String(error)));
  page.on("request", (asked) => asked.url().startsWith(url) || asked.url().startsWith("data:") || wrong.push(asked.url()));
  await page.goto(url);
  await page.waitForSelector("article[data-batch]");
  return { page, wrong };
}

(async () => {
  const browser = await chromium.launch({ executablePath: process.env.PROMPTMILL_PEER_CHROMIUM, args: ["--no-sandbox"] });
  const light = await open(browser, { colorScheme: "light" });
  await work(light.page);
  await accessible(light.page, "light");
  await light.page.screenshot({ path: path.join(pictures, "dashboard-light.png"), fullPage: true });
  await retry(light.page);
  await drillDown(light.page);
  await count(light.page);
  await light.page.click("#language");
  assert.strictEqual(await light.page.getAttribute("html", "lang"), "ja");
  assert((await light.page.textContent("nav")).includes("デプロイ"));
  await accessible(light.page, "Japanese");
  assert.deepStrictEqual(light.wrong, []);

  const dark = await open(browser, { colorScheme: "dark" });
  await accessible(dark.page, "dark");
  await dark.page.screenshot({ path: path.join(pictures, "dashboard-dark.png"), fullPage: true });
  assert.deepStrictEqual(dark.wrong, []);
  await browser.close();
})().catch((error) => {
  console.error(error);
  process.exit(1);
});
