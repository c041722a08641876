//! Tokens drawn on the device, where it draws any.

use std::sync::Arc;

use super::{Suite, data::Random};
use crate::{Backend, Candidate, Draw, LogitsPart, NO_TOKEN};

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
    for borders in [vec![0, 1000], vec![0, 33, 1000], vec![0, 500, 1000], vec![0, 1, 607, 608, 1000]] {
        parts(suite, 70, &borders);
    }
}

pub(super) fn small<B: Backend>(suite: &mut Suite<'_, B>) {
    if B::DRAWS {
        random(suite, 5, 777);
        parts(suite, 5, &[0, 33, 100]);
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
        let tokens = draw_in_parts(suite, &logits, &[draw(0), draw(1), draw(2)], &[0, 400, 1000]);
        assert_eq!(tokens, [NO_TOKEN, NO_TOKEN, 500], "in parts at temperature {temperature}");
    }
}

/// What ranks that have a part each say of it, put together as they do, is the token that their sums lead to; the parts' borders
/// are anywhere in a mask's word.
fn parts<B: Backend>(suite: &mut Suite<'_, B>, rows: usize, borders: &[usize]) {
    let vocab = borders[borders.len() - 1];
    let mut random = Random(5);
    let mut logits = random.normals(rows * vocab, 3.0);
    logits.iter_mut().step_by(7).for_each(|logit| *logit = f32::NEG_INFINITY);
    let draw = |row: usize, random: &mut Random| Draw {
        temperature: [0.0, 0.7, 1.9][row % 3],
        uniform: [0.0, 0.999_999_9, 0.5, 0.2][row % 4],
        mask: (row % 5 < 2).then(|| mask(&logits[row * vocab..][..vocab], row, random)),
    };
    // Rows in any order, some of them twice.
    let draws: Vec<(usize, Draw)> = (0..rows).rev().chain([1, 0, 4]).map(|row| (row, draw(row, &mut random))).collect();
    let tokens = draw_in_parts(suite, &logits, &draws, borders);
    for ((row, draw), token) in draws.iter().zip(&tokens) {
        check(&logits[row * vocab..][..vocab], draw, *token as usize);
    }
    suite.outputs.extend(tokens.iter().map(|token| *token as f32));
}

/// The last of `borders` is the vocabulary's size.
fn draw_in_parts<B: Backend>(
    suite: &Suite<'_, B>,
    logits: &[f32],
    draws: &[(usize, Draw)],
    borders: &[usize],
) -> Vec<u32> {
    let vocab = borders[borders.len() - 1];
    let buffer = |range: &[usize]| {
        let part = logits.chunks(vocab).flat_map(|row| &row[range[0]..range[1]]).copied();
        (suite.upload(&part.collect::<Vec<f32>>(), range[1] - range[0]), range[0])
    };
    let buffers: Vec<_> = borders.windows(2).map(buffer).collect();
    let parts: Vec<_> = buffers.iter().map(|(logits, first)| LogitsPart { logits, first: *first }).collect();
    let mut best = vec![Candidate { logit: f32::NEG_INFINITY, token: NO_TOKEN }; draws.len()];
    for part in &parts {
        let mut its = best.clone();
        suite.backend.likeliest(part, draws, &mut its).unwrap();
        let better = best.iter_mut().zip(&its).filter(|(best, its)| its.logit > best.logit);
        better.for_each(|(best, its)| *best = *its);
    }
    let largest: Vec<f32> = best.iter().map(|best| best.logit).collect();
    let mut tokens: Vec<u32> = best.iter().map(|best| best.token).collect();
    let sums: Vec<Vec<u64>> = parts.iter().map(|part| sums(suite, part, draws, &largest)).collect();
    for (index, part) in parts.iter().enumerate() {
        let target = |i: usize| {
            let total: u64 = sums.iter().map(|sums| sums[i]).sum();
            let before: u64 = sums[..index].iter().map(|sums| sums[i]).sum();
            let target = ((draws[i].1.uniform * total as f64) as u64).checked_sub(before)?;
            (target < sums[index][i]).then_some(target)
        };
        let targets: Vec<Option<u64>> = (0..draws.len()).map(target).collect();
        let mut found = vec![None; draws.len()];
        suite.backend.find(part, draws, &largest, &targets, &mut found).unwrap();
        for ((token, found), target) in tokens.iter_mut().zip(found).zip(targets) {
            assert_eq!(found.is_some(), target.is_some(), "a token where the target is, and nowhere else");
            *token = found.unwrap_or(*token);
        }
    }
    tokens
}

fn sums<B: Backend>(
    suite: &Suite<'_, B>,
    part: &LogitsPart<'_, B::Buffer>,
    draws: &[(usize, Draw)],
    largest: &[f32],
) -> Vec<u64> {
    let mut sums = vec![0; draws.len()];
    suite.backend.weigh(part, draws, largest, &mut sums).unwrap();
    for (sum, (_, draw)) in sums.iter().zip(draws) {
        assert!(draw.temperature > 0.0 || *sum == 0, "a sum of {sum} where nothing is weighed");
    }
    sums
}
