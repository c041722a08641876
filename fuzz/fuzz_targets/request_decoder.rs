//! Whatever a client sends, it gets an answer: JSON, a proper stream, or a 4xx that says what is wrong. Never a 5xx, a
//! panic or a hang. Requests go through the whole edge and engine; the model behind them ends every reply at once.

#![no_main]

use std::collections::VecDeque;
use std::sync::LazyLock;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use http_body_util::BodyExt;
use libfuzzer_sys::arbitrary::{Result, Unstructured};
use libfuzzer_sys::fuzz_target;
use serde_json::{Map, Value, json};
use tandem_api::{ApiSettings, ApiState, ModelInfo, router};
use tandem_engine::{Engine, EngineSettings};
use tandem_harmony::{STOP_TOKENS, Tokenizer};
use tandem_step::{Capacity, Row, RowResult, StepPlan, StepResult, TokenLogprobs, Worker, WorkerError};
use tokio::runtime::Runtime;
use tower::ServiceExt;

const CONTEXT: u32 = 256;
const STREAMS: u32 = 4;
const BLOCK_TOKENS: u32 = 16;
/// Far more than any of these requests needs, also on a busy machine under the sanitizer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
const ROUTES: [&str; 4] = ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"];

fuzz_target!(
    // Reading the vocabulary takes a while under the sanitizer, which is not the first request's fault.
    init: {
        Tokenizer::shared().encode("Hello");
    },
    |data: &[u8]| {
        let mut input = Unstructured::new(data);
        let Ok(route) = input.choose(&ROUTES) else { return };
        // Fuzzers do not guess JSON: half of the time they choose what it says instead.
        let body = match input.ratio(1, 2) {
            Ok(true) => request(&mut input).map(|request| request.to_string().into_bytes()).unwrap_or_default(),
            _ => input.take_rest().to_vec(),
        };
        EDGE.check(route, body);
    }
);

static EDGE: LazyLock<Edge> = LazyLock::new(Edge::start);

struct Edge {
    runtime: Runtime,
    router: Router,
}

impl Edge {
    fn start() -> Self {
        let vocab = Tokenizer::VOCAB_SIZE as u32;
        let blocks = STREAMS * (CONTEXT / BLOCK_TOKENS + 2);
        let capacity = Capacity {
            block_tokens: BLOCK_TOKENS,
            full_blocks: blocks,
            sliding_blocks: blocks,
            window: 32,
            context: CONTEXT,
            max_streams: STREAMS,
            max_step_tokens: 64 + STREAMS,
            layers: 1,
            vocab,
        };
        let settings = EngineSettings { prefill_chunk: 64, ..EngineSettings::default() };
        let engine = Engine::start(Box::new(Silent::default()), capacity, settings).expect("settings fit the capacity");
        let (state, ready) = ApiState::new(ApiSettings { choices_max: 4, ..ApiSettings::default() });
        ready.ready(engine, ModelInfo { id: "fuzzed".into(), vocab, context: CONTEXT, ..ModelInfo::default() });
        Self { runtime: Runtime::new().expect("a runtime"), router: router(state) }
    }

    fn check(&self, route: &str, body: Vec<u8>) {
        let shown = String::from_utf8_lossy(&body).into_owned();
        let request = Request::post(route).body(Body::from(body)).expect("a request");
        let answer = async {
            let response = self.router.clone().oneshot(request).await.expect("the router is infallible");
            let status = response.status();
            (status, response.into_body().collect().await.expect("a whole body").to_bytes())
        };
        // Made inside the runtime: a timeout needs its clock.
        let answer = self.runtime.block_on(async { tokio::time::timeout(ANSWER_TIMEOUT, answer).await });
        let (status, body) = answer.unwrap_or_else(|_| panic!("no answer to {route} {shown}"));
        let text = std::str::from_utf8(&body).expect("answers are UTF-8");
        check_answer(status, text, &format!("{status} to {route} {shown}: {text}"));
    }
}

fn check_answer(status: StatusCode, text: &str, context: &str) {
    if status == StatusCode::OK && text.starts_with("data: ") {
        assert!(text.ends_with("data: [DONE]\n\n") && !text.contains("\"error\":{"), "{context}");
        return;
    }
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {context}"));
    match status {
        StatusCode::OK => assert!(value.is_object(), "{context}"),
        _ => assert!(status.is_client_error() && value["error"]["message"].is_string(), "{context}"),
    }
}

/// A request that is right but for some of its fields.
fn request(input: &mut Unstructured<'_>) -> Result<Value> {
    let mut request = json!({
        "messages": [{"role": "user", "content": "Hello"}],
        "prompt": "Hello",
        "tokens": [1, 2, 3],
        "max_tokens": 4,
    });
    for _ in 0..input.int_in_range(0..=6)? {
        let (field, value) = (*input.choose(FIELDS)?, value(input, 4)?);
        match input.ratio(1, 3)? {
            true => request["messages"].as_array_mut().map(|messages| messages.push(value)),
            false => request.as_object_mut().map(|fields| fields.insert(field.into(), value)).map(|_| ()),
        };
    }
    Ok(request)
}

/// Any JSON, made of what requests are made of.
fn value(input: &mut Unstructured<'_>, depth: u32) -> Result<Value> {
    Ok(match input.int_in_range(0..=if depth == 0 { 5 } else { 9 })? {
        0 => Value::Null,
        1 => input.arbitrary::<bool>()?.into(),
        2 => input.arbitrary::<i64>()?.into(),
        3 => (*input.choose(&[0, 1, -1, 2, 16, 255, 256, 257, 200_002, 201_088])?).into(),
        4 => (*input.choose(&[0.0, 0.5, 1.0, -0.1, 2.5, 1e300])?).into(),
        5 => (*input.choose(WORDS)?).into(),
        6 => input.arbitrary::<&str>()?.into(),
        7 => (0..input.int_in_range(0..=3)?).map(|_| value(input, depth - 1)).collect::<Result<_>>()?,
        _ => {
            let mut fields = Map::new();
            for _ in 0..input.int_in_range(0..=4)? {
                fields.insert((*input.choose(FIELDS)?).into(), value(input, depth - 1)?);
            }
            fields.into()
        }
    })
}

#[rustfmt::skip]
const FIELDS: &[&str] = &[
    "messages", "role", "content", "tool_calls", "tool_call_id", "id", "type", "function", "name", "arguments", "text",
    "tools", "parameters", "description", "properties", "items", "enum", "anyOf", "required", "$ref", "tool_choice",
    "reasoning", "reasoning_content", "reasoning_effort", "response_format", "json_schema", "schema", "prompt", "tokens",
    "echo", "logprobs", "top_logprobs", "n", "best_of", "suffix", "stream", "stream_options", "include_usage", "stop",
    "stop_token_ids", "max_tokens", "max_completion_tokens", "min_tokens", "ignore_eos", "temperature", "top_p", "top_k",
    "min_p", "seed", "presence_penalty", "frequency_penalty", "repetition_penalty", "logit_bias", "1000", "model",
    "return_token_ids", "return_token_strs", "skip_special_tokens", "chat_template_kwargs", "functions",
];

#[rustfmt::skip]
const WORDS: &[&str] = &[
    "", "user", "assistant", "system", "developer", "tool", "function", "text", "object", "string", "array", "integer",
    "low", "high", "auto", "none", "required", "json_object", "json_schema", "call_1", "get_weather", "functions.f",
    "{}", "{\"a\": 1}", "<|end|>", "<|start|>assistant<|channel|>final<|message|>", "🦀", "\u{0}", "#/$defs/x",
];

/// A model with nothing to say: whatever it is asked for is the end of the reply.
#[derive(Default)]
struct Silent(VecDeque<StepPlan>);

impl Worker for Silent {
    fn submit(&mut self, plan: StepPlan) -> std::result::Result<(), WorkerError> {
        self.0.push_back(plan);
        Ok(())
    }

    fn next(&mut self, _timeout: Duration) -> std::result::Result<StepResult, WorkerError> {
        let plan = self.0.pop_front().ok_or_else(|| WorkerError::Gone("nothing was submitted".into()))?;
        let rows = plan.rows.iter().map(answer).collect();
        Ok(StepResult { epoch: plan.epoch, step: plan.step, rows, ..StepResult::default() })
    }
}

fn answer(row: &Row) -> RowResult {
    let certain = |token: u32| TokenLogprobs { token, logprob: -0.5, top: vec![(token, -0.5)] };
    let token = row.sample.then_some(STOP_TOKENS[0]);
    let scores = row.score.iter().flat_map(|score| &score.targets).map(|&target| certain(target)).collect();
    RowResult { token, logprobs: token.map(certain), scores, ..RowResult::empty(row.slot) }
}
