//! `POST /v1/messages` and `POST /v1/messages/count_tokens`.

use std::time::Instant;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::blocks::{BlockEvents, blocks};
use super::request::{self, MessagesPlan, Thinking};
use crate::blocking::blocking;
use crate::body;
use crate::chat_choice::{ChatChoice, Finish};
use crate::error::ApiError;
use crate::protocol::Protocol;
use crate::reply::{Progress, Reply};
use crate::router::RequestName;
use crate::sse::{self, Broken, EventSender};
use crate::state::ApiState;

/// Answers a messages request, whole or as a stream.
pub(super) async fn create(
    State(state): State<ApiState>,
    Extension(RequestName(name)): Extension<RequestName>,
    request: Request,
) -> Result<Response, ApiError> {
    let arrived = Instant::now();
    let served = state.served()?;
    let (parts, body) = request.into_parts();
    let body = body::read(&parts.headers, body, state.settings()).await?;
    let (planner, for_model) = (state.clone(), served.clone());
    let plan = blocking(move || request::plan(&body, &planner, &for_model.model)).await?;
    let MessagesPlan { turn, thinking, model } = plan;
    let reply = Reply::start(&state, &served, turn, "messages", arrived)?;
    let message = MessageReply { reply, thinking, model, id: format!("msg_{name}") };
    if message.reply.plan.params.stream {
        let keep_alive = state.settings().keep_alive;
        return Ok(sse::response(Protocol::Anthropic, keep_alive, |events| message.stream(events)));
    }
    message.whole().await
}

/// Counts the tokens that a messages request would have in its prompt.
pub(super) async fn count_tokens(State(state): State<ApiState>, request: Request) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    let (parts, body) = request.into_parts();
    let body = body::read(&parts.headers, body, state.settings()).await?;
    let count = blocking(move || request::count(&body, &state, &served.model)).await?;
    Ok(Json(json!({"input_tokens": count})))
}

/// A reply in the shape of a message.
struct MessageReply {
    reply: Reply,
    thinking: Thinking,
    model: String,
    id: String,
}

impl MessageReply {
    /// The reply as one object.
    async fn whole(mut self) -> Result<Response, ApiError> {
        self.reply.complete().await?;
        let content = blocks(self.choice(), self.thinking);
        Ok(Json(self.message(content.into())).into_response())
    }

    /// The reply as events. The first says how much of the prompt was cached, so it waits until that is known.
    async fn stream(mut self, events: EventSender) -> Result<(), Broken> {
        let mut blocks = BlockEvents::new(self.thinking);
        let mut begun = false;
        while let Some(progress) = self.reply.next().await? {
            if !begun {
                begun = true;
                let message = self.message(json!([]));
                events.send_named(&json!({"type": "message_start", "message": message})).await?;
            }
            if let Progress::Said(said) = progress {
                for event in said.deltas.into_iter().flat_map(|delta| blocks.delta(delta)) {
                    events.send_named(&event).await?;
                }
            }
        }
        for event in blocks.close() {
            events.send_named(&event).await?;
        }
        let (stop_reason, stop_sequence) = self.stop();
        let delta = json!({"stop_reason": stop_reason, "stop_sequence": stop_sequence});
        events.send_named(&json!({"type": "message_delta", "delta": delta, "usage": self.usage()})).await?;
        events.send_named(&json!({"type": "message_stop"})).await?;
        Ok(())
    }

    fn choice(&self) -> &ChatChoice {
        &self.reply.choices[0]
    }

    fn message(&self, content: Value) -> Value {
        let (stop_reason, stop_sequence) = self.stop();
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": stop_reason,
            "stop_sequence": stop_sequence,
            "usage": self.usage(),
        })
    }

    /// Why the reply ended, and the stop sequence if that is why; nulls while it goes on.
    fn stop(&self) -> (Option<&'static str>, Option<&str>) {
        let choice = self.choice();
        match (choice.finish, choice.stop_string) {
            (None, _) => (None, None),
            (Some(Finish::ToolCalls), _) => (Some("tool_use"), None),
            (Some(Finish::Length), _) => (Some("max_tokens"), None),
            (Some(Finish::Stop), Some(at)) => {
                (Some("stop_sequence"), self.reply.plan.params.stop.get(at).map(String::as_str))
            }
            (Some(Finish::Stop), None) => (Some("end_turn"), None),
        }
    }

    /// Token counts: cached ones are not part of the input's.
    fn usage(&self) -> Value {
        let tally = self.reply.tally();
        json!({
            "input_tokens": tally.prompt - tally.cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": tally.cached,
            "output_tokens": tally.generated,
            "output_tokens_details": {"thinking_tokens": tally.reasoning},
        })
    }
}
