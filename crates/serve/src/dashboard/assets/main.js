// The dashboard: asks the server every two seconds and shows what it says.

import { draw } from "./chart.js";
import { count, duration, keep, language, make, money, rounded, say, short, speak, sure, table, time, word } from "./page.js";

const EVERY_MS = 2000;
const ENDINGS = ["succeeded", "failed", "dead", "cancelled", "expired"];
const at = (id) => document.getElementById(id);

let last = null;
let mayOperate = false;

/** Asks the server; with a token, if one was given. */
async function ask(path, body) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { authorization: `Bearer ${token}` } : {};
  if (body) headers["content-type"] = "application/json";
  const options = body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers };
  const response = await fetch(path, options);
  if (response.status === 401) {
    if (!at("door").open) at("door").showModal();
    throw new Error(word("tokenNeeded"));
  }
  const answer = await response.json();
  if (!response.ok) throw new Error(answer.error?.message ?? response.statusText);
  return answer;
}

/** Does what a button says, and tells if it failed. */
async function act(button, path, body = {}) {
  button.disabled = true;
  try {
    const answer = await ask(path, body);
    tell(word("done"));
    await Promise.all([look(), lookAtDeadLetters()]);
    return answer;
  } catch (error) {
    tell(error.message, true);
    return null;
  } finally {
    button.disabled = false;
  }
}

let toldAt = 0;

function tell(text, isTrouble = false) {
  toldAt = Date.now();
  at("state").classList.toggle("trouble", isTrouble);
  say(at("state"), text);
}

async function look() {
  try {
    const answer = await ask("/dashboard/overview");
    mayOperate = answer.role === "operate";
    last = answer;
    show();
    if (Date.now() - toldAt > 3 * EVERY_MS) tell(word("live"));
  } catch (error) {
    tell(word("away", { why: error.message }), true);
  }
}

function show() {
  const { seen } = last;
  showTiles(seen);
  showBatches(seen);
  showDeployments(seen.deployments);
  showWorkers(seen.workers);
}

function showTiles({ batches, queue, workers, deployments }) {
  const rates = batches.map((b) => (b.pending > 0 ? b.rate?.jobs_per_second ?? 0 : 0));
  const used = deployments.reduce((sum, d) => sum + d.now.used_last_minute, 0);
  const tiles = [
    ["waiting", count(queue.active + queue.locked + queue.scheduled)],
    ["deadLetters", count(queue.dead_letters)],
    ["jobsPerSecond", rounded(rates.reduce((sum, rate) => sum + rate, 0))],
    ["tokensLastMinute", short(used)],
    ["workers", count(workers.length)],
  ];
  keep(at("tiles"), tiles, (tile) => tile[0],
    () => make("div", {}, make("dt"), make("dd")),
    (node, [name, value]) => {
      say(node.children[0], word(name));
      say(node.children[1], value);
    });
}

function showBatches({ batches, currency, most_batches: most }) {
  const parent = at("batch-list");
  keep(parent, batches, (b) => b.batch, (b) => newBatch(b.batch), (node, b) => updateBatch(node, b, currency));
  if (batches.length === 0) parent.append(make("p", { className: "quiet card", data: { key: "none" } }, word("noBatches")));
  if (batches.length === most) parent.append(make("p", { className: "quiet", data: { key: "most" } }, word("onlyNewest", { n: most })));
}

function newBatch(name) {
  const button = (key) => {
    const node = make("button", { type: "button", data: { action: key } });
    node.addEventListener("click", async () => {
      if (key === "cancel" && !(await sure(word("sureCancel", { batch: name })))) return;
      await act(node, `/dashboard/batches/${encodeURIComponent(name)}/${key}`);
    });
    return node;
  };
  const bar = make("div", { className: "bar", role: "img" },
    ...ENDINGS.map((ending) => make("span", { className: ending === "cancelled" ? "cancelled-part" : ending, data: { ending } })));
  const details = make("details", {}, make("summary"), jobsForm(name), make("div", { data: { part: "jobs" } }));
  details.addEventListener("toggle", () => details.open && listJobs(details, name));
  return make("article", { data: { batch: name } },
    make("div", { className: "row" },
      make("h3", {}, name), make("span", { className: "state" }), make("span", { className: "push" }),
      button("pause"), button("resume"), button("cancel")),
    make("p", { className: "reason quiet" }),
    bar, make("p", { className: "figures" }), details);
}

function updateBatch(node, b, currency) {
  const state = node.querySelector(".state");
  state.className = `state ${b.state}`;
  say(state, word(`state_${b.state}`));
  const reason = node.querySelector(".reason");
  say(reason, b.reason ?? "");
  reason.hidden = !b.reason;
  const isOpen = ["running", "enqueuing", "paused"].includes(b.state);
  for (const button of node.querySelectorAll("button[data-action]")) {
    const key = button.dataset.action;
    say(button, word(key));
    button.setAttribute("aria-label", word(`${key}Batch`, { batch: b.batch }));
    const fits = key === "resume" ? b.state === "paused" : key === "pause" ? isOpen && b.state !== "paused" : isOpen;
    button.hidden = !mayOperate || !fits;
  }
  const bar = node.querySelector(".bar");
  for (const part of bar.children) {
    const n = b.endings[part.dataset.ending] ?? 0;
    part.style.width = `${b.jobs ? (100 * n) / b.jobs : 0}%`;
  }
  const counts = ENDINGS.filter((ending) => b.endings[ending]).map((ending) => `${count(b.endings[ending])} ${word(`ending_${ending}`)}`);
  bar.setAttribute("aria-label", word("bar", { jobs: count(b.jobs), counts: counts.join(", "), pending: count(b.pending) }));
  const figures = [
    [word("jobs"), count(b.jobs)],
    ...ENDINGS.filter((ending) => b.endings[ending]).map((ending) => [word(`ending_${ending}`), count(b.endings[ending])]),
    [word("pending"), count(b.pending)],
    [word("tokens"), `${short(b.prompt)} + ${short(b.completion)}`],
    [word("cost"), money(b.cost, currency)],
  ];
  if (b.rate && b.pending > 0) figures.push([word("rate"), word("perSecond", { n: rounded(b.rate.jobs_per_second) })]);
  // What only the quota tells is no forecast before anything has ended.
  if (b.forecast?.eta?.basis === "rate") figures.push([word("eta"), etaText(b.forecast.eta)]);
  if (b.forecast?.cost) figures.push([word("costInTheEnd"), money(b.forecast.cost.likely, currency)]);
  keep(node.querySelector(".figures"), figures, (figure) => figure[0],
    () => make("span", {}, make("span"), " ", make("b")),
    (part, [name, value]) => {
      say(part.children[0], name);
      say(part.children[1], value);
    });
  say(node.querySelector("summary"), word("jobsOf", { batch: b.batch }));
}

function etaText({ likely, low, high }) {
  const until = duration(likely);
  return low === null || low === undefined ? until : word("range", { likely: until, low: duration(low), high: duration(high) });
}

function jobsForm(batch) {
  const choice = make("select", { ariaLabel: word("show") },
    make("option", { value: "" }, word("allJobs")),
    ...ENDINGS.map((ending) => make("option", { value: ending }, word(`ending_${ending}`))));
  const id = make("input", { placeholder: "custom_id", ariaLabel: "custom_id", autocomplete: "off" });
  const form = make("form", {}, choice, id, make("button", { type: "submit" }, word("find")));
  choice.addEventListener("change", () => listJobs(form.parentElement, batch));
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    if (id.value) showJob(batch, id.value);
    else listJobs(form.parentElement, batch);
  });
  return form;
}

async function listJobs(details, batch) {
  const place = details.querySelector("[data-part=jobs]");
  const ending = details.querySelector("select").value;
  const query = ending ? `?ending=${ending}` : "";
  try {
    const { jobs, more } = await ask(`/dashboard/batches/${encodeURIComponent(batch)}/jobs${query}`);
    const link = (job) => {
      const button = make("button", { type: "button" }, job.custom_id);
      button.addEventListener("click", () => showJob(batch, job.custom_id));
      return button;
    };
    const rows = jobs.map((job) => [link(job), word(`ending_${job.ending}`), job.code ?? "", job.deployment, count(job.latency_ms), count(job.tokens), time(job.finished_at)]);
    const heads = ["custom_id", word("ending"), word("cause"), word("deployment"), "ms", word("tokens"), word("finished")];
    place.replaceChildren(
      jobs.length ? table(heads, rows, [4, 5]) : make("p", { className: "quiet" }, word("noneYet")),
      ...(more ? [make("p", { className: "quiet" }, word("moreJobs"))] : []));
  } catch (error) {
    place.replaceChildren(make("p", { className: "trouble" }, error.message));
  }
}

async function showJob(batch, customId) {
  const path = `/dashboard/batches/${encodeURIComponent(batch)}/job?custom_id=${encodeURIComponent(customId)}`;
  let lines, content = null;
  try {
    const job = await ask(path);
    lines = job.ending ? endedLines(job) : pendingLines(job);
    if (job.ending) content = contentOf(job.answer);
  } catch (error) {
    lines = [[word("why"), error.message]];
  }
  say(at("job-title"), customId);
  const list = make("dl", {}, ...lines.flatMap(([name, value]) => [make("dt", {}, name), make("dd", {}, value)]));
  at("job-body").replaceChildren(list, ...(content ? [content] : []));
  at("job").showModal();
}

function endedLines(job) {
  const lines = [
    [word("ending"), word(`ending_${job.ending}`)],
    [word("attempts"), count(job.attempts)],
    [word("throttled"), count(job.throttled)],
    [word("deployment"), job.deployment || "–"],
    [word("model"), job.model],
    [word("tokens"), word("tokensOf", { prompt: count(job.usage.prompt), completion: count(job.usage.completion) })],
    [word("cost"), money(job.cost, job.currency)],
    [word("latency"), `${count(job.latency_ms)} ms`],
    [word("finished"), time(job.finished_at)],
  ];
  if (job.failure) lines.push([word("cause"), `${job.failure.code}: ${job.failure.message}`]);
  if (job.request_id) lines.push([word("requestId"), job.request_id]);
  return lines;
}

function pendingLines(job) {
  if (job.seen.length === 0) return [[word("state"), word("notSeen", { n: count(job.looked_at) })]];
  return job.seen.flatMap((seen) => [
    [word("state"), word(`place_${seen.place}`, { until: time(seen.until), ahead: count(seen.ahead) })],
    [word("attempts"), count(seen.tries)],
    ...(seen.last_error ? [[word("cause"), seen.last_error]] : []),
  ]);
}

function contentOf(answer) {
  if (!last.show_content) return make("p", { className: "quiet" }, word("hidden"));
  return answer ? make("pre", { tabIndex: 0 }, answer) : null;
}

function showDeployments(deployments) {
  const parent = at("deployment-list");
  keep(parent, deployments, (d) => d.now.name, () => {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    svg.classList.add("chart");
    return make("article", {}, make("div", { className: "row" }, make("h3"), make("span", { className: "trouble" })), make("p", { className: "figures" }), svg);
  }, updateDeployment);
  if (deployments.length === 0) parent.append(make("p", { className: "quiet card", data: { key: "none" } }, word("noWorkers")));
}

function updateDeployment(node, { now, samples }) {
  say(node.querySelector("h3"), now.name);
  const troubles = [...now.troubles];
  if (now.paused_ms) troubles.push(word("pausedFor", { time: duration(now.paused_ms / 1000) }));
  if (now.last_refusal) troubles.push(now.last_refusal);
  say(node.querySelector(".trouble"), troubles.join("; "));
  const quota = now.tpm ? word("perMinute", { n: short(now.tpm) }) : word("unknown");
  const part = now.tpm ? ` (${rounded((100 * now.used_last_minute) / now.tpm)} %)` : "";
  const figures = [
    [word("quota"), quota],
    [word("usedLastMinute"), `${short(now.used_last_minute)}${part}`],
    [word("share"), `${rounded(100 * now.share)} %`],
    [word("waitingTokens"), short(now.waiting)],
    [word("inFlight"), count(now.in_flight)],
    [word("workers"), count(now.workers)],
  ];
  keep(node.querySelector(".figures"), figures, (figure) => figure[0],
    () => make("span", {}, make("span"), " ", make("b")),
    (span, [name, value]) => {
      say(span.children[0], name);
      say(span.children[1], value);
    });
  draw(node.querySelector("svg"), samples, word("chart", { used: count(now.used_last_minute), quota }));
}

function showWorkers(workers) {
  const rows = workers.map((w) => [w.host ?? "–", String(w.pid ?? "–"), w.version ?? "–", time(w.started)]);
  const heads = [word("host"), word("process"), word("version"), word("started")];
  const place = at("worker-list");
  const text = JSON.stringify([rows, language.now]);
  if (place.dataset.shown === text) return;
  place.dataset.shown = text;
  place.replaceChildren(workers.length ? table(heads, rows, [1]) : make("p", { className: "quiet card" }, word("noWorkers")));
}

async function lookAtDeadLetters() {
  const parent = at("dead-letter-list");
  try {
    const { causes, more } = await ask("/dashboard/dead-letters");
    const all = Object.entries(causes);
    keep(parent, all, ([cause]) => cause, ([cause]) => newCause(cause), updateCause);
    if (all.length === 0) parent.append(make("p", { className: "quiet card", data: { key: "none" } }, word("noDeadLetters")));
    if (more) parent.append(make("p", { className: "quiet", data: { key: "more" } }, word("moreDeadLetters")));
  } catch (error) {
    tell(error.message, true);
  }
}

function deadLetterButtons(choice, label) {
  const button = (key) => {
    const node = make("button", { type: "button", data: { action: key } });
    node.addEventListener("click", async () => {
      if (key === "drop" && !(await sure(word("sureDrop", { what: label })))) return;
      await act(node, `/dashboard/dead-letters/${key}`, choice);
    });
    return node;
  };
  return [button("retry"), button("drop")];
}

function newCause(cause) {
  const buttons = deadLetterButtons({ cause }, cause);
  return make("article", { data: { cause } },
    make("div", { className: "row" }, make("h3", {}, cause), make("span", { className: "state" }), make("span", { className: "push" }), ...buttons),
    make("details", {}, make("summary"), make("div", { data: { part: "letters" } })));
}

function nameButtons(node, label) {
  for (const button of node.querySelectorAll(":scope > .row > button[data-action], :scope > td > button[data-action]")) {
    say(button, word(button.dataset.action));
    button.setAttribute("aria-label", word(`${button.dataset.action}What`, { what: label }));
    button.hidden = !mayOperate;
  }
}

function updateCause(node, [cause, { count: n, letters }]) {
  say(node.querySelector(".state"), count(n));
  nameButtons(node, cause);
  say(node.querySelector("summary"), word("firstOf", { n: count(letters.length) }));
  const place = node.querySelector("[data-part=letters]");
  const text = JSON.stringify([letters, language.now, mayOperate]);
  if (place.dataset.shown === text) return;
  place.dataset.shown = text;
  const rows = letters.map((letter) => {
    const label = letter.custom_id ?? String(letter.number);
    const open = make("button", { type: "button" }, label);
    open.addEventListener("click", () => showJob(letter.batch, letter.custom_id));
    const prompt = letter.prompt ? make("details", {}, make("summary", {}, word("prompt")), make("pre", {}, letter.prompt)) : null;
    const row = make("tr", {}, make("td", {}, letter.custom_id ? open : label), make("td", {}, letter.batch ?? "–"),
      make("td", { className: "wide" }, letter.description, prompt), make("td", {}, time(letter.at)),
      make("td", {}, ...deadLetterButtons({ number: letter.number }, label)));
    nameButtons(row, label);
    return row;
  });
  const heads = ["custom_id", word("batch"), word("cause"), word("since"), word("actions")].map((text) => make("th", { scope: "col" }, text));
  const whole = make("table", {}, make("thead", {}, make("tr", {}, ...heads)), make("tbody", {}, ...rows));
  place.replaceChildren(make("div", { className: "scroll", tabIndex: 0 }, whole));
}

async function showUsage(event) {
  event.preventDefault();
  const by = at("usage-by").value;
  const dimension = by === "metadata" ? `metadata.${at("usage-key").value}` : by;
  const place = at("usage-table");
  try {
    const answer = await ask(`/dashboard/usage?by=${encodeURIComponent(dimension)}`);
    const row = (name, line) => [name, count(line.jobs), count(line.attempts), count(line.prompt), count(line.cached), count(line.completion), count(line.reasoning), money(line.cost, answer.currency)];
    const rows = answer.lines.map((line) => row(line.keys[0] || "–", line));
    rows.push(row(word("total"), answer.total));
    const heads = [word(by), word("jobs"), word("calls"), word("promptTokens"), word("cached"), word("completionTokens"), word("reasoning"), word("cost")];
    place.replaceChildren(table(heads, rows, [1, 2, 3, 4, 5, 6, 7]), make("p", { className: "quiet" }, word("pricesOf", { date: answer.prices_of })));
  } catch (error) {
    place.replaceChildren(make("p", { className: "trouble" }, error.message));
  }
}

at("usage-form").addEventListener("submit", showUsage);
at("usage-by").addEventListener("change", () => {
  at("usage-key-label").hidden = at("usage-by").value !== "metadata";
});
at("language").addEventListener("click", () => {
  language.now = language.now === "ja" ? "en" : "ja";
  localStorage.setItem("language", language.now);
  // Words that were built in stay in the old language: begin anew.
  for (const id of ["batch-list", "deployment-list", "dead-letter-list", "usage-table"]) at(id).replaceChildren();
  speak();
  if (last) show();
  lookAtDeadLetters();
});
at("door-form").addEventListener("submit", (event) => {
  event.preventDefault();
  sessionStorage.setItem("token", at("token").value);
  at("token").value = "";
  at("door").close();
  begin();
});

async function begin() {
  await look();
  if (last) await lookAtDeadLetters();
}

speak();
await begin();
setInterval(() => document.hidden || at("door").open || look(), EVERY_MS);
setInterval(() => document.hidden || at("door").open || lookAtDeadLetters(), 5 * EVERY_MS);
