//! Counts of the last minutes, from which speeds and percentiles follow.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use tandem_engine::EngineStats;

use super::report::{LatencyReport, Percentiles, SpeedReport};
use crate::histogram::Histogram;
use crate::metrics::Metrics;

/// Time between two notes; a little less than a second, so that a clock that ticks each second is not too early.
const INTERVAL: Duration = Duration::from_millis(900);
/// How far back percentiles go, in notes.
const NOTES_MAX: usize = 300;
/// How far back the history of the speed goes, in notes.
const SPEEDS_MAX: usize = 60;
/// Over how many notes the current speed is averaged.
const CURRENT: usize = 5;

/// The latest notes, oldest first.
pub(crate) struct History(VecDeque<Note>);

struct Note {
    at: Instant,
    generated: u64,
    prompt: u64,
    latencies: [Vec<u64>; 4],
}

/// What the notes say.
pub(crate) struct Recent {
    pub speed: SpeedReport,
    pub latency: LatencyReport,
}

impl History {
    /// No notes.
    pub(crate) fn new() -> Self {
        Self(VecDeque::new())
    }

    /// Notes the counts, unless that has just been done.
    pub(crate) fn note(&mut self, stats: EngineStats, metrics: &Metrics) {
        self.note_at(Instant::now(), stats, metrics.latencies().map(Histogram::counts));
    }

    fn note_at(&mut self, at: Instant, stats: EngineStats, latencies: [Vec<u64>; 4]) {
        if self.0.back().is_some_and(|last| at.saturating_duration_since(last.at) < INTERVAL) {
            return;
        }
        if self.0.len() == NOTES_MAX {
            self.0.pop_front();
        }
        self.0.push_back(Note { at, generated: stats.generated_tokens, prompt: stats.prompt_tokens, latencies });
    }

    /// Speeds and percentiles; the latter up to this moment.
    pub(crate) fn recent(&self, metrics: &Metrics) -> Recent {
        let histograms = metrics.latencies();
        let none = [const { Vec::new() }; 4];
        let before = self.0.front().map_or(&none, |oldest| &oldest.latencies);
        // Until there are notes for the whole time, it reaches back to the start.
        let before = if self.0.len() < NOTES_MAX { &none } else { before };
        let [first, between, request, queue] =
            std::array::from_fn(|at| percentiles(histograms[at], &histograms[at].counts(), &before[at]));
        let latency = LatencyReport { time_to_first_token: first, inter_token: between, request, queue };
        Recent { speed: self.speed(), latency }
    }

    fn speed(&self) -> SpeedReport {
        let Some(last) = self.0.back() else { return SpeedReport::default() };
        let earlier = &self.0[self.0.len().saturating_sub(CURRENT + 1)];
        let from = self.0.len().saturating_sub(SPEEDS_MAX + 1);
        let pairs = self.0.iter().skip(from).zip(self.0.iter().skip(from + 1));
        SpeedReport {
            generated_per_s: rate(earlier, last, |note| note.generated),
            prompt_per_s: rate(earlier, last, |note| note.prompt),
            generated_history: pairs.map(|(earlier, later)| rate(earlier, later, |note| note.generated)).collect(),
        }
    }
}

fn rate(earlier: &Note, later: &Note, count: impl Fn(&Note) -> u64) -> f64 {
    let seconds = later.at.saturating_duration_since(earlier.at).as_secs_f64();
    let tokens = count(later).saturating_sub(count(earlier));
    if seconds > 0.0 { tokens as f64 / seconds } else { 0.0 }
}

fn percentiles(histogram: &Histogram, now: &[u64], before: &[u64]) -> Percentiles {
    let before = before.iter().chain(std::iter::repeat(&0));
    let counts: Vec<u64> = now.iter().zip(before).map(|(now, before)| now.saturating_sub(*before)).collect();
    Percentiles {
        count: counts.iter().sum(),
        p50_s: histogram.percentile(&counts, 0.5),
        p90_s: histogram.percentile(&counts, 0.9),
        p99_s: histogram.percentile(&counts, 0.99),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [Vec<u64>; 4] = [const { Vec::new() }; 4];

    fn stats(generated_tokens: u64) -> EngineStats {
        EngineStats { generated_tokens, ..EngineStats::default() }
    }

    #[test]
    fn speeds_are_of_the_last_seconds() {
        let (mut history, start) = (History::new(), Instant::now());
        assert_eq!(history.speed(), SpeedReport::default());
        for second in 0..100 {
            // 10 tokens a second, and from the 90th on 50.
            let generated = if second < 90 { second * 10 } else { 900 + (second - 90) * 50 };
            let at = start + Duration::from_secs(second);
            history.note_at(at, stats(generated), NOTHING);
            history.note_at(at + Duration::from_millis(300), stats(1_000_000), NOTHING);
        }
        let speed = history.speed();
        assert_eq!((speed.generated_per_s, speed.generated_history.len()), (50.0, SPEEDS_MAX));
        assert_eq!((speed.generated_history[0], speed.generated_history[SPEEDS_MAX - 1]), (10.0, 50.0));
    }

    #[test]
    fn percentiles_forget_what_is_long_past() {
        let metrics = Metrics::new();
        let [first, ..] = metrics.latencies();
        let (mut history, start) = (History::new(), Instant::now());
        first.record(Duration::from_secs(60));
        let seen = history.recent(&metrics).latency.time_to_first_token;
        assert_eq!((seen.count, seen.p50_s.is_some()), (1, true));
        for second in 0..NOTES_MAX as u64 {
            history.note_at(start + Duration::from_secs(second), stats(0), metrics.latencies().map(Histogram::counts));
        }
        assert_eq!(history.recent(&metrics).latency.time_to_first_token, Percentiles::default());
        first.record(Duration::from_millis(7));
        let seen = history.recent(&metrics).latency.time_to_first_token;
        assert!(seen.count == 1 && seen.p99_s.is_some_and(|p99| (0.005..=0.01).contains(&p99)), "{seen:?}");
    }
}
