//! `POST /v1/completions`.

use std::time::Instant;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use crate::blocking::blocking;
use crate::body;
use crate::completion_choice::Piece;
use crate::completion_reply::{CompletionReply, Progress, Wrote};
use crate::completion_request;
use crate::date::unix_seconds;
use crate::error::ApiError;
use crate::protocol::Protocol;
use crate::router::RequestName;
use crate::sse::{self, Broken, EventSender};
use crate::state::ApiState;

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
    let plan = blocking(move || completion_request::plan(&body, &planner, &for_model.model)).await?;
    let reply = CompletionReply::start(&state, &served, plan, arrived)?;
    let reply = TextCompletion { reply, id: format!("cmpl-{name}"), created: unix_seconds() };
    if reply.reply.plan.params.stream {
        let keep_alive = state.settings().keep_alive;
        return Ok(sse::response(Protocol::OpenAi, keep_alive, |events| reply.stream(events)));
    }
    reply.whole().await
}

/// A reply in the shape of a text completion.
struct TextCompletion {
    reply: CompletionReply,
    id: String,
    created: u64,
}

impl TextCompletion {
    /// The reply as one object.
    async fn whole(mut self) -> Result<Response, ApiError> {
        let mut pieces: Vec<Piece> = self.reply.choices.iter().map(|_| Piece::default()).collect();
        while let Some(progress) = self.reply.next().await? {
            let Progress::Wrote(Wrote { index, piece, .. }) = progress else { continue };
            pieces[index].append(piece);
        }
        let choices = pieces.into_iter().enumerate();
        let choices = choices.map(|(index, piece)| Value::Object(self.choice_json(index, piece, 0))).collect();
        let mut reply = self.envelope(choices);
        reply.insert("usage".into(), self.reply.tally().to_json());
        Ok(Json(reply).into_response())
    }

    /// The reply as chunks of text, then the usage.
    async fn stream(mut self, events: EventSender) -> Result<(), Broken> {
        let include_usage = self.reply.plan.params.include_usage;
        while let Some(progress) = self.reply.next().await? {
            let Progress::Wrote(Wrote { index, piece, tokens_from }) = progress else { continue };
            let mut chunk = self.envelope(vec![Value::Object(self.choice_json(index, piece, tokens_from))]);
            if include_usage {
                chunk.insert("usage".into(), Value::Null);
            }
            events.send(&chunk).await?;
        }
        if include_usage {
            let mut chunk = self.envelope(Vec::new());
            chunk.insert("usage".into(), self.reply.tally().to_json());
            events.send(&chunk).await?;
        }
        Ok(())
    }

    fn envelope(&self, choices: Vec<Value>) -> Map<String, Value> {
        let fields = [
            ("id", json!(self.id)),
            ("object", json!("text_completion")),
            ("created", json!(self.created)),
            ("model", json!(self.reply.served.model.name())),
            ("system_fingerprint", json!(self.reply.served.model.fingerprint())),
            ("choices", json!(choices)),
        ];
        fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    fn choice_json(&self, index: usize, piece: Piece, tokens_from: usize) -> Map<String, Value> {
        let choice = &self.reply.choices[index];
        let fields = [
            ("index", json!(index)),
            ("text", json!(piece.text)),
            ("logprobs", json!(piece.logprobs)),
            ("finish_reason", json!(choice.finish)),
        ];
        let mut value: Map<String, Value> = fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect();
        if self.reply.plan.params.return_token_ids {
            value.insert("token_ids".into(), json!(choice.generated[tokens_from..]));
            if tokens_from == 0 {
                value.insert("prompt_token_ids".into(), json!(self.reply.plan.prompt_of(index)));
            }
        }
        value
    }
}
