// The status page: what `/status.json` says, asked for every second.

import { element, fill } from "./dom.js";
import { get } from "./server.js";

const $ = (id) => document.getElementById(id);
const INTERVAL_MS = 1000;
const HUES = 8;
const SVG = "http://www.w3.org/2000/svg";
const LATENCIES = [
  ["time_to_first_token", "Time to the first token"],
  ["inter_token", "Between two tokens"],
  ["request", "Whole request"],
  ["queue", "In the queue"],
];

let lastSeen = null;
let watching = true;

async function refresh() {
  if (document.hidden) return;
  try {
    show(await get("/status.json"));
    lastSeen = new Date();
    $("gone").hidden = true;
    $("main").classList.remove("stale");
  } catch (error) {
    if (error.status === 401) return showLocked(error);
    showGone(error);
  }
}

/// The user would not give a key: they are not asked again every second.
function showLocked({ message }) {
  watching = false;
  $("gone").textContent = `${message} Reload the page to enter one.`;
  $("gone").hidden = false;
  showState("trouble", "Locked");
}

function showGone(error) {
  const reason = error.status === undefined ? "The server does not answer as it should." : error.message;
  const seen = lastSeen ? ` The figures below are from ${lastSeen.toLocaleTimeString()}.` : "";
  const text = `${reason}${seen} Asking again every second.`;
  if ($("gone").textContent !== text) $("gone").textContent = text;
  $("gone").hidden = false;
  $("main").classList.add("stale");
  showState("trouble", "No answer");
}

function showState(kind, text) {
  $("state").className = `state ${kind}`;
  if ($("state").textContent !== text) $("state").textContent = text;
}

function show(status) {
  if (status.trouble) showState("trouble", `Stopped: ${status.trouble}`);
  else if (!status.model) showState("loading", "Loading the model");
  else if (status.degraded) showState("loading", `Ready, but ${status.degraded}`);
  else showState("ready", "Ready");
  $("about").textContent = [status.model?.names[0], `version ${status.version}`, `up ${duration(status.uptime_s)}`].filter(Boolean).join(" · ");
  showSpeed(status.speed);
  showEngine(status.engine);
  showCache(status.prefix_cache);
  $("latency").replaceChildren(...LATENCIES.map(([name, label]) => latencyRow(label, status.latency[name])));
  const nodes = status.nodes.map((node) => nodeCard(node, status));
  replaceIfChanged($("nodes"), nodes);
  $("totals").replaceChildren(...totals(status));
}

function showSpeed({ generated_per_s: generated, prompt_per_s: prompt, generated_history: history }) {
  $("generated").textContent = rate(generated);
  $("prompt").textContent = rate(prompt);
  const most = Math.max(...history, 1);
  const step = 300 / Math.max(history.length - 1, 1);
  const points = history.map((value, at) => `${(at * step).toFixed(1)},${(54 - 50 * value / most).toFixed(1)}`);
  $("spark-line").setAttribute("d", points.length > 1 ? `M${points.join("L")}` : "");
  $("spark-area").setAttribute("d", points.length > 1 ? `M0,56L${points.join("L")}L300,56Z` : "");
}

function showEngine(engine) {
  if (!engine) return;
  $("running").textContent = `${engine.running} of ${engine.max_streams}`;
  $("waiting").textContent = engine.waiting ? `${engine.waiting} more in the queue` : "computed at once; the queue is empty";
  $("kv").textContent = percent(engine.kv_usage);
  fill($("kv-meter"), engine.kv_usage);
  $("kv-tokens").textContent = `of room for ${engine.kv_tokens.toLocaleString()} tokens`;
}

function showCache({ queried_tokens: queried, hit_tokens: hits, hit_rate: share }) {
  $("hits").textContent = share === null ? "–" : percent(share);
  fill($("hits-meter"), share ?? 0);
  $("hit-tokens").textContent = `${count(hits)} of ${count(queried)} prompt tokens`;
}

function latencyRow(label, { count: number, p50_s, p90_s, p99_s }) {
  return element("tr", {}, element("th", { scope: "row" }, label),
    ...[p50_s, p90_s, p99_s].map((value) => element("td", {}, value === null ? "–" : seconds(value))),
    element("td", {}, number.toLocaleString()));
}

// Measured when the nodes connected.
function linkText(link) {
  if (!link) return "link: none";
  const rate = `${(link.bytes_per_s / 1e9).toFixed(2)} GB/s each way`;
  return `link: ${link.transport}; ${link.exchange_us.toFixed(1)} µs for a token's exchange, ${rate}`;
}

function nodeCard(node, status) {
  const planned = node.memory.reduce((sum, { bytes: size }) => sum + size, 0);
  const alone = status.nodes.length === 1 && !status.link ? "alone, so no link" : linkText(status.link);
  const resident = node.resident_bytes === null ? "" : `; ${bytes(node.resident_bytes)} resident`;
  return element("div", { className: "card" },
    element("div", { className: "node-head" }, element("h2", {}, node.name || "this machine"),
      element("span", {}, node.device), element("span", {}, node.formats), element("span", {}, alone)),
    memoryBar(node.memory, Math.max(node.budget_bytes, planned)),
    element("div", { className: "table", tabIndex: 0, role: "group", "aria-label": "Memory by purpose" }, element("table", {}, element("tbody", {},
      ...node.memory.map(({ purpose, bytes: size, note }, at) => element("tr", {},
        element("th", { scope: "row" }, element("span", { className: `swatch hue-${at % HUES}` }), purpose),
        element("td", {}, note), element("td", {}, bytes(size)))),
      element("tr", {}, element("th", { scope: "row" }, "All"),
        element("td", {}, `of ${bytes(node.budget_bytes)} that may be used${resident}`), element("td", {}, bytes(planned)))))));
}

function memoryBar(memory, total) {
  const bar = document.createElementNS(SVG, "svg");
  bar.setAttribute("class", "memory-bar");
  bar.setAttribute("viewBox", "0 0 1000 1");
  bar.setAttribute("preserveAspectRatio", "none");
  bar.setAttribute("aria-hidden", "true");
  let from = 0;
  memory.forEach(({ bytes: size }, at) => {
    const part = document.createElementNS(SVG, "rect");
    part.setAttribute("class", `hue-${at % HUES}`);
    part.setAttribute("x", String(from));
    part.setAttribute("width", String(1000 * size / total));
    part.setAttribute("height", "1");
    bar.append(part);
    from += 1000 * size / total;
  });
  return bar;
}

function totals({ engine, requests }) {
  const entries = [
    ["Answers complete", count(requests.stop)],
    ["Answers cut off by their budget", count(requests.length)],
    ["Ended by their clients", count(requests.aborted)],
    ["Failed", count(requests.failed)],
    ["Requests refused (4xx)", count(requests.refused)],
    ["Server errors (5xx)", count(requests.server_errors)],
  ];
  if (engine) {
    entries.push(["Tokens generated", count(engine.generated_tokens)], ["Prompt tokens computed", count(engine.prompt_tokens)],
      ["Requests that made room for others", count(engine.preemptions)], ["Steps of the model", count(engine.steps)]);
  }
  return entries.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
}

/// Replaces children only where their text differs, so that a reader's selection survives.
function replaceIfChanged(parent, nodes) {
  if (parent.textContent !== nodes.map((node) => node.textContent).join("")) parent.replaceChildren(...nodes);
}

const count = (value) => value.toLocaleString();
const percent = (share) => `${(share * 100).toFixed(share > 0 && share < 0.1 ? 1 : 0)} %`;
const rate = (value) => (value >= 100 ? Math.round(value).toLocaleString() : value.toFixed(1));
const seconds = (value) => (value < 1 ? `${(value * 1000).toFixed(value < 0.01 ? 1 : 0)} ms` : `${value.toFixed(value < 10 ? 2 : 1)} s`);
const bytes = (value) => (value < 1e9 ? `${(value / 1e6).toFixed(1)} MB` : `${(value / 1e9).toFixed(2)} GB`);

function duration(total) {
  const [days, hours, minutes] = [Math.floor(total / 86400), Math.floor(total / 3600) % 24, Math.floor(total / 60) % 60];
  if (days) return `${days} d ${hours} h`;
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min` : `${total} s`;
}

/// One request at a time: while the user is asked for a key, nothing else is.
async function watch() {
  while (watching) {
    await refresh();
    await new Promise((resolve) => setTimeout(resolve, INTERVAL_MS));
  }
}

watch();
