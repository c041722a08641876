//! What the next step does: who gets a row, with which blocks.

use std::time::Instant;

use tandem_step::{Input, Pool, Row, Score, Start, StepPlan};

use crate::admission::PREFILLS_AT_ONCE;
use crate::record::Record;
use crate::scheduler::{RowInFlight, StepInFlight};
use crate::{RequestId, Scheduler, Update};

/// A row to be: so many tokens of a request.
pub(crate) struct Work {
    pub(crate) id: RequestId,
    pub(crate) tokens: u32,
}

/// What a step is to do.
#[derive(Default)]
pub(crate) struct Gathered {
    rows: Vec<Work>,
    /// Rows of a pass that begins.
    begun: Vec<Work>,
    /// Layers to run of the pass that begins or is under way.
    layers: u32,
}

impl Gathered {
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.layers == 0
    }
}

enum Secured {
    /// The blocks are there.
    Yes,
    /// Steps in flight, or a pass under way, hold blocks: their end must come before anybody is preempted.
    AfterResults,
    /// The request itself was the youngest, and was preempted.
    Preempted,
}

impl Scheduler {
    /// Chooses what the next step does and makes sure of the blocks. `None`: only after the results in flight.
    pub(crate) fn gather(&mut self) -> Option<Gathered> {
        if self.pass.is_some() { self.gather_beside_pass() } else { self.gather_rows() }
    }

    /// Decodes, and chunks of prompts: together with them, or as a pass that begins.
    fn gather_rows(&mut self) -> Option<Gathered> {
        let mut rows = self.secure_all(self.decodes())?;
        self.admit();
        let room = self.capacity.max_step_tokens - rows.len() as u32;
        let chunks = self.share_out(room.min(self.settings.prefill_chunk));
        let layers = self.first_slice(&chunks).filter(|_| !rows.is_empty());
        if layers.is_some() && !self.are_settled(&chunks) {
            return Some(Gathered { rows, ..Gathered::default() });
        }
        let mut chunks = self.secure_all(chunks)?;
        // An older prompt may have preempted a younger decode.
        rows.retain(|work| self.running.contains(&work.id));
        chunks.retain(|work| self.running.contains(&work.id));
        match layers.filter(|_| !rows.is_empty() && !chunks.is_empty()) {
            Some(layers) => Some(Gathered { rows, begun: chunks, layers }),
            None => {
                rows.append(&mut chunks);
                Some(Gathered { rows, ..Gathered::default() })
            }
        }
    }

    /// Decodes, and the next layers of the pass that is under way: all of them if there are no decodes, or no blocks for them.
    fn gather_beside_pass(&mut self) -> Option<Gathered> {
        let rows = match self.secure_all(self.decodes()) {
            Some(rows) => rows,
            None if self.in_flight.is_empty() => Vec::new(),
            None => return None,
        };
        let layers = self.next_slice(!rows.is_empty());
        Some(Gathered { rows, begun: Vec::new(), layers })
    }

    fn decodes(&self) -> Vec<Work> {
        let decoding = self.running.iter().filter(|id| self.ledger[id].is_decoding() && !self.is_in_pass(**id));
        decoding.map(|id| Work { id: *id, tokens: 1 }).collect()
    }

    /// Divides prompt tokens among the oldest prefills: equal shares, and what short ones leave goes to the others.
    fn share_out(&self, mut budget: u32) -> Vec<Work> {
        let prefilling = self.running.iter().copied().filter(|id| self.ledger[id].is_prefilling());
        let mut shares: Vec<_> = prefilling
            .take(PREFILLS_AT_ONCE.min(budget as usize))
            .map(|id| Work { id, tokens: self.ledger[&id].remaining() })
            .collect();
        shares.sort_by_key(|work| (work.tokens, work.id));
        let count = shares.len() as u32;
        for (served, work) in (0..).zip(&mut shares) {
            work.tokens = work.tokens.min(budget / (count - served));
            budget -= work.tokens;
            work.tokens = self.ledger[&work.id].cut(work.tokens);
        }
        shares.sort_by_key(|work| work.id);
        shares
    }

    fn secure_all(&mut self, wanted: Vec<Work>) -> Option<Vec<Work>> {
        let mut secured = Vec::with_capacity(wanted.len());
        for row in wanted {
            match self.secure(&row) {
                Secured::Yes => secured.push(row),
                Secured::AfterResults => return None,
                Secured::Preempted => {}
            }
        }
        Some(secured)
    }

    /// Gives a running request the blocks for its next tokens, at the cost of cached blocks and of younger requests.
    fn secure(&mut self, row: &Work) -> Secured {
        loop {
            if !self.running.contains(&row.id) {
                return Secured::Preempted;
            }
            if self.assign_blocks(row) {
                return Secured::Yes;
            }
            if !self.in_flight.is_empty() || self.pass.is_some() {
                return Secured::AfterResults;
            }
            if let Some(&youngest) = self.running.last() {
                self.preempt(youngest);
            }
        }
    }

    fn assign_blocks(&mut self, row: &Work) -> bool {
        let Some(run) = self.ledger.get_mut(&row.id).and_then(|record| record.run.as_mut()) else { return false };
        let block_tokens = self.capacity.block_tokens;
        // One position more than the next query reads: see `window_blocks`.
        let window_start = run.planned.saturating_sub(self.capacity.window);
        while (run.sliding_first + 1) * block_tokens <= window_start
            && let Some(block) = run.sliding.pop_front()
        {
            run.sliding_first += 1;
            self.store.release(Pool::Sliding, block);
        }
        let end = (run.planned + row.tokens).div_ceil(block_tokens);
        let full = end.saturating_sub(run.full.len() as u32);
        let sliding = end.saturating_sub(run.sliding_end());
        if !self.store.secure(Pool::Full, full) || !self.store.secure(Pool::Sliding, sliding) {
            return false;
        }
        (0..full).for_each(|_| run.assign(Pool::Full, self.store.take(Pool::Full)));
        (0..sliding).for_each(|_| run.assign(Pool::Sliding, self.store.take(Pool::Sliding)));
        true
    }

    /// Turns secured rows and layers into a plan.
    pub(crate) fn emit(&mut self, work: Gathered, now: Instant) -> StepPlan {
        let step = self.next_step;
        self.next_step += 1;
        self.store.step_issued(step);
        let ends = std::mem::take(&mut self.ends);
        let mut plan = StepPlan { epoch: self.epoch, step, ends, ..StepPlan::default() };
        let (rows, mut in_flight) = self.emit_rows(&work.rows, &mut plan, now);
        plan.rows = rows;
        let begun = self.emit_rows(&work.begun, &mut plan, now);
        let slice = (work.layers > 0).then(|| self.emit_slice(begun, work.layers, &mut in_flight)).flatten();
        let (planned, slice) = slice.unzip();
        plan.slice = planned;
        self.in_flight.push_back(StepInFlight { step, rows: in_flight, slice });
        plan
    }

    fn emit_rows(&mut self, work: &[Work], plan: &mut StepPlan, now: Instant) -> (Vec<Row>, Vec<RowInFlight>) {
        work.iter().filter_map(|work| self.emit_row(work, plan, now)).unzip()
    }

    fn emit_row(&mut self, work: &Work, plan: &mut StepPlan, now: Instant) -> Option<(Row, RowInFlight)> {
        let is_prefill = self.ledger[&work.id].is_prefilling();
        self.announce(work.id, plan, now);
        let record = self.ledger.get_mut(&work.id)?;
        let row = record.next_row(work.tokens)?;
        let run = record.run.as_mut()?;
        run.planned += work.tokens;
        run.sampling += u32::from(row.sample);
        let in_flight = RowInFlight {
            id: work.id,
            slot: row.slot,
            start: row.position,
            length: work.tokens,
            sample: row.sample,
            targets: row.score.as_ref().map_or(0, |score| score.targets.len()),
            is_prefill,
        };
        Some((row, in_flight))
    }

    /// Tells the worker of a request that takes a slot, and the request that it runs.
    fn announce(&mut self, id: RequestId, plan: &mut StepPlan, now: Instant) {
        let Some(record) = self.ledger.get_mut(&id) else { return };
        let generated = record.generated();
        let Some(run) = record.run.as_mut().filter(|run| !run.announced) else { return };
        run.announced = true;
        let sampling = record.request.sampling.clone();
        let constraint = record.request.constraint.clone();
        let history = match (sampling.needs_history(), &constraint) {
            (true, _) => record.tokens.clone(),
            (false, Some(_)) => record.tokens[record.prompt as usize..].to_vec(),
            (false, None) => Vec::new(),
        };
        plan.starts.push(Start { slot: run.slot, sampling, history, generated, constraint });
        for copy in run.copies.drain(..) {
            self.store.release(copy.pool, copy.from);
            plan.copies.push(copy);
        }
        if record.started.is_none() {
            record.started = Some(now);
            record.cached = run.hit;
            if record.request.prompt_logprobs.is_none() {
                self.totals.prefix_queries += u64::from(record.prompt);
                self.totals.prefix_hits += u64::from(run.hit);
            }
            self.updates.push((id, Update::Started { cached_tokens: run.hit }));
        }
    }
}

impl Record {
    /// Shortens a chunk that would run past a position where one should end.
    fn cut(&self, tokens: u32) -> u32 {
        let Some(run) = &self.run else { return tokens };
        let inside = run.cuts.iter().map(|cut| cut.saturating_sub(run.planned)).filter(|length| *length > 0);
        inside.fold(tokens, u32::min)
    }

    /// The row of the next `tokens` tokens, known or just being sampled.
    fn next_row(&mut self, tokens: u32) -> Option<Row> {
        let known = self.tokens.len() as u32;
        let run = self.run.as_mut()?;
        let start = run.planned;
        let end = start + tokens;
        let input = match self.tokens.get(start as usize..end as usize) {
            Some(tokens) => Input::Tokens(tokens.to_vec()),
            None => Input::Sampled,
        };
        let blocks = std::mem::take(&mut run.assignments);
        let sample = end == known + run.sampling && self.limit > 0;
        Some(Row { slot: run.slot, input, position: start, blocks, sample, score: self.score(start, end) })
    }

    /// What to score in a row of positions `start..end`: the prompt tokens that follow them, unless that was delivered
    /// before a preemption.
    fn score(&self, start: u32, end: u32) -> Option<Score> {
        let top = self.request.prompt_logprobs?;
        let last = end.min(self.prompt - 1);
        if last <= start || last <= self.scored {
            return None;
        }
        Some(Score { targets: self.tokens[start as usize + 1..=last as usize].to_vec(), top })
    }
}
