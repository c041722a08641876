//! `POST /api/chat`.

use std::time::Instant;

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;

use super::conversation::{self, MessageFields};
use super::request::{self, Asked};
use super::stream::{OllamaReply, Shape, loaded};
use crate::blocking::blocking;
use crate::body;
use crate::conversation::{ToolFields, strict_tools, tools as tools_of};
use crate::error::ApiError;
use crate::protocol::Protocol;
use crate::reply::Reply;
use crate::sse;
use crate::state::ApiState;

/// The fields that only chat requests have.
#[derive(Debug, Deserialize)]
struct ChatFields {
    messages: Option<Vec<MessageFields>>,
    tools: Option<Vec<ToolFields>>,
}

/// Answers a chat request, as a stream unless it says otherwise.
pub(super) async fn create(State(state): State<ApiState>, request: Request) -> Result<Response, ApiError> {
    answer(state, request, Shape::Chat, "messages", asked).await
}

/// The messages and tools of a request; none where there are no messages.
fn asked(value: &Value) -> Result<Option<Asked>, ApiError> {
    let fields: ChatFields = body::typed(value)?;
    let messages = conversation::messages(fields.messages.unwrap_or_default())?;
    let tools = fields.tools.unwrap_or_default();
    let (strict, tools) = (strict_tools(&tools), tools_of(tools)?);
    Ok((!messages.is_empty()).then_some(Asked { messages, tools, strict }))
}

/// Answers a request of either kind; `asked` reads what is its own.
pub(super) async fn answer(
    state: ApiState,
    request: Request,
    shape: Shape,
    param: &'static str,
    asked: fn(&Value) -> Result<Option<Asked>, ApiError>,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let served = state.served()?;
    let (parts, body) = request.into_parts();
    let body = body::read(&parts.headers, body, state.settings()).await?;
    let (planner, for_model) = (state.clone(), served.clone());
    let planned = move || request::plan(&body, asked(&body)?, param, &planner, &for_model.model);
    let mut plan = blocking(planned).await?;
    let Some(turn) = plan.turn.take() else { return Ok(loaded(shape, &plan, &state)) };
    let endpoint = if shape == Shape::Chat { "ollama chat" } else { "ollama generate" };
    let reply = Reply::start(&state, &served, turn, endpoint, arrived)?;
    let reply = OllamaReply { shape, reply, model: plan.model, thinking: plan.thinking };
    if plan.stream {
        let keep_alive = state.settings().keep_alive;
        return Ok(sse::response(Protocol::Ollama, keep_alive, |lines| reply.stream(lines)));
    }
    reply.whole().await
}
