//! What must be the same to the bit in exact mode.

use crate::golden::files;
use crate::harness::{Harness, Part};
use tandem_testkit::golden;

/// The longest golden prompt: it crosses the window and YaRN's original context.
pub fn long_prompt(name: &str) -> Vec<u32> {
    golden(name).unwrap().pop().unwrap().tokens
}

#[test]
fn chunked_is_whole() {
    for (name, spec) in files() {
        let tokens = long_prompt(name);
        let mut harness = Harness::exact(&spec);
        let whole = harness.prompt(0, &tokens);
        for chunk in [1, 7, 16, 33, 128, 300] {
            let mut chunked = Vec::new();
            for start in (0..tokens.len()).step_by(chunk) {
                let range = start..(start + chunk).min(tokens.len());
                chunked.extend(harness.run(&[Part { sequence: 1, tokens: &tokens, range }]));
            }
            assert_bits(&whole, &chunked, &format!("{name} in chunks of {chunk}"));
        }
    }
}

#[test]
fn batched_is_alone() {
    for (name, spec) in files() {
        let prompts: Vec<Vec<u32>> = golden(name).unwrap().into_iter().map(|prompt| prompt.tokens).collect();
        let mut harness = Harness::exact(&spec);
        let alone: Vec<_> = prompts.iter().map(|tokens| harness.prompt(5, tokens)).collect();
        let parts: Vec<Part<'_>> = prompts
            .iter()
            .enumerate()
            .map(|(sequence, tokens)| Part { sequence, tokens, range: 0..tokens.len() })
            .collect();
        let together = harness.run(&parts);
        assert_bits(&alone.concat(), &together, name);
    }
}

#[test]
fn decoding_beside_a_prefill_is_decoding_alone() {
    for (name, spec) in files() {
        let tokens = long_prompt(name);
        let (head, tail) = (300, 303..304);
        let mut alone = Harness::exact(&spec);
        alone.run(&[Part { sequence: 0, tokens: &tokens, range: 0..303 }]);
        let want = alone.run(&[Part { sequence: 0, tokens: &tokens, range: tail.clone() }]);

        let mut beside = Harness::exact(&spec);
        beside.run(&[Part { sequence: 2, tokens: &tokens, range: 0..head }]);
        beside.run(&[
            Part { sequence: 2, tokens: &tokens, range: head..303 },
            Part { sequence: 3, tokens: &tokens, range: 0..100 },
        ]);
        let got = beside.run(&[
            Part { sequence: 3, tokens: &tokens, range: 100..250 },
            Part { sequence: 2, tokens: &tokens, range: tail },
        ]);
        assert_bits(&want, &got[150..], name);
    }
}

pub fn assert_bits(want: &[Vec<f32>], got: &[Vec<f32>], what: &str) {
    assert_eq!(want.len(), got.len(), "{what}");
    for (row, (want, got)) in want.iter().zip(got).enumerate() {
        let same = want.iter().zip(got).all(|(w, g)| w.to_bits() == g.to_bits());
        assert!(same, "{what}: row {row} differs");
    }
}
