// Debian's Chromium without a window, and what every page of ours must do in it.

import assert from "node:assert/strict";
import { mkdirSync } from "node:fs";
import { createRequire } from "node:module";
import { join } from "node:path";
import { REPOSITORY } from "./server.js";

const PICTURES = join(REPOSITORY, "target/browser/pictures");
const { chromium } = createRequire(join(REPOSITORY, "target/node/browser/package.json"))("playwright-core");
const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
/// Generous, as machines are busy.
const TIMEOUT_MS = 120_000;

export const DESKTOP = { viewport: { width: 1280, height: 820 } };
export const PHONE = { viewport: { width: 390, height: 800 }, hasTouch: true, isMobile: true };

export function launch() {
  return chromium.launch({ executablePath: "/usr/bin/chromium", args: FLAGS });
}

/// A page of a browser of its own, without memory of others. `page.faults` collects what must not happen: errors,
/// breaches of the content security policy, requests to anywhere else.
export async function open(browser, url, options = DESKTOP) {
  const context = await browser.newContext({ ...options, permissions: ["clipboard-read", "clipboard-write"] });
  context.setDefaultTimeout(TIMEOUT_MS);
  const page = await context.newPage();
  page.faults = [];
  page.on("pageerror", (error) => page.faults.push(error.message));
  page.on("console", (message) => {
    // A request that fails is told in the page, and tests look for it there.
    if (message.type() === "error" && !message.text().startsWith("Failed to load resource")) page.faults.push(message.text());
  });
  page.on("request", (request) => {
    if (new URL(request.url()).origin !== new URL(url).origin) page.faults.push(`a request to ${request.url()}`);
  });
  await page.goto(url);
  return page;
}

/// Ends a page that has behaved.
export async function close(page) {
  assert.deepEqual(page.faults, []);
  await page.context().close();
}

/// For whoever wants to look.
export async function picture(page, name) {
  mkdirSync(PICTURES, { recursive: true });
  await page.screenshot({ path: join(PICTURES, `${name}.png`) });
}

/// Nothing is wider than the screen, everything that can be used has a name, and text stands out from its ground.
export async function assertUsable(page) {
  const found = await page.evaluate(() => {
    const visible = (node) => node.checkVisibility({ visibilityProperty: true, opacityProperty: false });
    const nameless = [...document.querySelectorAll("button, a[href], input, textarea, meter")].filter((node) =>
      visible(node) && !(node.getAttribute("aria-label") || node.innerText?.trim() || node.labels?.length || node.title));
    const luminance = (colour) => {
      const canvas = new OffscreenCanvas(1, 1).getContext("2d");
      canvas.fillStyle = colour;
      canvas.fillRect(0, 0, 1, 1);
      const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((byte) => {
        const value = byte / 255;
        return value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
      });
      return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const ground = (node) => {
      for (let at = node; at; at = at.parentElement) {
        const colour = getComputedStyle(at).backgroundColor;
        if (!/^rgba\(.*, 0(\.\d+)?\)$|\/ 0?\.?\d*\)$/.test(colour) && colour !== "transparent") return colour;
      }
      return "white";
    };
    const faint = [...document.querySelectorAll("p, span, button, a, h1, h2, small, code, td, th, dt, dd")].filter((node) => {
      const ownText = [...node.childNodes].some((child) => child.nodeType === Node.TEXT_NODE && child.data.trim());
      if (!ownText || !visible(node) || node.disabled || node.closest(".visually-hidden")) return false;
      const [a, b] = [luminance(getComputedStyle(node).color), luminance(ground(node))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05) < 4.5;
    });
    const describe = (node) => `${node.tagName} ${node.id || node.className}: ${node.textContent.trim().slice(0, 40)}`;
    return {
      overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
      nameless: nameless.map(describe),
      faint: faint.map(describe),
    };
  });
  assert.deepEqual(found, { overflow: 0, nameless: [], faint: [] });
}
