//! The reply to a completion request while it is generated, free of any protocol.

use std::sync::Arc;
use std::time::Instant;

use crate::completion_choice::{CompletionChoice, Piece};
use crate::completion_request::CompletionPlan;
use crate::error::ApiError;
use crate::generation::Generation;
use crate::request_log::RequestLog;
use crate::state::{ApiState, Served};
use crate::usage::Tally;

/// A reply under construction: one or several choices for one or several prompts.
pub(crate) struct CompletionReply {
    pub served: Arc<Served>,
    pub plan: Arc<CompletionPlan>,
    pub choices: Vec<CompletionChoice>,
    generation: Generation,
    log: RequestLog,
}

/// What has happened to a reply.
pub(crate) enum Progress {
    /// A choice left the queue: how much of its prompt was cached is known.
    Started,
    /// A choice has more text, or has ended.
    Wrote(Wrote),
}

/// What an update of the engine brings to one choice.
pub(crate) struct Wrote {
    pub index: usize,
    pub piece: Piece,
    /// Tokens since the last progress that was shown.
    pub tokens_from: usize,
}

impl CompletionReply {
    /// Hands the choices to the engine.
    pub(crate) fn start(
        state: &ApiState,
        served: &Arc<Served>,
        plan: CompletionPlan,
        arrived: Instant,
    ) -> Result<Self, ApiError> {
        let plan = Arc::new(plan);
        let planned = plan.clone();
        let request = move |index| planned.engine_request(index);
        let computed = if plan.computes() { plan.choices() } else { 0 };
        let generation = Generation::start(state, served, arrived, computed, request)?;
        let choices = (0..plan.choices()).map(|index| CompletionChoice::new(&plan, index)).collect();
        let mut log = RequestLog::new("completions", arrived, plan.params.stream);
        log.tally.prompt = plan.prompts.iter().map(|prompt| prompt.len() as u32).sum();
        Ok(Self { served: served.clone(), plan, choices, generation, log })
    }

    /// Waits for something new that concerns the client; `None` when all choices have ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Progress>, ApiError> {
        loop {
            let (index, update) = match self.generation.next().await {
                Ok(Some(next)) => next,
                Ok(None) => return Ok(self.next_uncomputed()),
                Err(error) => {
                    self.log.failed(&error);
                    return Err(error);
                }
            };
            let started = matches!(update, tandem_engine::Update::Started { .. });
            let choice = &mut self.choices[index];
            let tokens_from = choice.generated.len();
            let piece = choice.update(update);
            let (generated, finish) = (choice.generated.len() - tokens_from, choice.finish);
            self.log.tally.generated += generated as u32;
            self.log.tally.cached =
                self.choices.iter().step_by(self.plan.params.n).map(|choice| choice.cached_tokens).sum();
            if let Some(finish) = finish {
                self.generation.stop(index);
                self.log.finished(finish.as_str());
            }
            if generated > 0 || finish.is_some() {
                return Ok(Some(Progress::Wrote(Wrote { index, piece, tokens_from })));
            }
            if started {
                return Ok(Some(Progress::Started));
            }
        }
    }

    /// Notes why the reply will not be completed.
    pub(crate) fn failed(&mut self, error: &ApiError) {
        self.log.failed(error);
    }

    /// The tokens counted so far.
    pub(crate) fn tally(&self) -> Tally {
        self.log.tally
    }

    /// The next choice that the engine was not asked for, because it generates nothing.
    fn next_uncomputed(&mut self) -> Option<Progress> {
        let index = self.choices.iter().position(|choice| choice.finish.is_none())?;
        let piece = self.choices[index].end_empty();
        self.log.finished("length");
        Some(Progress::Wrote(Wrote { index, piece, tokens_from: 0 }))
    }
}
