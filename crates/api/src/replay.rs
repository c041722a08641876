//! The model's own tokens of replies that called a tool.
//!
//! A client sends a reply back as text, which the model may have spelt in other tokens than the tokenizer would choose,
//! and often without the reasoning. While a tool loop goes on, its requests must repeat the earlier replies token by
//! token: only then is their prefix found in the cache, and only then does the model see what it thought.

use std::collections::{BTreeMap, HashMap};
use std::hash::{DefaultHasher, Hash, Hasher};

use serde_json::Value;
use tandem_harmony::ToolCall;

/// Replies by what the client sees of them; the least recently used go first.
pub(crate) struct Replay {
    replies_max: usize,
    tokens_max: usize,
    tokens_held: usize,
    clock: u64,
    replies: HashMap<u64, Reply>,
    by_use: BTreeMap<u64, u64>,
}

struct Reply {
    tokens: Vec<u32>,
    used: u64,
}

impl Replay {
    /// Remembers at most so many replies, and so many tokens in all of them.
    pub(crate) fn new(replies_max: usize, tokens_max: usize) -> Self {
        let (replies, by_use) = (HashMap::new(), BTreeMap::new());
        Self { replies_max, tokens_max, tokens_held: 0, clock: 0, replies, by_use }
    }

    /// Remembers the tokens of a reply with these calls. The calls' ids are ours and unique, so they tell replies apart
    /// that say the same.
    pub(crate) fn remember(&mut self, content: &str, calls: &[ToolCall], tokens: Vec<u32>) {
        if calls.is_empty() || tokens.len() > self.tokens_max || self.replies_max == 0 {
            return;
        }
        let key = key(content, calls);
        self.forget(key);
        self.clock += 1;
        self.tokens_held += tokens.len();
        self.by_use.insert(self.clock, key);
        self.replies.insert(key, Reply { tokens, used: self.clock });
        while self.replies.len() > self.replies_max || self.tokens_held > self.tokens_max {
            let Some((_, &oldest)) = self.by_use.first_key_value() else { break };
            self.forget(oldest);
        }
    }

    /// The tokens of the reply that the client sends back unchanged, if they are still known.
    pub(crate) fn recall(&mut self, content: &str, calls: &[ToolCall]) -> Option<Vec<u32>> {
        if calls.is_empty() {
            return None;
        }
        let key = key(content, calls);
        let reply = self.replies.get_mut(&key)?;
        self.clock += 1;
        self.by_use.remove(&reply.used);
        reply.used = self.clock;
        self.by_use.insert(self.clock, key);
        Some(reply.tokens.clone())
    }

    fn forget(&mut self, key: u64) {
        if let Some(reply) = self.replies.remove(&key) {
            self.by_use.remove(&reply.used);
            self.tokens_held -= reply.tokens.len();
        }
    }
}

fn key(content: &str, calls: &[ToolCall]) -> u64 {
    let mut hasher = DefaultHasher::new();
    content.hash(&mut hasher);
    for ToolCall { id, name, arguments } in calls {
        // Clients that parse the arguments write them back with other blanks.
        let parsed: Option<Value> = serde_json::from_str(arguments).ok();
        let arguments = parsed.map_or_else(|| arguments.clone(), |parsed| parsed.to_string());
        (id, name, arguments).hash(&mut hasher);
    }
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(id: &str) -> Vec<ToolCall> {
        vec![ToolCall { id: id.into(), name: "f".into(), arguments: "{}".into() }]
    }

    #[test]
    fn only_unchanged_replies_are_recalled() {
        let mut replay = Replay::new(8, 100);
        replay.remember("hm", &calls("a"), vec![1, 2, 3]);
        assert_eq!(replay.recall("hm", &calls("a")), Some(vec![1, 2, 3]));
        assert_eq!(replay.recall("ah", &calls("a")), None);
        assert_eq!(replay.recall("hm", &calls("b")), None);
        let respaced = vec![ToolCall { arguments: "{ }".into(), ..calls("a")[0].clone() }];
        assert!(replay.recall("hm", &respaced).is_some());
        let edited = vec![ToolCall { arguments: "{\"x\":1}".into(), ..calls("a")[0].clone() }];
        assert_eq!(replay.recall("hm", &edited), None);
    }

    #[test]
    fn the_least_recently_used_go_first() {
        let mut replay = Replay::new(2, 100);
        replay.remember("", &calls("a"), vec![1]);
        replay.remember("", &calls("b"), vec![2]);
        assert!(replay.recall("", &calls("a")).is_some());
        replay.remember("", &calls("c"), vec![3]);
        assert!(replay.recall("", &calls("b")).is_none());
        assert!(replay.recall("", &calls("a")).is_some());
    }

    #[test]
    fn tokens_are_bounded_too() {
        let mut replay = Replay::new(100, 10);
        for id in ["a", "b", "c"] {
            replay.remember("", &calls(id), vec![0; 4]);
        }
        assert_eq!((replay.replies.len(), replay.tokens_held, replay.by_use.len()), (2, 8, 2));
        replay.remember("", &calls("big"), vec![0; 11]);
        assert!(replay.recall("", &calls("big")).is_none());
        replay.remember("", &calls("c"), vec![0; 10]);
        assert_eq!((replay.replies.len(), replay.tokens_held), (1, 10));
    }
}
