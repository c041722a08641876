use std::fmt;
use std::time::{Duration, Instant};

/// How long the parts of loading took, one after another, and what went on beside them.
pub(super) struct Parts {
    since: Instant,
    parts: Vec<(&'static str, Duration)>,
    beside: Vec<(&'static str, Duration)>,
}

impl Parts {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), parts: Vec::new(), beside: Vec::new() }
    }

    /// A part is through; the next one begins.
    pub(super) fn end(&mut self, part: &'static str) {
        self.parts.push((part, self.since.elapsed()));
        self.since = Instant::now();
    }

    /// Several parts are through, of which those after the first took so long.
    pub(super) fn end_with(&mut self, first: &'static str, rest: &[(&'static str, Duration)]) {
        self.end(first);
        if let Some((_, all)) = self.parts.last_mut() {
            *all = all.saturating_sub(rest.iter().map(|(_, took)| *took).sum());
        }
        self.parts.extend(rest);
    }

    /// Something took so long while a part went on, and is in no sum.
    pub(super) fn beside(&mut self, part: &'static str, took: Duration) {
        self.beside.push((part, took));
    }
}

impl fmt::Display for Parts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |parts: &[(&str, Duration)]| {
            let each = parts.iter().map(|(part, took)| format!("{part} {:.2}", took.as_secs_f64()));
            each.collect::<Vec<_>>().join(", ")
        };
        f.write_str(&list(&self.parts))?;
        if self.beside.is_empty() { Ok(()) } else { write!(f, "; beside these: {}", list(&self.beside)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_add_up_and_what_went_on_beside_them_is_told_apart() {
        let second = Duration::from_secs(1);
        let mut parts = Parts { since: Instant::now() - 5 * second, ..Parts::new() };
        parts.end_with("weights", &[("waiting for kernels", second), ("working memory", second / 2)]);
        parts.beside("kernels", 3 * second);
        let (weights, total) = (parts.parts[0].1, parts.parts.iter().map(|(_, took)| *took).sum::<Duration>());
        assert!(weights >= 7 * second / 2 && total >= 5 * second && total - weights == 3 * second / 2);
        let told = parts.to_string();
        assert!(
            told.ends_with(", waiting for kernels 1.00, working memory 0.50; beside these: kernels 3.00"),
            "{told}"
        );
    }
}
