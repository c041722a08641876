//! The last part of a step: tokens are chosen and scored.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tandem_backend::{Backend, Draw, NO_TOKEN};
use tandem_step::{Ahead, Masker, Row, RowResult};

use super::{Runner, Slot, bad, slot_mut, slot_ref};
use crate::forward::{LOGIT_ROWS, ModelError};
use crate::sampler::{self, Limit, NO_NUMBERS, Sampler, logprobs};

/// Longest wait of a step for all its constraints, where nobody else waits meanwhile. What takes longer has something wrong
/// with it.
const PATIENCE: Duration = Duration::from_secs(30);

/// What is wanted from the logits of one row of the batch.
enum Want {
    /// The next token of plan row `.0`.
    Token(usize),
    /// The log-probability of `target`, with `top` alternatives, for plan row `row`.
    Score { row: usize, target: u32, top: u8 },
}

/// Wants, each with its row of the batch.
type Wants = Vec<(usize, Want)>;

/// A token that the model can draw.
struct Drawn {
    /// Row of the batch.
    at: usize,
    /// Row of the plan.
    row: usize,
    slot: u32,
    first: Draw,
}

impl<B: Backend> Runner<B> {
    /// Samples and scores.
    pub(super) fn choose(&mut self, asked: &[Row], tokens: usize) -> Result<Vec<RowResult>, ModelError> {
        let until = Instant::now() + self.patience();
        let mut results: Vec<RowResult> = asked.iter().map(|row| RowResult::empty(row.slot)).collect();
        let (drawn, wanted) = self.share_out(asked, tokens)?;
        self.await_constraints(asked, &drawn, &wanted, until)?;
        for some in drawn.chunks(LOGIT_ROWS) {
            self.draw(asked, some, until, &mut results)?;
        }
        self.sample(asked, wanted, &mut results)?;
        for result in results.iter_mut().filter(|result| result.token.is_some()) {
            result.error = slot_ref(&self.slots, result.slot)?.failed.clone();
        }
        Ok(results)
    }

    /// How long a step may wait for its constraints. Ranks wait for the slowest of them in their next exchange: half of what
    /// they grant each other there, so that a slow constraint is not taken for a lost rank.
    fn patience(&self) -> Duration {
        self.model.exchange_deadline().map_or(PATIENCE, |deadline| deadline / 2)
    }

    /// Which tokens the model can draw, and what is wanted of the other rows of the batch.
    fn share_out(&self, asked: &[Row], tokens: usize) -> Result<(Vec<Drawn>, Wants), ModelError> {
        let (mut drawn, mut rest) = (Vec::new(), Vec::new());
        for (at, want) in wanted(asked, tokens)? {
            let draw = match want {
                Want::Token(row) if self.model.draws() => {
                    let slot = asked[row].slot;
                    let first = slot_ref(&self.slots, slot)?.plain_draw(next_position(&asked[row]));
                    first.map(|first| Drawn { at, row, slot, first })
                }
                _ => None,
            };
            match draw {
                Some(draw) => drawn.push(draw),
                None => rest.push((at, want)),
            }
        }
        Ok((drawn, rest))
    }

    /// Waits until all that was begun for constraints is there; and for the masks of those that ranks sample on their hosts,
    /// each by itself, where they must not wait for one another.
    fn await_constraints(
        &mut self,
        asked: &[Row],
        drawn: &[Drawn],
        wanted: &[(usize, Want)],
        until: Instant,
    ) -> Result<(), ModelError> {
        let ranks = self.model.exchange_deadline().is_some();
        let drawn = drawn.iter().map(|drawn| (drawn.slot, false));
        let sampled = wanted.iter().filter_map(|(_, want)| match want {
            Want::Token(row) => Some((asked[*row].slot, ranks)),
            Want::Score { .. } => None,
        });
        let mut slots = Vec::new();
        for (slot, needs_mask) in drawn.chain(sampled) {
            if let Some(masker) = self.masker_of(slot)? {
                if needs_mask {
                    masker.order(slot);
                }
                slots.push(slot);
            }
        }
        self.await_slots(&slots, until)
    }

    /// Waits for these slots' constraints, together with the other ranks: where one waits in vain, or fails, the request has
    /// failed on all.
    fn await_slots(&mut self, slots: &[u32], until: Instant) -> Result<(), ModelError> {
        let Some(masker) = &mut self.masker else { return Ok(()) };
        let reasons: Vec<Option<String>> = slots.iter().map(|slot| masker.ready(*slot, until).err()).collect();
        let mut failed: Vec<bool> = reasons.iter().map(Option::is_some).collect();
        self.model.any_rank(&mut failed)?;
        for ((slot, reason), _) in slots.iter().zip(reasons).zip(failed).filter(|(_, failed)| *failed) {
            let reason = reason.unwrap_or_else(|| "another rank could not follow the constraint in time".into());
            slot_mut(&mut self.slots, *slot)?.failed = Some(reason);
        }
        Ok(())
    }

    /// Has the model draw tokens, at most [`LOGIT_ROWS`].
    fn draw(
        &mut self,
        asked: &[Row],
        drawn: &[Drawn],
        until: Instant,
        results: &mut [RowResult],
    ) -> Result<(), ModelError> {
        self.model.unembed(&drawn.iter().map(|drawn| drawn.at).collect::<Vec<_>>())?;
        let tokens = self.draw_unembedded(asked, drawn, until)?;
        for (Drawn { row, slot, .. }, token) in drawn.iter().zip(tokens) {
            slot_mut(&mut self.slots, *slot)?.take(known(token), &mut results[*row]);
            if let Some(masker) = self.masker_of(*slot)? {
                masker.push(*slot, results[*row].token.unwrap_or_default(), Ahead::IfLikely);
            }
        }
        Ok(())
    }

    /// Draws under masks where few tokens may follow; elsewhere first draws, and second ones of those whose token was not
    /// allowed. A device that is alone makes the second along with the first where a mask is at hand, and is waited for once.
    fn draw_unembedded(&mut self, asked: &[Row], drawn: &[Drawn], until: Instant) -> Result<Vec<u32>, ModelError> {
        let alone = self.model.exchange_deadline().is_none();
        let (mut narrow, mut at_hand) = (Vec::new(), Vec::new());
        for (i, Drawn { slot, .. }) in drawn.iter().enumerate() {
            if self.is_narrow(*slot)? {
                narrow.push(i);
            } else if alone && self.masker_of(*slot)?.is_some_and(|masker| masker.mask_at_hand(*slot).is_some()) {
                at_hand.push(i);
            }
        }
        let mut draws: Vec<(usize, Draw)> = drawn.iter().map(|drawn| drawn.first.clone()).enumerate().collect();
        for (i, draw) in self.masked_draws(asked, drawn, narrow, until)? {
            draws[i].1 = draw;
        }
        let along = self.masked_draws(asked, drawn, at_hand, until)?;
        draws.extend(along.iter().cloned());
        let mut tokens = self.model.draw_unembedded(&draws)?;
        let mut second: HashMap<usize, u32> =
            along.iter().map(|(i, _)| *i).zip(tokens.split_off(drawn.len())).collect();
        let mut refused = Vec::new();
        for ((i, draw), token) in draws.iter().zip(&mut tokens) {
            if draw.mask.is_none() && *token != NO_TOKEN && !self.allows(drawn[*i].slot, *token)? {
                match second.remove(i) {
                    Some(second) => *token = second,
                    None => refused.push(*i),
                }
            }
        }
        let late = self.masked_draws(asked, drawn, refused, until)?;
        if !late.is_empty() {
            for ((i, _), token) in late.iter().zip(self.model.draw_unembedded(&late)?) {
                tokens[*i] = token;
            }
        }
        Ok(tokens)
    }

    /// Draws under a mask for those of `drawn` at these places whose masks all ranks have in time.
    fn masked_draws(
        &mut self,
        asked: &[Row],
        drawn: &[Drawn],
        places: Vec<usize>,
        until: Instant,
    ) -> Result<Vec<(usize, Draw)>, ModelError> {
        let mut slots: Vec<u32> = places.iter().map(|i| drawn[*i].slot).collect();
        if let Some(masker) = &mut self.masker {
            slots.retain(|slot| masker.mask_at_hand(*slot).is_none());
            slots.iter().for_each(|slot| masker.order(*slot));
        }
        self.await_slots(&slots, until)?;
        let mut draws = Vec::new();
        for i in places {
            draws.extend(self.masked_draw(asked, &drawn[i])?.map(|draw| (i, draw)));
        }
        Ok(draws)
    }

    /// The draw under a mask, where there is a constraint that could be followed.
    fn masked_draw(&mut self, asked: &[Row], drawn: &Drawn) -> Result<Option<Draw>, ModelError> {
        let Some(masker) = self.masker_of(drawn.slot)? else { return Ok(None) };
        let mask = masker.mask(drawn.slot);
        let slot = slot_mut(&mut self.slots, drawn.slot)?;
        Ok(slot
            .note(mask)
            .map(|mask| sampler::masked_draw(&drawn.first, &slot.sampling, next_position(&asked[drawn.row]), mask)))
    }

    /// Whether there is a constraint under which few tokens may follow.
    fn is_narrow(&mut self, slot: u32) -> Result<bool, ModelError> {
        let Some(masker) = self.masker_of(slot)? else { return Ok(false) };
        let narrow = masker.is_narrow(slot);
        Ok(slot_mut(&mut self.slots, slot)?.note(narrow).unwrap_or(false))
    }

    /// Whether the constraint, if there is one, allows a token.
    fn allows(&mut self, slot: u32, token: u32) -> Result<bool, ModelError> {
        let Some(masker) = self.masker_of(slot)? else { return Ok(true) };
        let allows = masker.allows(slot, token);
        Ok(slot_mut(&mut self.slots, slot)?.note(allows).unwrap_or(true))
    }

    /// Samples and scores on the host.
    fn sample(&mut self, asked: &[Row], wanted: Wants, results: &mut [RowResult]) -> Result<(), ModelError> {
        let (rows, wants): (Vec<usize>, Vec<Want>) = wanted.into_iter().unzip();
        let Self { slots, masker, sampler, model, .. } = self;
        // Ranks want all masks before they sample. Where the host computes the model as well there is nothing to do meanwhile.
        let ahead = match model.exchange_deadline() {
            Some(_) => Ahead::Always,
            None if model.draws() => Ahead::IfLikely,
            None => Ahead::Never,
        };
        model.logits(&rows, |i, logits| match wants[i] {
            Want::Score { row, target, top } => results[row].scores.push(logprobs(logits, target, top)),
            Want::Token(row) => {
                let (slot, position) = (asked[row].slot, next_position(&asked[row]));
                if let Some(Some(state)) = slots.get_mut(slot as usize) {
                    let masker = masker.as_mut().filter(|_| state.follows());
                    let bound = masker.map(|masker| Bound { masker: masker.as_mut(), slot, ahead });
                    state.choose(sampler, logits, position, bound, &mut results[row]);
                }
            }
        })
    }

    /// The masker, if it follows this slot.
    fn masker_of(&mut self, slot: u32) -> Result<Option<&mut Box<dyn Masker>>, ModelError> {
        let follows = slot_ref(&self.slots, slot)?.follows();
        Ok(self.masker.as_mut().filter(|_| follows))
    }
}

/// A slot that the masker follows.
struct Bound<'a> {
    masker: &'a mut dyn Masker,
    slot: u32,
    ahead: Ahead,
}

impl Limit for Bound<'_> {
    fn is_narrow(&mut self) -> Result<bool, String> {
        self.masker.is_narrow(self.slot)
    }

    fn allows(&mut self, token: u32) -> Result<bool, String> {
        self.masker.allows(self.slot, token)
    }

    fn mask(&mut self) -> Result<Arc<[u32]>, String> {
        self.masker.mask(self.slot)
    }
}

impl Slot {
    /// Whether there is a constraint that could be followed so far.
    fn follows(&self) -> bool {
        self.constrained && self.failed.is_none()
    }

    /// Takes note of an error.
    fn note<T>(&mut self, result: Result<T, String>) -> Option<T> {
        result.map_err(|reason| self.failed = Some(reason)).ok()
    }

    /// How the token at `position` is drawn at first, if a temperature, and a constraint, are all there is to it.
    fn plain_draw(&self, position: u32) -> Option<Draw> {
        if self.sampling.logprobs.is_none() {
            sampler::plain_draw(&self.sampling, self.generated, position)
        } else {
            None
        }
    }

    /// Takes note of the token chosen for it. Where there is none it has failed, and some token is there all the same.
    fn take(&mut self, token: Result<u32, String>, result: &mut RowResult) {
        let token = self.note(token).unwrap_or_default();
        result.token = Some(token);
        self.sampled = Some(token);
        self.generated += 1;
        if self.sampling.needs_history() {
            self.history.push(token);
        }
    }

    /// Samples the token at `position` from `logits`, as far as its constraint allows.
    fn choose(
        &mut self,
        sampler: &mut Sampler,
        logits: &mut [f32],
        position: u32,
        mut bound: Option<Bound<'_>>,
        result: &mut RowResult,
    ) {
        // Log-probabilities are the model's own, so a copy is kept where sampling is about to change the logits.
        let own = self.sampling.logprobs.map(|top| (top, logits.to_vec()));
        let limit = bound.as_mut().map(|bound| bound as &mut dyn Limit);
        let token = sampler.sample(logits, limit, &self.sampling, &self.history, self.generated, position);
        self.take(token, result);
        let token = result.token.unwrap_or_default();
        if let Some(Bound { masker, slot, ahead }) = bound.filter(|_| self.follows()) {
            masker.push(slot, token, ahead);
        }
        result.logprobs = own.map(|(top, own)| logprobs(&own, token, top));
    }
}

fn known(token: u32) -> Result<u32, String> {
    if token == NO_TOKEN { Err(NO_NUMBERS.into()) } else { Ok(token) }
}

/// Position of the token that a row's logits lead to.
fn next_position(row: &Row) -> u32 {
    row.position + row.input.len() as u32
}

/// Which rows of the batch need logits, in ascending order, and what for.
fn wanted(asked: &[Row], tokens: usize) -> Result<Wants, ModelError> {
    let mut wants = Vec::new();
    let mut first = 0;
    for (index, row) in asked.iter().enumerate() {
        if let Some(score) = &row.score {
            if score.targets.len() > row.input.len() {
                return bad(format!("{} targets for {} tokens", score.targets.len(), row.input.len()));
            }
            for (i, target) in score.targets.iter().enumerate() {
                wants.push((first + i, Want::Score { row: index, target: *target, top: score.top }));
            }
        }
        first += row.input.len();
        if row.sample {
            wants.push((first - 1, Want::Token(index)));
        }
    }
    debug_assert_eq!(first, tokens);
    Ok(wants)
}
