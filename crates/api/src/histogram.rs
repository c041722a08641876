//! A histogram that can be recorded from any thread without waiting.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Counts of durations by upper bound, in Prometheus' sense.
pub(crate) struct Histogram {
    bounds_s: &'static [f64],
    /// One more than bounds: the last counts what exceeds them all.
    counts: Vec<AtomicU64>,
    sum_us: AtomicU64,
}

impl Histogram {
    /// An empty histogram; `bounds_s` in seconds, ascending.
    pub(crate) fn new(bounds_s: &'static [f64]) -> Self {
        let counts = (0..=bounds_s.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds_s, counts, sum_us: AtomicU64::new(0) }
    }

    /// Counts one duration.
    pub(crate) fn record(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = self.bounds_s.partition_point(|&bound| bound < seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(duration.as_micros() as u64, Ordering::Relaxed);
    }

    /// How many durations fell below each bound and above the one before, and how many above all.
    pub(crate) fn counts(&self) -> Vec<u64> {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect()
    }

    /// The duration in seconds that a `share` of `counts` does not exceed, interpolated within its bucket as Prometheus'
    /// `histogram_quantile` does; the highest bound where it lies beyond. `None` without counts.
    pub(crate) fn percentile(&self, counts: &[u64], share: f64) -> Option<f64> {
        let total: u64 = counts.iter().sum();
        let wanted = share * total as f64;
        let mut below = 0.0;
        for (at, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
            if below + count as f64 >= wanted {
                let low = if at == 0 { 0.0 } else { self.bounds_s[at - 1] };
                let high = self.bounds_s.get(at).copied().unwrap_or(low);
                return Some(low + (high - low) * (wanted - below) / count as f64);
            }
            below += count as f64;
        }
        None
    }

    /// Writes the samples in Prometheus' text format. `labels` is the inside of the braces, such as `model="x"`.
    pub(crate) fn write(&self, out: &mut String, name: &str, labels: &str) {
        let mut total = 0;
        for (count, bound) in self.counts.iter().zip(self.bounds_s) {
            total += count.load(Ordering::Relaxed);
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {total}");
        }
        total += self.counts[self.bounds_s.len()].load(Ordering::Relaxed);
        let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {total}");
        let _ = writeln!(out, "{name}_sum{{{labels}}} {}", self.sum_us.load(Ordering::Relaxed) as f64 / 1e6);
        let _ = writeln!(out, "{name}_count{{{labels}}} {total}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_lie_in_their_bucket() {
        let histogram = Histogram::new(&[0.1, 1.0, 2.0]);
        assert_eq!(histogram.percentile(&histogram.counts(), 0.5), None);
        assert_eq!(histogram.percentile(&[4, 0, 0, 0], 0.5), Some(0.05));
        assert_eq!(histogram.percentile(&[0, 8, 8, 0], 0.5), Some(1.0));
        assert_eq!(histogram.percentile(&[0, 8, 8, 0], 0.75), Some(1.5));
        assert_eq!(histogram.percentile(&[1, 0, 0, 99], 0.99), Some(2.0));
    }

    #[test]
    fn buckets_are_cumulative_and_bounds_inclusive() {
        let histogram = Histogram::new(&[0.1, 1.0]);
        for millis in [50, 100, 101, 5000] {
            histogram.record(Duration::from_millis(millis));
        }
        let mut out = String::new();
        histogram.write(&mut out, "t", "m=\"x\"");
        let expected = "t_bucket{m=\"x\",le=\"0.1\"} 2\nt_bucket{m=\"x\",le=\"1\"} 3\nt_bucket{m=\"x\",le=\"+Inf\"} 4\n\
                        t_sum{m=\"x\"} 5.251\nt_count{m=\"x\"} 4\n";
        assert_eq!(out, expected);
    }
}
