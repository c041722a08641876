//! Who leaves the queue, and with what from the prefix cache.

use std::collections::VecDeque;

use tandem_step::{BlockAssignment, BlockCopy, Pool};

use crate::cache::{Hit, Tail, common_prefix};
use crate::record::{Record, Run};
use crate::store::BlockStore;
use crate::{RequestId, Scheduler};

/// Requests that share the prompt tokens of a step. More would start later ones sooner and end all of them later.
pub(crate) const PREFILLS_AT_ONCE: usize = 4;

enum Admission {
    Admitted,
    /// Another request is just computing a prefix of this one.
    HeldBack,
    NoRoom,
}

impl Scheduler {
    /// Lets waiting requests start, in order, as far as slots and blocks reach.
    pub(crate) fn admit(&mut self) {
        let waiting: Vec<_> = self.waiting.iter().copied().collect();
        for id in waiting {
            let prefills = self.running.iter().filter(|id| self.ledger[id].is_prefilling()).count();
            if prefills >= PREFILLS_AT_ONCE || self.free_slots.is_empty() {
                return;
            }
            if let Admission::NoRoom = self.try_admit(id) {
                return;
            }
        }
    }

    fn try_admit(&mut self, id: RequestId) -> Admission {
        let record = &self.ledger[&id];
        let mut hit = self.lookup(record);
        if let Some((leader, shared)) = self.leader(record, hit.tokens) {
            self.cut_at(leader, shared);
            return Admission::HeldBack;
        }
        if !self.has_room(record, &hit) {
            if !self.running.is_empty() || !self.in_flight.is_empty() {
                return Admission::NoRoom;
            }
            // Alone, a request fits; only the blocks that its hit copies from can be too many.
            hit = Hit::default();
        }
        self.start(id, &hit);
        Admission::Admitted
    }

    /// What the cache has of a request. Its last token is computed in any case, for its logits.
    fn lookup(&self, record: &Record) -> Hit {
        if record.request.prompt_logprobs.is_some() {
            return Hit::default();
        }
        self.store.cache.lookup(&record.tokens[..record.tokens.len() - 1])
    }

    /// A running request that has yet to compute a prefix of this one, at least a block longer than the cache's, and how
    /// long that prefix is. Waiting for it costs no time, since those tokens have to be computed once anyway.
    fn leader(&self, record: &Record, cached: usize) -> Option<(RequestId, u32)> {
        if record.request.prompt_logprobs.is_some() {
            return None;
        }
        let known = &record.tokens[..record.tokens.len() - 1];
        self.running.iter().find_map(|id| {
            let leader = &self.ledger[id];
            let shared = common_prefix(leader.prompt_tokens(), known);
            let is_ahead = leader.run.as_ref().is_some_and(|run| (run.computed as usize) < shared);
            let is_worth_it = shared >= cached + self.capacity.block_tokens as usize;
            (is_ahead && is_worth_it).then_some((*id, shared as u32))
        })
    }

    /// Has a chunk of a running request end at `position`, so that the window there is kept.
    fn cut_at(&mut self, id: RequestId, position: u32) {
        let Some(record) = self.ledger.get_mut(&id) else { return };
        // The window at the prompt's end serves the position before it as well.
        let is_inside = position + 1 < record.prompt;
        let Some(run) = record.run.as_mut().filter(|run| is_inside && run.planned < position) else { return };
        if !run.cuts.contains(&position) {
            run.cuts.push(position);
        }
    }

    /// Whether blocks suffice for all of a request's known tokens, beside what running requests are about to need.
    fn has_room(&self, record: &Record, hit: &Hit) -> bool {
        let tail_full = hit.tail.map(|tail| tail.full);
        let tail_sliding = hit.tail.and_then(|tail| tail.sliding);
        let full = &self.store.pools.full;
        let path_blocks = hit.path.iter().map(|node| self.store.cache.full(*node));
        let full_revived = path_blocks.chain(tail_full).filter(|block| !full.is_held(*block)).count() as u32;
        let sliding = &self.store.pools.sliding;
        let sliding_blocks = hit.sliding.iter().copied();
        let sliding_revived =
            sliding_blocks.chain(tail_sliding).filter(|block| !sliding.is_held(*block)).count() as u32;

        let sliding_end = (hit.sliding_first + hit.sliding.len()) as u32;
        let (full_new, sliding_new) = self.blocks_ahead(record, hit.tokens as u32, hit.path.len() as u32, sliding_end);
        let (full_reserved, sliding_reserved) = self.reserved();
        full_new + full_revived + full_reserved <= full.available()
            && sliding_new + sliding_revived + sliding_reserved <= sliding.available()
    }

    /// Blocks that running requests are about to need: prompts to their end, everything else to its next block.
    fn reserved(&self) -> (u32, u32) {
        let running = self.running.iter().map(|id| &self.ledger[id]);
        let needs = running.filter_map(|record| {
            let run = record.run.as_ref()?;
            if record.is_prefilling() {
                Some(self.blocks_ahead(record, run.planned, run.full.len() as u32, run.sliding_end()))
            } else {
                Some((1, 1))
            }
        });
        needs.fold((0, 0), |sum, need| (sum.0 + need.0, sum.1 + need.1))
    }

    /// Full blocks for all known tokens and sliding blocks for the next chunk, beyond block indices reached already.
    fn blocks_ahead(&self, record: &Record, position: u32, full_end: u32, sliding_end: u32) -> (u32, u32) {
        let known = record.tokens.len() as u32;
        let chunk_end = known.min(position + self.settings.chunk(&self.capacity));
        let blocks = |tokens: u32| tokens.div_ceil(self.capacity.block_tokens);
        (blocks(known).saturating_sub(full_end), blocks(chunk_end).saturating_sub(sliding_end))
    }

    /// Gives a waiting request a slot and what the cache has for it.
    fn start(&mut self, id: RequestId, hit: &Hit) {
        let Some(slot) = self.free_slots.pop() else { return };
        let Some(record) = self.ledger.get_mut(&id) else { return };
        self.waiting.remove(&id);
        self.running.insert(id);
        let mut run = self.store.begin_run(slot, hit);
        if hit.matched >= hit.tokens + self.capacity.block_tokens as usize {
            run.cuts.push(hit.matched as u32);
        }
        if run.planned < record.prompt {
            // Matters only to a resumed request, whose chunks would run on into what it had generated.
            run.cuts.push(record.prompt);
        }
        record.run = Some(run);
    }
}

impl BlockStore {
    /// A stay in a slot that continues from a hit.
    fn begin_run(&mut self, slot: u32, hit: &Hit) -> Run {
        self.cache.touch(hit);
        let mut run = Run {
            slot,
            announced: false,
            hit: hit.tokens as u32,
            planned: hit.tokens as u32,
            computed: hit.tokens as u32,
            sampling: 0,
            full: Vec::new(),
            sliding: VecDeque::new(),
            sliding_first: hit.sliding_first as u32,
            assignments: Vec::new(),
            copies: Vec::new(),
            path: hit.path.clone(),
            cuts: Vec::new(),
            chunk_windows: VecDeque::new(),
        };
        for &node in &hit.path {
            let block = self.cache.full(node);
            self.pools.full.hold(block);
            run.assign(Pool::Full, block);
        }
        for &block in &hit.sliding {
            self.pools.sliding.hold(block);
            run.assign(Pool::Sliding, block);
        }
        if let Some(tail) = hit.tail {
            self.copy_tail(&mut run, tail);
        }
        run
    }

    /// Copies the block a hit ends inside of: others go on from it differently. The source is held until the copy is made.
    fn copy_tail(&mut self, run: &mut Run, tail: Tail) {
        let sources = [Some((Pool::Full, tail.full)), tail.sliding.map(|block| (Pool::Sliding, block))];
        for (pool, from) in sources.into_iter().flatten() {
            self.pools.of_mut(pool).hold(from);
            self.secure(pool, 1);
            let to = self.take(pool);
            run.assign(pool, to);
            run.copies.push(BlockCopy { pool, from, to });
        }
    }

    /// Lets go of all blocks of a stay that is over.
    pub(crate) fn release_run(&mut self, run: &Run) {
        run.copies.iter().for_each(|copy| self.release(copy.pool, copy.from));
        run.full.iter().for_each(|block| self.release(Pool::Full, *block));
        run.sliding.iter().for_each(|block| self.release(Pool::Sliding, *block));
    }

    /// Checks that a run holds the blocks of its path.
    pub(crate) fn audit_path(&self, run: &Run) -> Result<(), String> {
        let blocks = run.path.iter().map(|node| self.cache.full(*node));
        match blocks.eq(run.full.iter().copied().take(run.path.len())) {
            true => Ok(()),
            false => Err("its blocks are not those of its path".to_owned()),
        }
    }
}

impl Run {
    /// Appends a block to what the slot has.
    pub(crate) fn assign(&mut self, pool: Pool, block: u32) {
        let index = match pool {
            Pool::Full => {
                self.full.push(block);
                self.full.len() as u32 - 1
            }
            Pool::Sliding => {
                self.sliding.push_back(block);
                self.sliding_end() - 1
            }
        };
        self.assignments.push(BlockAssignment { pool, index, block });
    }

    /// Adds up how often each block is held by this run.
    pub(crate) fn count_holds(&self, full: &mut [u32], sliding: &mut [u32]) {
        self.full.iter().for_each(|block| full[*block as usize] += 1);
        self.sliding.iter().for_each(|block| sliding[*block as usize] += 1);
        for copy in &self.copies {
            match copy.pool {
                Pool::Full => full[copy.from as usize] += 1,
                Pool::Sliding => sliding[copy.from as usize] += 1,
            }
        }
    }
}
