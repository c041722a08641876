use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Instant;

use tandem_step::{Capacity, StepPlan};

use crate::pace::Pace;
use crate::pass::Pass;
use crate::publish::Keep;
use crate::record::Record;
use crate::store::BlockStore;
use crate::{EngineSettings, EngineStats, FinishReason, Request, RequestId, StartError, SubmitError, Update};

/// Decides what every step does: pure and synchronous, with the clock passed in.
///
/// Call [`next_plan`](Self::next_plan) until it gives `None`, hand each plan to the worker, and
/// [`apply`](Self::apply) the results in order; collect [`updates`](Self::take_updates) after every call.
///
/// - Every running decode is in every step; what is left of a step goes to prompts, in chunks.
/// - Chunks that would keep decodes waiting for longer than [`EngineSettings::prefill_slice`] are run in slices: a pass
///   through some layers in each step, beside the decodes. One such pass is under way at a time, and its requests wait for
///   its end. If blocks run out meanwhile, the rest of it is run at once, before anybody is preempted.
/// - Requests start in the order they came. When blocks run out, cached ones are evicted, least recently used first;
///   then, once no step is in flight, the youngest running request is preempted: it goes back to the queue and later
///   recomputes. The oldest is never preempted for another, and alone it always fits, so there is always progress.
/// - Sliding layers hold the blocks of a window and one position more: enough to go on from the position reached or from
///   the one before it, where the same prompt comes again.
pub struct Scheduler {
    pub(crate) capacity: Capacity,
    pub(crate) settings: EngineSettings,
    /// Every open request.
    pub(crate) ledger: BTreeMap<RequestId, Record>,
    /// Open requests without a slot. Ids ascend, so this is first come, first served, preempted requests in front.
    pub(crate) waiting: BTreeSet<RequestId>,
    /// Open requests with a slot, oldest first.
    pub(crate) running: BTreeSet<RequestId>,
    pub(crate) free_slots: Vec<u32>,
    /// Slots to be ended by the next plan.
    pub(crate) ends: Vec<u32>,
    pub(crate) store: BlockStore,
    /// Steps planned and not applied yet, oldest first.
    pub(crate) in_flight: VecDeque<StepInFlight>,
    /// The pass of prompt chunks that is under way in slices.
    pub(crate) pass: Option<Pass>,
    pub(crate) pace: Pace,
    pub(crate) epoch: u64,
    pub(crate) next_step: u64,
    pub(crate) updates: Vec<(RequestId, Update)>,
    pub(crate) totals: Totals,
}

/// A step that the worker has been given.
pub(crate) struct StepInFlight {
    pub(crate) step: u64,
    /// Its own rows, then those of the pass that ends with it.
    pub(crate) rows: Vec<RowInFlight>,
    pub(crate) slice: Option<SliceInFlight>,
}

/// What a step runs of a pass.
pub(crate) struct SliceInFlight {
    /// Tokens of the pass.
    pub(crate) tokens: u32,
    pub(crate) layers: u32,
}

/// What a planned row was for.
pub(crate) struct RowInFlight {
    /// If this request has ended meanwhile, the row's result is discarded. It cannot have been preempted: that happens
    /// only while nothing is in flight.
    pub(crate) id: RequestId,
    pub(crate) slot: u32,
    pub(crate) start: u32,
    pub(crate) length: u32,
    pub(crate) sample: bool,
    pub(crate) targets: usize,
    pub(crate) is_prefill: bool,
}

/// Counts since the start; see [`EngineStats`].
#[derive(Default)]
pub(crate) struct Totals {
    pub(crate) prefix_queries: u64,
    pub(crate) prefix_hits: u64,
    pub(crate) prompt_tokens: u64,
    pub(crate) generated_tokens: u64,
    pub(crate) preemptions: u64,
    pub(crate) steps: u64,
}

impl Scheduler {
    /// A scheduler with nothing to do. Fails if one request of the whole context could not run to its end.
    pub fn new(capacity: Capacity, settings: EngineSettings) -> Result<Self, StartError> {
        settings.check(&capacity)?;
        Ok(Self {
            ledger: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            free_slots: (0..capacity.max_streams).rev().collect(),
            ends: Vec::new(),
            store: BlockStore::new(&capacity),
            in_flight: VecDeque::new(),
            pass: None,
            pace: Pace::default(),
            epoch: 0,
            next_step: 0,
            updates: Vec::new(),
            totals: Totals::default(),
            capacity,
            settings,
        })
    }

    /// Accepts a request. Ids must ascend from call to call.
    pub fn submit(&mut self, id: RequestId, request: Request, now: Instant) -> Result<(), SubmitError> {
        request.check(&self.capacity)?;
        self.check_queue(self.waiting.len())?;
        self.ledger.insert(id, Record::new(request, self.capacity.context, now));
        self.waiting.insert(id);
        Ok(())
    }

    /// Whether one more may join when `waiting` wait. A free slot counts as room: it is about to be taken.
    fn check_queue(&self, waiting: usize) -> Result<(), SubmitError> {
        if waiting >= self.settings.max_queue + self.free_slots.len() {
            return Err(SubmitError::QueueFull { waiting });
        }
        Ok(())
    }

    /// Ends a request if it is still open. It is in no later plan.
    pub fn abort(&mut self, id: RequestId, now: Instant) {
        self.finish(id, FinishReason::Aborted, now);
    }

    /// The next step to run, or `None` if there is nothing to do before a result or a request comes.
    pub fn next_plan(&mut self, now: Instant) -> Option<StepPlan> {
        self.expire(now);
        if self.in_flight.len() >= self.settings.pipeline_depth as usize {
            return None;
        }
        let work = self.gather()?;
        if work.is_empty() { None } else { Some(self.emit(work, now)) }
    }

    /// Takes what is to be told to the requests, in order.
    pub fn take_updates(&mut self) -> Vec<(RequestId, Update)> {
        std::mem::take(&mut self.updates)
    }

    /// Fails every open request and forgets all state, for a worker that lost its own. Plans made from now on are of
    /// the next epoch.
    pub fn fail_all(&mut self, reason: &str, now: Instant) {
        for (id, record) in std::mem::take(&mut self.ledger) {
            let finished = record.finish(FinishReason::Failed(reason.to_owned()), now);
            self.updates.push((id, Update::Finished(finished)));
        }
        self.waiting.clear();
        self.running.clear();
        self.in_flight.clear();
        self.begin_epoch();
    }

    /// Takes every running request off its slot, to be recomputed by the next worker, and forgets what this one holds. Plans
    /// made from now on are of the next epoch. Nothing may be in flight, but a pass may be between two slices: it is dropped.
    pub fn hand_over(&mut self) {
        debug_assert!(self.in_flight.is_empty());
        for id in std::mem::take(&mut self.running) {
            if let Some(record) = self.ledger.get_mut(&id) {
                record.run = None;
            }
            self.waiting.insert(id);
        }
        self.begin_epoch();
    }

    /// Goes on with pools of other sizes, before the first plan of an epoch. Whatever else clients were promised stays: a
    /// capacity that differs in more is refused, and so is one with which a request could not run to its end.
    pub fn adopt(&mut self, capacity: Capacity) -> Result<(), StartError> {
        debug_assert!(self.running.is_empty() && self.in_flight.is_empty());
        let Capacity { full_blocks, sliding_blocks, .. } = capacity;
        let expected = Capacity { full_blocks, sliding_blocks, ..self.capacity };
        if capacity != expected {
            return Err(StartError::OtherCapacity { expected, offered: capacity });
        }
        self.settings.check(&capacity)?;
        self.capacity = capacity;
        self.store = BlockStore::new(&self.capacity);
        Ok(())
    }

    /// All slots and blocks are free, and steps are counted anew.
    fn begin_epoch(&mut self) {
        self.free_slots = (0..self.capacity.max_streams).rev().collect();
        self.ends.clear();
        self.store = BlockStore::new(&self.capacity);
        self.pass = None;
        self.epoch += 1;
        self.next_step = 0;
    }

    /// Requests accepted and not finished.
    pub fn open(&self) -> usize {
        self.ledger.len()
    }

    /// Steps planned whose results have not been applied.
    pub fn steps_in_flight(&self) -> usize {
        self.in_flight.len()
    }

    /// A snapshot of the counts.
    pub fn stats(&self) -> EngineStats {
        let full = &self.store.pools.full;
        EngineStats {
            running: self.running.len(),
            waiting: self.waiting.len(),
            kv_usage: f64::from(full.held()) / f64::from(full.total()),
            prefix_queries: self.totals.prefix_queries,
            prefix_hits: self.totals.prefix_hits,
            prompt_tokens: self.totals.prompt_tokens,
            generated_tokens: self.totals.generated_tokens,
            preemptions: self.totals.preemptions,
            steps: self.totals.steps,
        }
    }

    /// Fails requests that have waited too long for their start.
    fn expire(&mut self, now: Instant) {
        let Some(timeout) = self.settings.queue_timeout else { return };
        let is_late =
            |record: &Record| record.started.is_none() && now.saturating_duration_since(record.submitted) >= timeout;
        let late: Vec<_> = self.waiting.iter().copied().filter(|id| is_late(&self.ledger[id])).collect();
        for id in late {
            self.finish(id, FinishReason::Failed(format!("the request waited {timeout:?} for a free slot")), now);
        }
    }

    /// Takes a request out of the ledger and says so.
    pub(crate) fn finish(&mut self, id: RequestId, reason: FinishReason, now: Instant) {
        self.leave_slot(id);
        self.waiting.remove(&id);
        if let Some(record) = self.ledger.remove(&id) {
            self.updates.push((id, Update::Finished(record.finish(reason, now))));
        }
    }

    /// Takes a running request off its slot, to be recomputed later. Nothing may be in flight.
    pub(crate) fn preempt(&mut self, id: RequestId) {
        debug_assert!(self.in_flight.is_empty() && self.pass.is_none());
        self.leave_slot(id);
        self.waiting.insert(id);
        self.totals.preemptions += 1;
    }

    /// Gives a running request's blocks to the cache or back, and frees its slot, unless a pass needs them yet.
    fn leave_slot(&mut self, id: RequestId) {
        if !self.running.remove(&id) {
            return;
        }
        let Some(record) = self.ledger.get_mut(&id) else { return };
        let (block_tokens, window) = (self.capacity.block_tokens, self.capacity.window);
        if record.run.as_ref().is_some_and(|run| run.announced) {
            self.store.publish(record, block_tokens, window, Keep::UntilEvicted);
        }
        if let Some(run) = record.run.take() {
            self.end_stay(id, run);
        }
    }

    /// Checks the books: every block is free, held or kept exactly as often as found, every slot is free or taken, every
    /// open request waits or runs. For tests.
    pub fn audit(&self) -> Result<(), String> {
        let mut full = vec![0; self.capacity.full_blocks as usize];
        let mut sliding = vec![0; self.capacity.sliding_blocks as usize];
        let mut taken = vec![0; self.capacity.max_streams as usize];
        self.free_slots.iter().for_each(|slot| taken[*slot as usize] += 1);
        for (id, record) in &self.ledger {
            if record.run.is_some() != self.running.contains(id) || record.run.is_none() != self.waiting.contains(id) {
                return Err(format!("{id:?} neither runs nor waits, or both"));
            }
            let Some(run) = &record.run else { continue };
            taken[run.slot as usize] += 1;
            run.count_holds(&mut full, &mut sliding);
            self.store.audit_path(run).map_err(|error| format!("{id:?}: {error}"))?;
        }
        for run in self.pass.iter().flat_map(Pass::left) {
            taken[run.slot as usize] += 1;
            run.count_holds(&mut full, &mut sliding);
        }
        if self.waiting.len() + self.running.len() != self.ledger.len() || taken.iter().any(|count| *count != 1) {
            return Err("a slot or a place in the queue leaked".to_owned());
        }
        self.store.audit(full, sliding)
    }
}
