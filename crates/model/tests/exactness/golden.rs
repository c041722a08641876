//! The forward pass against logits that transformers computed in f32 from the same checkpoints, and fast mode against
//! exact mode over the same weights.

use crate::harness::{Harness, divergence, relative_error, top};
use tandem_backend::{DenseFormat, KvFormat, Precision};
use tandem_testkit::{CheckpointSpec, golden};

/// Largest relative error of exact mode's logits at any position.
const EXACT_ERROR_MAX: f64 = 1e-4;
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
fn fast_mode_stays_close_to_exact_mode() {
    for (name, spec) in FILES {
        for dense in [DenseFormat::Bf16, DenseFormat::Q8] {
            let mut exact = Harness::new(&spec, Precision::Exact, dense, KvFormat::F32);
            let mut fast = Harness::new(&spec, Precision::Fast, dense, KvFormat::Bf16);
            let (mut total, mut positions, mut clear, mut agree) = (0.0, 0, 0, 0);
            for prompt in golden(name).unwrap() {
                let want = exact.prompt(0, &prompt.tokens);
                let got = fast.prompt(0, &prompt.tokens);
                for (want, got) in want.iter().zip(&got) {
                    total += divergence(want, got);
                    positions += 1;
                    let (first, margin) = top(want);
                    if margin > CLEAR_MARGIN {
                        clear += 1;
                        agree += usize::from(top(got).0 == first);
                    }
                }
            }
            let (mean, share) = (total / f64::from(positions), agree as f64 / clear as f64);
            println!("{name} {dense:?}: mean KL {mean:.2e}, agreement {share:.4} of {clear} clear positions");
            assert!(mean <= FAST_DIVERGENCE_MAX, "{name} {dense:?}: mean divergence {mean:.2e}");
            assert!(share >= FAST_AGREEMENT_MIN, "{name} {dense:?}: agreement {share:.4}");
        }
    }
}
