//! Tokens drawn from logits of which every rank has some, by exchanging a few numbers for every row instead of them all.

use std::ops::Range;

use bytemuck::{Pod, Zeroable};
use tandem_backend::{Backend, BackendError, Candidate, Draw, LogitsPart};

use super::ModelError;
use crate::draw;
use crate::sampler::apply_mask_from;
use crate::shard::{Exchange, ExchangeError};

/// The logits of a rank, `[draws.len(), tokens]`, of which it says what a draw needs; as [`Backend`] says it.
pub(super) trait Part {
    /// [`Backend::likeliest`]; called first, once.
    fn likeliest(&mut self, draws: &[Draw], best: &mut [Candidate]) -> Result<(), BackendError>;
    /// [`Backend::weigh`]; called second, once.
    fn weigh(&mut self, draws: &[Draw], largest: &[f32], sums: &mut [u64]) -> Result<(), BackendError>;
    /// [`Backend::find`]; called last.
    fn find(
        &mut self,
        draws: &[Draw],
        largest: &[f32],
        targets: &[Option<u64>],
        tokens: &mut [Option<u32>],
    ) -> Result<(), BackendError>;
}

/// Chooses `tokens[i]` as `draws[i]` says from row `i` of the logits of all ranks, of which this one has `part`. Every rank gets
/// what a single worker would draw.
pub(super) fn draw_among_ranks(
    part: &mut dyn Part,
    draws: &[Draw],
    exchange: &mut dyn Exchange,
    tokens: &mut [u32],
) -> Result<(), ModelError> {
    let best = likeliest(part, draws, exchange)?;
    for (token, best) in tokens.iter_mut().zip(&best) {
        *token = best.token;
    }
    if draws.iter().all(|draw| draw.temperature <= 0.0) {
        return Ok(());
    }
    let largest: Vec<f32> = best.iter().map(|best| best.logit).collect();
    draw_by_weight(part, draws, &largest, exchange, tokens)
}

/// The likeliest token of each row, the lowest of equals.
fn likeliest(part: &mut dyn Part, draws: &[Draw], exchange: &mut dyn Exchange) -> Result<Vec<Candidate>, ModelError> {
    let mut best = vec![Candidate { logit: f32::NEG_INFINITY, token: 0 }; draws.len()];
    part.likeliest(draws, &mut best)?;
    let mine: Vec<Wire> = best.iter().map(|best| Wire { logit: best.logit, token: best.token }).collect();
    let all = gather(&mine, exchange)?;
    for (index, theirs) in all.iter().enumerate() {
        let (rank, best) = (index / mine.len(), &mut best[index % mine.len()]);
        if rank == 0 || theirs.logit > best.logit {
            *best = Candidate { logit: theirs.logit, token: theirs.token };
        }
    }
    Ok(best)
}

/// Draws by weight: the sums say which rank the number falls to, and that one says the token.
fn draw_by_weight(
    part: &mut dyn Part,
    draws: &[Draw],
    largest: &[f32],
    exchange: &mut dyn Exchange,
    tokens: &mut [u32],
) -> Result<(), ModelError> {
    /// Stands for "not mine".
    const ELSEWHERE: u32 = u32::MAX;
    let mut mine = vec![0; draws.len()];
    part.weigh(draws, largest, &mut mine)?;
    let sums = gather(&mine, exchange)?;
    let of_ranks = |row: usize| sums.iter().skip(row).step_by(mine.len());
    let target = |row: usize| {
        let before: u64 = of_ranks(row).take(exchange.rank()).sum();
        let target = draw::target(draws[row].uniform, of_ranks(row).sum()).checked_sub(before)?;
        (target < mine[row]).then_some(target)
    };
    let targets: Vec<Option<u64>> = (0..draws.len()).map(target).collect();
    let mut found = vec![None; draws.len()];
    if targets.iter().any(Option::is_some) {
        part.find(draws, largest, &targets, &mut found)?;
    }
    let found: Vec<u32> = found.into_iter().map(|token| token.unwrap_or(ELSEWHERE)).collect();
    for theirs in gather(&found, exchange)?.chunks_exact(found.len()) {
        for (token, theirs) in tokens.iter_mut().zip(theirs).filter(|(_, theirs)| **theirs != ELSEWHERE) {
            *token = *theirs;
        }
    }
    Ok(())
}

/// A [`Candidate`] as it is exchanged.
#[derive(Clone, Copy, Pod, Zeroable)]
#[repr(C)]
struct Wire {
    logit: f32,
    token: u32,
}

/// Every rank's values, in rank order.
fn gather<T: Pod>(mine: &[T], exchange: &mut dyn Exchange) -> Result<Vec<T>, ExchangeError> {
    let mut all = vec![T::zeroed(); mine.len() * exchange.world()];
    exchange.all_gather(bytemuck::cast_slice(mine), bytemuck::cast_slice_mut(&mut all))?;
    Ok(all)
}

/// Logits on a device that draws.
pub(super) struct OnDevice<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) part: LogitsPart<'a, B::Buffer>,
}

impl<B: Backend> Part for OnDevice<'_, B> {
    fn likeliest(&mut self, draws: &[Draw], best: &mut [Candidate]) -> Result<(), BackendError> {
        self.backend.likeliest(&self.part, draws, best)
    }

    fn weigh(&mut self, draws: &[Draw], largest: &[f32], sums: &mut [u64]) -> Result<(), BackendError> {
        self.backend.weigh(&self.part, draws, largest, sums)
    }

    fn find(
        &mut self,
        draws: &[Draw],
        largest: &[f32],
        targets: &[Option<u64>],
        tokens: &mut [Option<u32>],
    ) -> Result<(), BackendError> {
        self.backend.find(&self.part, draws, largest, targets, tokens)
    }
}

/// Logits brought to the host, which are used up: masked first, then turned into weights.
pub(super) struct OnHost<'a> {
    pub(super) logits: &'a mut [f32],
    pub(super) vocab: &'a Range<usize>,
}

impl OnHost<'_> {
    fn rows(&mut self) -> impl Iterator<Item = &mut [f32]> {
        self.logits.chunks_exact_mut(self.vocab.len())
    }
}

impl Part for OnHost<'_> {
    fn likeliest(&mut self, draws: &[Draw], best: &mut [Candidate]) -> Result<(), BackendError> {
        let first = self.vocab.start;
        for ((row, draw), best) in self.rows().zip(draws).zip(best) {
            if let Some(mask) = &draw.mask {
                apply_mask_from(first, row, mask);
            }
            let place = draw::argmax(row);
            *best = Candidate { logit: row[place], token: (first + place) as u32 };
        }
        Ok(())
    }

    fn weigh(&mut self, draws: &[Draw], largest: &[f32], sums: &mut [u64]) -> Result<(), BackendError> {
        for (((row, draw), largest), sum) in self.rows().zip(draws).zip(largest).zip(sums) {
            if draw.temperature > 0.0 {
                draw::weigh(row, *largest, draw.temperature);
                *sum = draw::sum(row);
            }
        }
        Ok(())
    }

    fn find(
        &mut self,
        _draws: &[Draw],
        _largest: &[f32],
        targets: &[Option<u64>],
        tokens: &mut [Option<u32>],
    ) -> Result<(), BackendError> {
        let first = self.vocab.start;
        for ((row, target), token) in self.rows().zip(targets).zip(tokens) {
            let place = target.and_then(|target| draw::find(row, target));
            *token = place.map(|place| (first + place) as u32);
        }
        Ok(())
    }
}
