// The chat page: which conversation is shown, and what happens when something is typed or pressed.

import { element, fill, iconButton } from "./dom.js";
import { renderMarkdown } from "./markdown.js";
import { Answer, userMessage } from "./message.js";
import { ServerError, get, stream } from "./server.js";
import * as store from "./conversations.js";

const $ = (id) => document.getElementById(id);
const EXAMPLE_TOOL = [{
  type: "function",
  function: {
    name: "get_weather",
    description: "The weather in a city now",
    parameters: { type: "object", properties: { city: { type: "string" } }, required: ["city"] },
  },
}];
const SUGGESTIONS = ["Tell me a short story.", "Explain how a bicycle stays upright.", "Write a haiku about autumn.", "Compare two ways to sort a list."];
const DEMO_SUGGESTIONS = ["What is Tandem?", "What is 12 + 30?", "How many times does r occur in strawberry?", "Tell me a short story."];
const NUMBERS = ["temperature", "top_p", "top_k", "min_p", "max_tokens", "seed"];
const NEAR_END_PX = 80;
const TOAST_MS = 6000;

let conversation = store.newConversation();
let settings = store.settings();
let model = null;
/// The answer that is being written: `{controller, conversation}`.
let running = null;

// --- what is shown ---

function show() {
  const { messages } = conversation;
  const results = new Map(messages.filter((message) => message.role === "tool").map((message) => [message.callId, message.content]));
  const last = messages.findLastIndex((message) => message.role === "assistant");
  const nodes = messages.map((message, at) => {
    if (message.role === "tool") return null;
    if (message.role === "user") return userMessage(message, () => edit(at));
    const answer = new Answer(message, results, { retry: () => retry(at), respond });
    answer.show({ last: at === last });
    return answer.node;
  });
  $("messages").replaceChildren(...nodes.filter(Boolean));
  $("empty").hidden = messages.length > 0;
  $("title").textContent = conversation.title || "New conversation";
  document.title = conversation.title ? `${conversation.title} · Tandem` : "Tandem";
  showContext();
}

function showContext() {
  const usage = conversation.messages.findLast((message) => message.usage)?.usage;
  const used = usage ? usage.prompt_tokens + usage.completion_tokens : 0;
  const most = model?.max_model_len;
  $("context").hidden = !(used && most);
  if (!used || !most) return;
  fill($("context-meter"), used / most);
  $("context-text").textContent = `${used.toLocaleString()} of ${short(most)}`;
  $("context").title = `This conversation takes ${used.toLocaleString()} of the ${most.toLocaleString()} tokens that fit.`;
}

function short(count) {
  return count >= 10_000 ? `${Math.round(count / 1024)}k` : count.toLocaleString();
}

function showRunning() {
  $("stop").hidden = !running;
  $("send").hidden = Boolean(running);
  $("send").disabled = !$("input").value.trim();
}

async function showList() {
  const list = await store.all().catch(() => []);
  $("conversations").replaceChildren(...list.map(listEntry));
}

function listEntry(kept) {
  const open = element("button", { className: "open", type: "button", title: kept.title, onclick: () => select(kept) }, kept.title || "Untitled");
  const isCurrent = kept.id === conversation.id;
  if (isCurrent) open.setAttribute("aria-current", "true");
  const entry = element("li", { className: isCurrent ? "current" : "" }, open,
    iconButton("edit", `Rename “${kept.title}”`, () => rename(kept, entry)),
    iconButton("trash", `Delete “${kept.title}”`, () => forget(kept)));
  return entry;
}

function atEnd() {
  const { scrollHeight, scrollTop, clientHeight } = $("scroll");
  return scrollHeight - scrollTop - clientHeight < NEAR_END_PX;
}

function toEnd() {
  $("scroll").scrollTop = $("scroll").scrollHeight;
  $("to-end").hidden = true;
}

let toastTimer;
function toast(text, label, action) {
  const button = element("button", { type: "button", onclick: () => { action(); $("toast").hidden = true; } }, label ?? "");
  $("toast").replaceChildren(text, ...(label ? [button] : []));
  $("toast").hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { $("toast").hidden = true; }, TOAST_MS);
}

// --- conversations ---

function select(kept) {
  if (kept.id !== conversation.id) {
    running?.controller.abort();
    conversation = kept;
    show();
    toEnd();
    showList();
  }
  closeDrawer();
  $("input").focus();
}

function rename(kept, entry) {
  const input = element("input", { value: kept.title, "aria-label": "Name of the conversation", maxLength: 120 });
  let done = false;
  const end = async (save) => {
    if (done) return;
    done = true;
    if (save && input.value.trim()) {
      const target = kept.id === conversation.id ? conversation : kept;
      target.title = input.value.trim();
      await store.restore(structuredClone(target));
      if (target === conversation) show();
    }
    showList();
  };
  input.onblur = () => end(true);
  input.onkeydown = (event) => {
    if (event.key === "Enter") end(true);
    if (event.key === "Escape") { event.stopPropagation(); end(false); }
  };
  entry.replaceChildren(input);
  input.focus();
  input.select();
}

async function forget(kept) {
  if (running?.conversation.id === kept.id) running.controller.abort();
  await store.remove(kept.id);
  if (kept.id === conversation.id) {
    conversation = store.newConversation();
    show();
  }
  showList();
  toast("Conversation deleted.", "Undo", async () => {
    await store.restore(kept);
    showList();
  });
}

async function keep(kept) {
  try {
    await store.keep(kept);
  } catch {
    toast("The browser would not keep this conversation.");
  }
  showList();
}

// --- asking and answering ---

function ask(text) {
  conversation.messages.push({ role: "user", content: text });
  return answer();
}

function edit(at) {
  running?.controller.abort();
  $("input").value = conversation.messages[at].content;
  conversation.messages.length = at;
  show();
  grow();
  showRunning();
  $("input").focus();
}

function retry(at) {
  if (running) return;
  conversation.messages.length = at;
  answer();
}

function respond(call, text) {
  if (running) return;
  conversation.messages.push({ role: "tool", callId: call.id, content: text });
  const { calls } = conversation.messages.findLast((message) => message.role === "assistant");
  const answered = new Set(conversation.messages.map((message) => message.callId));
  if (calls.every(({ id }) => answered.has(id))) answer();
  else show();
}

/// Has the model go on with the conversation.
async function answer() {
  const own = conversation;
  const message = { role: "assistant", reasoning: "", content: "", calls: [] };
  const request = requestFor(own);
  own.messages.push(message);
  show();
  const view = new Answer(message, new Map(), {});
  $("messages").lastElementChild.replaceWith(view.node);
  view.show("running");
  toEnd();
  const current = { controller: new AbortController(), conversation: own };
  running = current;
  showRunning();
  $("announcer").textContent = "The model is answering.";
  await keep(own);
  await receive(message, request, current.controller.signal, redrawer(view, own));
  if (running === current) running = null;
  if (conversation === own) {
    const follow = atEnd();
    show();
    if (follow) toEnd();
  }
  showRunning();
  $("announcer").textContent = message.error ?? (message.content ? `The model said: ${message.content}` : "The model has answered.");
  await keep(own);
}

/// Draws at most once a frame, and follows the text unless the reader has scrolled away.
function redrawer(view, own) {
  let planned = false;
  return () => {
    if (planned || conversation !== own) return;
    planned = true;
    requestAnimationFrame(() => {
      planned = false;
      if (running?.conversation !== own || conversation !== own) return;
      const follow = atEnd();
      view.show("running");
      if (follow) toEnd();
      else $("to-end").hidden = false;
    });
  };
}

/// Streams the reply to `request` into `message`.
async function receive(message, request, signal, redraw) {
  const started = performance.now();
  let first = 0;
  try {
    await stream("/v1/chat/completions", request, signal, (event) => {
      const now = performance.now();
      if (event.usage) message.usage = event.usage;
      const [choice] = event.choices;
      if (!choice) return;
      const { reasoning, content, tool_calls: calls } = choice.delta;
      if ((reasoning || content || calls) && !first) {
        first = now;
        message.firstMs = now - started;
      }
      if (first) message.decodeMs = now - first;
      if (reasoning) message.reasoning += reasoning;
      if ((content || calls) && message.reasoning && !message.thinkingMs) message.thinkingMs = now - first;
      if (content) message.content += content;
      for (const call of calls ?? []) addCall(message, call);
      if (choice.finish_reason) message.finish = choice.finish_reason;
      redraw();
    });
  } catch (error) {
    if (error.name === "AbortError") message.finish = "stopped";
    else if (error instanceof ServerError) message.error = error.message;
    else {
      message.error = "The page could not read the answer.";
      console.error(error);
    }
  }
}

function addCall(message, { index, id, function: part }) {
  const call = (message.calls[index] ??= { id: "", name: "", arguments: "" });
  if (id) call.id = id;
  if (part?.name) call.name += part.name;
  if (part?.arguments) call.arguments += part.arguments;
}

function requestFor({ messages }) {
  const request = {
    model: model?.id,
    messages: [],
    reasoning_effort: settings.effort,
    stream: true,
    stream_options: { include_usage: true },
  };
  if (settings.system.trim()) request.messages.push({ role: "system", content: settings.system });
  for (const message of messages) request.messages.push(...asSent(message));
  for (const name of NUMBERS) {
    if (typeof settings[name] === "number") request[name] = settings[name];
  }
  const tools = settings.tools.trim() ? JSON.parse(settings.tools) : [];
  if (tools.length) request.tools = tools;
  return request;
}

/// A message as the server takes it; an answer that failed before it began is left out.
function asSent({ role, content, callId, reasoning, calls }) {
  if (role === "tool") return [{ role, tool_call_id: callId, content }];
  if (role === "user") return [{ role, content }];
  if (!content && !calls.length) return [];
  const sent = { role, content: content || (calls.length ? null : "") };
  if (calls.length) {
    sent.reasoning = reasoning;
    sent.tool_calls = calls.map(({ id, name, arguments: text }) => ({ id, type: "function", function: { name, arguments: text } }));
  }
  return [sent];
}

// --- settings ---

function fillSettings() {
  const { elements } = $("settings").querySelector("form");
  for (const name of ["system", "tools", ...NUMBERS]) elements[name].value = settings[name] ?? "";
  $("settings-error").textContent = "";
}

/// Takes over what is typed in the settings; a sentence where that cannot be.
function readSettings() {
  const { elements } = $("settings").querySelector("form");
  const read = { system: elements.system.value, tools: elements.tools.value };
  for (const name of NUMBERS) {
    const field = elements[name];
    field.removeAttribute("aria-invalid");
    if (!field.checkValidity()) {
      field.setAttribute("aria-invalid", "true");
      field.focus();
      return `${field.parentElement.querySelector("span").textContent}: ${field.validationMessage}`;
    }
    read[name] = field.value === "" ? null : Number(field.value);
  }
  try {
    if (read.tools.trim() && !Array.isArray(JSON.parse(read.tools))) return "Tools: expected a JSON array, like [].";
  } catch (error) {
    return `Tools: ${error.message}`;
  }
  store.keepSettings(read);
  settings = store.settings();
  return "";
}

// --- wiring ---

function grow() {
  const input = $("input");
  input.style.height = "auto";
  input.style.height = `${input.scrollHeight}px`;
}

function submit() {
  const text = $("input").value.trim();
  if (!text || running) return;
  $("input").value = "";
  grow();
  ask(text);
}

function startNew() {
  running?.controller.abort();
  conversation = store.newConversation();
  show();
  showList();
  closeDrawer();
  $("input").focus();
}

function openDrawer() {
  $("drawer").classList.add("open");
  $("drawer-shade").hidden = false;
  $("close-drawer").focus();
}

function closeDrawer() {
  if ($("drawer").classList.contains("open")) $("open-drawer").focus();
  $("drawer").classList.remove("open");
  $("drawer-shade").hidden = true;
}

function onKey(event) {
  if (event.key === "Escape" && !document.querySelector("dialog[open]")) {
    if ($("drawer").classList.contains("open")) closeDrawer();
    else running?.controller.abort();
  } else if ((event.ctrlKey || event.metaKey) && event.shiftKey && event.key.toLowerCase() === "o") {
    event.preventDefault();
    startNew();
  } else if (event.key === "/" && !/^(INPUT|TEXTAREA)$/.test(document.activeElement.tagName)) {
    event.preventDefault();
    $("input").focus();
  }
}

function wire() {
  $("composer").onsubmit = (event) => { event.preventDefault(); submit(); };
  $("input").oninput = () => { grow(); showRunning(); };
  $("input").onkeydown = (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      submit();
    }
  };
  $("stop").onclick = () => running?.controller.abort();
  $("new-chat").onclick = startNew;
  $("open-drawer").onclick = openDrawer;
  $("close-drawer").onclick = closeDrawer;
  $("drawer-shade").onclick = closeDrawer;
  $("to-end").onclick = toEnd;
  $("scroll").onscroll = () => { if (atEnd()) $("to-end").hidden = true; };
  $("effort").onchange = (event) => {
    store.keepSettings({ effort: event.target.value });
    settings = store.settings();
  };
  $("open-settings").onclick = () => { fillSettings(); $("settings").showModal(); };
  $("settings").querySelector("form").onsubmit = (event) => {
    const problem = readSettings();
    $("settings-error").textContent = problem;
    if (problem) event.preventDefault();
  };
  $("reset-settings").onclick = () => {
    for (const name of ["system", "tools", ...NUMBERS]) $("settings").querySelector(`[name=${name}]`).value = "";
  };
  $("example-tool").onclick = () => {
    $("settings").querySelector("[name=tools]").value = JSON.stringify(EXAMPLE_TOOL, null, 2);
  };
  document.addEventListener("keydown", onKey);
}

function suggest() {
  const list = model?.notice ? DEMO_SUGGESTIONS : SUGGESTIONS;
  $("suggestions").replaceChildren(...list.map((text) =>
    element("button", { className: "button", type: "button", onclick: () => { if (!running) ask(text); } }, text)));
}

async function meetModel() {
  try {
    [model] = (await get("/v1/models")).data;
  } catch (error) {
    toast(error.message, "Try again", meetModel);
    return;
  }
  $("model").textContent = model.id;
  renderMarkdown($("notice"), model.notice ?? "");
  $("notice").hidden = !model.notice;
  suggest();
  showContext();
}

wire();
document.querySelector(`#effort [value=${["low", "high"].includes(settings.effort) ? settings.effort : "medium"}]`).checked = true;
show();
showRunning();
showList();
$("input").focus();
meetModel();
