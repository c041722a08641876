// Markdown as models write it, to elements. Nothing is ever parsed as HTML: what looks like a tag is shown as text.

import { copyButton, element } from "./dom.js";

const SAFE_LINK = /^(https?:\/\/|mailto:)/i;
const FENCE = /^ {0,3}(`{3,}|~{3,})\s*([^\s`]*)[^`]*$/;
const ITEM = /^(\s*)([-*+]|\d{1,9}[.)])(?:\s+(.*)|$)/;
const RULE = /^ {0,3}([-*_])(?:\s*\1){2,}\s*$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*$/;
const TABLE_LINE = /^\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$/;
/// Lists and quotes inside each other, at most: text could otherwise be made to exhaust the stack.
const DEPTH_MAX = 12;

/// Shows `text` in `container`. Called again with more text, it leaves finished blocks alone.
export function renderMarkdown(container, text) {
  const blocks = splitBlocks(text.split("\n"));
  const shown = [...container.children];
  let same = 0;
  while (same < shown.length && same < blocks.length && shown[same].source === sourceOf(blocks[same])) same++;
  for (const old of shown.slice(same)) old.remove();
  for (const block of blocks.slice(same)) {
    const made = renderBlock(block, 0);
    made.source = sourceOf(block);
    container.append(made);
  }
}

function sourceOf(block) {
  return block.kind + "\n" + block.lines.join("\n") + (block.open ? "\n" : "");
}

/// Lines to blocks: `{kind, lines, …}`.
function splitBlocks(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    const line = lines[at];
    const fence = FENCE.exec(line);
    if (!line.trim()) {
      at++;
    } else if (fence) {
      const [block, next] = takeCode(lines, at, fence);
      blocks.push(block);
      at = next;
    } else if (HEADING.test(line)) {
      blocks.push({ kind: "heading", lines: [line] });
      at++;
    } else if (RULE.test(line)) {
      blocks.push({ kind: "rule", lines: [line] });
      at++;
    } else {
      const kind = kindAt(lines, at);
      const from = at++;
      while (at < lines.length && continues(kind, lines, at, from)) at++;
      const taken = lines.slice(from, at);
      while (!taken.at(-1).trim()) taken.pop();
      blocks.push({ kind, lines: taken });
    }
  }
  return blocks;
}

function kindAt(lines, at) {
  if (/^ {0,3}>/.test(lines[at])) return "quote";
  if (ITEM.test(lines[at])) return "list";
  if (lines[at].includes("|") && TABLE_LINE.test(lines[at + 1] ?? "")) return "table";
  return "paragraph";
}

/// Whether the line at `at` still belongs to a block of this kind.
function continues(kind, lines, at, from) {
  const line = lines[at];
  if (kind === "quote") return /^ {0,3}>/.test(line) || (line.trim() !== "" && kindAt(lines, at) === "paragraph");
  if (kind === "table") return line.includes("|");
  if (kind === "list") {
    if (!line.trim()) {
      const next = lines.slice(at).find((later) => later.trim());
      return next !== undefined && (/^\s/.test(next) || (ITEM.test(next) && sameList(lines[from], next)));
    }
    if (RULE.test(line)) return false;
    if (ITEM.test(line)) return /^\s/.test(line) || sameList(lines[from], line);
    return /^\s/.test(line) || (lines[at - 1].trim() !== "" && !FENCE.test(line) && !HEADING.test(line));
  }
  return line.trim() !== "" && !FENCE.test(line) && !HEADING.test(line) && !RULE.test(line) && kindAt(lines, at) === "paragraph";
}

function sameList(first, other) {
  const isOrdered = (line) => /\d/.test(ITEM.exec(line)?.[2] ?? "");
  return isOrdered(first) === isOrdered(other);
}

function takeCode(lines, at, [, mark, language]) {
  const closes = (line) => line.trim().startsWith(mark) && line.trim().split(mark[0]).join("") === "";
  let end = at + 1;
  while (end < lines.length && !closes(lines[end])) end++;
  const block = { kind: "code", language, lines: lines.slice(at, end), open: end >= lines.length };
  return [block, end + 1];
}

function renderBlock(block, depth) {
  const { kind, lines } = block;
  switch (kind) {
    case "code": return renderCode(lines.slice(1).join("\n"), block.language);
    case "rule": return element("hr");
    case "heading": {
      const [, marks, text] = HEADING.exec(lines[0]);
      // The page has its own first two levels.
      return element(`h${Math.min(marks.length + 2, 6)}`, {}, ...inline(text));
    }
    case "quote": return element("blockquote", {}, ...nested(lines.map((line) => line.replace(/^ {0,3}> ?/, "")), depth));
    case "list": return renderList(lines, depth);
    case "table": return renderTable(lines);
    default: return element("p", {}, ...inline(lines.map((line) => line.trimStart()).join("\n")));
  }
}

function nested(lines, depth) {
  if (depth >= DEPTH_MAX) return [element("p", {}, lines.join("\n"))];
  return splitBlocks(lines).map((block) => renderBlock(block, depth + 1));
}

export function renderCode(code, language) {
  return element("div", { className: "code" },
    element("div", { className: "code-head" }, element("span", {}, language || "text"), copyButton("Copy code", () => code)),
    element("pre", { tabIndex: 0 }, element("code", {}, code)));
}

function renderList(lines, depth) {
  const [, , firstMark] = ITEM.exec(lines[0]);
  const isOrdered = /\d/.test(firstMark);
  const list = element(isOrdered ? "ol" : "ul");
  if (isOrdered) list.start = parseInt(firstMark, 10);
  const base = lines[0].search(/\S/);
  let item = null;
  const items = [];
  for (const line of lines) {
    const match = ITEM.exec(line);
    if (match && match[1].length < base + 2) {
      item = { indent: line.length - line.trimStart().length + match[2].length + 1, lines: [match[3] ?? ""] };
      items.push(item);
    } else {
      const spaces = line.length - line.trimStart().length;
      item.lines.push(line.slice(Math.min(spaces, item.indent)));
    }
  }
  for (const { lines: own } of items) list.append(element("li", {}, ...tight(nested(own, depth))));
  return list;
}

/// An item that begins with a paragraph shows its text without one.
function tight(blocks) {
  const [first, ...rest] = blocks;
  return first?.tagName === "P" ? [...first.childNodes, ...rest] : blocks;
}

function renderTable(lines) {
  const cells = (line) => line.trim().replace(/^\||\|$/g, "").split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
  const align = cells(lines[1]).map((mark) =>
    mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : "left");
  const row = (tag, line) => element("tr", {}, ...cells(line).map((cell, at) =>
    element(tag, { data: { align: align[at] ?? "left" } }, ...inline(cell))));
  return element("div", { className: "table", tabIndex: 0 }, element("table", {},
    element("thead", {}, row("th", lines[0])),
    element("tbody", {}, ...lines.slice(2).map((line) => row("td", line)))));
}

/// Spans have a bound, so that unmatched marks cost no more than their number times it.
const INLINE = new RegExp([
  /(?<code>(?<ticks>`+)(?<codeText>[^]{0,4000}?[^`])\k<ticks>(?!`))/,
  /(?<escape>\\[\\`*_{}[\]()#+\-.!|~<>])/,
  /(?<strong>(?<mark>\*\*|__)(?=\S)(?<strongText>[^]{0,4000}?\S)\k<mark>)/,
  /(?<em>(?<![\w*])(?<emMark>[*_])(?=[^\s*_])(?<emText>[^]{0,4000}?[^\s*_])\k<emMark>(?![\w*]))/,
  /(?<strike>~~(?=\S)(?<strikeText>[^]{0,4000}?\S)~~)/,
  /(?<link>!?\[(?<linkText>[^\]\n]*)\]\((?<linkTarget>[^()\s]*(?:\([^()\s]*\)[^()\s]*)*)(?:\s+"[^"]*")?\))/,
  /(?<url>https?:\/\/[^\s<>"'`]*[^\s<>"'`.,;:!?)\]}*_])/,
  /(?<lineBreak>(?: {2,}|\\)?\n)/,
].map((part) => part.source).join("|"), "gu");

/// Text with emphasis, code and links, as nodes.
function inline(text, depth = 0) {
  if (depth >= DEPTH_MAX) return [text];
  const nodes = [];
  let at = 0;
  for (const match of text.matchAll(INLINE)) {
    if (match.index > at) nodes.push(text.slice(at, match.index));
    at = match.index + match[0].length;
    nodes.push(inlineNode(match, depth + 1));
  }
  if (at < text.length) nodes.push(text.slice(at));
  return nodes;
}

function inlineNode({ 0: whole, groups }, depth) {
  if (groups.code) return element("code", {}, groups.codeText.replace(/^ (.+) $/, "$1"));
  if (groups.escape) return groups.escape[1];
  if (groups.strong) return element("strong", {}, ...inline(groups.strongText, depth));
  if (groups.em) return element("em", {}, ...inline(groups.emText, depth));
  if (groups.strike) return element("del", {}, ...inline(groups.strikeText, depth));
  // A picture would be a request to somebody else: it becomes a link.
  if (groups.link) return link(groups.linkTarget, inline(groups.linkText || groups.linkTarget, depth), whole);
  if (groups.url) return link(groups.url, [groups.url], whole);
  return element("br");
}

/// A link out of the page; anything but the web and mail stays text.
function link(target, children, whole) {
  if (!SAFE_LINK.test(target)) return whole;
  return element("a", { href: target, target: "_blank", rel: "noopener noreferrer" }, ...children);
}
