// The real program, started for a test.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const REPOSITORY = fileURLToPath(new URL("../..", import.meta.url));
const TANDEM = process.env.TEST_TANDEM ?? join(REPOSITORY, "target/release/tandem");
const READY_TIMEOUT_MS = 300_000;

/// Runs `tandem` to its end; its standard output.
export async function tandem(...args) {
  const child = spawn(TANDEM, args, { stdio: ["ignore", "pipe", "inherit"] });
  let out = "";
  child.stdout.on("data", (data) => { out += data; });
  const [code] = await once(child, "close");
  if (code !== 0) throw new Error(`tandem ${args.join(" ")} ended with code ${code}`);
  return out;
}

/// `tandem serve` on a free port, once it is ready: `{url, stop}`.
export async function serve(...args) {
  const child = spawn(TANDEM, ["serve", "--port", "0", ...args], { stdio: ["ignore", "ignore", "pipe"] });
  let log = "";
  child.stderr.on("data", (data) => { log += data; });
  const ended = once(child, "exit");
  const deadline = Date.now() + READY_TIMEOUT_MS;
  const pause = () => new Promise((resolve) => setTimeout(resolve, 100));
  const check = () => {
    if (child.exitCode !== null || Date.now() > deadline) throw new Error(`the server is not ready:\n${log}`);
  };
  let url;
  while (!(url = /http:\/\/[0-9.]+:[0-9]+/.exec(log)?.[0])) { check(); await pause(); }
  while (!(await fetch(`${url}/ready`).catch(() => ({}))).ok) { check(); await pause(); }
  return { url, stop: () => { child.kill("SIGKILL"); return ended; } };
}

/// A new folder for temporary files.
export function folder() {
  return mkdtempSync(join(tmpdir(), "tandem-"));
}
