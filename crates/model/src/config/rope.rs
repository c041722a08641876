use std::f64::consts::TAU;
use std::path::Path;

use tandem_backend::Rope;

use super::ConfigError;
use super::check::ensure;

/// YaRN-scaled rotary embedding (Peng et al., "YaRN", 2023, "NTK-by-parts").
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the frequencies.
    pub theta: f64,
    /// How many times longer than `original_context` the context became.
    pub factor: f64,
    /// Pairs that turn more often than this over the original context keep their frequency.
    pub beta_fast: f64,
    /// Pairs that turn less often than this are slowed by `factor`.
    pub beta_slow: f64,
    /// Positions before scaling.
    pub original_context: usize,
    /// Whether the bounds of the ramp between the two are rounded outwards to whole pairs; not so in gpt-oss.
    pub truncate: bool,
}

impl RopeConfig {
    /// That of both released models.
    pub fn gpt_oss() -> Self {
        let (theta, factor, beta_fast, beta_slow) = (150_000.0, 32.0, 32.0, 1.0);
        Self { theta, factor, beta_fast, beta_slow, original_context: 4096, truncate: false }
    }

    /// Inverse frequencies of the `head_dim / 2` pairs, and YaRN's concentration `0.1·ln(factor) + 1`. Computed in f64.
    pub fn resolve(&self, head_dim: usize) -> Rope {
        let (low, high) = self.ramp_bounds(head_dim);
        let inv_freq = (0..head_dim / 2).map(|pair| {
            let fast = self.theta.powf(-2.0 * pair as f64 / head_dim as f64);
            let slow = fast / self.factor;
            let ramp = ((pair as f64 - low) / (high - low)).clamp(0.0, 1.0);
            ((1.0 - ramp) * fast + ramp * slow) as f32
        });
        Rope { inv_freq: inv_freq.collect(), scale: (0.1 * self.factor.ln() + 1.0) as f32 }
    }

    /// The pairs that turn `beta_fast` and `beta_slow` times over the original context, clamped as in transformers.
    fn ramp_bounds(&self, head_dim: usize) -> (f64, f64) {
        let pair_turning = |turns: f64| {
            let length = self.original_context as f64 / (turns * TAU);
            head_dim as f64 / 2.0 * length.ln() / self.theta.ln()
        };
        let (mut low, mut high) = (pair_turning(self.beta_fast), pair_turning(self.beta_slow));
        if self.truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, high) = (low.max(0.0), high.min((head_dim - 1) as f64));
        (low, if high > low { high } else { low + 0.001 })
    }

    pub(super) fn check(&self, file: &Path, prefix: &str) -> Result<(), ConfigError> {
        const MAX: f64 = 1e12;
        let numbers = [("theta", self.theta, 1.0), ("factor", self.factor, 1.0)];
        for (key, found, min) in numbers {
            let holds = found >= min && found <= MAX && (key == "factor" || found > min);
            ensure(holds, file, &format!("{prefix}{key}"), || format!("a number from {min} to {MAX:e}"), found)?;
        }
        let slow = self.beta_slow;
        ensure(
            slow > 0.0 && slow.is_finite(),
            file,
            &format!("{prefix}beta_slow"),
            || "a positive number".into(),
            slow,
        )?;
        let above = || format!("a number above beta_slow, which is {slow}");
        let fast = self.beta_fast;
        ensure(fast > slow && fast.is_finite(), file, &format!("{prefix}beta_fast"), above, fast)?;
        let context = self.original_context;
        ensure(context > 0, file, &format!("{prefix}original context"), || "at least 1".into(), context)
    }
}
