// The chat page, used as people use it, against the demonstration model. Where a test needs exact words it feeds the
// page a stream of its own and says so.

import assert from "node:assert/strict";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { DESKTOP, PHONE, assertUsable, close, launch, open, picture } from "./browser.js";
import { folder, serve, tandem } from "./server.js";

let browser, server;

before(async () => {
  [browser, server] = await Promise.all([launch(), serve()]);
});

after(async () => {
  await browser?.close();
  await server?.stop();
});

async function ask(page, text) {
  const before = await page.locator(".message.assistant .stats").count();
  await page.fill("#input", text);
  await page.keyboard.press("Enter");
  await page.waitForFunction((count) => document.querySelectorAll(".message.assistant .stats").length > count, before);
}

const answers = (page) => page.locator(".message.assistant .prose").allInnerTexts();

/// Has every answer go on until it is stopped.
async function endless(page) {
  await page.route("**/v1/chat/completions", (route) => {
    const request = { ...route.request().postDataJSON(), ignore_eos: true };
    return route.continue({ postData: JSON.stringify(request) });
  });
}

/// Has the next answer consist of these deltas, whatever the model would say.
async function scripted(page, ...deltas) {
  const events = deltas.map((delta) => ({ choices: [{ index: 0, delta, finish_reason: null }] }));
  events.push({ choices: [{ index: 0, delta: {}, finish_reason: "stop" }] });
  events.push({ choices: [], usage: { prompt_tokens: 7, completion_tokens: deltas.length } });
  const body = events.map((event) => `data: ${JSON.stringify(event)}\n\n`).join("") + "data: [DONE]\n\n";
  await page.route("**/v1/chat/completions", (route) => route.fulfill({ contentType: "text/event-stream", body }), { times: 1 });
}

async function requestsRunning() {
  const metrics = await (await fetch(`${server.url}/metrics`)).text();
  return Number(/^tandem_num_requests_running\{.*\} (\d+)$/m.exec(metrics)[1]);
}

test("an answer streams in, its thoughts folded, with figures", async () => {
  const page = await open(browser, server.url);
  assert.match(await page.locator("#notice").innerText(), /demonstration/);
  await ask(page, "What is Tandem?");
  assert.ok((await answers(page))[0].length > 10);
  const reasoning = page.locator(".reasoning");
  assert.equal(await reasoning.getAttribute("open"), null);
  assert.equal(await page.locator(".thoughts").isVisible(), false);
  await reasoning.locator("summary").click();
  assert.ok((await page.locator(".thoughts").innerText()).length > 3);
  assert.match(await page.locator(".stats").innerText(), /\d+ tokens · [\d.]+ tokens\/s · [\d.]+ s to the first/);
  assert.match(await page.locator("#context-text").innerText(), /^\d+ of /);
  await assertUsable(page);
  await close(page);
});

test("conversations are kept, named, deleted and brought back", async () => {
  const page = await open(browser, server.url);
  await ask(page, "Tell me a short story.");
  const [story] = await answers(page);
  await page.click("#new-chat");
  assert.equal(await page.locator(".message").count(), 0);
  await ask(page, "What is 12 + 30?");
  await page.reload();
  const list = page.locator("#conversations .open");
  await list.nth(1).waitFor();
  assert.deepEqual(await list.allInnerTexts(), ["What is 12 + 30?", "Tell me a short story."]);
  await list.nth(1).click();
  assert.deepEqual(await answers(page), [story]);
  const entry = page.locator("#conversations li.current");
  await entry.getByRole("button", { name: /Rename/ }).click();
  await page.keyboard.type("A tale");
  await page.keyboard.press("Enter");
  await page.locator("#title", { hasText: "A tale" }).waitFor();
  await entry.getByRole("button", { name: /Delete/ }).click();
  await page.waitForFunction(() => document.querySelectorAll("#conversations li").length === 1);
  await page.getByRole("button", { name: "Undo" }).click();
  await page.waitForFunction(() => document.querySelectorAll("#conversations li").length === 2);
  await close(page);
});

test("an answer is stopped, which ends it on the server, and asked for again", async () => {
  const page = await open(browser, server.url);
  await endless(page);
  await page.fill("#input", "Tell me a short story.");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector(".prose")?.innerText.length > 20);
  assert.equal(await requestsRunning(), 1);
  await page.keyboard.press("Escape");
  await page.locator(".stats", { hasText: "stopped" }).or(page.locator(".message-actions .icon-button").last()).first().waitFor();
  assert.ok((await answers(page))[0].length > 20, "what was said stays");
  for (const deadline = Date.now() + 60_000; await requestsRunning(); ) assert.ok(Date.now() < deadline, "it still runs");
  await page.unroute("**/v1/chat/completions");
  await page.getByRole("button", { name: "Answer again" }).click();
  await page.locator(".stats", { hasText: "tokens/s" }).waitFor();
  assert.equal((await answers(page)).length, 1);
  await page.locator(".message.user").hover();
  await page.getByRole("button", { name: "Edit and ask again" }).click();
  assert.equal(await page.inputValue("#input"), "Tell me a short story.");
  assert.equal(await page.locator(".message").count(), 0);
  await close(page);
});

test("a tool is called, its result typed, and the answer goes on", async () => {
  const page = await open(browser, server.url);
  await page.click("#open-settings");
  await page.fill("[name=temperature]", "3");
  await page.getByRole("button", { name: "Done" }).click();
  assert.match(await page.locator("#settings-error").innerText(), /Temperature/);
  await page.fill("[name=temperature]", "0");
  await page.fill("[name=tools]", "{");
  await page.getByRole("button", { name: "Done" }).click();
  assert.match(await page.locator("#settings-error").innerText(), /Tools/);
  await page.click("#example-tool");
  await picture(page, "chat-settings");
  await page.getByRole("button", { name: "Done" }).click();
  await page.fill("#input", "What is the weather in Oslo?");
  await page.keyboard.press("Enter");
  const call = page.locator(".call");
  await call.locator("form").waitFor();
  assert.match(await call.innerText(), /get_weather[^]*Oslo/);
  await call.locator("textarea").fill('{"temperature": 4, "sky": "rain"}');
  await call.getByRole("button", { name: "Return" }).click();
  await page.waitForFunction(() => document.querySelectorAll(".message.assistant .stats").length === 2);
  assert.ok((await answers(page))[1].length > 5);
  await picture(page, "chat-tools");
  await close(page);
});

const HOSTILE = `<img src=x onerror="document.title='taken'"> <script>document.title='taken'</script>
[click](javascript:document.title='taken') ![pixel](https://elsewhere.example/pixel.png) [fine](https://example.com/a_b)`;

test("what the model writes is shown, never obeyed (a stream of the test's own)", async () => {
  const page = await open(browser, server.url);
  const [first, second] = [HOSTILE.slice(0, 40), HOSTILE.slice(40)];
  await scripted(page, { reasoning: "<b>hm</b>" }, { content: first }, { content: second });
  await ask(page, "<i>Hello</i>");
  const prose = page.locator(".prose");
  assert.match(await prose.innerText(), /<img src=x onerror=/);
  assert.match(await prose.innerText(), /<script>/);
  assert.match(await page.locator(".said").innerText(), /<i>Hello<\/i>/);
  assert.equal(await page.locator(".message :is(img, script, i, b, iframe)").count(), 0);
  assert.deepEqual(await prose.locator("a").evaluateAll((links) => links.map((link) => [link.href, link.rel])), [
    ["https://elsewhere.example/pixel.png", "noopener noreferrer"],
    ["https://example.com/a_b", "noopener noreferrer"],
  ]);
  assert.match(await page.title(), /^<i>Hello/);
  const refused = await page.evaluate(() => {
    try {
      document.createElement("p").innerHTML = "<b>";
      return false;
    } catch {
      return true;
    }
  });
  assert.ok(refused, "the policy forbids markup from text");
  page.faults = page.faults.filter((fault) => !fault.includes("TrustedHTML"));
  await close(page);
});

const MARKDOWN = `# Title

Some *emphasis*, **strength**, \`code\`, ~~not~~ and 2 * 3 * 4 with snake_case_names.

1. one
2. two
   - inner
   - deeper

> quoted

| name | count |
|:-----|------:|
| a \\| b | 10 |

\`\`\`python
print("<hi>")

# a comment
\`\`\`
Done.`;

test("markdown becomes elements, and code is copied (a stream of the test's own)", async () => {
  const page = await open(browser, server.url);
  await scripted(page, ...MARKDOWN.match(/[^]{1,7}/g).map((content) => ({ content })));
  await ask(page, "Show me");
  const count = (selector) => page.locator(`.prose ${selector}`).count();
  for (const [selector, expected] of Object.entries({
    h3: 1, em: 1, strong: 1, "p code": 1, del: 1, "ol > li": 2, "ol ul > li": 2, blockquote: 1, "tbody td": 2, pre: 1,
  })) assert.equal(await count(selector), expected, selector);
  assert.match(await page.locator(".prose").innerText(), /2 \* 3 \* 4 with snake_case_names/);
  assert.deepEqual(await page.locator(".prose td").allInnerTexts(), ["a | b", "10"]);
  await page.getByRole("button", { name: "Copy code" }).click();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), 'print("<hi>")\n\n# a comment');
  await page.getByRole("button", { name: "Copy answer" }).click();
  assert.equal(await page.evaluate(() => navigator.clipboard.readText()), MARKDOWN);
  await picture(page, "chat-markdown");
  await assertUsable(page);
  await close(page);
});

test("light and dark, as the system or the user wants it", async () => {
  for (const colorScheme of ["light", "dark"]) {
    const page = await open(browser, server.url, { ...DESKTOP, colorScheme });
    const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
    const systems = await ground();
    await ask(page, "What is Tandem?");
    await assertUsable(page);
    await picture(page, `chat-${colorScheme}`);
    await page.click("[data-action=theme]");
    const other = await ground();
    assert.notEqual(other, systems);
    await page.reload();
    assert.equal(await ground(), other);
    await page.click("[data-action=theme]");
    assert.equal(await ground(), systems);
    await close(page);
  }
});

test("on a phone", async () => {
  const page = await open(browser, server.url, PHONE);
  await page.locator("#suggestions button").first().tap();
  await page.locator(".stats").waitFor();
  await assertUsable(page);
  await picture(page, "chat-phone");
  assert.equal(await page.locator("nav").isVisible(), false);
  await page.tap("#open-drawer");
  await page.locator("#conversations li").waitFor();
  await page.waitForTimeout(300);
  await picture(page, "chat-phone-drawer");
  await page.locator("#new-chat").tap();
  await page.waitForFunction(() => !document.querySelector("nav").checkVisibility({ visibilityProperty: true }));
  await close(page);
});

test("with the keyboard alone", async () => {
  const page = await open(browser, server.url);
  await page.locator("#suggestions button").first().waitFor();
  await page.keyboard.type("What is 2 + 2?");
  await page.keyboard.press("Shift+Enter");
  await page.keyboard.type("Briefly.");
  await page.keyboard.press("Enter");
  await page.locator(".stats").waitFor();
  assert.equal(await page.locator(".said").innerText(), "What is 2 + 2?\nBriefly.");
  const reached = new Set();
  for (let presses = 0; presses < 40; presses++) {
    await page.keyboard.press("Tab");
    reached.add(await page.evaluate(() => document.activeElement.id || document.activeElement.getAttribute("aria-label") || document.activeElement.tagName));
  }
  for (const name of ["new-chat", "open-settings", "Copy answer", "Answer again", "input", "SUMMARY", "Light or dark"]) {
    assert.ok(reached.has(name), `${name} is not among ${[...reached]}`);
  }
  await page.keyboard.press("Control+Shift+O");
  assert.equal(await page.locator(".message").count(), 0);
  await close(page);
});

test("a server with keys is asked for with one, which is kept", async () => {
  const keys = join(folder(), "keys.toml");
  const key = (await tandem("key", "add", "browser", "--api-keys", keys)).trim();
  const locked = await serve("--api-keys", keys);
  try {
    const page = await open(browser, locked.url);
    const input = page.locator("#key-dialog input");
    await input.waitFor();
    await input.fill("sk-tandem-wrong");
    await page.keyboard.press("Enter");
    await page.locator("#key-dialog .error-text", { hasText: "does not know" }).waitFor();
    await input.fill(key);
    await page.keyboard.press("Enter");
    await page.locator("#suggestions button").first().waitFor();
    await page.reload();
    await page.locator("#suggestions button").first().waitFor();
    await ask(page, "What is Tandem?");
    await close(page);
  } finally {
    await locked.stop();
  }
});

test("a server that is gone is said to be", async () => {
  const own = await serve();
  const page = await open(browser, own.url);
  await endless(page);
  await page.fill("#input", "Tell me a short story.");
  await page.keyboard.press("Enter");
  await page.waitForFunction(() => document.querySelector(".prose")?.innerText.length > 20);
  await own.stop();
  await page.locator(".failure", { hasText: "lost" }).waitFor();
  assert.ok((await answers(page))[0].length > 20, "what was said stays");
  await page.getByRole("button", { name: "Try again" }).click();
  await page.locator(".failure", { hasText: "does not answer" }).waitFor();
  await close(page);
});
