//! The assistant's reply to a turn while it is generated, free of any protocol.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::chat_choice::{ChatChoice, Delta, Finish};
use crate::error::ApiError;
use crate::generation::Generation;
use crate::request_log::RequestLog;
use crate::state::{ApiState, Served};
use crate::turn::TurnPlan;
use crate::usage::Tally;

/// A reply under construction: one or several choices, token by token.
pub(crate) struct Reply {
    state: ApiState,
    served: Arc<Served>,
    pub plan: Arc<TurnPlan>,
    generation: Generation,
    pub choices: Vec<ChatChoice>,
    /// What a forced header has begun, by choice.
    begun: Vec<Vec<Delta>>,
    log: RequestLog,
    arrived: Instant,
    /// When the first choice left the queue, and when its first token came.
    started: Option<Instant>,
    first_token: Option<Instant>,
}

/// Where the time of a reply has gone so far.
pub(crate) struct Times {
    pub total: Duration,
    pub queue: Duration,
    pub prefill: Duration,
    pub decode: Duration,
}

/// What has happened to a reply.
pub(crate) enum Progress {
    /// A choice left the queue: how much of the prompt was cached is known.
    Started,
    /// A choice has more to say, or has ended.
    Said(Said),
}

/// What an update of the engine brings to one choice.
pub(crate) struct Said {
    pub index: usize,
    pub deltas: Vec<Delta>,
    /// Tokens and log-probabilities since the last progress that was shown.
    pub tokens_from: usize,
    pub logprobs_from: usize,
    pub finish: Option<Finish>,
}

impl Reply {
    /// Hands the turn to the engine. `endpoint` is its name in the log.
    pub(crate) fn start(
        state: &ApiState,
        served: &Arc<Served>,
        plan: TurnPlan,
        endpoint: &'static str,
        arrived: Instant,
    ) -> Result<Self, ApiError> {
        let plan = Arc::new(plan);
        let planned = plan.clone();
        let request = move |index| planned.engine_request(index);
        let generation = Generation::start(state, served, arrived, plan.params.n, request)?;
        let (choices, begun) = (0..plan.params.n).map(|_| ChatChoice::new(&plan)).unzip();
        let mut log = RequestLog::new(endpoint, arrived, plan.params.stream);
        log.tally.prompt = plan.prompt.len() as u32;
        let (state, served, started, first_token) = (state.clone(), served.clone(), None, None);
        Ok(Self { state, served, plan, generation, choices, begun, log, arrived, started, first_token })
    }

    /// Waits for something new that concerns the client; `None` when all choices have ended.
    pub(crate) async fn next(&mut self) -> Result<Option<Progress>, ApiError> {
        loop {
            let (index, update) = match self.generation.next().await {
                Ok(Some(next)) => next,
                Ok(None) => return Ok(None),
                Err(error) => {
                    self.log.failed(&error);
                    return Err(error);
                }
            };
            let choice = &mut self.choices[index];
            let tokens_from = choice.generated().len();
            let logprobs_from = choice.logprobs.as_ref().map_or(0, Vec::len);
            let deltas = choice.update(&update);
            let finish = choice.finish;
            self.count(index, tokens_from);
            if matches!(update, tandem_engine::Update::Started { .. }) {
                self.started.get_or_insert_with(Instant::now);
                return Ok(Some(Progress::Started));
            }
            if finish.is_some() {
                self.generation.stop(index);
                self.finished(index);
            }
            if self.choices[index].generated().len() > tokens_from || finish.is_some() {
                self.first_token.get_or_insert_with(Instant::now);
                let deltas = [std::mem::take(&mut self.begun[index]), deltas].concat();
                return Ok(Some(Progress::Said(Said { index, deltas, tokens_from, logprobs_from, finish })));
            }
        }
    }

    /// Waits until all choices have ended.
    pub(crate) async fn complete(&mut self) -> Result<(), ApiError> {
        while self.next().await?.is_some() {}
        Ok(())
    }

    /// Notes why the reply will not be completed.
    pub(crate) fn failed(&mut self, error: &ApiError) {
        self.log.failed(error);
    }

    /// The tokens counted so far.
    pub(crate) fn tally(&self) -> Tally {
        self.log.tally
    }

    /// Where the time went.
    pub(crate) fn times(&self) -> Times {
        let now = Instant::now();
        let started = self.started.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        Times {
            total: now - self.arrived,
            queue: started - self.arrived,
            prefill: first_token - started,
            decode: now - first_token,
        }
    }

    /// The model, by its names.
    pub(crate) fn served(&self) -> &Served {
        &self.served
    }

    /// Keeps the counts up to date, so that the log is right however the request ends.
    fn count(&mut self, index: usize, tokens_before: usize) {
        let tally = &mut self.log.tally;
        tally.cached = self.choices[0].cached_tokens;
        tally.generated += (self.choices[index].generated().len() - tokens_before) as u32;
        tally.reasoning = self.choices.iter().map(|choice| choice.reasoning_tokens).sum();
    }

    fn finished(&mut self, index: usize) {
        let choice = &self.choices[index];
        if let Some(finish) = choice.finish {
            self.log.finished(finish.as_str());
        }
        if let Some(summary) = choice.summary() {
            self.state.metrics().count_reply(summary);
        }
        if choice.finish == Some(Finish::ToolCalls) {
            self.state.replay().remember(&choice.content, &choice.tool_calls, choice.reply().to_vec());
        }
    }
}
