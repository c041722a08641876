//! The forward pass against logits that transformers computed in f32 from the same checkpoints, and fast mode against
//! exact mode over the same weights.

use crate::harness::{Harness, Part, divergence, relative_error, top};
use tandem_backend::{DenseFormat, KvFormat, Precision};
use tandem_testkit::{CheckpointSpec, golden};

/// Largest relative error of exact mode's logits at any position.
pub const EXACT_ERROR_MAX: f64 = 1e-4;
/// Largest mean divergence of fast mode from exact mode.
const FAST_DIVERGENCE_MAX: f64 = 2e-3;
/// Where exact mode's first choice leads by more than this, fast mode must agree nearly always.
const CLEAR_MARGIN: f32 = 0.1;
const FAST_AGREEMENT_MIN: f64 = 0.99;

const FILES: [(&str, CheckpointSpec); 2] = [("a", CheckpointSpec::A), ("b", CheckpointSpec::B)];

#[test]
fn exact_mode_matches_transformers_at_every_position() {
    for (name, spec) in FILES {
        let mut harness = Harness::exact(&spec);
        for (i, prompt) in golden(name).unwrap().iter().enumerate() {
            let got = harness.prompt(0, &prompt.tokens);
            for (position, logits) in got.iter().enumerate() {
                let error = relative_error(logits, prompt.logits_at(position));
                assert!(error <= EXACT_ERROR_MAX, "{name} prompt {i} position {position}: {error:.2e}");
            }
        }
    }
}

#[test]
fn fast_mode_stays_close_to_exact_mode_over_the_same_weights() {
    for dense in [DenseFormat::Bf16, DenseFormat::Q8] {
        for (name, spec) in FILES {
            let mut exact = Harness::new(&spec, Precision::Exact, dense, KvFormat::F32);
            let mut fast = Harness::new(&spec, Precision::Fast, dense, KvFormat::Bf16);
            let mut distance = Distance::default();
            golden(name).unwrap().iter().for_each(|prompt| distance.add(&prompt.tokens, &mut exact, &mut fast));
            distance.check(&format!("{name}: fast {dense:?} from exact {dense:?}"));
        }
    }
}

/// How far one way of computing is from another, over all positions of some prompts.
#[derive(Default)]
pub struct Distance {
    divergence: f64,
    positions: u32,
    /// Positions where the yardstick's first choice leads clearly, and those of them where the other agrees.
    clear: u32,
    agree: u32,
}

impl Distance {
    /// Runs the tokens both ways, a few at a time: all logits of a long prompt would fill the memory.
    pub fn add(&mut self, tokens: &[u32], yardstick: &mut Harness, other: &mut Harness) {
        const CHUNK: usize = 32;
        for start in (0..tokens.len()).step_by(CHUNK) {
            let part = Part { sequence: 0, tokens, range: start..tokens.len().min(start + CHUNK) };
            let want = yardstick.run(std::slice::from_ref(&part));
            let got = other.run(&[part]);
            for (want, got) in want.iter().zip(&got) {
                self.add_position(want, got);
            }
        }
    }

    /// One position's logits, both ways.
    pub fn add_position(&mut self, want: &[f32], got: &[f32]) {
        self.divergence += divergence(want, got);
        self.positions += 1;
        let (first, margin) = top(want);
        if margin > CLEAR_MARGIN {
            self.clear += 1;
            self.agree += u32::from(top(got).0 == first);
        }
    }

    /// Positions compared.
    pub fn positions(&self) -> u32 {
        self.positions
    }

    /// Prints the distance, and fails where it is above what fast mode may show.
    pub fn check(&self, what: &str) {
        let (mean, share) = self.report(what);
        assert!(mean <= FAST_DIVERGENCE_MAX, "{what}: mean divergence {mean:.2e}");
        assert!(share >= FAST_AGREEMENT_MIN, "{what}: agreement {share:.4}");
    }

    /// Prints and returns mean divergence and agreement.
    pub fn report(&self, what: &str) -> (f64, f64) {
        let mean = self.divergence / f64::from(self.positions);
        let share = f64::from(self.agree) / f64::from(self.clear);
        println!("{what}: mean divergence {mean:.2e}, agreement {share:.4} at {} clear positions", self.clear);
        (mean, share)
    }
}
