//! `POST /v1/chat/completions`.

use std::time::Instant;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tandem_harmony::ToolCall;

use crate::blocking::blocking;
use crate::body;
use crate::chat_choice::{Delta, Finish};
use crate::chat_request;
use crate::date::unix_seconds;
use crate::error::ApiError;
use crate::protocol::Protocol;
use crate::reply::{Progress, Reply, Said};
use crate::router::RequestName;
use crate::sse::{self, Broken, EventSender};
use crate::state::ApiState;
use crate::turn::TurnPlan;

/// Answers a chat completion request, whole or as a stream.
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
    let plan = blocking(move || chat_request::plan(&body, &planner, &for_model.model)).await?;
    let reply = Reply::start(&state, &served, plan, "chat", arrived)?;
    let reply = ChatReply { reply, id: format!("chatcmpl-{name}"), created: unix_seconds() };
    if reply.plan().params.stream {
        let keep_alive = state.settings().keep_alive;
        return Ok(sse::response(Protocol::OpenAi, keep_alive, |events| reply.stream(events)));
    }
    reply.whole().await
}

/// A reply in the shape of a chat completion.
struct ChatReply {
    reply: Reply,
    id: String,
    created: u64,
}

impl ChatReply {
    fn plan(&self) -> &TurnPlan {
        &self.reply.plan
    }

    /// The reply as one object.
    async fn whole(mut self) -> Result<Response, ApiError> {
        self.reply.complete().await?;
        let choices: Vec<Value> = (0..self.reply.choices.len()).map(|index| self.choice_json(index)).collect();
        let mut reply = self.envelope("chat.completion", choices.into());
        reply.insert("usage".into(), self.reply.tally().to_json());
        if self.plan().params.return_token_ids {
            reply.insert("prompt_token_ids".into(), json!(self.plan().prompt));
        }
        Ok(Json(reply).into_response())
    }

    /// The reply as chunks: for every choice its role, what it says, and why it ended; then the usage.
    async fn stream(mut self, events: EventSender) -> Result<(), Broken> {
        let mut has_role = vec![false; self.reply.choices.len()];
        while let Some(progress) = self.reply.next().await? {
            let Progress::Said(said) = progress else { continue };
            if !has_role[said.index] {
                has_role[said.index] = true;
                self.send_role(said.index, &events).await?;
            }
            self.send_said(said, &events).await?;
        }
        if self.plan().params.include_usage {
            let mut chunk = self.envelope("chat.completion.chunk", json!([]));
            chunk.insert("usage".into(), self.reply.tally().to_json());
            events.send(&chunk).await?;
        }
        Ok(())
    }

    async fn send_role(&self, index: usize, events: &EventSender) -> Result<(), Broken> {
        let mut choice = chunk_choice(index, json!({"role": "assistant", "content": ""}), None);
        if self.plan().params.return_token_ids {
            choice.insert("token_ids".into(), json!([]));
        }
        let mut chunk = self.chunk(choice);
        if self.plan().params.return_token_ids {
            chunk.insert("prompt_token_ids".into(), json!(self.plan().prompt));
        }
        events.send(&chunk).await?;
        Ok(())
    }

    /// Sends one chunk per delta. Tokens and log-probabilities go with the first of them, or with the end.
    async fn send_said(&self, said: Said, events: &EventSender) -> Result<(), Broken> {
        let Said { index, deltas, tokens_from, logprobs_from, finish } = said;
        let mut chunks: Vec<Map<String, Value>> =
            deltas.iter().map(|delta| chunk_choice(index, delta_json(delta), None)).collect();
        if finish.is_some() || (chunks.is_empty() && self.plan().params.return_token_ids) {
            chunks.push(chunk_choice(index, json!({}), finish));
        }
        let choice = &self.reply.choices[index];
        if let Some(first) = chunks.first_mut() {
            if let Some(logprobs) = choice.logprobs.as_ref().filter(|all| all.len() > logprobs_from) {
                first.insert("logprobs".into(), json!({"content": logprobs[logprobs_from..], "refusal": null}));
            }
            if self.plan().params.return_token_ids {
                first.insert("token_ids".into(), json!(choice.generated()[tokens_from..]));
            }
        }
        for chunk in chunks {
            events.send(&self.chunk(chunk)).await?;
        }
        Ok(())
    }

    fn chunk(&self, choice: Map<String, Value>) -> Map<String, Value> {
        let mut chunk = self.envelope("chat.completion.chunk", json!([choice]));
        if self.plan().params.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        chunk
    }

    fn envelope(&self, object: &str, choices: Value) -> Map<String, Value> {
        let fields = [
            ("id", json!(self.id)),
            ("object", json!(object)),
            ("created", json!(self.created)),
            ("model", json!(self.reply.served().model.name())),
            ("system_fingerprint", json!(self.reply.served().model.fingerprint())),
            ("choices", choices),
        ];
        fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    fn choice_json(&self, index: usize) -> Value {
        let choice = &self.reply.choices[index];
        let mut message = Map::new();
        message.insert("role".into(), json!("assistant"));
        let silent = choice.content.is_empty() && !choice.tool_calls.is_empty();
        message.insert("content".into(), if silent { Value::Null } else { json!(choice.content) });
        message.insert("refusal".into(), Value::Null);
        if !choice.reasoning.is_empty() {
            message.insert("reasoning".into(), json!(choice.reasoning));
            message.insert("reasoning_content".into(), json!(choice.reasoning));
        }
        if !choice.tool_calls.is_empty() {
            message.insert("tool_calls".into(), choice.tool_calls.iter().map(tool_call_json).collect());
        }
        let logprobs = choice.logprobs.as_ref().map(|content| json!({"content": content, "refusal": null}));
        let mut value = json!({
            "index": index,
            "message": message,
            "logprobs": logprobs,
            "finish_reason": choice.finish,
        });
        if self.plan().params.return_token_ids {
            value["token_ids"] = json!(choice.generated());
        }
        value
    }
}

fn tool_call_json(call: &ToolCall) -> Value {
    json!({"id": call.id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
}

fn chunk_choice(index: usize, delta: Value, finish: Option<Finish>) -> Map<String, Value> {
    let fields =
        [("index", json!(index)), ("delta", delta), ("logprobs", Value::Null), ("finish_reason", json!(finish))];
    fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
}

fn delta_json(delta: &Delta) -> Value {
    match delta {
        Delta::Reasoning(text) => json!({"reasoning": text, "reasoning_content": text}),
        Delta::Content(text) => json!({"content": text}),
        Delta::ToolCall { index, id, name } => json!({"tool_calls": [
            {"index": index, "id": id, "type": "function", "function": {"name": name, "arguments": ""}}
        ]}),
        Delta::Arguments { index, arguments } => {
            json!({"tool_calls": [{"index": index, "function": {"arguments": arguments}}]})
        }
    }
}
