//! Runs step plans on a [`Model`]: everything a worker remembers from step to step lives here.

mod choose;
mod pass;

use std::sync::Arc;
use std::time::Instant;

use tandem_backend::{Backend, Batch, Sequence};
use tandem_step::{
    BlockAssignment, BlockCopy, Capacity, Input, Masker, Pool, Row, Sampling, Start, StepPlan, StepResult, StepTimings,
};

use self::pass::Pass;
use crate::ExpertTally;
use crate::forward::{Model, ModelError};
use crate::sampler::{History, Sampler};
use crate::tally::Counting;

/// A request as the worker sees it.
struct Slot {
    sampling: Sampling,
    history: History,
    /// Whether the masker follows it.
    constrained: bool,
    /// Why it cannot go on, if it cannot: its tokens mean nothing from there on.
    failed: Option<String>,
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
            failed: None,
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

/// A model and the state of its slots.
pub struct Runner<B: Backend> {
    model: Model<B>,
    slots: Vec<Option<Slot>>,
    /// The pass that several steps share, if one is under way.
    pass: Option<Pass>,
    /// Follows the constrained ones among the slots.
    masker: Option<Box<dyn Masker>>,
    sampler: Sampler,
    /// Epoch and step of the last plan.
    last: Option<(u64, u64)>,
    /// Where somebody measures how many experts are read.
    counting: Option<Counting>,
}

impl<B: Backend> Runner<B> {
    /// A runner with all slots free.
    pub fn new(model: Model<B>) -> Self {
        let slots = (0..model.capacity().max_streams).map(|_| None).collect();
        Self { model, slots, pass: None, masker: None, sampler: Sampler::default(), last: None, counting: None }
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
        let mut rows = self.choose(&plan.rows, tokens.len())?;
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
