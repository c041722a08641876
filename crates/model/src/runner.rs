//! Runs step plans on a [`Model`]: everything a worker remembers from step to step lives here.

mod pass;

use std::sync::Arc;
use std::time::Instant;

use tandem_backend::{Backend, Batch, Draw, Sequence};
use tandem_step::{
    BlockAssignment, BlockCopy, Capacity, Input, Masker, Pool, Row, RowResult, Sampling, Start, StepPlan, StepResult,
    StepTimings,
};

use self::pass::Pass;
use crate::ExpertTally;
use crate::forward::{Model, ModelError};
use crate::sampler::{self, History, logprobs, sample};
use crate::tally::Counting;

/// A request as the worker sees it.
struct Slot {
    sampling: Sampling,
    history: History,
    /// Whether the masker follows it.
    constrained: bool,
    /// Tokens generated so far.
    generated: u32,
    /// The token sampled last, for [`Input::Sampled`].
    sampled: Option<u32>,
    full_blocks: Vec<u32>,
    sliding_blocks: Vec<u32>,
}

impl Slot {
    fn new(start: Start) -> Self {
        Self {
            history: History::new(&start.history, start.generated as usize),
            constrained: start.constraint.is_some(),
            sampling: start.sampling,
            generated: start.generated,
            sampled: None,
            full_blocks: Vec::new(),
            sliding_blocks: Vec::new(),
        }
    }

    fn assign(&mut self, assignment: &BlockAssignment) {
        let table = match assignment.pool {
            Pool::Full => &mut self.full_blocks,
            Pool::Sliding => &mut self.sliding_blocks,
        };
        let index = assignment.index as usize;
        if table.len() <= index {
            table.resize(index + 1, UNASSIGNED);
        }
        table[index] = assignment.block;
    }
}

/// Entries of block tables that were never assigned: those before a sliding window. Never read.
const UNASSIGNED: u32 = u32::MAX;

/// What is wanted from the logits of one row of the batch.
enum Want {
    /// The next token of plan row `.0`.
    Token(usize),
    /// The log-probability of `target`, with `top` alternatives, for plan row `row`.
    Score { row: usize, target: u32, top: u8 },
}

/// A model and the state of its slots.
pub struct Runner<B: Backend> {
    model: Model<B>,
    slots: Vec<Option<Slot>>,
    /// The pass that several steps share, if one is under way.
    pass: Option<Pass>,
    /// Follows the constrained ones among the slots.
    masker: Option<Box<dyn Masker>>,
    /// Epoch and step of the last plan.
    last: Option<(u64, u64)>,
    /// Where somebody measures how many experts are read.
    counting: Option<Counting>,
}

impl<B: Backend> Runner<B> {
    /// A runner with all slots free.
    pub fn new(model: Model<B>) -> Self {
        let slots = (0..model.capacity().max_streams).map(|_| None).collect();
        Self { model, slots, pass: None, masker: None, last: None, counting: None }
    }

    /// The same runner, able to run requests with a constraint.
    pub fn with_masker(self, masker: Box<dyn Masker>) -> Self {
        Self { masker: Some(masker), ..self }
    }

    /// The same runner, which counts for `tally` while that wants it.
    pub fn with_tally(self, tally: Arc<ExpertTally>) -> Self {
        Self { counting: Some(Counting::new(tally)), ..self }
    }

    /// Sizes of the model's pools.
    pub fn capacity(&self) -> Capacity {
        self.model.capacity()
    }

    /// Whether its device rounds activations of prompts to 8 bits.
    pub fn eight_bit_prompts(&self) -> bool {
        self.model.eight_bit_prompts()
    }

    /// Carries out one plan. After an error the state is undefined: the runner is to be dropped.
    pub fn run(&mut self, plan: &StepPlan) -> Result<StepResult, ModelError> {
        let started = Instant::now();
        self.follow(plan)?;
        if let Some(counting) = &mut self.counting {
            counting.before(&self.model)?;
        }
        self.take_and_leave(plan)?;
        self.copy(plan)?;
        let passed = plan.slice.as_ref().map_or(Ok(Vec::new()), |slice| self.run_slice(slice))?;
        let sliced = Instant::now();
        self.keep_apart(&plan.rows)?;
        let tokens = self.admit_rows(&plan.rows)?;
        self.forward(&plan.rows, &tokens)?;
        let forwarded = Instant::now();
        let mut rows = self.choose(&plan.rows, &tokens)?;
        rows.extend(passed);
        if let Some(counting) = &self.counting {
            counting.after(&self.model)?;
        }
        let timings = StepTimings {
            slice_us: plan.slice.as_ref().map_or(0, |_| (sliced - started).as_micros() as u64),
            forward_us: (forwarded - sliced).as_micros() as u64,
            sample_us: forwarded.elapsed().as_micros() as u64,
        };
        Ok(StepResult { epoch: plan.epoch, step: plan.step, rows, timings })
    }

    /// Refuses plans that do not follow the last one. Step 0 begins anew, as after a self-test, where nobody has a slot.
    fn follow(&mut self, plan: &StepPlan) -> Result<(), ModelError> {
        let here = (plan.epoch, plan.step);
        let begins = plan.step == 0 && self.slots.iter().all(Option::is_none);
        if let Some((epoch, step)) = self.last
            && here != (epoch, step + 1)
            && !begins
        {
            return bad(format!("epoch {} step {} after epoch {epoch} step {step}", plan.epoch, plan.step));
        }
        self.last = Some(here);
        Ok(())
    }

    fn take_and_leave(&mut self, plan: &StepPlan) -> Result<(), ModelError> {
        self.end_pass(&plan.ends)?;
        for slot in &plan.ends {
            if self.slots.get_mut(*slot as usize).and_then(Option::take).is_none() {
                return bad(format!("slot {slot} ends but was not taken"));
            }
            if let Some(masker) = &mut self.masker {
                masker.end(*slot);
            }
        }
        for start in &plan.starts {
            match self.slots.get_mut(start.slot as usize) {
                Some(free @ None) => *free = Some(Slot::new(start.clone())),
                Some(Some(_)) => return bad(format!("slot {} starts but is taken", start.slot)),
                None => return bad(format!("slot {} does not exist", start.slot)),
            }
            if let Some(constraint) = &start.constraint {
                let Some(masker) = &mut self.masker else {
                    return bad(format!("slot {} has a constraint, and this worker follows none", start.slot));
                };
                let output = start.history.len().saturating_sub(start.generated as usize);
                masker.begin(start.slot, constraint, &start.history[output..]);
            }
        }
        Ok(())
    }

    fn copy(&mut self, plan: &StepPlan) -> Result<(), ModelError> {
        for pool in [Pool::Full, Pool::Sliding] {
            let mut pairs = Vec::new();
            for BlockCopy { from, to, .. } in plan.copies.iter().filter(|copy| copy.pool == pool) {
                self.check_block(pool, *from)?;
                self.check_block(pool, *to)?;
                pairs.push((*from, *to));
            }
            if !pairs.is_empty() {
                self.model.copy_blocks(pool, &pairs)?;
            }
        }
        Ok(())
    }

    /// Takes note of the rows' blocks and resolves their tokens, all rows one after another.
    fn admit_rows(&mut self, rows: &[Row]) -> Result<Vec<u32>, ModelError> {
        let mut tokens = Vec::new();
        for row in rows {
            for assignment in &row.blocks {
                self.check_block(assignment.pool, assignment.block)?;
            }
            let capacity = self.capacity();
            let slot = slot_mut(&mut self.slots, row.slot)?;
            row.blocks.iter().for_each(|assignment| slot.assign(assignment));
            check_covered(slot, row, capacity)?;
            match &row.input {
                Input::Tokens(some) => tokens.extend_from_slice(some),
                Input::Sampled => match slot.sampled {
                    Some(token) => tokens.push(token),
                    None => return bad(format!("slot {} has sampled no token yet", row.slot)),
                },
            }
        }
        let capacity = self.capacity();
        if tokens.is_empty() && !rows.is_empty() || tokens.len() > capacity.max_step_tokens as usize {
            return bad(format!("{} tokens in {} rows", tokens.len(), rows.len()));
        }
        if let Some(token) = tokens.iter().find(|token| **token >= capacity.vocab) {
            return bad(format!("token {token} is not in the vocabulary of {}", capacity.vocab));
        }
        Ok(tokens)
    }

    fn forward(&mut self, rows: &[Row], tokens: &[u32]) -> Result<(), ModelError> {
        if rows.is_empty() {
            return Ok(());
        }
        let sequences = sequences(&self.slots, rows)?;
        self.model.forward(&Batch { tokens, sequences: &sequences })
    }

    /// Samples and scores.
    fn choose(&mut self, asked: &[Row], tokens: &[u32]) -> Result<Vec<RowResult>, ModelError> {
        let mut results: Vec<RowResult> = asked.iter().map(|row| RowResult::empty(row.slot)).collect();
        let (drawn, wanted) = self.share_out(asked, tokens.len())?;
        if !drawn.is_empty() {
            self.draw(asked, drawn, &mut results)?;
        }
        let (rows, wants): (Vec<usize>, Vec<Want>) = wanted.into_iter().unzip();
        let (slots, masker) = (&mut self.slots, &mut self.masker);
        self.model.logits(&rows, |i, logits| match wants[i] {
            Want::Score { row, target, top } => results[row].scores.push(logprobs(logits, target, top)),
            Want::Token(row) => {
                let next = next_position(&asked[row]);
                let index = asked[row].slot;
                if let Some(slot) = slots[index as usize].as_mut() {
                    let masker = masker.as_mut().filter(|_| slot.constrained);
                    slot.choose(logits, next, masker.map(|masker| (masker, index)), &mut results[row]);
                }
            }
        })?;
        Ok(results)
    }

    /// Has the model choose tokens: `(row of the batch, row of the plan, how)`. Masks are waited for here, while a
    /// device is still busy with the forward pass.
    fn draw(
        &mut self,
        asked: &[Row],
        drawn: Vec<(usize, usize, Draw)>,
        results: &mut [RowResult],
    ) -> Result<(), ModelError> {
        let mut draws = Vec::with_capacity(drawn.len());
        let mut rows = Vec::with_capacity(drawn.len());
        for (at, row, mut draw) in drawn {
            let slot = asked[row].slot;
            if let Some(masker) = self.masker_of(slot)? {
                match masker.mask(slot) {
                    Ok(mask) => draw.mask = Some(mask),
                    Err(reason) => results[row].error = Some(reason),
                }
            }
            draws.push((at, draw));
            rows.push(row);
        }
        let tokens = self.model.draw(&draws)?;
        for (row, token) in rows.into_iter().zip(tokens) {
            let slot = asked[row].slot;
            if results[row].error.is_none()
                && let Some(masker) = self.masker_of(slot)?
            {
                masker.push(slot, token);
            }
            slot_mut(&mut self.slots, slot)?.take(token, &mut results[row]);
        }
        Ok(())
    }

    /// The masker, if it follows this slot.
    fn masker_of(&mut self, slot: u32) -> Result<Option<&mut Box<dyn Masker>>, ModelError> {
        let constrained = slot_ref(&self.slots, slot)?.constrained;
        Ok(self.masker.as_mut().filter(|_| constrained))
    }

    /// What is wanted of which rows of the batch: tokens that the model can draw (with their plan row), and the rest.
    #[allow(clippy::type_complexity)]
    fn share_out(
        &self,
        asked: &[Row],
        tokens: usize,
    ) -> Result<(Vec<(usize, usize, Draw)>, Vec<(usize, Want)>), ModelError> {
        let (mut drawn, mut rest) = (Vec::new(), Vec::new());
        for (row, want) in wanted(asked, tokens)? {
            let draw = match want {
                Want::Token(index) if self.model.draws() => {
                    let slot = slot_ref(&self.slots, asked[index].slot)?;
                    slot.plain_draw(next_position(&asked[index])).map(|draw| (row, index, draw))
                }
                _ => None,
            };
            match draw {
                Some(draw) => drawn.push(draw),
                None => rest.push((row, want)),
            }
        }
        Ok((drawn, rest))
    }

    fn check_block(&self, pool: Pool, block: u32) -> Result<(), ModelError> {
        let capacity = self.capacity();
        let blocks = match pool {
            Pool::Full => capacity.full_blocks,
            Pool::Sliding => capacity.sliding_blocks,
        };
        if block < blocks { Ok(()) } else { bad(format!("block {block} of {blocks} in the {pool:?} pool")) }
    }
}

/// The rows as parts of a batch, one after another.
fn sequences<'a>(slots: &'a [Option<Slot>], rows: &[Row]) -> Result<Vec<Sequence<'a>>, ModelError> {
    let mut sequences = Vec::with_capacity(rows.len());
    let mut first = 0;
    for row in rows {
        let slot = slot_ref(slots, row.slot)?;
        sequences.push(Sequence {
            rows: first..first + row.input.len(),
            position: row.position,
            full_blocks: &slot.full_blocks,
            sliding_blocks: &slot.sliding_blocks,
        });
        first += row.input.len();
    }
    Ok(sequences)
}

/// Position of the token that a row's logits lead to.
fn next_position(row: &Row) -> u32 {
    row.position + row.input.len() as u32
}

impl Slot {
    /// How the token at `position` is drawn, if a temperature, and a mask that comes later, are all there is to it.
    fn plain_draw(&self, position: u32) -> Option<Draw> {
        if self.sampling.logprobs.is_none() {
            sampler::plain_draw(&self.sampling, self.generated, position)
        } else {
            None
        }
    }

    /// Takes note of the token chosen for it.
    fn take(&mut self, token: u32, result: &mut RowResult) {
        result.token = Some(token);
        self.sampled = Some(token);
        self.generated += 1;
        if self.sampling.needs_history() {
            self.history.push(token);
        }
    }

    /// Samples the token at `position` from `logits`, as far as the masker allows, which knows the slot by a number.
    fn choose(
        &mut self,
        logits: &mut [f32],
        position: u32,
        masker: Option<(&mut Box<dyn Masker>, u32)>,
        result: &mut RowResult,
    ) {
        let (mask, masker) = match masker {
            Some((masker, slot)) => (Some(masker.mask(slot)), Some((masker, slot))),
            None => (None, None),
        };
        let mask = mask.transpose().unwrap_or_else(|reason| {
            result.error = Some(reason);
            None
        });
        // Log-probabilities are the model's own, so a copy is kept where sampling is about to change the logits.
        let own = self.sampling.logprobs.map(|top| (top, logits.to_vec()));
        let token = sample(logits, mask.as_deref(), &self.sampling, &self.history, self.generated, position);
        if let (Some((masker, slot)), true) = (masker, mask.is_some()) {
            masker.push(slot, token);
        }
        result.logprobs = own.map(|(top, own)| logprobs(&own, token, top));
        self.take(token, result);
    }
}

/// Which rows of the batch need logits, in ascending order, and what for.
fn wanted(asked: &[Row], tokens: usize) -> Result<Vec<(usize, Want)>, ModelError> {
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

/// Every position a row reads or writes must have a block.
fn check_covered(slot: &Slot, row: &Row, capacity: Capacity) -> Result<(), ModelError> {
    let end = row.position as usize + row.input.len();
    if end > capacity.context as usize {
        return bad(format!("slot {} reaches position {end} of {}", row.slot, capacity.context));
    }
    let size = capacity.block_tokens as usize;
    let covered = |table: &[u32], from: usize| {
        let (first, last) = (from / size, (end - 1) / size);
        table.len() > last && table[first..=last].iter().all(|block| *block != UNASSIGNED)
    };
    let window_start = (row.position as usize + 1).saturating_sub(capacity.window as usize);
    if covered(&slot.full_blocks, 0) && covered(&slot.sliding_blocks, window_start) {
        Ok(())
    } else {
        bad(format!("slot {} lacks blocks for positions up to {end}", row.slot))
    }
}

fn slot_ref(slots: &[Option<Slot>], slot: u32) -> Result<&Slot, ModelError> {
    match slots.get(slot as usize) {
        Some(Some(taken)) => Ok(taken),
        _ => bad(format!("slot {slot} is not taken")),
    }
}

fn slot_mut(slots: &mut [Option<Slot>], slot: u32) -> Result<&mut Slot, ModelError> {
    match slots.get_mut(slot as usize) {
        Some(Some(taken)) => Ok(taken),
        _ => bad(format!("slot {slot} is not taken")),
    }
}

fn bad<T>(reason: String) -> Result<T, ModelError> {
    Err(ModelError::Plan(reason))
}
