//! A reply as Ollama's objects: one at its end, or one a line as it grows.

use axum::Json;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::request::OllamaPlan;
use crate::arguments;
use crate::chat_choice::{Delta, Finish};
use crate::date::{rfc3339, unix_seconds};
use crate::error::ApiError;
use crate::protocol::Protocol;
use crate::reply::{Progress, Reply};
use crate::sse::{self, Broken, EventSender};
use crate::state::ApiState;

/// Which of the two kinds of object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// `message` holds what is said.
    Chat,
    /// `response` and `thinking` do.
    Generate,
}

/// A piece of a reply: text, reasoning, calls.
#[derive(Debug, Default)]
struct Piece {
    content: String,
    thinking: String,
    calls: Vec<Value>,
    logprobs: Vec<Value>,
}

/// A reply under construction.
pub(super) struct OllamaReply {
    pub shape: Shape,
    pub reply: Reply,
    pub model: String,
    pub thinking: bool,
}

/// What there is to say to a request without anything to answer: the model is loaded.
pub(super) fn loaded(shape: Shape, plan: &OllamaPlan, state: &ApiState) -> Response {
    let mut object = object(shape, &plan.model, Piece::default());
    object["done"] = json!(true);
    object["done_reason"] = json!("load");
    if !plan.stream {
        return Json(object).into_response();
    }
    let keep_alive = state.settings().keep_alive;
    sse::response(Protocol::Ollama, keep_alive, |lines| async move { Ok(lines.send_line(&object).await?) })
}

impl OllamaReply {
    /// The reply as one object.
    pub(super) async fn whole(mut self) -> Result<Response, ApiError> {
        self.reply.complete().await?;
        let choice = &self.reply.choices[0];
        let logprobs = choice.logprobs.iter().flatten().map(|logprob| json!(logprob)).collect();
        let piece = Piece {
            content: choice.content.clone(),
            thinking: if self.thinking { choice.reasoning.clone() } else { String::new() },
            calls: (0..choice.tool_calls.len()).map(|at| self.call(at)).collect(),
            logprobs,
        };
        Ok(Json(self.last(piece)).into_response())
    }

    /// The reply as lines. A call is one line, once its arguments are complete.
    pub(super) async fn stream(mut self, lines: EventSender) -> Result<(), Broken> {
        let mut sent_calls = 0;
        while let Some(progress) = self.reply.next().await? {
            let Progress::Said(said) = progress else { continue };
            let logprobs = self.reply.choices[0].logprobs.as_deref().unwrap_or_default();
            let logprobs = logprobs.iter().skip(said.logprobs_from).map(|logprob| json!(logprob)).collect();
            let mut piece = Piece { logprobs, ..Piece::default() };
            for delta in said.deltas {
                match delta {
                    Delta::Content(text) => piece.content += &text,
                    Delta::Reasoning(text) if self.thinking => piece.thinking += &text,
                    Delta::Reasoning(_) | Delta::Arguments { .. } => {}
                    // Whatever was called before is complete.
                    Delta::ToolCall { index, .. } => self.take_calls(&mut sent_calls, index, &mut piece),
                }
            }
            if said.finish == Some(Finish::ToolCalls) {
                self.take_calls(&mut sent_calls, self.reply.choices[0].tool_calls.len(), &mut piece);
            }
            if !(piece.content.is_empty() && piece.thinking.is_empty() && piece.calls.is_empty()) {
                lines.send_line(&object(self.shape, &self.model, piece)).await?;
            }
        }
        lines.send_line(&self.last(Piece::default())).await?;
        Ok(())
    }

    fn take_calls(&self, sent: &mut usize, end: usize, piece: &mut Piece) {
        piece.calls.extend((*sent..end).map(|at| self.call(at)));
        *sent = end;
    }

    fn call(&self, at: usize) -> Value {
        let call = &self.reply.choices[0].tool_calls[at];
        json!({
            "id": call.id,
            "function": {"index": at, "name": call.name, "arguments": arguments::object(&call.arguments)},
        })
    }

    /// The object that ends a reply, with counts, and times in nanoseconds.
    fn last(&self, piece: Piece) -> Value {
        let mut object = object(self.shape, &self.model, piece);
        let (tally, times) = (self.reply.tally(), self.reply.times());
        let length = self.reply.choices[0].finish == Some(Finish::Length);
        let fields = [
            ("done", json!(true)),
            ("done_reason", json!(if length { "length" } else { "stop" })),
            ("total_duration", json!(times.total.as_nanos() as u64)),
            ("load_duration", json!(times.queue.as_nanos() as u64)),
            ("prompt_eval_count", json!(tally.prompt)),
            ("prompt_eval_duration", json!(times.prefill.as_nanos() as u64)),
            ("eval_count", json!(tally.generated)),
            ("eval_duration", json!(times.decode.as_nanos() as u64)),
        ];
        for (name, value) in fields {
            object[name] = value;
        }
        object
    }
}

fn object(shape: Shape, model: &str, piece: Piece) -> Value {
    let mut object = json!({"model": model, "created_at": rfc3339(unix_seconds())});
    let Piece { content, thinking, calls, logprobs } = piece;
    let thinking = Some(thinking).filter(|text| !text.is_empty());
    match shape {
        Shape::Chat => {
            let mut message = json!({"role": "assistant", "content": content});
            if let Some(thinking) = thinking {
                message["thinking"] = json!(thinking);
            }
            if !calls.is_empty() {
                message["tool_calls"] = json!(calls);
            }
            object["message"] = message;
        }
        Shape::Generate => {
            object["response"] = json!(content);
            if let Some(thinking) = thinking {
                object["thinking"] = json!(thinking);
            }
        }
    }
    if !logprobs.is_empty() {
        object["logprobs"] = json!(logprobs);
    }
    object["done"] = json!(false);
    object
}
