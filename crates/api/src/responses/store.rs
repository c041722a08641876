//! Responses that may be asked for again, or continued: so many, of so many bytes, for so long, by those who made them.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::sync::watch;

use crate::access::Caller;

/// What is remembered besides the text of an item: pointers to it and the names of things, roughly.
const OVERHEAD_BYTES: usize = 64;

/// Responses by id; the oldest go first.
pub(crate) struct ResponseStore {
    responses_max: usize,
    bytes_max: usize,
    age_max: Duration,
    responses: HashMap<String, Stored>,
    by_age: VecDeque<String>,
    /// Bytes of everything that is stored. Items belong to a response and all its successors, so they count for as long
    /// as any of these is there.
    bytes: Arc<AtomicUsize>,
}

/// A response, and the conversation that it ends.
pub(super) struct Stored {
    /// The response as JSON.
    pub response: Text,
    /// The items of the whole conversation, from its first response on.
    pub items: Vec<Arc<Text>>,
    /// Which of them were this response's input.
    pub input: Range<usize>,
    /// Who asked for it, and may ask for it again.
    owner: Caller,
    /// Ends the response while it is computed in the background.
    pub running: Option<Running>,
    since: Instant,
    _pointers: Weight,
}

/// JSON that is stored. It is kept as text, whose size is known.
pub(super) struct Text {
    json: String,
    _weight: Weight,
}

/// Raised when the response need not be computed any further: it was cancelled, or nobody can ask for it any more.
pub(super) struct Running(watch::Sender<bool>);

struct Weight {
    bytes: usize,
    all: Arc<AtomicUsize>,
}

impl ResponseStore {
    /// An empty store with these limits.
    pub(crate) fn new(responses_max: usize, bytes_max: usize, age_max: Duration) -> Self {
        let (responses, by_age, bytes) = (HashMap::new(), VecDeque::new(), Arc::default());
        Self { responses_max, bytes_max, age_max, responses, by_age, bytes }
    }

    /// Text that counts as stored while it exists.
    pub(super) fn text(&self, value: &Value) -> Text {
        let json = value.to_string();
        Text { _weight: self.weight(json.len() + OVERHEAD_BYTES), json }
    }

    /// Stores a response under a new id.
    pub(super) fn insert(
        &mut self,
        id: String,
        owner: Caller,
        response: &Value,
        items: Vec<Arc<Text>>,
        input: Range<usize>,
        running: Option<Running>,
    ) {
        let _pointers = self.weight(items.len() * size_of::<Arc<Text>>());
        let response = self.text(response);
        let stored = Stored { response, items, input, owner, running, since: Instant::now(), _pointers };
        self.responses.insert(id.clone(), stored);
        self.by_age.push_back(id);
        self.trim();
    }

    /// Puts a response in place of what is stored under its id, if it is still there and still running. It is as old as
    /// before.
    pub(super) fn update(&mut self, id: &str, response: &Value, output: Vec<Arc<Text>>, ended: bool) {
        let response = self.text(response);
        let Some(stored) = self.responses.get_mut(id).filter(|stored| stored.running.is_some()) else { return };
        stored.response = response;
        stored.items.extend(output);
        if ended {
            stored.running = None;
        }
        self.trim();
    }

    /// The response of that id, if it is still there and the caller's.
    pub(super) fn get(&mut self, id: &str, caller: Caller) -> Option<&Stored> {
        self.trim();
        self.responses.get(id).filter(|stored| stored.owner == caller)
    }

    /// Forgets a response of the caller's. Returns whether it was there.
    pub(super) fn remove(&mut self, id: &str, caller: Caller) -> bool {
        if self.get(id, caller).is_none() {
            return false;
        }
        self.by_age.retain(|other| other != id);
        self.responses.remove(id).is_some()
    }

    /// The output item of that id among all responses of the caller's.
    pub(super) fn item(&mut self, id: &str, caller: Caller) -> Option<Value> {
        self.trim();
        let quoted = Value::from(id).to_string();
        let own = self.responses.values().filter(|stored| stored.owner == caller);
        own.flat_map(|stored| &stored.items).find_map(|text| {
            let value = text.json.contains(&quoted).then(|| text.value())?;
            (value["id"] == id).then_some(value)
        })
    }

    /// Drops what is too old or too much.
    fn trim(&mut self) {
        while let Some(oldest) = self.by_age.front() {
            let expired = self.responses.get(oldest).is_none_or(|stored| stored.since.elapsed() > self.age_max);
            let too_much =
                self.responses.len() > self.responses_max || self.bytes.load(Ordering::Relaxed) > self.bytes_max;
            if !expired && !too_much {
                break;
            }
            self.responses.remove(oldest);
            self.by_age.pop_front();
        }
    }

    fn weight(&self, bytes: usize) -> Weight {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        Weight { bytes, all: self.bytes.clone() }
    }
}

impl Text {
    /// The JSON.
    pub(super) fn value(&self) -> Value {
        // It was written by us, from a value.
        serde_json::from_str(&self.json).unwrap_or_default()
    }
}

impl Running {
    /// A flag for the computation of a response, and what raises it.
    pub(super) fn new() -> (Self, watch::Receiver<bool>) {
        let (sender, receiver) = watch::channel(false);
        (Self(sender), receiver)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.0.send_replace(true);
    }
}

impl Drop for Weight {
    fn drop(&mut self) {
        self.all.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn store(responses_max: usize, bytes_max: usize) -> ResponseStore {
        ResponseStore::new(responses_max, bytes_max, Duration::from_secs(3600))
    }

    /// Stores a response that goes on from `previous` with one more item of so many bytes.
    fn put(store: &mut ResponseStore, id: &str, previous: Option<&str>, bytes: usize) {
        let mut items = previous
            .and_then(|id| store.get(id, Caller::default()))
            .map(|stored| stored.items.clone())
            .unwrap_or_default();
        items.push(Arc::new(store.text(&json!({"id": format!("item_{id}"), "text": "x".repeat(bytes)}))));
        let input = items.len() - 1..items.len();
        store.insert(id.to_string(), Caller::default(), &json!({"id": id}), items, input, None);
    }

    #[test]
    fn the_oldest_go_first() {
        let mut store = store(2, 1 << 20);
        for id in ["a", "b", "c"] {
            put(&mut store, id, None, 10);
        }
        assert!(
            store.get("a", Caller::default()).is_none()
                && store.get("b", Caller::default()).is_some()
                && store.get("c", Caller::default()).is_some()
        );
        assert!(store.remove("b", Caller::default()) && !store.remove("b", Caller::default()));
        assert_eq!(store.by_age.len(), 1);
    }

    #[test]
    fn bytes_are_bounded_however_conversations_go_on() {
        let mut store = store(1000, 100_000);
        let mut previous: Option<String> = None;
        for turn in 0..200 {
            let id = format!("r{turn}");
            put(&mut store, &id, previous.as_deref(), 1000);
            assert!(store.bytes.load(Ordering::Relaxed) <= 100_000);
            previous = store.get(&id, Caller::default()).is_some().then_some(id);
        }
        store.responses.clear();
        assert_eq!(store.bytes.load(Ordering::Relaxed), 0, "whatever counts is given back");
    }

    #[test]
    fn a_response_that_is_too_large_is_not_kept() {
        let mut store = store(1000, 1000);
        put(&mut store, "a", None, 10_000);
        assert!(store.get("a", Caller::default()).is_none());
        put(&mut store, "b", None, 10);
        assert!(store.get("b", Caller::default()).is_some());
    }

    #[test]
    fn age_is_bounded() {
        let mut store = ResponseStore::new(10, 1 << 20, Duration::ZERO);
        put(&mut store, "a", None, 10);
        std::thread::sleep(Duration::from_millis(2));
        assert!(store.get("a", Caller::default()).is_none());
    }

    #[test]
    fn items_are_found_by_their_ids() {
        let mut store = store(10, 1 << 20);
        put(&mut store, "a", None, 10);
        assert_eq!(store.item("item_a", Caller::default()).unwrap()["id"], "item_a");
        assert!(store.item("item", Caller::default()).is_none());
    }

    #[test]
    fn what_nobody_can_ask_for_any_more_is_not_computed() {
        let mut store = store(1, 1 << 20);
        let (running, flag) = Running::new();
        store.insert("a".into(), Caller::default(), &json!({}), Vec::new(), 0..0, Some(running));
        assert!(!*flag.borrow());
        put(&mut store, "b", None, 10);
        assert!(*flag.borrow());
    }
}
