//! Tokens that follow tokens.

use std::sync::Arc;

use tandem_engine::{FinishReason, Update};
use tandem_proto::v1 as proto;
use tandem_proto::v1::generate_event::Event;

use super::call::Call;
use super::request;
use super::stream::Source;
use super::tokens::{finished, started, token_logprob};
use crate::blocking::blocking;
use crate::chat_choice::Finish;
use crate::completion_request::{CompletionPlan, Completions, not_empty};
use crate::error::ApiError;
use crate::generation::Generation;
use crate::params::check_tokens;
use crate::request_log::RequestLog;
use crate::served_model::ServedModel;
use crate::state::{ApiState, Served};

/// The tokens of one call.
pub(super) struct Generate {
    served: Arc<Served>,
    generation: Generation,
    id: String,
    log: RequestLog,
    started: bool,
    finished: bool,
}

impl Generate {
    /// Checks the request and hands it to the engine.
    pub(super) async fn start(
        state: &ApiState,
        call: &Call,
        request: proto::GenerateRequest,
    ) -> Result<Self, ApiError> {
        let served = state.served()?;
        let (planner, for_model) = (state.clone(), served.clone());
        let plan = blocking(move || plan(request, &planner, &for_model.model)).await?;
        let mut log = RequestLog::new("grpc generate", call.arrived, true);
        log.tally.prompt = plan.prompt_of(0).len() as u32;
        let choices = usize::from(plan.computes());
        let generation =
            Generation::start(state, &served, call.arrived, choices, move |index| plan.engine_request(index))?;
        let id = format!("generate-{}", call.name);
        Ok(Self { served, generation, id, log, started: false, finished: false })
    }

    fn begun(&mut self) -> Option<Event> {
        if std::mem::replace(&mut self.started, true) {
            return None;
        }
        Some(Event::Started(started(&self.id, &self.served.model, self.log.tally)))
    }

    fn update(&mut self, update: Update) -> Option<Event> {
        match update {
            Update::Started { cached_tokens } => {
                self.log.tally.cached = cached_tokens;
                None
            }
            Update::PromptScores(scores) => {
                Some(Event::PromptScores(proto::PromptScores { tokens: scores.iter().map(token_logprob).collect() }))
            }
            Update::Token { token, logprobs } => {
                self.log.tally.generated += 1;
                let logprob = logprobs.as_ref().map(token_logprob);
                Some(Event::Token(proto::GeneratedToken { token, logprob }))
            }
            Update::Finished(finished) => Some(match finished.reason {
                FinishReason::Length => self.end(Finish::Length),
                _ => self.end(Finish::Stop),
            }),
        }
    }

    fn end(&mut self, reason: Finish) -> Event {
        self.finished = true;
        self.log.finished(reason.as_str());
        Event::Finished(finished(Some(reason), self.log.tally))
    }
}

impl Source for Generate {
    type Event = proto::GenerateEvent;

    async fn next(&mut self) -> Result<Option<Vec<proto::GenerateEvent>>, ApiError> {
        let event = match self.generation.next().await? {
            Some((_, update)) => self.update(update),
            None if self.finished => return Ok(None),
            // Nothing was to be generated, so the engine was not asked.
            None => Some(self.end(Finish::Length)),
        };
        let events = self.begun().into_iter().chain(event);
        Ok(Some(events.map(|event| proto::GenerateEvent { event: Some(event) }).collect()))
    }

    fn failed(&mut self, error: &ApiError) {
        self.log.failed(error);
    }
}

fn plan(request: proto::GenerateRequest, state: &ApiState, model: &ServedModel) -> Result<CompletionPlan, ApiError> {
    request::check_model(&request.model, model)?;
    check_tokens("prompt", &request.prompt, model.info.vocab)?;
    if request.sampling.as_ref().is_some_and(|sampling| !sampling.stop.is_empty()) {
        return Err(ApiError::unsupported("stop", "'stop' is text, which Generate knows nothing of; use Complete"));
    }
    let logprobs = request::logprobs(request.top_logprobs)?;
    if request.score_prompt && logprobs.is_none() {
        return Err(ApiError::invalid_value("score_prompt", "'score_prompt' needs 'top_logprobs'"));
    }
    let completions = Completions {
        params: request::params(request.sampling, true, state, model)?,
        prompts: vec![not_empty("prompt", request.prompt)?],
        echo: request.score_prompt,
        logprobs,
        skip_special_tokens: true,
        demand: request::demand(request.format)?,
    };
    completions.plan(state, model)
}
