//! The forward pass against logits that transformers computed in f32 from the same checkpoints, and fast mode against
//! exact mode over the same weights.

use crate::harness::{Harness, Part, relative_error};
use tandem_backend::{DenseFormat, KvFormat, Precision};
use tandem_testkit::{CheckpointSpec, Distance, golden};

/// Largest relative error of exact mode's logits at any position.
pub const EXACT_ERROR_MAX: f64 = 1e-4;
/// Largest mean divergence of fast mode from exact mode.
const FAST_DIVERGENCE_MAX: f64 = 2e-3;
/// Where exact mode's first choice leads clearly, fast mode must agree nearly always.
const FAST_AGREEMENT_MIN: f64 = 0.99;

const FILES: [(&str, CheckpointSpec); 2] = [("a", CheckpointSpec::A), ("b", CheckpointSpec::B)];

/// An emulator is slow: one of them is to show the same there.
pub fn files() -> impl Iterator<Item = (&'static str, CheckpointSpec)> {
    FILES.into_iter().take(if std::env::var_os("TEST_EMULATED").is_some() { 1 } else { 2 })
}

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
    for dense in DenseFormat::ALL {
        for (name, spec) in files() {
            let mut exact = Harness::new(&spec, Precision::Exact, dense, KvFormat::F32);
            let mut fast = [(Harness::new(&spec, Precision::Fast, dense, KvFormat::Bf16), Distance::default())];
            golden(name).unwrap().iter().for_each(|prompt| compare(&prompt.tokens, &mut exact, &mut fast));
            check(&fast[0].1, &format!("{name}: fast {dense:?} from exact {dense:?}"));
        }
    }
}

/// Adds the distance of other ways of computing some tokens from a yardstick, a few rows at a time: all logits of a long
/// prompt would fill the memory.
pub fn compare(tokens: &[u32], yardstick: &mut Harness, others: &mut [(Harness, Distance)]) {
    const CHUNK: usize = 32;
    for start in (0..tokens.len()).step_by(CHUNK) {
        let part = Part { sequence: 0, tokens, range: start..tokens.len().min(start + CHUNK) };
        let want = yardstick.run(std::slice::from_ref(&part));
        for (other, distance) in &mut *others {
            let got = other.run(std::slice::from_ref(&part));
            want.iter().zip(&got).for_each(|(want, got)| distance.add(want, got));
        }
    }
}

/// Prints the distance, and fails where it is above what fast mode may show.
pub fn check(distance: &Distance, what: &str) {
    distance.print(what);
    let (mean, share) = (distance.mean(), distance.agreement());
    assert!(mean <= FAST_DIVERGENCE_MAX, "{what}: mean divergence {mean:.2e}");
    assert!(share >= FAST_AGREEMENT_MIN, "{what}: agreement {share:.4}");
}
