//! Names for requests, replies and tool calls.

use std::hash::{BuildHasher, RandomState};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// 64 bits that differ from call to call and from process to process. Not for secrets.
pub(crate) fn unique() -> u64 {
    static KEYS: OnceLock<RandomState> = OnceLock::new();
    static COUNT: AtomicU64 = AtomicU64::new(0);
    KEYS.get_or_init(RandomState::new).hash_one(COUNT.fetch_add(1, Ordering::Relaxed))
}

/// A name such as `call_00ff…`: the prefix and 24 hexadecimal digits.
pub(crate) fn unique_name(prefix: &str) -> String {
    format!("{prefix}{:016x}{:08x}", unique(), unique() as u32)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn names_do_not_repeat() {
        let names: HashSet<String> = (0..10_000).map(|_| unique_name("call_")).collect();
        assert_eq!(names.len(), 10_000);
        assert!(names.iter().all(|name| name.len() == "call_".len() + 24));
    }
}
