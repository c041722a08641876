//! Tokens drawn on the device, where it draws any.

use std::sync::Arc;

use super::{Suite, data::Random};
use crate::{Backend, Draw, NO_TOKEN};

/// A device sums weights in f32: where the random number falls this close to a border, either side will do.
const BORDER: f64 = 1e-4;

pub(super) fn run<B: Backend>(suite: &mut Suite<'_, B>) {
    if !B::DRAWS {
        return;
    }
    for (rows, vocab) in [(1, 32), (3, 777), (64, 512), (2, 201_088), (70, 64)] {
        random(suite, rows, vocab);
    }
    ties(suite);
    no_numbers(suite);
}

pub(super) fn small<B: Backend>(suite: &mut Suite<'_, B>) {
    if B::DRAWS {
        random(suite, 5, 777);
    }
}

/// Random logits, each row at another temperature, some masked.
fn random<B: Backend>(suite: &mut Suite<'_, B>, rows: usize, vocab: usize) {
    let mut random = Random(vocab as u64);
    let mut logits = random.normals(rows * vocab, 3.0);
    // Impossible tokens, as suppression makes them, also at the ends.
    logits.iter_mut().step_by(7).for_each(|logit| *logit = f32::NEG_INFINITY);
    let draw = |row: usize, random: &mut Random| Draw {
        temperature: [0.0, 0.7, 1.0, 1.9][row % 4],
        uniform: [0.0_f64, 0.999_999_9, 0.5][row % 3].max(random.below(1000) as f64 / 1000.0),
        mask: (row % 5 < 2).then(|| mask(&logits[row * vocab..][..vocab], row, random)),
    };
    let mut draws: Vec<(usize, Draw)> = (0..rows).map(|row| (row, draw(row, &mut random))).collect();
    // Rows in any order, some of them twice: with a mask and without.
    draws.reverse();
    let again: Vec<(usize, Draw)> = draws.iter().filter(|(_, draw)| draw.mask.is_some()).cloned().collect();
    draws.extend(again.into_iter().map(|(row, draw)| (row, Draw { mask: None, ..draw })));
    let buffer = suite.upload(&logits, vocab);
    let mut tokens = vec![0; draws.len()];
    suite.backend.draw(&buffer, &draws, &mut tokens).unwrap();
    for ((row, draw), token) in draws.iter().zip(&tokens) {
        check(&logits[row * vocab..][..vocab], draw, *token as usize);
    }
    suite.outputs.extend(tokens.iter().map(|token| *token as f32));
}

/// About half of the tokens, or one alone; of those that are possible at least one.
fn mask(logits: &[f32], row: usize, random: &mut Random) -> Arc<[u32]> {
    let vocab = logits.len();
    let mut mask = vec![0_u32; vocab.div_ceil(32)];
    let start = random.below(vocab - 1);
    let only = start + usize::from(logits[start] == f32::NEG_INFINITY);
    mask[only / 32] |= 1 << (only % 32);
    if row.is_multiple_of(2) {
        (0..vocab).filter(|_| random.below(2) == 0).for_each(|token| mask[token / 32] |= 1 << (token % 32));
    }
    if row.is_multiple_of(4) {
        mask.truncate(only / 32 + 1);
    }
    mask.into()
}

fn check(logits: &[f32], draw: &Draw, token: usize) {
    let Draw { temperature, uniform, mask } = draw;
    let what = format!("{temperature}, {uniform} over {} tokens gave {token}", logits.len());
    let allowed = |token: usize| match mask {
        Some(mask) => mask.get(token / 32).is_some_and(|word| word >> (token % 32) & 1 == 1),
        None => true,
    };
    assert!(allowed(token), "{what}, which is not allowed");
    let masked: Vec<f32> =
        logits.iter().enumerate().map(|(t, l)| if allowed(t) { *l } else { f32::NEG_INFINITY }).collect();
    let logits = masked.as_slice();
    assert!(logits[token] > f32::NEG_INFINITY, "{what}, an impossible one");
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if *temperature == 0.0 {
        assert_eq!(token, logits.iter().position(|logit| *logit == largest).unwrap(), "{what}");
        return;
    }
    let weight = |logit: &f32| (f64::from(logit - largest) / f64::from(*temperature)).exp();
    let total: f64 = logits.iter().map(weight).sum();
    let before: f64 = logits[..token].iter().map(weight).sum::<f64>() / total;
    let after = before + weight(&logits[token]) / total;
    let (low, high) = (before - BORDER, after + BORDER);
    assert!((low..=high).contains(uniform), "{what}: it covers {before} to {after}");
}

/// Equal logits: the first is the likeliest.
fn ties<B: Backend>(suite: &mut Suite<'_, B>) {
    let mut logits = vec![1.0; 1000];
    logits[..300].fill(-1.0);
    let buffer = suite.upload(&logits, 1000);
    let mut tokens = [0];
    suite.backend.draw(&buffer, &[(0, Draw { temperature: 0.0, uniform: 0.0, mask: None })], &mut tokens).unwrap();
    assert_eq!(tokens, [300], "the lowest id of equals");
}

/// Logits of which none can be chosen.
fn no_numbers<B: Backend>(suite: &mut Suite<'_, B>) {
    let mut logits = vec![f32::NAN; 3000];
    logits[1000..2000].fill(f32::NEG_INFINITY);
    logits[2500] = 0.0;
    let buffer = suite.upload(&logits, 1000);
    for temperature in [0.0, 1.0] {
        let draw = |row| (row, Draw { temperature, uniform: 0.5, mask: None });
        let mut tokens = [0; 3];
        suite.backend.draw(&buffer, &[draw(0), draw(1), draw(2)], &mut tokens).unwrap();
        assert_eq!(tokens, [NO_TOKEN, NO_TOKEN, 500], "at temperature {temperature}");
    }
}
