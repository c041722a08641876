//! What a key has used of its limits.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::KeyLimits;

const MINUTE_S: f64 = 60.0;

/// The use of one key.
#[derive(Debug)]
pub(super) struct Allowance(Mutex<Use>);

#[derive(Debug)]
struct Use {
    open: u32,
    /// Requests that may still come at once: a bucket that fills at the allowed rate and holds a minute's worth.
    left: f64,
    filled_at: Option<Instant>,
}

/// A request that counts as open until this is dropped.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Allowance>);

/// Why a request may not come in now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Exceeded {
    /// So many are open already.
    Concurrent(u32),
    /// So many came in the last minute; the next may come then.
    PerMinute(u32, Duration),
}

impl Allowance {
    /// Nothing used.
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Use { open: 0, left: 0.0, filled_at: None })))
    }

    /// Takes one request in.
    pub(super) fn take(self: &Arc<Self>, limits: KeyLimits, now: Instant) -> Result<Permit, Exceeded> {
        let mut used = self.lock();
        if let Some(max) = limits.max_concurrent.filter(|&max| used.open >= max) {
            return Err(Exceeded::Concurrent(max));
        }
        if let Some(per_minute) = limits.requests_per_minute {
            used.take_one(per_minute, now)?;
        }
        used.open += 1;
        drop(used);
        Ok(Permit(self.clone()))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Use> {
        // Three numbers that every critical section leaves consistent.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Use {
    fn take_one(&mut self, per_minute: u32, now: Instant) -> Result<(), Exceeded> {
        let (most, rate_per_s) = (f64::from(per_minute), f64::from(per_minute) / MINUTE_S);
        self.left = match self.filled_at {
            None => most,
            Some(then) => (self.left + now.saturating_duration_since(then).as_secs_f64() * rate_per_s).min(most),
        };
        self.filled_at = Some(now);
        if self.left < 1.0 {
            let wait = Duration::from_secs_f64((1.0 - self.left) / rate_per_s);
            return Err(Exceeded::PerMinute(per_minute, wait));
        }
        self.left -= 1.0;
        Ok(())
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.lock().open -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_requests_are_counted() {
        let (allowance, now) = (Allowance::new(), Instant::now());
        let limits = KeyLimits { max_concurrent: Some(2), requests_per_minute: None };
        let first = allowance.take(limits, now).unwrap();
        let _second = allowance.take(limits, now).unwrap();
        assert_eq!(allowance.take(limits, now).unwrap_err(), Exceeded::Concurrent(2));
        drop(first);
        let _third = allowance.take(limits, now).unwrap();
        assert!(allowance.take(limits, now).is_err());
        assert!(allowance.take(KeyLimits::default(), now).is_ok());
    }

    #[test]
    fn a_minutes_worth_at_once_then_one_by_one() {
        let (allowance, start) = (Allowance::new(), Instant::now());
        let limits = KeyLimits { max_concurrent: None, requests_per_minute: Some(6) };
        let at = |seconds: f64| start + Duration::from_secs_f64(seconds);
        for _ in 0..6 {
            allowance.take(limits, at(0.0)).unwrap();
        }
        assert_eq!(allowance.take(limits, at(4.0)).unwrap_err(), Exceeded::PerMinute(6, Duration::from_secs(6)));
        allowance.take(limits, at(10.1)).unwrap();
        assert!(allowance.take(limits, at(10.2)).is_err());
        for _ in 0..6 {
            allowance.take(limits, at(1000.0)).unwrap();
        }
        assert!(allowance.take(limits, at(1000.0)).is_err());
    }
}
