// The status page, in front of the demonstration model at work.

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

/// Has the model write so many tokens; ends when it has.
async function work(tokens, abort) {
  const body = JSON.stringify({ prompt: "Once upon a time", max_tokens: tokens, ignore_eos: true });
  const answer = await fetch(`${server.url}/v1/completions`, { method: "POST", body, signal: abort?.signal });
  assert.equal(answer.status, 200);
}

test("it shows what the server does, live", async () => {
  await work(20);
  const page = await open(browser, `${server.url}/status`);
  await page.locator("#state", { hasText: "Ready" }).waitFor();
  assert.match(await page.locator("#about").innerText(), /tandem-demo · version/);
  assert.match(await page.locator("#running").innerText(), /^0 of \d+$/);
  assert.match(await page.locator("#nodes").innerText(), /experts[^]*MB[^]*All/);
  assert.match(await page.locator("#nodes").innerText(), /alone, so no link/);
  assert.equal(await page.locator("#latency tr").count(), 4);
  assert.match(await page.locator("#latency tr").first().innerText(), /ms|s/);
  const abort = new AbortController();
  const working = work(60_000, abort).catch((error) => assert.equal(error.name, "AbortError"));
  await page.waitForFunction(() => document.getElementById("running").textContent.startsWith("1 of"));
  await page.waitForFunction(() => Number(document.getElementById("generated").textContent) > 0);
  await page.waitForTimeout(2500);
  await picture(page, "status-light");
  await assertUsable(page);
  abort.abort();
  await working;
  await page.waitForFunction(() => document.getElementById("running").textContent.startsWith("0 of"));
  await close(page);
});

test("dark, and on a phone", async () => {
  for (const [name, options] of [["dark", { ...DESKTOP, colorScheme: "dark" }], ["phone", PHONE]]) {
    const page = await open(browser, `${server.url}/status`, options);
    await page.locator("#nodes .card").waitFor();
    await assertUsable(page);
    await picture(page, `status-${name}`);
    await close(page);
  }
});

test("a server that is gone is said to be, and one that comes back is shown again", async () => {
  const page = await open(browser, `${server.url}/status`);
  await page.locator("#state", { hasText: "Ready" }).waitFor();
  await page.route("**/status.json", (route) => route.abort());
  await page.locator("#gone", { hasText: "does not answer" }).waitFor();
  assert.match(await page.locator("#state").innerText(), /No answer/);
  await picture(page, "status-gone");
  await page.unroute("**/status.json");
  await page.locator("#state", { hasText: "Ready" }).waitFor();
  assert.equal(await page.locator("#gone").isVisible(), false);
  await close(page);
});

test("a server with keys is asked for with one, and not again by whoever has none", async () => {
  const keys = join(folder(), "keys.toml");
  const key = (await tandem("key", "add", "browser", "--api-keys", keys)).trim();
  const locked = await serve("--api-keys", keys);
  try {
    const page = await open(browser, `${locked.url}/status`);
    await page.getByRole("button", { name: "Cancel" }).click();
    await page.locator("#gone", { hasText: "API key" }).waitFor();
    await page.waitForTimeout(1500);
    assert.equal(await page.locator("#key-dialog").isVisible(), false);
    await page.reload();
    await page.locator("#key-dialog input").fill(key);
    await page.keyboard.press("Enter");
    await page.locator("#state", { hasText: "Ready" }).waitFor();
    await close(page);
  } finally {
    await locked.stop();
  }
});
