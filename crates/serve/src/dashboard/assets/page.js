// What the page is made of: words, numbers, elements that are kept across updates.

export const language = {
  now: localStorage.getItem("language") ?? (navigator.language.startsWith("ja") ? "ja" : "en"),
};

const dictionary = await (await fetch("/dashboard/words.json")).json();

/** The word in the language in force, with {names} filled in. */
export function word(key, values = {}) {
  const text = dictionary[language.now][key] ?? key;
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

/** Puts the words into everything that names one. */
export function speak() {
  document.documentElement.lang = language.now;
  for (const node of document.querySelectorAll("[data-word]")) node.textContent = word(node.dataset.word);
  const button = document.getElementById("language");
  const other = language.now === "ja" ? "en" : "ja";
  button.textContent = dictionary[other].thisLanguage;
  button.lang = other;
}

export const count = (n) => new Intl.NumberFormat(language.now).format(n ?? 0);

export const rounded = (n, digits = 1) =>
  new Intl.NumberFormat(language.now, { maximumFractionDigits: digits }).format(n);

/** Tokens in short: 1.2M. */
export const short = (n) =>
  new Intl.NumberFormat(language.now, { notation: "compact", maximumFractionDigits: 1 }).format(n ?? 0);

export const time = (text) =>
  text ? new Intl.DateTimeFormat(language.now, { dateStyle: "short", timeStyle: "medium" }).format(new Date(text)) : "–";

/** An amount, or that it is not known: never nothing. */
export function money(amount, currency) {
  if (amount === null || amount === undefined) return word("unknown");
  const digits = amount !== 0 && Math.abs(amount) < 1 ? 4 : 2;
  return `${new Intl.NumberFormat(language.now, { minimumFractionDigits: 2, maximumFractionDigits: digits }).format(amount)} ${currency}`;
}

export function duration(seconds) {
  if (seconds < 90) return word("seconds", { n: Math.round(seconds) });
  if (seconds < 5400) return word("minutes", { n: Math.round(seconds / 60) });
  return word("hours", { n: rounded(seconds / 3600) });
}

/** An element with properties and children; `data` and `aria` are objects of their own. */
export function make(name, { data, ...properties } = {}, ...children) {
  const node = Object.assign(document.createElement(name), properties);
  for (const [key, value] of Object.entries(data ?? {})) node.dataset[key] = value;
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Changes a text only if it is another one, so that selections and screen readers are left alone. */
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** Keeps one child for each item: made once, updated after, so that the focus stays where it is. */
export function keep(parent, items, key, create, update) {
  const known = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  items.forEach((item, place) => {
    const name = String(key(item));
    let node = known.get(name);
    known.delete(name);
    if (!node) {
      node = create(item);
      node.dataset.key = name;
    }
    if (parent.children[place] !== node) parent.insertBefore(node, parent.children[place] ?? null);
    update(node, item);
  });
  for (const gone of known.values()) gone.remove();
}

/** A table of rows of texts; columns that are numbers stand to the right. */
export function table(heads, rows, numbers = []) {
  const cell = (kind, text, column) =>
    make(kind, { className: numbers.includes(column) ? "number" : "", ...(kind === "th" ? { scope: "col" } : {}) }, text);
  const body = rows.map((row) => make("tr", {}, ...row.map((text, n) => cell("td", text, n))));
  const head = make("tr", {}, ...heads.map((text, n) => cell("th", text, n)));
  const whole = make("table", {}, make("thead", {}, head), make("tbody", {}, ...body));
  const scroll = make("div", { className: "scroll", tabIndex: 0 }, whole);
  return scroll;
}

/** Asks whether it is meant. */
export function sure(text) {
  const dialog = document.getElementById("sure");
  say(document.getElementById("sure-text"), text);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((done) => {
    dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true });
  });
}
