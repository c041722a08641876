//! A forward pass of prompt chunks that is divided among steps, so that running decodes get their tokens in between.

use std::time::Duration;

use tandem_step::{Row, Slice, StepTimings};

use crate::planning::Work;
use crate::record::Run;
use crate::scheduler::{RowInFlight, SliceInFlight, StepInFlight};
use crate::{RequestId, Scheduler};

/// The pass that is under way. Its requests have no other rows, are not preempted, and nothing else of theirs is in flight:
/// so no block that it reads changes hands before its end.
pub(crate) struct Pass {
    rows: Vec<RowInFlight>,
    tokens: u32,
    /// Layers that no plan has had yet.
    layers_left: u32,
    /// Stays of requests that have ended meanwhile. The worker goes on writing to their blocks.
    left: Vec<Run>,
}

impl Pass {
    fn has(&self, id: RequestId) -> bool {
        self.rows.iter().any(|row| row.id == id)
    }

    /// Stays that are over for everybody but the pass.
    pub(crate) fn left(&self) -> &[Run] {
        &self.left
    }
}

impl Scheduler {
    /// Whether a request is in the pass that is under way.
    pub(crate) fn is_in_pass(&self, id: RequestId) -> bool {
        self.pass.as_ref().is_some_and(|pass| pass.has(id))
    }

    /// Layers of the first slice, if chunks are to be run in slices beside decodes: where the whole of them takes longer than
    /// decodes should wait.
    pub(crate) fn first_slice(&self, chunks: &[Work]) -> Option<u32> {
        let time = self.settings.prefill_slice?;
        let layers = self.pace.layers_in(chunks.iter().map(|work| work.tokens).sum(), time).max(1);
        (!chunks.is_empty() && layers < self.capacity.layers).then_some(layers)
    }

    /// Layers of the next slice of the pass, beside decodes or not.
    pub(crate) fn next_slice(&self, is_beside_decodes: bool) -> u32 {
        let Some(pass) = &self.pass else { return 0 };
        match self.settings.prefill_slice.filter(|_| is_beside_decodes) {
            Some(time) => self.pace.layers_in(pass.tokens, time).clamp(1, pass.layers_left),
            None => pass.layers_left,
        }
    }

    /// Whether nothing that was planned for these requests is in flight.
    pub(crate) fn are_settled(&self, chunks: &[Work]) -> bool {
        let mut runs = chunks.iter().filter_map(|work| self.ledger.get(&work.id)?.run.as_ref());
        runs.all(|run| run.computed == run.planned)
    }

    /// Begins a pass where there are rows for one, and plans so many layers of it. After the last, its rows are the step's.
    pub(crate) fn emit_slice(
        &mut self,
        (rows, begun): (Vec<Row>, Vec<RowInFlight>),
        layers: u32,
        in_flight: &mut Vec<RowInFlight>,
    ) -> Option<(Slice, SliceInFlight)> {
        if !begun.is_empty() {
            let tokens = begun.iter().map(|row| row.length).sum();
            self.pass = Some(Pass { rows: begun, tokens, layers_left: self.capacity.layers, left: Vec::new() });
        }
        let pass = self.pass.as_mut()?;
        pass.layers_left -= layers;
        let slice = SliceInFlight { tokens: pass.tokens, layers };
        if pass.layers_left == 0 {
            let ended = self.pass.take()?;
            in_flight.extend(ended.rows);
            ended.left.into_iter().for_each(|run| self.vacate(run));
        }
        Some((Slice { rows, layers }, slice))
    }

    /// Frees slot and blocks of a stay, or has the pass do so that it is in. A pass without requests is over.
    pub(crate) fn end_stay(&mut self, id: RequestId, run: Run) {
        let Some(pass) = self.pass.as_mut().filter(|pass| pass.has(id)) else { return self.vacate(run) };
        pass.left.push(run);
        if pass.left.len() == pass.rows.len()
            && let Some(pass) = self.pass.take()
        {
            pass.left.into_iter().for_each(|run| self.vacate(run));
        }
    }

    fn vacate(&mut self, run: Run) {
        self.store.release_run(&run);
        self.free_slots.push(run.slot);
        if run.announced {
            self.ends.push(run.slot);
        }
    }

    /// Takes note of how long prompt tokens took in a step.
    pub(crate) fn measure(&mut self, step: &StepInFlight, timings: StepTimings) {
        let chunks = step.rows.iter().filter(|row| row.is_prefill);
        match &step.slice {
            Some(slice) => self.pace.note(slice.tokens, slice.layers, Duration::from_micros(timings.slice_us)),
            // Where nothing is sampled a device may still be at it when the step is over.
            None if step.rows.iter().any(|row| row.sample) => {
                let took = Duration::from_micros(timings.forward_us + timings.sample_us);
                self.pace.note(chunks.map(|row| row.length).sum(), self.capacity.layers, took);
            }
            None => {}
        }
    }
}
