//! Compiled grammars, shared by all requests of the process.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};

use llguidance::Matcher;

use crate::content::{Content, ContentError, compile_header};

/// Grammars kept, least recently used first to go: about a megabyte each, by and large.
const KEPT_MAX: usize = 64;

#[derive(Clone, PartialEq, Eq, Hash)]
enum Key {
    /// A [`Content`] as JSON.
    Content(String),
    Header(String),
}

#[derive(Default)]
struct Cache {
    clock: u64,
    /// Matchers before their first token, and when each was used.
    kept: HashMap<Key, (Matcher, u64)>,
}

static CACHE: LazyLock<Mutex<Cache>> = LazyLock::new(Mutex::default);
/// One grammar is compiled at a time: requests with costly schemas wait for each other, not everybody for them.
static COMPILING: Mutex<()> = Mutex::new(());

/// A fresh matcher of a content. It shares nothing with others that could make one request's cost another's.
pub(crate) fn content(content: &Content) -> Result<Matcher, ContentError> {
    let text = serde_json::to_string(content).map_err(|error| ContentError::new("", error.to_string()))?;
    matcher(Key::Content(text), || content.compile())
}

/// A fresh matcher of a header's grammar.
pub(crate) fn header(grammar: String) -> Result<Matcher, ContentError> {
    matcher(Key::Header(grammar.clone()), || compile_header(&grammar))
}

fn matcher(key: Key, compile: impl FnOnce() -> Result<Matcher, ContentError>) -> Result<Matcher, ContentError> {
    if let Some(known) = look_up(&key) {
        return Ok(known);
    }
    let _turn = COMPILING.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(known) = look_up(&key) {
        return Ok(known);
    }
    let compiled = compile()?;
    keep(key, compiled.deep_clone());
    Ok(compiled)
}

fn look_up(key: &Key) -> Option<Matcher> {
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    cache.clock += 1;
    let now = cache.clock;
    let (matcher, used) = cache.kept.get_mut(key)?;
    *used = now;
    Some(matcher.deep_clone())
}

fn keep(key: Key, matcher: Matcher) {
    let mut cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if cache.kept.len() >= KEPT_MAX {
        let oldest = cache.kept.iter().min_by_key(|(_, (_, used))| *used).map(|(key, _)| key.clone());
        oldest.and_then(|key| cache.kept.remove(&key));
    }
    cache.clock += 1;
    let now = cache.clock;
    cache.kept.insert(key, (matcher, now));
}
