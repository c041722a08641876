//! `POST /v1/chat/completions`.

use std::sync::Arc;
use std::time::Instant;

use axum::Json;
use axum::extract::{Extension, Request, State};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};
use tandem_harmony::ToolCall;

use crate::blocking::blocking;
use crate::body;
use crate::chat_choice::{ChatChoice, Delta, Finish};
use crate::chat_request::{self, ChatPlan};
use crate::date::unix_seconds;
use crate::error::ApiError;
use crate::generation::Generation;
use crate::request_log::RequestLog;
use crate::router::RequestName;
use crate::sse::{self, Broken, EventSender};
use crate::state::{ApiState, Served};

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
    let plan = Arc::new(blocking(move || chat_request::plan(&body, &planner, &for_model)).await?);
    let planned = plan.clone();
    let request = move |index| engine_request(&planned, index);
    let generation = Generation::start(&state, &served, arrived, plan.params.n, request)?;
    let reply = ChatReply::new(state, served, plan, format!("chatcmpl-{name}"), arrived);
    if reply.plan.params.stream {
        let keep_alive = reply.state.settings().keep_alive;
        return Ok(sse::response(keep_alive, |events| reply.stream(generation, events)));
    }
    reply.whole(generation).await
}

fn engine_request(plan: &ChatPlan, index: usize) -> tandem_engine::Request {
    tandem_engine::Request {
        prompt: plan.prompt.clone(),
        max_tokens: plan.output_tokens,
        sampling: plan.params.sampling_of(index, plan.logprobs),
        stop_tokens: plan.params.stop_tokens.clone(),
        prompt_logprobs: None,
    }
}

/// A reply under construction.
struct ChatReply {
    state: ApiState,
    served: Arc<Served>,
    plan: Arc<ChatPlan>,
    choices: Vec<ChatChoice>,
    /// What a forced header has begun, by choice.
    begun: Vec<Vec<Delta>>,
    id: String,
    created: u64,
    log: RequestLog,
}

/// What an update of the engine brings to one choice.
struct Progress {
    index: usize,
    deltas: Vec<Delta>,
    /// Tokens and log-probabilities since the last progress that was shown.
    tokens_from: usize,
    logprobs_from: usize,
    finish: Option<Finish>,
}

impl ChatReply {
    fn new(state: ApiState, served: Arc<Served>, plan: Arc<ChatPlan>, id: String, arrived: Instant) -> Self {
        let (choices, begun) = (0..plan.params.n).map(|_| ChatChoice::new(&plan)).unzip();
        let mut log = RequestLog::new("chat", arrived, plan.params.stream);
        log.tally.prompt = plan.prompt.len() as u32;
        Self { state, served, plan, choices, begun, id, created: unix_seconds(), log }
    }

    /// The reply as one object.
    async fn whole(mut self, mut generation: Generation) -> Result<Response, ApiError> {
        while let Some(_progress) = self.next(&mut generation).await? {}
        let choices: Vec<Value> = (0..self.choices.len()).map(|index| self.choice_json(index)).collect();
        let mut reply = self.envelope("chat.completion", choices.into());
        reply.insert("usage".into(), self.log.tally.to_json());
        if self.plan.params.return_token_ids {
            reply.insert("prompt_token_ids".into(), json!(self.plan.prompt));
        }
        Ok(Json(reply).into_response())
    }

    /// The reply as chunks: for every choice its role, what it says, and why it ended; then the usage.
    async fn stream(mut self, mut generation: Generation, events: EventSender) -> Result<(), Broken> {
        let mut has_role = vec![false; self.choices.len()];
        loop {
            let progress = self.next(&mut generation).await?;
            let Some(progress) = progress else { break };
            if !has_role[progress.index] {
                has_role[progress.index] = true;
                self.send_role(progress.index, &events).await?;
            }
            self.send_progress(progress, &events).await?;
        }
        if self.plan.params.include_usage {
            let mut chunk = self.envelope("chat.completion.chunk", json!([]));
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
            if finish.is_some() {
                generation.stop(index);
                self.finished(index);
            }
            if self.choices[index].generated().len() > tokens_from || finish.is_some() {
                return Ok(Some(Progress { index, deltas, tokens_from, logprobs_from, finish }));
            }
        }
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

    async fn send_role(&mut self, index: usize, events: &EventSender) -> Result<(), Broken> {
        let mut choice = chunk_choice(index, json!({"role": "assistant", "content": ""}), None);
        if self.plan.params.return_token_ids {
            choice.insert("token_ids".into(), json!([]));
        }
        let mut chunk = self.chunk(choice);
        if self.plan.params.return_token_ids {
            chunk.insert("prompt_token_ids".into(), json!(self.plan.prompt));
        }
        events.send(&chunk).await?;
        for delta in std::mem::take(&mut self.begun[index]) {
            events.send(&self.chunk(chunk_choice(index, delta_json(&delta), None))).await?;
        }
        Ok(())
    }

    /// Sends one chunk per delta. Tokens and log-probabilities go with the first of them, or with the end.
    async fn send_progress(&self, progress: Progress, events: &EventSender) -> Result<(), Broken> {
        let Progress { index, deltas, tokens_from, logprobs_from, finish } = progress;
        let mut chunks: Vec<Map<String, Value>> =
            deltas.iter().map(|delta| chunk_choice(index, delta_json(delta), None)).collect();
        if finish.is_some() || (chunks.is_empty() && self.plan.params.return_token_ids) {
            chunks.push(chunk_choice(index, json!({}), finish));
        }
        let choice = &self.choices[index];
        if let Some(first) = chunks.first_mut() {
            if let Some(logprobs) = choice.logprobs.as_ref().filter(|all| all.len() > logprobs_from) {
                first.insert("logprobs".into(), json!({"content": logprobs[logprobs_from..], "refusal": null}));
            }
            if self.plan.params.return_token_ids {
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
        if self.plan.params.include_usage {
            chunk.insert("usage".into(), Value::Null);
        }
        chunk
    }

    fn envelope(&self, object: &str, choices: Value) -> Map<String, Value> {
        let fields = [
            ("id", json!(self.id)),
            ("object", json!(object)),
            ("created", json!(self.created)),
            ("model", json!(self.served.name())),
            ("system_fingerprint", json!(self.served.fingerprint())),
            ("choices", choices),
        ];
        fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    fn choice_json(&self, index: usize) -> Value {
        let choice = &self.choices[index];
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
        if self.plan.params.return_token_ids {
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
