//! `POST /v1/responses` and `POST /v1/responses/input_tokens`.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::background;
use super::output::Output;
use super::request::{self, ResponsePlan};
use super::response::{ResponseHead, Status};
use super::store::Text;
use crate::access::Caller;
use crate::blocking::blocking;
use crate::body;
use crate::chat_choice::Finish;
use crate::date::unix_seconds;
use crate::error::ApiError;
use crate::protocol::Protocol;
use crate::reply::{Progress, Reply, Said};
use crate::router::RequestName;
use crate::sse::{self, Broken, Disconnected, EventSender};
use crate::state::ApiState;

/// Answers a responses request: whole, as a stream, or later.
pub(super) async fn create(
    State(state): State<ApiState>,
    Extension(RequestName(name)): Extension<RequestName>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let served = state.served()?;
    let (parts, body) = request.into_parts();
    let body = body::read(&parts.headers, body, state.settings()).await?;
    let (planner, for_model) = (state.clone(), served.clone());
    let plan = blocking(move || request::plan(&body, caller, &planner, &for_model.model)).await?;
    let ResponsePlan { turn, tools, echo, history, input, store, background, sealed } = plan;
    let output = Output::new(tools, sealed, turn.logprobs.is_some());
    let reply = Reply::start(&state, &served, turn, "responses", arrived)?;
    let model = served.model.name().to_string();
    let head = ResponseHead { id: format!("resp_{name}"), created: unix_seconds(), model, echo };
    let keep_alive = state.settings().keep_alive;
    let response = ResponseReply { state, caller, reply, head, output, history, input, store };
    match (background, response.reply.plan.params.stream) {
        (true, _) => Ok(Json(background::start(response)).into_response()),
        (false, true) => Ok(sse::response(Protocol::Responses, keep_alive, |events| response.stream(events))),
        (false, false) => response.whole().await,
    }
}

/// Counts the tokens that a responses request would have in its prompt.
pub(super) async fn input_tokens(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    request: Request,
) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    let (parts, body) = request.into_parts();
    let body = body::read(&parts.headers, body, state.settings()).await?;
    let count = blocking(move || request::count(&body, caller, &state, &served.model)).await?;
    Ok(Json(json!({"object": "response.input_tokens", "input_tokens": count})))
}

/// A reply in the shape of a response.
pub(super) struct ResponseReply {
    pub state: ApiState,
    pub caller: Caller,
    reply: Reply,
    pub head: ResponseHead,
    output: Output,
    /// The conversation before this request, then the request's own items.
    pub history: Vec<Arc<Text>>,
    pub input: Vec<Value>,
    store: bool,
}

impl ResponseReply {
    /// The events of the next progress; `None` when the reply is complete.
    pub(super) async fn advance(&mut self) -> Result<Option<Vec<Value>>, ApiError> {
        match self.reply.next().await? {
            None => Ok(None),
            Some(Progress::Started) => Ok(Some(Vec::new())),
            Some(Progress::Said(said)) => Ok(Some(self.said(said))),
        }
    }

    /// Closes what is open. Returns the events of that, and how the reply ended.
    pub(super) fn finish(&mut self) -> (Vec<Value>, Status) {
        let complete = self.reply.choices[0].finish != Some(Finish::Length);
        let status = if complete { Status::Completed } else { Status::Incomplete };
        (self.output.close(complete), status)
    }

    /// The response as it stands.
    pub(super) fn object(&self, status: &Status) -> Value {
        self.head.object(status, &self.output, self.reply.tally(), unix_seconds())
    }

    /// The items of the output, to be stored.
    pub(super) fn output(&self) -> Vec<Arc<Text>> {
        let store = self.state.responses();
        self.output.items().iter().map(|item| Arc::new(store.text(item))).collect()
    }

    /// The conversation through this request's input, to be stored.
    pub(super) fn conversation(&self) -> Vec<Arc<Text>> {
        let store = self.state.responses();
        let input = self.input.iter().map(|item| Arc::new(store.text(item)));
        self.history.iter().cloned().chain(input).collect()
    }

    /// The reply as one object.
    async fn whole(mut self) -> Result<Response, ApiError> {
        while self.advance().await?.is_some() {}
        let (_, status) = self.finish();
        let object = self.object(&status);
        self.remember(&object);
        Ok(Json(object).into_response())
    }

    /// The reply as events, numbered, from `response.created` to the one that says how it ended.
    async fn stream(mut self, events: EventSender) -> Result<(), Broken> {
        let mut events = NumberedEvents { events, next: 0 };
        let begun = self.object(&Status::InProgress);
        events.send(json!({"type": "response.created", "response": begun})).await?;
        events.send(json!({"type": "response.in_progress", "response": begun})).await?;
        let status = loop {
            match self.advance().await {
                Ok(Some(all)) => events.send_all(all).await?,
                Ok(None) => {
                    let (last, status) = self.finish();
                    events.send_all(last).await?;
                    break status;
                }
                Err(error) => break Status::Failed(error),
            }
        };
        let object = self.object(&status);
        self.remember(&object);
        events.send(json!({"type": format!("response.{}", status.as_str()), "response": object})).await?;
        Ok(())
    }

    fn said(&mut self, said: Said) -> Vec<Value> {
        let logprobs = self.reply.choices[0].logprobs.as_deref().unwrap_or_default();
        // They go with the text that came first.
        let mut logprobs = &logprobs[said.logprobs_from.min(logprobs.len())..];
        let mut events = Vec::new();
        for delta in said.deltas {
            let is_text = matches!(delta, crate::chat_choice::Delta::Content(_));
            events.extend(self.output.delta(delta, if is_text { std::mem::take(&mut logprobs) } else { &[] }));
        }
        events
    }

    fn remember(&self, object: &Value) {
        if !self.store {
            return;
        }
        let mut items = self.conversation();
        let input = self.history.len()..items.len();
        items.extend(self.output());
        self.state.responses().insert(self.head.id.clone(), self.caller, object, items, input, None);
    }
}

/// Events that count.
struct NumberedEvents {
    events: EventSender,
    next: u64,
}

impl NumberedEvents {
    async fn send(&mut self, mut event: Value) -> Result<(), Disconnected> {
        event["sequence_number"] = json!(self.next);
        self.next += 1;
        self.events.send_named(&event).await
    }

    async fn send_all(&mut self, events: Vec<Value>) -> Result<(), Disconnected> {
        for event in events {
            self.send(event).await?;
        }
        Ok(())
    }
}
