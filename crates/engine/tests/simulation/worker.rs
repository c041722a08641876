use std::collections::{BTreeMap, BTreeSet, VecDeque};

use tandem_engine::{FinishReason, Request};
use tandem_step::{
    BlockAssignment, Capacity, Input, Pool, Row, RowResult, Sampling, Slice, Start, StepPlan, StepResult, StepTimings,
    TokenLogprobs,
};

use super::mix;

/// What a position of a KV block holds: which token, where, and what came before it.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Cell {
    token: u32,
    position: u32,
    prefix: u64,
}

/// How long this worker says a layer takes for a prompt token.
pub const LAYER_TOKEN_US: u64 = 10;

/// A pass that is under way in slices.
struct Pass {
    rows: Vec<(Row, Vec<u32>)>,
    layers: u32,
}

impl Pass {
    fn tokens(&self) -> u64 {
        self.rows.iter().map(|(_, tokens)| tokens.len() as u64).sum()
    }
}

pub struct HashWorker {
    capacity: Capacity,
    prefill_chunk: u32,
    epoch: u64,
    next_step: u64,
    full: Vec<Option<Cell>>,
    sliding: Vec<Option<Cell>>,
    slots: Vec<Option<Slot>>,
    pass: Option<Pass>,
    /// Blocks that each step in flight writes.
    writing: VecDeque<BTreeSet<(Pool, u32)>>,
}

struct Slot {
    sampling: Sampling,
    generated: u32,
    /// Tokens known at the start and sampled since, where the sampling needs them.
    history: Vec<u32>,
    sampled: Option<u32>,
    /// Next position to be fed; unknown until the first row.
    position: Option<u32>,
    blocks: BTreeMap<(Pool, u32), u32>,
}

impl HashWorker {
    pub fn new(capacity: Capacity, prefill_chunk: u32) -> Self {
        let cells = |blocks: u32| vec![None; (blocks * capacity.block_tokens) as usize];
        Self {
            full: cells(capacity.full_blocks),
            sliding: cells(capacity.sliding_blocks),
            slots: (0..capacity.max_streams).map(|_| None).collect(),
            pass: None,
            epoch: 0,
            next_step: 0,
            writing: VecDeque::new(),
            capacity,
            prefill_chunk,
        }
    }

    /// The same for plans of an epoch.
    pub fn of_epoch(self, epoch: u64) -> Self {
        Self { epoch, ..self }
    }

    /// Runs a plan, panicking where a real worker would compute something wrong.
    pub fn run(&mut self, plan: StepPlan) -> StepResult {
        assert_eq!((plan.epoch, plan.step), (self.epoch, self.next_step), "plans come in order, each once");
        self.next_step += 1;
        self.end_pass(&plan.ends);
        for slot in &plan.ends {
            assert!(self.slots[*slot as usize].take().is_some(), "slot {slot} ended without having started");
        }
        plan.starts.iter().for_each(|start| self.start(start));
        for copy in &plan.copies {
            let size = self.capacity.block_tokens as usize;
            let from = copy.from as usize * size;
            self.cells(copy.pool).copy_within(from..from + size, copy.to as usize * size);
        }
        self.check_sizes(&plan);
        self.check_writes(&plan);
        let (passed, slice_us) = plan.slice.as_ref().map_or((Vec::new(), 0), |slice| self.run_slice(slice));
        self.check_apart(&plan);
        let rows = self.admit(&plan.rows);
        self.write(&rows);
        let prompts: u64 = plan.rows.iter().map(|row| row.input.len() as u64).filter(|length| *length > 1).sum();
        let forward_us = prompts * u64::from(self.capacity.layers) * LAYER_TOKEN_US;
        let own = rows.iter().map(|(row, tokens)| self.answer(row, tokens)).collect::<Vec<_>>();
        let timings = StepTimings { slice_us, forward_us, sample_us: 0 };
        StepResult { epoch: plan.epoch, step: plan.step, rows: [own, passed].concat(), timings }
    }

    /// Every slice writes and reads like a whole pass: in the positions of its layers it does.
    fn run_slice(&mut self, slice: &Slice) -> (Vec<RowResult>, u64) {
        if !slice.rows.is_empty() {
            assert!(self.pass.is_none(), "a pass begins while another is under way");
            self.pass = Some(Pass { rows: self.admit(&slice.rows), layers: 0 });
        }
        let mut pass = self.pass.take().expect("a slice is of a pass");
        pass.layers += slice.layers;
        assert!(slice.layers > 0 && pass.layers <= self.capacity.layers, "{} layers", pass.layers);
        self.write(&pass.rows);
        let took = pass.tokens() * u64::from(slice.layers) * LAYER_TOKEN_US;
        if pass.layers == self.capacity.layers {
            return (pass.rows.iter().map(|(row, tokens)| self.answer(row, tokens)).collect(), took);
        }
        pass.rows.iter().for_each(|(row, tokens)| _ = self.read(row, tokens));
        self.pass = Some(pass);
        (Vec::new(), took)
    }

    fn end_pass(&mut self, ends: &[u32]) {
        let Some(pass) = &self.pass else { return };
        let ending = pass.rows.iter().filter(|(row, _)| ends.contains(&row.slot)).count();
        assert!(ending == 0 || ending == pass.rows.len(), "some slots end in the middle of their pass");
        if ending > 0 {
            self.pass = None;
        }
    }

    /// Rows beside a pass are few, and not of its slots.
    fn check_apart(&self, plan: &StepPlan) {
        let Some(pass) = &self.pass else { return };
        assert!(plan.rows.iter().map(|row| row.input.len() as u32).sum::<u32>() <= self.capacity.max_streams);
        let shared = plan.rows.iter().find(|row| pass.rows.iter().any(|(passing, _)| passing.slot == row.slot));
        assert_eq!(shared, None, "a slot has another row while its pass is under way");
    }

    fn start(&mut self, start: &Start) {
        let slot = &mut self.slots[start.slot as usize];
        assert!(slot.is_none(), "slot {} is taken", start.slot);
        assert_eq!(start.history.is_empty(), !start.sampling.needs_history());
        *slot = Some(Slot {
            sampling: start.sampling.clone(),
            generated: start.generated,
            history: start.history.clone(),
            sampled: None,
            position: None,
            blocks: BTreeMap::new(),
        });
    }

    fn check_sizes(&self, plan: &StepPlan) {
        assert!(!plan.rows.is_empty() || plan.slice.is_some(), "a step without rows");
        let rows = || plan.rows.iter().chain(plan.slice.iter().flat_map(|slice| &slice.rows));
        let lengths = || rows().map(|row| row.input.len() as u32);
        assert!(lengths().sum::<u32>() <= self.capacity.max_step_tokens, "a step larger than agreed");
        let prompts: u32 = lengths().filter(|length| *length > 1).sum();
        assert!(prompts <= self.prefill_chunk, "{prompts} prompt tokens in a step");
        let slots: BTreeSet<_> = rows().map(|row| row.slot).collect();
        assert_eq!(slots.len(), rows().count(), "two rows for a slot");
    }

    /// The oldest step in flight is over.
    pub fn returned(&mut self) {
        self.writing.pop_front();
    }

    /// Blocks that a step in flight still writes must not be given to anybody.
    fn check_writes(&mut self, plan: &StepPlan) {
        let rows = plan.rows.iter().chain(plan.slice.iter().flat_map(|slice| &slice.rows));
        for BlockAssignment { pool, block, .. } in rows.flat_map(|row| &row.blocks) {
            let is_written = self.writing.iter().any(|blocks| blocks.contains(&(*pool, *block)));
            assert!(!is_written, "{pool:?} block {block} is assigned while a step in flight writes it");
        }
        self.writing.push_back(BTreeSet::new());
    }

    fn cells(&mut self, pool: Pool) -> &mut Vec<Option<Cell>> {
        match pool {
            Pool::Full => &mut self.full,
            Pool::Sliding => &mut self.sliding,
        }
    }

    fn slot(&mut self, slot: u32) -> &mut Slot {
        self.slots[slot as usize].as_mut().expect("a row's slot has started")
    }

    fn address(&mut self, slot: u32, pool: Pool, position: u32) -> usize {
        let size = self.capacity.block_tokens;
        let block = *self
            .slot(slot)
            .blocks
            .get(&(pool, position / size))
            .unwrap_or_else(|| panic!("slot {slot} has no {pool:?} block for position {position}"));
        (block * size + position % size) as usize
    }

    /// Assigns the rows' blocks and resolves their tokens.
    fn admit(&mut self, rows: &[Row]) -> Vec<(Row, Vec<u32>)> {
        rows.iter().map(|row| (row.clone(), self.admit_row(row))).collect()
    }

    fn admit_row(&mut self, row: &Row) -> Vec<u32> {
        let slot = self.slot(row.slot);
        for BlockAssignment { pool, index, block } in &row.blocks {
            slot.blocks.insert((*pool, *index), *block);
        }
        assert_eq!(slot.position.unwrap_or(row.position), row.position, "a row skips or repeats positions");
        slot.position = Some(row.position + row.input.len() as u32);
        match &row.input {
            Input::Tokens(tokens) => tokens.clone(),
            Input::Sampled => vec![slot.sampled.expect("the slot's previous row sampled")],
        }
    }

    /// Writes the cells of the rows' tokens. All write before any reads, as in a batched layer: rows must not depend on each
    /// other's order.
    fn write(&mut self, rows: &[(Row, Vec<u32>)]) {
        rows.iter().for_each(|(row, tokens)| self.write_row(row, tokens));
    }

    fn write_row(&mut self, row: &Row, tokens: &[u32]) {
        let mut prefix = match row.position.checked_sub(1) {
            Some(before) => {
                let address = self.address(row.slot, Pool::Full, before);
                self.full[address].expect("the position before was written").prefix
            }
            None => 0,
        };
        for (&token, position) in tokens.iter().zip(row.position..) {
            prefix = extend(prefix, token);
            for pool in [Pool::Full, Pool::Sliding] {
                let address = self.address(row.slot, pool, position);
                self.cells(pool)[address] = Some(Cell { token, position, prefix });
                let block = address as u32 / self.capacity.block_tokens;
                self.writing.back_mut().expect("the running step is the last").insert((pool, block));
            }
        }
    }

    /// Reads all a row's queries read: what the sequence is up to each position.
    fn read(&mut self, row: &Row, tokens: &[u32]) -> Vec<u64> {
        let end = row.position + tokens.len() as u32;
        let window_start = (row.position + 1).saturating_sub(self.capacity.window);
        let mut prefix = 0;
        let mut prefixes = Vec::new();
        for position in 0..end {
            let address = self.address(row.slot, Pool::Full, position);
            let cell = self.full[address].expect("a full position read was written");
            prefix = extend(prefix, cell.token);
            assert_eq!(cell, Cell { token: cell.token, position, prefix }, "slot {} reads another's block", row.slot);
            if position >= window_start {
                let address = self.address(row.slot, Pool::Sliding, position);
                assert_eq!(self.sliding[address], Some(cell), "slot {}: sliding position {position}", row.slot);
            }
            prefixes.push(prefix);
        }
        prefixes
    }

    fn answer(&mut self, row: &Row, tokens: &[u32]) -> RowResult {
        let (prefixes, end) = (self.read(row, tokens), row.position + tokens.len() as u32);
        let scores = row.score.iter().flat_map(|score| {
            assert!(!score.targets.is_empty() && score.targets.len() <= tokens.len());
            let here = &prefixes[row.position as usize..];
            score.targets.iter().zip(here).map(|(target, prefix)| score_of(*prefix, *target)).collect::<Vec<_>>()
        });
        let scores = scores.collect();
        let (token, logprobs) =
            if row.sample { self.sample(row.slot, prefixes[end as usize - 1], end) } else { (None, None) };
        RowResult { slot: row.slot, token, logprobs, scores, error: None }
    }

    fn sample(&mut self, slot: u32, prefix: u64, position: u32) -> (Option<u32>, Option<TokenLogprobs>) {
        let vocab = self.capacity.vocab;
        let slot = self.slot(slot);
        let token = sample(prefix, position, &slot.sampling, slot.generated, &slot.history, vocab);
        slot.generated += 1;
        slot.sampled = Some(token);
        if slot.sampling.needs_history() {
            slot.history.push(token);
        }
        (Some(token), slot.sampling.logprobs.map(|_| score_of(prefix, token)))
    }
}

fn extend(prefix: u64, token: u32) -> u64 {
    mix(prefix ^ (u64::from(token) + 1))
}

fn score_of(prefix: u64, token: u32) -> TokenLogprobs {
    let logprob = -((extend(prefix, token) % 1000) as f32) / 100.0;
    TokenLogprobs { token, logprob, top: Vec::new() }
}

fn sample(prefix: u64, position: u32, sampling: &Sampling, generated: u32, history: &[u32], vocab: u32) -> u32 {
    let history = history.iter().fold(1, |hash, token| extend(hash, *token));
    let drawn = mix(prefix ^ sampling.seed) ^ mix(u64::from(position)) ^ mix(history + u64::from(generated));
    (mix(drawn) % u64::from(vocab)) as u32
}

/// What a request gets if nothing else ever ran: its tokens, prompt scores and end.
pub fn expected(request: &Request, capacity: &Capacity) -> (Vec<u32>, Vec<TokenLogprobs>, FinishReason) {
    let prompt = &request.prompt;
    let mut prefix = 0;
    let mut scores = Vec::new();
    for (index, token) in prompt.iter().enumerate() {
        prefix = extend(prefix, *token);
        if let Some(next) = prompt.get(index + 1).filter(|_| request.prompt_logprobs.is_some()) {
            scores.push(score_of(prefix, *next));
        }
    }
    let mut tokens = prompt.clone();
    let limit = (prompt.len() + request.max_tokens as usize).min(capacity.context as usize);
    let mut reason = FinishReason::Length;
    while tokens.len() < limit && reason == FinishReason::Length {
        let history = if request.sampling.needs_history() { &tokens[..] } else { &[] };
        let generated = (tokens.len() - prompt.len()) as u32;
        let token = sample(prefix, tokens.len() as u32, &request.sampling, generated, history, capacity.vocab);
        tokens.push(token);
        prefix = extend(prefix, token);
        if request.stop_tokens.contains(&token) {
            reason = FinishReason::Stop(token);
        }
    }
    (tokens[prompt.len()..].to_vec(), scores, reason)
}
