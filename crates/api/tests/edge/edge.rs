//! The router in front of an engine with a reciting worker, and a client for it.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tandem_api::{ApiSettings, ApiState, ModelInfo, NodeReport, router};
use tandem_engine::{Engine, EngineSettings, EngineStats};
use tandem_harmony::Tokenizer;
use tandem_step::Capacity;
use tower::ServiceExt;

use crate::worker::{RecitingWorker, Script};

pub const DATE: &str = "2025-06-28";
pub const CONTEXT: u32 = 2048;

/// A served script.
pub struct Edge {
    pub script: Script,
    pub engine: Engine,
    pub state: ApiState,
    router: Router,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Edge {
    pub fn start() -> Self {
        Self::with(ApiSettings::default(), Self::capacity(), EngineSettings::default())
    }

    pub fn capacity() -> Capacity {
        Capacity {
            block_tokens: 16,
            full_blocks: 1024,
            sliding_blocks: 512,
            window: 128,
            context: CONTEXT,
            max_streams: 4,
            max_step_tokens: 512,
            layers: 1,
            vocab: Tokenizer::VOCAB_SIZE as u32,
        }
    }

    pub fn with(settings: ApiSettings, capacity: Capacity, engine: EngineSettings) -> Self {
        let script = Script::default();
        let worker = RecitingWorker::new(script.clone(), capacity);
        let engine = Engine::start(Box::new(worker), capacity, engine).expect("the capacity fits the settings");
        let settings = ApiSettings { date: settings.date.or(Some(DATE.to_string())), ..settings };
        let (state, ready) = ApiState::new(settings);
        let model = ModelInfo {
            id: "gpt-oss-test".into(),
            aliases: vec!["openai/gpt-oss-test".into()],
            vocab: capacity.vocab,
            context: capacity.context,
            parameters: 20_900_000_000,
            checkpoint_bytes: 13_000_000_000,
            created: 1_700_000_000,
            notice: None,
            nodes: vec![NodeReport {
                name: "node".into(),
                device: "a worker that recites".into(),
                ..Default::default()
            }],
            link: None,
            degraded: None,
            computes_here: true,
        };
        ready.ready(engine.clone(), model);
        Self { script, engine, router: router(state.clone()), state }
    }

    pub async fn send(&self, request: Request<Body>) -> axum::response::Response {
        self.router.clone().oneshot(request).await.expect("the router does not fail")
    }

    pub async fn request(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        let request = Request::builder().method(method).uri(path).body(body.into()).unwrap();
        Answer::read(self.send(request).await).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.request("GET", path, Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.request("POST", path, body.to_string()).await
    }

    /// A chat completion that must succeed: `request` with the user saying `said`.
    pub async fn chat(&self, said: &str, request: Value) -> Value {
        self.post("/v1/chat/completions", &chat_request(said, request)).await.ok()
    }

    /// The same as a stream: all its events but `[DONE]`, which must come last.
    pub async fn chat_events(&self, said: &str, request: Value) -> Vec<Value> {
        let mut request = chat_request(said, request);
        request["stream"] = json!(true);
        self.post("/v1/chat/completions", &request).await.events()
    }

    /// A completion that must succeed.
    pub async fn complete(&self, request: Value) -> Value {
        self.post("/v1/completions", &request).await.ok()
    }

    /// Waits until the engine's figures are as wanted.
    pub async fn until(&self, what: &str, wanted: impl Fn(&EngineStats) -> bool) {
        let started = Instant::now();
        while !wanted(&self.engine.stats()) {
            assert!(started.elapsed() < Duration::from_secs(60), "{what}: {:?}", self.engine.stats());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub async fn until_idle(&self) {
        self.until("nothing runs", |stats| stats.running == 0 && stats.waiting == 0).await;
    }

    /// Makes every step take this long.
    pub fn slow_down(&self, step: Duration) {
        self.script.step_us.store(step.as_micros() as u64, Ordering::Relaxed);
    }
}

impl Answer {
    pub async fn read(response: axum::response::Response) -> Self {
        let (parts, body) = response.into_parts();
        let body = body.collect().await.expect("bodies do not fail").to_bytes();
        Self { status: parts.status, headers: parts.headers, body }
    }

    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("answers are UTF-8")
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The body of a success.
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.text());
        self.json()
    }

    /// The `error` of a failure, whose shape must be OpenAI's.
    pub fn error(&self) -> Value {
        let error = self.json()["error"].clone();
        assert!(self.status.is_client_error() || self.status.is_server_error(), "{}: {}", self.status, self.text());
        assert!(error["message"].as_str().is_some_and(|message| !message.is_empty()), "{error}");
        assert!(error["type"].is_string() && error["code"].is_string(), "{error}");
        assert!(error.get("param").is_some(), "{error}");
        error
    }

    /// The events of a stream that ends well.
    pub fn events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.headers["content-type"], "text/event-stream");
        let mut events: Vec<&str> = self.text().split("\n\n").filter(|event| event.starts_with("data: ")).collect();
        assert_eq!(events.pop(), Some("data: [DONE]"), "{}", self.text());
        events.iter().map(|event| serde_json::from_str(&event["data: ".len()..]).unwrap()).collect()
    }
}

impl Answer {
    /// The lines of a stream of JSON lines.
    pub fn lines(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.headers["content-type"], "application/x-ndjson");
        assert!(self.text().ends_with('\n'), "{}", self.text());
        self.text().lines().map(|line| serde_json::from_str(line).expect(line)).collect()
    }

    /// The events of a stream that have names, each of which must be the event's `type`. Comments are left out.
    pub fn named_events(&self) -> Vec<Value> {
        assert_eq!(self.status, 200, "{}", self.text());
        assert_eq!(self.headers["content-type"], "text/event-stream");
        assert!(self.text().ends_with("\n\n"), "{}", self.text());
        let events = self.text().trim_end().split("\n\n").filter(|event| !event.starts_with(':'));
        let read = |event: &str| {
            let (name, data) =
                event.strip_prefix("event: ").and_then(|event| event.split_once("\ndata: ")).expect(event);
            let data: Value = serde_json::from_str(data).expect(data);
            assert_eq!(data["type"], name);
            data
        };
        events.map(read).collect()
    }
}

pub fn chat_request(said: &str, mut request: Value) -> Value {
    if request["messages"].is_null() {
        request["messages"] = json!([{"role": "user", "content": said}]);
    }
    request
}

/// The deltas of one choice of a stream, joined: `(reasoning, content, tool calls, finish reason)`.
pub fn joined(events: &[Value], index: usize) -> (String, String, Vec<Value>, Value) {
    let (mut reasoning, mut content, mut calls, mut finish) = (String::new(), String::new(), Vec::new(), Value::Null);
    let choices = events.iter().flat_map(|event| event["choices"].as_array().unwrap());
    for choice in choices.filter(|choice| choice["index"] == index) {
        assert!(finish.is_null(), "nothing follows the finish reason: {choice}");
        let delta = &choice["delta"];
        assert_eq!(delta["reasoning"], delta["reasoning_content"]);
        reasoning += delta["reasoning"].as_str().unwrap_or_default();
        content += delta["content"].as_str().unwrap_or_default();
        for call in delta["tool_calls"].as_array().into_iter().flatten() {
            let at = call["index"].as_u64().unwrap() as usize;
            if at == calls.len() {
                assert!(call["id"].is_string() && call["type"] == "function", "{call}");
                calls.push(call.clone());
            } else {
                let more = call["function"]["arguments"].as_str().unwrap();
                let known = calls[at]["function"]["arguments"].as_str().unwrap().to_string();
                calls[at]["function"]["arguments"] = json!(known + more);
            }
        }
        finish = choice["finish_reason"].clone();
    }
    (reasoning, content, calls, finish)
}
