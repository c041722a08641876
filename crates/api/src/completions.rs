//! `POST /v1/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::blocking::blocking;
use crate::body;
use crate::completion_choice::{CompletionChoice, Piece};
use crate::completion_request::{self, CompletionPlan};
use crate::date::unix_seconds;
use crate::error::ApiError;
use crate::generation::Generation;
use crate::protocol::Protocol;
use crate::request_log::RequestLog;
use crate::router::RequestName;
use crate::sse::{self, Broken, EventSender};
use crate::state::{ApiState, Served};

/// Answers a completion request, whole or as a stream.
pub(crate) async fn create(
    State(state): State<ApiState>,
    Extension(RequestName(name)): Extension<RequestName>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let served = state.served()?;
    let (parts, body) = request.into_parts();
    let body = body::read(&parts.headers, body, state.settings()).await?;
    let (planner, for_model) = (state.clone(), served.clone());
    let plan = Arc::new(blocking(move || completion_request::plan(&body, &planner, &for_model.model)).await?);
    let planned = plan.clone();
    let request = move |index| engine_request(&planned, index);
    let choices = if plan.computes() { plan.choices() } else { 0 };
    let generation = Generation::start(&state, &served, arrived, choices, request)?;
    let keep_alive = state.settings().keep_alive;
    let reply = CompletionReply::new(served, plan, format!("cmpl-{name}"), arrived);
    if reply.plan.params.stream {
        return Ok(sse::response(Protocol::OpenAi, keep_alive, |events| reply.stream(generation, events)));
    }
    reply.whole(generation).await
}

fn engine_request(plan: &CompletionPlan, index: usize) -> tandem_engine::Request {
    tandem_engine::Request {
        prompt: plan.prompt_of(index).to_vec(),
        max_tokens: plan.output_tokens,
        sampling: plan.params.sampling_of(index % plan.params.n, plan.logprobs),
        stop_tokens: plan.params.stop_tokens.clone(),
        prompt_logprobs: plan.logprobs.filter(|_| plan.scores_prompt()),
        constraint: plan.constraint.clone(),
    }
}

/// A reply under construction.
struct CompletionReply {
    served: Arc<Served>,
    plan: Arc<CompletionPlan>,
    choices: Vec<CompletionChoice>,
    id: String,
    created: u64,
    log: RequestLog,
}

/// What an update of the engine brings to one choice.
struct Progress {
    index: usize,
    piece: Piece,
    tokens_from: usize,
}

impl CompletionReply {
    fn new(served: Arc<Served>, plan: Arc<CompletionPlan>, id: String, arrived: Instant) -> Self {
        let choices = (0..plan.choices()).map(|index| CompletionChoice::new(&plan, index)).collect();
        let mut log = RequestLog::new("completions", arrived, plan.params.stream);
        log.tally.prompt = plan.prompts.iter().map(|prompt| prompt.len() as u32).sum();
        Self { served, plan, choices, id, created: unix_seconds(), log }
    }

    /// The reply as one object.
    async fn whole(mut self, mut generation: Generation) -> Result<Response, ApiError> {
        let mut pieces: Vec<Piece> = self.choices.iter().map(|_| Piece::default()).collect();
        while let Some(Progress { index, piece, .. }) = self.next(&mut generation).await? {
            pieces[index].append(piece);
        }
        let choices = pieces.into_iter().enumerate();
        let choices = choices.map(|(index, piece)| Value::Object(self.choice_json(index, piece, 0))).collect();
        let mut reply = self.envelope(choices);
        reply.insert("usage".into(), self.log.tally.to_json());
        Ok(Json(reply).into_response())
    }

    /// The reply as chunks of text, then the usage.
    async fn stream(mut self, mut generation: Generation, events: EventSender) -> Result<(), Broken> {
        while let Some(Progress { index, piece, tokens_from }) = self.next(&mut generation).await? {
            let mut chunk = self.envelope(vec![Value::Object(self.choice_json(index, piece, tokens_from))]);
            if self.plan.params.include_usage {
                chunk.insert("usage".into(), Value::Null);
            }
            events.send(&chunk).await?;
        }
        if self.plan.params.include_usage {
            let mut chunk = self.envelope(Vec::new());
            chunk.insert("usage".into(), self.log.tally.to_json());
            events.send(&chunk).await?;
        }
        Ok(())
    }

    /// Waits for something new that concerns the client; `None` when all choices have ended.
    async fn next(&mut self, generation: &mut Generation) -> Result<Option<Progress>, ApiError> {
        loop {
            let (index, update) = match generation.next().await {
                Ok(Some(next)) => next,
                Ok(None) => return Ok(self.next_uncomputed()),
                Err(error) => {
                    self.log.failed(&error);
                    return Err(error);
                }
            };
            let choice = &mut self.choices[index];
            let tokens_from = choice.generated.len();
            let piece = choice.update(update);
            let (generated, finish) = (choice.generated.len() - tokens_from, choice.finish);
            self.log.tally.generated += generated as u32;
            self.log.tally.cached =
                self.choices.iter().step_by(self.plan.params.n).map(|choice| choice.cached_tokens).sum();
            if let Some(finish) = finish {
                generation.stop(index);
                self.log.finished(finish.as_str());
            }
            if generated > 0 || finish.is_some() {
                return Ok(Some(Progress { index, piece, tokens_from }));
            }
        }
    }

    /// The next choice that the engine was not asked for, because it generates nothing.
    fn next_uncomputed(&mut self) -> Option<Progress> {
        let index = self.choices.iter().position(|choice| choice.finish.is_none())?;
        let piece = self.choices[index].end_empty();
        self.log.finished("length");
        Some(Progress { index, piece, tokens_from: 0 })
    }

    fn envelope(&self, choices: Vec<Value>) -> Map<String, Value> {
        let fields = [
            ("id", json!(self.id)),
            ("object", json!("text_completion")),
            ("created", json!(self.created)),
            ("model", json!(self.served.model.name())),
            ("system_fingerprint", json!(self.served.model.fingerprint())),
            ("choices", json!(choices)),
        ];
        fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    fn choice_json(&self, index: usize, piece: Piece, tokens_from: usize) -> Map<String, Value> {
        let choice = &self.choices[index];
        let fields = [
            ("index", json!(index)),
            ("text", json!(piece.text)),
            ("logprobs", json!(piece.logprobs)),
            ("finish_reason", json!(choice.finish)),
        ];
        let mut value: Map<String, Value> = fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        if self.plan.params.return_token_ids {
            value.insert("token_ids".into(), json!(choice.generated[tokens_from..]));
            if tokens_from == 0 {
                value.insert("prompt_token_ids".into(), json!(self.plan.prompt_of(index)));
            }
        }
        value
    }
}

impl Piece {
    fn append(&mut self, other: Piece) {
        self.text += &other.text;
        match (&mut self.logprobs, other.logprobs) {
            (Some(logprobs), Some(more)) => logprobs.append(more),
            (logprobs @ None, more) => *logprobs = more,
            (Some(_), None) => {}
        }
    }
}
