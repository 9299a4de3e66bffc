// Opens a report in a headless Chromium and holds it against its JSON.
//
// node report_page.cjs PAGE.html ACCOUNT.json PICTURE.png
// Prints what it found as JSON; fails with what is wrong.

const assert = require("assert");
const fs = require("fs");
const { pathToFileURL } = require("url");
const { chromium } = require("playwright-core");

const [pagePath, accountPath, picture] = process.argv.slice(2);
const account = JSON.parse(fs.readFileSync(accountPath, "utf8"));

const at = (pointer) =>
  pointer.split("/").slice(1).reduce((value, key) => value[key.replaceAll("~1", "/")], account);

async function open(browser, options) {
  const context = await browser.newContext({ offline: true, ...options });
  const page = await context.newPage();
  const wrong = [];
  page.on("console", (said) => wrong.push(`console: ${said.text()}`));
  page.on("pageerror", (error) => wrong.push(`error: ${error}`));
  const asked = [];
  page.on("request", (request) => asked.push(request.url()));
  const url = pathToFileURL(pagePath).href;
  await page.goto(url);
  assert.deepStrictEqual(wrong, []);
  const elsewhere = asked.filter((asked) => asked !== url && !asked.startsWith("data:"));
  assert.deepStrictEqual(elsewhere, []);
  return page;
}

async function figures(page) {
  const shown = await page.$$eval("[data-at]", (all) =>
    all.map((one) => ({ at: one.dataset.at, is: one.dataset.is, text: one.textContent })));
  for (const { at: pointer, is, text } of shown) {
    const value = at(pointer);
    assert.strictEqual(String(value), is, pointer);
    if (Number.isInteger(value)) assert.strictEqual(Number(text.replaceAll(",", "")), value, pointer);
    else if (typeof value === "number") assert(Math.abs(Number(text) - value) < 1e-4, pointer);
  }
  return shown.length;
}

async function plots(page) {
  const plots = await page.$$eval("svg", (all) => all.map((one) => {
    const { width, height } = one.getBoundingClientRect();
    const marks = [...one.querySelectorAll("polyline, rect")];
    const drawn = marks.some((mark) => mark.getBoundingClientRect().width > 50
      || marks.length > 20);
    const title = one.querySelector("title")?.textContent;
    const desc = one.querySelector("desc")?.textContent;
    return { width, height, drawn, title, desc, label: one.getAttribute("aria-label") };
  }));
  for (const plot of plots) {
    assert(plot.width > 300 && plot.height > 100 && plot.drawn, JSON.stringify(plot));
    assert(plot.title && plot.desc && plot.label === plot.title, JSON.stringify(plot));
  }
  return plots.length;
}

// The contrast of the page's text, as WCAG 2 counts it.
const contrast = (page) => page.evaluate(() => {
  const light = (colour) => {
    const [r, g, b] = colour.match(/[\d.]+/g).slice(0, 3).map((part) => part / 255)
      .map((part) => (part <= 0.03928 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const paper = light(getComputedStyle(document.body).backgroundColor);
  const texts = [...document.querySelectorAll("p, td, th, li, h2, svg text")];
  return Math.min(...texts.map((one) => {
    const style = getComputedStyle(one);
    const ink = light(one.closest("svg") ? style.fill : style.color);
    return (Math.max(ink, paper) + 0.05) / (Math.min(ink, paper) + 0.05);
  }));
});

async function main() {
  const executablePath = process.env.PROMPTMILL_PEER_CHROMIUM;
  const browser = await chromium.launch({ executablePath, args: ["--no-sandbox"] });
  try {
    const light = await open(browser, { colorScheme: "light" });
    const found = { figures: await figures(light), plots: await plots(light) };
    assert(await contrast(light) >= 4.5, "the light page can be read");
    await light.screenshot({ path: picture, fullPage: true });
    const pdf = await light.pdf({ format: "A4" });
    assert.strictEqual(pdf.subarray(0, 5).toString(), "%PDF-");
    found.pdf = pdf.length;
    const dark = await open(browser, { colorScheme: "dark" });
    const paper = (page) => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    assert.notStrictEqual(await paper(light), await paper(dark));
    assert(await contrast(dark) >= 4.5, "the dark page can be read");
    await dark.emulateMedia({ media: "print" });
    assert.strictEqual(await paper(dark), "rgb(255, 255, 255)");
    const phone = await open(browser, { viewport: { width: 375, height: 700 } });
    const tooWide = await phone.evaluate(() => document.documentElement.scrollWidth - innerWidth);
    assert(tooWide <= 0, `${tooWide} pixels wider than a phone`);
    console.log(JSON.stringify(found));
  } finally {
    await browser.close();
  }
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
