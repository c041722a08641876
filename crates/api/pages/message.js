// A message as it is shown. What a message holds is in `conversations.js`' keeping: text, thoughts, calls, figures.

import { copyButton, element, icon, iconButton } from "./dom.js";
import { renderMarkdown } from "./markdown.js";

/// Shows what the user said. `edit` takes it back into the message box.
export function userMessage(message, edit) {
  return element("article", { className: "message user", "aria-label": "You" },
    element("div", { className: "said" }, message.content),
    element("div", { className: "message-actions" },
      copyButton("Copy message", () => message.content),
      iconButton("edit", "Edit and ask again", edit)));
}

/// Shows what the model says, while it says it and afterwards.
export class Answer {
  /// `results` are the tools' answers to its calls, by call id; `actions` are `retry` and `respond(call, text)`.
  constructor(message, results, actions) {
    this.message = message;
    this.results = results;
    this.actions = actions;
    this.thoughts = element("div", { className: "thoughts" });
    this.summary = element("span");
    this.reasoning = element("details", { className: "reasoning" },
      element("summary", {}, icon("thought"), this.summary), this.thoughts);
    this.prose = element("div", { className: "prose" });
    this.waiting = element("span", { className: "waiting", role: "img", "aria-label": "The model is reading" });
    this.calls = element("div");
    this.foot = element("div");
    this.node = element("article", { className: "message assistant", "aria-label": "The model" },
      this.reasoning, this.waiting, this.prose, this.calls, this.foot);
  }

  /// Shows the message as it is now. `state` is `running`, or `ended` with whether it is the `last` one.
  show(state) {
    const { message } = this;
    const running = state === "running";
    const isThinking = running && message.reasoning && !message.content && !message.calls.length;
    this.waiting.hidden = !running || Boolean(message.reasoning || message.content || message.calls.length);
    this.reasoning.hidden = !message.reasoning;
    this.reasoning.classList.toggle("thinking", Boolean(isThinking));
    this.summary.textContent = isThinking ? "Thinking…" : thoughtFor(message);
    if (this.thoughts.textContent !== message.reasoning) this.thoughts.textContent = message.reasoning;
    renderMarkdown(this.prose, message.content);
    this.showCalls(running);
    this.foot.replaceChildren(...(running ? [] : this.footer(state)));
  }

  showCalls(running) {
    const shown = JSON.stringify([callsOf(this.message), [...this.results], running]);
    if (shown === this.shownCalls) return;
    this.shownCalls = shown;
    this.calls.replaceChildren(...this.message.calls.map((call) => this.call(call, running)));
  }

  call(call, running) {
    const result = this.results.get(call.id);
    const card = element("section", { className: "call", "aria-label": `Call of ${call.name}` },
      element("div", { className: "call-head" }, icon("tool"), element("span", {}, "Calls "), element("code", {}, call.name)),
      element("pre", { tabIndex: 0 }, pretty(call.arguments)));
    if (result !== undefined) {
      card.append(element("div", { className: "result" }, element("span", {}, "Result"), element("pre", { tabIndex: 0 }, pretty(result))));
    } else if (!running) {
      card.append(this.resultForm(call));
    }
    return card;
  }

  resultForm(call) {
    const input = element("textarea", { className: "input", rows: 1, placeholder: "What does it return?", "aria-label": `Result of ${call.name}` });
    const form = element("form", {}, input, element("button", { className: "button primary", type: "submit" }, "Return"));
    form.onsubmit = (event) => {
      event.preventDefault();
      this.actions.respond(call, input.value);
    };
    input.onkeydown = (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
        event.preventDefault();
        form.requestSubmit();
      }
    };
    return form;
  }

  footer({ last }) {
    const { message } = this;
    const parts = [];
    if (message.error) {
      parts.push(element("div", { className: "failure", role: "alert" }, element("span", {}, message.error),
        ...(last ? [element("button", { className: "button", type: "button", onclick: this.actions.retry }, "Try again")] : [])));
    }
    const actions = element("div", { className: "message-actions" });
    if (message.content) actions.append(copyButton("Copy answer", () => message.content));
    if (last && !message.error) actions.append(iconButton("retry", "Answer again", this.actions.retry));
    const figures = stats(message);
    if (figures) actions.append(element("span", { className: "stats" }, figures));
    if (actions.childElementCount) parts.push(actions);
    return parts;
  }
}

function callsOf({ calls }) {
  return calls.map(({ id, name, arguments: text }) => [id, name, text]);
}

function thoughtFor({ thinkingMs }) {
  return thinkingMs ? `Thought for ${seconds(thinkingMs)}` : "Thoughts";
}

/// `54 tokens · 31.2 tokens/s · 0.2 s to the first · stopped`
function stats({ usage, firstMs, decodeMs, finish }) {
  const parts = [];
  if (usage) {
    parts.push(`${usage.completion_tokens.toLocaleString()} tokens`);
    if (usage.completion_tokens > 1 && decodeMs > 0) {
      parts.push(`${((usage.completion_tokens - 1) / decodeMs * 1000).toFixed(1)} tokens/s`);
    }
  }
  if (usage && firstMs) parts.push(`${seconds(firstMs)} to the first`);
  if (finish === "length") parts.push("cut off: no room for more");
  if (finish === "stopped") parts.push("stopped");
  return parts.join(" · ");
}

function seconds(ms) {
  return ms < 9950 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`;
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}
