//! Tokens drawn from logits of which every rank has some, by exchanging a few numbers for every row instead of them all.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use tandem_backend::{Draw, NO_TOKEN};

use crate::draw;
use crate::sampler::apply_mask_from;
use crate::shard::{Exchange, ExchangeError};

/// The likeliest token of a rank.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Candidate {
    logit: f32,
    token: u32,
}

/// Chooses `tokens[i]` as `draws[i]` says from row `i` of the logits of all ranks, of which this one has those of the
/// tokens in `vocab`, `[draws.len(), vocab.len()]`, which are used up. Every rank gets what a single worker would draw, or
/// [`NO_TOKEN`] where it would find no finite number.
pub(super) fn draw_among_ranks(
    logits: &mut [f32],
    vocab: &Range<usize>,
    draws: &[Draw],
    exchange: &mut dyn Exchange,
    tokens: &mut [u32],
) -> Result<(), ExchangeError> {
    for (row, draw) in logits.chunks_exact_mut(vocab.len()).zip(draws) {
        if let Some(mask) = &draw.mask {
            apply_mask_from(vocab.start, row, mask);
        }
    }
    let best = likeliest(logits, vocab, exchange)?;
    for (token, best) in tokens.iter_mut().zip(&best) {
        *token = if best.logit.is_finite() { best.token } else { NO_TOKEN };
    }
    if draws.iter().all(|draw| draw.temperature <= 0.0) {
        return Ok(());
    }
    for ((row, draw), best) in logits.chunks_exact_mut(vocab.len()).zip(draws).zip(&best) {
        match draw.temperature > 0.0 {
            true if best.logit.is_finite() => draw::weigh(row, best.logit, draw.temperature),
            true => row.fill(0.0),
            false => {}
        }
    }
    draw_by_weight(logits, vocab, draws, exchange, tokens)
}

/// The likeliest token of each row, the lowest of equals.
fn likeliest(
    logits: &[f32],
    vocab: &Range<usize>,
    exchange: &mut dyn Exchange,
) -> Result<Vec<Candidate>, ExchangeError> {
    let of_row = |row: &[f32]| {
        let best = draw::argmax(row);
        Candidate {
            logit: best.map_or(f32::NEG_INFINITY, |best| row[best]),
            token: best.map_or(NO_TOKEN, |best| (vocab.start + best) as u32),
        }
    };
    let mine: Vec<Candidate> = logits.chunks_exact(vocab.len()).map(of_row).collect();
    let all = gather(&mine, exchange)?;
    let (first, others) = all.split_at(mine.len());
    let mut best = first.to_vec();
    for theirs in others.chunks_exact(mine.len()) {
        for (best, theirs) in best.iter_mut().zip(theirs) {
            if theirs.logit > best.logit {
                *best = *theirs;
            }
        }
    }
    Ok(best)
}

/// Draws from rows of weights: the sums say which rank the number falls to, and that one says the token.
fn draw_by_weight(
    weights: &[f32],
    vocab: &Range<usize>,
    draws: &[Draw],
    exchange: &mut dyn Exchange,
    tokens: &mut [u32],
) -> Result<(), ExchangeError> {
    /// Stands for "not mine".
    const ELSEWHERE: u32 = u32::MAX;
    let rows = || weights.chunks_exact(vocab.len()).zip(draws);
    let sum = |(row, draw): (&[f32], &Draw)| if draw.temperature > 0.0 { draw::sum(row) } else { 0 };
    let mine: Vec<u64> = rows().map(sum).collect();
    let sums = gather(&mine, exchange)?;
    let of_ranks = |row: usize| sums.iter().skip(row).step_by(mine.len());
    let mut found = vec![ELSEWHERE; mine.len()];
    for (i, (row, draw)) in rows().enumerate().filter(|(i, _)| mine[*i] > 0) {
        let before: u64 = of_ranks(i).take(exchange.rank()).sum();
        let target = draw::target(draw.uniform, of_ranks(i).sum());
        let place = target.checked_sub(before).and_then(|target| draw::find(row, target));
        found[i] = place.map_or(ELSEWHERE, |place| (vocab.start + place) as u32);
    }
    for theirs in gather(&found, exchange)?.chunks_exact(found.len()) {
        for (token, theirs) in tokens.iter_mut().zip(theirs).filter(|(_, theirs)| **theirs != ELSEWHERE) {
            *token = *theirs;
        }
    }
    Ok(())
}

/// Every rank's values, in rank order.
fn gather<T: Pod>(mine: &[T], exchange: &mut dyn Exchange) -> Result<Vec<T>, ExchangeError> {
    let mut all = vec![T::zeroed(); mine.len() * exchange.world()];
    exchange.all_gather(bytemuck::cast_slice(mine), bytemuck::cast_slice_mut(&mut all))?;
    Ok(all)
}
