//! When a call is tried again.

use std::time::Duration;

use crate::Error;

/// How often a call is tried, and how long the pauses between are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all; at least one is made.
    pub attempts_max: u32,
    /// The first pause; each is twice as long as the one before. Half of every pause is left to chance, so that clients
    /// that were turned away together do not come back together.
    pub pause_first: Duration,
    /// The longest pause, unless the server asks for a longer one.
    pub pause_max: Duration,
}

impl Default for Retry {
    fn default() -> Self {
        Self { attempts_max: 4, pause_first: Duration::from_millis(200), pause_max: Duration::from_secs(5) }
    }
}

impl Retry {
    /// One attempt.
    pub fn never() -> Self {
        Self { attempts_max: 1, ..Self::default() }
    }

    pub(crate) fn attempts(self) -> Attempts {
        Attempts { retry: self, made: 0 }
    }
}

/// The attempts of one call.
pub(crate) struct Attempts {
    retry: Retry,
    made: u32,
}

impl Attempts {
    /// How long to wait after a failure; `None` where it is final.
    pub(crate) fn pause_after(&mut self, error: &Error) -> Option<Duration> {
        self.made += 1;
        let asked = error.retry_after().filter(|_| self.made < self.retry.attempts_max)?;
        let pause = self.retry.pause_first.saturating_mul(1 << (self.made - 1).min(20)).min(self.retry.pause_max);
        Some(asked.max(pause / 2) + pause.mul_f64(chance() / 2.0))
    }
}

/// A number in 0..1.
fn chance() -> f64 {
    // Without a source of chance all pauses are of the same length, which still works.
    getrandom::u32().map_or(1.0, |drawn| f64::from(drawn) / f64::from(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn busy(retry_after: Option<Duration>) -> Error {
        Error::Busy { message: "full".into(), retry_after }
    }

    #[test]
    fn pauses_grow_up_to_a_limit() {
        let second = Duration::from_secs(1);
        let retry = Retry { attempts_max: 6, pause_first: second, pause_max: 4 * second };
        let mut attempts = retry.attempts();
        for seconds in [1, 2, 4, 4, 4] {
            let pause = attempts.pause_after(&busy(Some(Duration::ZERO))).unwrap();
            assert!(pause >= seconds * second / 2 && pause <= seconds * second, "{pause:?}");
        }
        assert_eq!(attempts.pause_after(&busy(Some(Duration::ZERO))), None);
        let asked = Duration::from_secs(60);
        assert!(retry.attempts().pause_after(&busy(Some(asked))).unwrap() >= asked);
    }

    #[test]
    fn what_cannot_get_better_is_final() {
        assert_eq!(Retry::default().attempts().pause_after(&busy(None)), None);
        assert_eq!(Retry::default().attempts().pause_after(&Error::DeadlineExceeded), None);
        assert_eq!(Retry::never().attempts().pause_after(&busy(Some(Duration::ZERO))), None);
        let invalid = Error::Invalid { field: None, message: String::new() };
        assert_eq!(Retry::default().attempts().pause_after(&invalid), None);
    }
}
