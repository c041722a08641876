use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use tracing::warn;

/// A source that is refused again and again for the same reason is named once in this time.
const QUIET: Duration = Duration::from_secs(60);
/// Most refusals remembered; while there are more, those that are new are counted only.
const REFUSALS_MAX: usize = 64;

/// Says who was refused, without letting whoever knocks fill the log.
#[derive(Default)]
pub(crate) struct Doorkeeper {
    book: Mutex<Book>,
}

#[derive(Default)]
struct Book {
    named: HashMap<String, Instant>,
    unnamed: u64,
}

impl Doorkeeper {
    /// Notes that `source` was refused.
    pub(crate) fn refuse(&self, source: &str, reason: impl Display) {
        let refusal = format!("refused {source} at the cluster's port: {reason}");
        if let Some(unnamed) = self.is_due(&refusal, Instant::now()) {
            let others =
                if unnamed > 0 { format!(" ({unnamed} refusals since were not logged)") } else { String::new() };
            warn!("{refusal}{others}");
        }
    }

    /// Whether to say so, and how many were passed over before.
    fn is_due(&self, refusal: &str, now: Instant) -> Option<u64> {
        // Counts of refusals stay usable whatever happened to whoever held them.
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.named.retain(|_, named| now.saturating_duration_since(*named) < QUIET);
        if book.named.contains_key(refusal) || book.named.len() >= REFUSALS_MAX {
            book.unnamed += 1;
            return None;
        }
        book.named.insert(refusal.to_owned(), now);
        Some(std::mem::take(&mut book.unnamed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_is_named_once_a_minute_and_only_so_many() {
        let (door, now) = (Doorkeeper::default(), Instant::now());
        assert_eq!(door.is_due("a", now), Some(0));
        assert_eq!(door.is_due("a", now + QUIET / 2), None);
        assert_eq!(door.is_due("b", now + QUIET / 2), Some(1));
        assert_eq!(door.is_due("a", now + QUIET), Some(0));
        let named = (0..1000).filter(|i| door.is_due(&format!("source {i}"), now + QUIET).is_some()).count();
        assert_eq!(named, REFUSALS_MAX - 2);
    }
}
