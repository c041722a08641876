//! What a step's result means for the requests in it.

use std::time::Instant;

use tandem_step::{RowResult, StepResult};

use crate::publish::Keep;
use crate::record::Record;
use crate::scheduler::{RowInFlight, StepInFlight};
use crate::{FinishReason, Scheduler, Update};

/// A result that does not answer the plan it should. The worker cannot be trusted any further.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ResultError {
    /// It is of another step.
    #[error("got the result of step {step} in epoch {epoch}, while {expected}")]
    Step {
        /// Its epoch.
        epoch: u64,
        /// Its step.
        step: u64,
        /// What was awaited.
        expected: String,
    },
    /// It has another number of rows.
    #[error("the result of step {step} has {found} rows, its plan {expected}")]
    Rows {
        /// The step.
        step: u64,
        /// Rows of the plan.
        expected: usize,
        /// Rows of the result.
        found: usize,
    },
    /// A row lacks or has what was not asked for.
    #[error("the result of step {step} has a wrong row for slot {slot}: {reason}")]
    Row {
        /// The step.
        step: u64,
        /// The row's slot.
        slot: u32,
        /// What is wrong.
        reason: String,
    },
}

impl Scheduler {
    /// Takes in the result of the oldest step in flight. After an error nothing has changed.
    pub fn apply(&mut self, result: StepResult, now: Instant) -> Result<(), ResultError> {
        self.check(&result)?;
        let Some(step) = self.in_flight.pop_front() else { return Ok(()) };
        self.store.step_returned(step.step);
        self.totals.steps += 1;
        self.measure(&step, result.timings);
        for (row, given) in step.rows.iter().zip(result.rows) {
            self.apply_row(row, given, now);
        }
        Ok(())
    }

    fn apply_row(&mut self, row: &RowInFlight, given: RowResult, now: Instant) {
        let Some(record) = self.ledger.get_mut(&row.id) else { return };
        let Some(run) = record.run.as_mut() else { return };
        let end = row.start + row.length;
        run.computed = end;
        run.sampling -= u32::from(row.sample);
        let keep = match end == record.tokens.len() as u32 || run.cuts.contains(&end) {
            true => Keep::UntilEvicted,
            false => Keep::WhileRecent,
        };
        if row.is_prefill {
            let prompt_end = end.min(record.prompt);
            self.totals.prompt_tokens += u64::from(prompt_end.saturating_sub(row.start));
            self.store.publish(record, self.capacity.block_tokens, self.capacity.window, keep);
        }
        if let Some(reason) = given.error {
            return self.finish(row.id, FinishReason::Failed(reason), now);
        }
        self.deliver(row, given, now);
        let ended = self.ledger.get(&row.id).and_then(|record| record.end_reached(end));
        if let Some(reason) = ended {
            self.finish(row.id, reason, now);
        }
    }

    /// Notes and passes on what a row gave.
    fn deliver(&mut self, row: &RowInFlight, given: RowResult, now: Instant) {
        let Some(record) = self.ledger.get_mut(&row.id) else { return };
        let delivered = record.scored.saturating_sub(row.start) as usize;
        let scores: Vec<_> = given.scores.into_iter().skip(delivered).collect();
        if !scores.is_empty() {
            record.scored += scores.len() as u32;
            self.updates.push((row.id, Update::PromptScores(scores)));
        }
        if let Some(token) = given.token {
            record.tokens.push(token);
            record.first_token.get_or_insert(now);
            record.last_token = Some(now);
            self.totals.generated_tokens += 1;
            self.updates.push((row.id, Update::Token { token, logprobs: given.logprobs }));
        }
    }

    /// Whether a result answers the oldest step in flight.
    fn check(&self, result: &StepResult) -> Result<(), ResultError> {
        let expected = match self.in_flight.front() {
            Some(step) if step.step == result.step && self.epoch == result.epoch => step,
            front => {
                let expected = match front {
                    Some(step) => format!("step {} in epoch {} was awaited", step.step, self.epoch),
                    None => "none was awaited".to_owned(),
                };
                return Err(ResultError::Step { epoch: result.epoch, step: result.step, expected });
            }
        };
        if expected.rows.len() != result.rows.len() {
            let (expected, found) = (expected.rows.len(), result.rows.len());
            return Err(ResultError::Rows { step: result.step, expected, found });
        }
        self.check_rows(expected, result)
    }

    fn check_rows(&self, expected: &StepInFlight, result: &StepResult) -> Result<(), ResultError> {
        for (row, given) in expected.rows.iter().zip(&result.rows) {
            let reason = if row.slot != given.slot {
                format!("it names slot {}", given.slot)
            } else if row.sample != given.token.is_some() {
                format!("a token was{} asked for", if row.sample { "" } else { " not" })
            } else if given.token.is_some_and(|token| token >= self.capacity.vocab) {
                "the token is not in the vocabulary".to_owned()
            } else if row.targets != given.scores.len() {
                format!("{} scores for {} targets", given.scores.len(), row.targets)
            } else {
                continue;
            };
            return Err(ResultError::Row { step: result.step, slot: row.slot, reason });
        }
        Ok(())
    }
}

impl Record {
    /// Why the request is over, if it is, with everything before `computed` computed.
    fn end_reached(&self, computed: u32) -> Option<FinishReason> {
        let newest = self.tokens.last().copied().filter(|_| self.generated() > 0);
        match newest.filter(|token| self.request.stop_tokens.contains(token)) {
            Some(token) => Some(FinishReason::Stop(token)),
            None => (computed >= self.prompt && self.generated() >= self.limit).then_some(FinishReason::Length),
        }
    }
}
