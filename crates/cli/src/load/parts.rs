use std::fmt;
use std::time::{Duration, Instant};

/// How long the parts of loading took.
pub(super) struct Parts {
    since: Instant,
    parts: Vec<(&'static str, Duration)>,
}

impl Parts {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), parts: Vec::new() }
    }

    /// A part is through; the next one begins.
    pub(super) fn end(&mut self, part: &'static str) {
        self.parts.push((part, self.since.elapsed()));
        self.since = Instant::now();
    }

    /// Two parts are through, of which the second took so long.
    pub(super) fn end_with(&mut self, first: &'static str, second: &'static str, took: Duration) {
        self.end(first);
        if let Some((_, both)) = self.parts.last_mut() {
            *both = both.saturating_sub(took);
        }
        self.parts.push((second, took));
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts: Vec<String> =
            self.parts.iter().map(|(part, took)| format!("{part} {:.2}", took.as_secs_f64())).collect();
        f.write_str(&parts.join(", "))
    }
}
