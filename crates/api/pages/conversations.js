// The conversations, kept in this browser's IndexedDB, and the settings, in its localStorage.

const DATABASE = "tandem";
const STORE = "conversations";
const SETTINGS = "tandem.settings";
const TITLE_CHARS = 60;

let database = null;

function open() {
  database ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(DATABASE, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return database;
}

async function run(mode, work) {
  const store = (await open()).transaction(STORE, mode).objectStore(STORE);
  const request = work(store);
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

/// A conversation with nothing in it; it is kept from its first message on.
export function newConversation() {
  return { id: crypto.getRandomValues(new Uint32Array(4)).join("-"), title: "", updated: Date.now(), messages: [] };
}

/// All conversations, the latest first.
export async function all() {
  return (await run("readonly", (store) => store.getAll())).sort((a, b) => b.updated - a.updated);
}

/// Keeps a conversation as it is now.
export function keep(conversation) {
  conversation.updated = Date.now();
  conversation.title ||= titleOf(conversation);
  return run("readwrite", (store) => store.put(structuredClone(conversation)));
}

/// Puts a conversation back as it was.
export function restore(conversation) {
  return run("readwrite", (store) => store.put(conversation));
}

/// Forgets a conversation.
export function remove(id) {
  return run("readwrite", (store) => store.delete(id));
}

function titleOf({ messages }) {
  const first = messages.find((message) => message.role === "user")?.content.trim().replace(/\s+/g, " ") ?? "";
  return first.length > TITLE_CHARS ? `${first.slice(0, TITLE_CHARS).trimEnd()}…` : first;
}

/// What the user has set, over what is set otherwise.
export function settings() {
  try {
    return { effort: "medium", system: "", tools: "", ...JSON.parse(localStorage.getItem(SETTINGS) ?? "{}") };
  } catch {
    return { effort: "medium", system: "", tools: "" };
  }
}

/// Keeps settings.
export function keepSettings(changed) {
  localStorage.setItem(SETTINGS, JSON.stringify({ ...settings(), ...changed }));
}
