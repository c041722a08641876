// Talking to the server that this page came from: with a key where it wants one, and as a stream where it sends one.

const KEPT = "tandem.key";
/// How long a server may take to answer what it can answer at once.
const TIMEOUT_MS = 5000;

/// What the server says is wrong; `status` is 0 where it does not answer.
export class ServerError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/// The JSON at a path, if it comes in time.
export async function get(path) {
  return (await answer(path, {})).json();
}

/// Sends JSON and hands every event of the answer to `each`. Fails if the stream breaks off.
export async function stream(path, body, signal, each) {
  const response = await answer(path, {
    method: "POST", signal, headers: { "content-type": "application/json" }, body: JSON.stringify(body),
  });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let pending = "";
  for (;;) {
    const { value, done } = await reader.read().catch((error) => {
      throw error.name === "AbortError" ? error : new ServerError(0, "The connection to the server was lost.");
    });
    if (done) throw new ServerError(0, "The server ended the answer before it was complete.");
    const events = (pending + value).split("\n\n");
    pending = events.pop();
    for (const event of events) {
      if (!event.startsWith("data: ")) continue; // a comment that keeps the connection open
      const data = event.slice("data: ".length);
      if (data === "[DONE]") return;
      const parsed = JSON.parse(data);
      if (parsed.error) throw new ServerError(response.status, parsed.error.message);
      each(parsed);
    }
  }
}

/// A successful answer. Where the server wants a key, the user is asked for one.
async function answer(path, options) {
  for (let wrong = false; ; wrong = true) {
    const key = localStorage.getItem(KEPT);
    const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
    const signal = options.signal ?? AbortSignal.timeout(TIMEOUT_MS);
    const response = await fetch(path, { ...options, headers, signal }).catch((error) => {
      throw error.name === "AbortError" ? error : new ServerError(0, "The server does not answer.");
    });
    if (response.ok) return response;
    const message = await response.json().then((body) => body.error?.message, () => null);
    if (response.status !== 401) throw new ServerError(response.status, message ?? `The server said ${response.status}.`);
    const given = await askForKey(wrong || key ? "The server does not know this key." : "");
    if (given === null) throw new ServerError(401, "This server needs an API key.");
    localStorage.setItem(KEPT, given);
  }
}

let asking = null;

/// The key that the user types; null where they would rather not. Asked once, however many requests wait.
function askForKey(problem) {
  asking ??= new Promise((resolve) => {
    const dialog = document.getElementById("key-dialog");
    const input = dialog.querySelector("input");
    dialog.querySelector(".error-text").textContent = problem;
    input.value = "";
    dialog.onclose = () => {
      asking = null;
      resolve(dialog.returnValue === "ok" && input.value.trim() ? input.value.trim() : null);
    };
    dialog.querySelector("[data-action=cancel]").onclick = () => dialog.close("");
    dialog.returnValue = "";
    dialog.showModal();
  });
  return asking;
}
