//! Ollama's own API, as Open WebUI, Zed and Codex use it.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use tandem_api::ollama_router;
use tower::ServiceExt;

use crate::edge::{Answer, Edge};

const THOUGHT: &str =
    "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>";
const CALL: &str = "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary \
                    to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Oslo\"}<|call|>";
const MODEL: &str = "gpt-oss-test:latest";

fn with(mut request: Value, more: Value) -> Value {
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

fn chat(said: &str, more: Value) -> Value {
    with(json!({"model": MODEL, "messages": [{"role": "user", "content": said}]}), more)
}

fn tools() -> Value {
    json!([{"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters":
        {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}}])
}

/// The message that lines build: all texts joined, all calls, and the last line.
fn built(lines: &[Value]) -> (String, String, Vec<Value>, Value) {
    let (mut thinking, mut content, mut calls) = (String::new(), String::new(), Vec::new());
    let (last, others) = lines.split_last().expect("there is a last line");
    assert!(others.iter().all(|line| line["done"] == false) && last["done"] == true);
    for line in lines {
        let message = &line["message"];
        assert_eq!(message["role"], "assistant");
        content += message["content"].as_str().expect("content is always a string");
        thinking += message["thinking"].as_str().unwrap_or_default();
        calls.extend(message["tool_calls"].as_array().into_iter().flatten().cloned());
    }
    (thinking, content, calls, last.clone())
}

#[tokio::test]
async fn a_chat_whole_and_streamed() {
    let edge = Edge::start();
    edge.script.chat("2 + 2?", THOUGHT);
    let whole = edge.post("/api/chat", &chat("2 + 2?", json!({"stream": false}))).await.ok();
    assert_eq!(whole["message"], json!({"role": "assistant", "content": "It is 4.", "thinking": "Easy."}));
    assert_eq!((&whole["model"], &whole["done"], &whole["done_reason"]), (&json!(MODEL), &json!(true), &json!("stop")));
    for name in ["total_duration", "prompt_eval_count", "eval_count", "eval_duration"] {
        assert!(whole[name].as_u64().unwrap() > 0, "{name}");
    }
    let (thinking, content, calls, last) = built(&edge.post("/api/chat", &chat("2 + 2?", json!({}))).await.lines());
    assert_eq!((thinking.as_str(), content.as_str(), calls.len()), ("Easy.", "It is 4.", 0));
    assert_eq!(last["eval_count"], whole["eval_count"]);
    let (thinking, content, ..) =
        built(&edge.post("/api/chat", &chat("2 + 2?", json!({"think": false}))).await.lines());
    assert_eq!((thinking.as_str(), content.as_str()), ("", "It is 4."));
}

#[tokio::test]
async fn options_are_heeded() {
    let edge = Edge::start();
    edge.script.chat("2 + 2?", THOUGHT);
    let ask = |options: Value| chat("2 + 2?", json!({"stream": false, "options": options}));
    let cut = edge.post("/api/chat", &ask(json!({"num_predict": 3, "num_ctx": 4096}))).await.ok();
    assert_eq!((&cut["done_reason"], &cut["eval_count"]), (&json!("length"), &json!(3)));
    let stopped = edge.post("/api/chat", &ask(json!({"stop": [" is"], "seed": -1, "num_predict": -1}))).await.ok();
    assert_eq!((&stopped["message"]["content"], &stopped["done_reason"]), (&json!("It"), &json!("stop")));
    let refused = edge.post("/api/chat", &ask(json!({"temperature": 9}))).await;
    assert_eq!(refused.status, 400);
    assert!(refused.json()["error"].as_str().unwrap().contains("options.temperature"), "{}", refused.text());
    let scored = edge
        .post("/api/chat", &chat("2 + 2?", json!({"stream": false, "logprobs": true, "top_logprobs": 1})))
        .await
        .ok();
    let tokens = scored["logprobs"].as_array().unwrap().iter().map(|logprob| logprob["token"].as_str().unwrap());
    assert_eq!(tokens.collect::<String>(), "It is 4.");
}

#[tokio::test]
async fn a_tool_loop_with_ids_and_without() {
    let edge = Edge::start();
    edge.script.chat("Oslo?", CALL);
    edge.script.chat("Rain.", "<|channel|>final<|message|>Take an umbrella.<|return|>");
    for keeps_ids in [true, false] {
        let lines = edge.post("/api/chat", &chat("Oslo?", json!({"tools": tools()}))).await.lines();
        let (thinking, content, mut calls, last) = built(&lines);
        assert_eq!(
            (calls[0]["function"]["name"].as_str(), &calls[0]["function"]["arguments"]),
            (Some("get_weather"), &json!({"city": "Oslo"}))
        );
        assert_eq!(last["done_reason"], "stop");
        if !keeps_ids {
            calls[0].as_object_mut().unwrap().remove("id");
        }
        let second = json!({"stream": false, "tools": tools(), "messages": [
            {"role": "user", "content": "Oslo?"},
            {"role": "assistant", "content": content, "thinking": thinking, "tool_calls": calls},
            {"role": "tool", "tool_name": "get_weather", "content": "Rain."},
        ]});
        let second = edge.post("/api/chat", &chat("", second)).await.ok();
        assert_eq!(second["message"]["content"], "Take an umbrella.");
    }
}

#[tokio::test]
async fn generate_and_load() {
    let edge = Edge::start();
    edge.script.chat("2 + 2?", THOUGHT);
    let request = json!({"model": "gpt-oss-test", "prompt": "2 + 2?", "system": "Be brief."});
    let lines = edge.post("/api/generate", &request).await.lines();
    let joined = |name: &str| -> String { lines.iter().filter_map(|line| line[name].as_str()).collect() };
    assert_eq!((joined("response").as_str(), joined("thinking").as_str()), ("It is 4.", "Easy."));
    assert_eq!(lines.last().unwrap()["done_reason"], "stop");
    let whole = edge.post("/api/generate", &with(request, json!({"stream": false}))).await.ok();
    assert_eq!((&whole["response"], &whole["thinking"]), (&json!("It is 4."), &json!("Easy.")));
    for path in ["/api/generate", "/api/chat"] {
        let loaded = edge.post(path, &json!({"model": MODEL, "keep_alive": "5m", "stream": false})).await.ok();
        assert_eq!((&loaded["done"], &loaded["done_reason"]), (&json!(true), &json!("load")));
        assert_eq!(edge.post(path, &json!({"model": MODEL})).await.lines().len(), 1);
    }
    for more in [json!({"raw": true}), json!({"suffix": "x"}), json!({"images": ["aGk="]}), json!({"template": "x"})] {
        let refused = edge.post("/api/generate", &with(json!({"model": MODEL, "prompt": "x"}), more)).await;
        assert_eq!(refused.status, 400, "{}", refused.text());
    }
}

/// What Open WebUI, Zed and Codex ask before they say anything.
#[tokio::test]
async fn clients_find_the_model() {
    let edge = Edge::start();
    assert!(edge.get("/api/version").await.ok()["version"].as_str().unwrap().split('.').count() == 3);
    let tags = edge.get("/api/tags").await.ok();
    let entry = &tags["models"][0];
    for name in ["name", "model", "modified_at", "digest"] {
        assert!(entry[name].as_str().is_some_and(|text| !text.is_empty()), "{name}: {entry}");
    }
    assert_eq!(entry["name"], MODEL);
    assert_eq!(entry["digest"].as_str().unwrap().len(), 64);
    assert_eq!(entry["size"], 13_000_000_000u64);
    assert_eq!(entry["details"]["parameter_size"], "20.9B");
    for name in ["format", "family", "quantization_level"] {
        assert!(entry["details"][name].is_string(), "{name}");
    }
    let running = edge.get("/api/ps").await.ok();
    assert_eq!(running["models"][0]["name"], MODEL);
    for field in ["model", "name"] {
        let shown = edge.post("/api/show", &json!({ field: MODEL })).await.ok();
        assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
        assert_eq!(shown["model_info"]["gptoss.context_length"], crate::edge::CONTEXT);
    }
    let pulled = edge.post("/api/pull", &json!({"model": MODEL})).await.lines();
    assert_eq!(pulled.last().unwrap(), &json!({"status": "success"}));
    assert_eq!(edge.post("/api/pull", &json!({"name": MODEL, "stream": false})).await.ok()["status"], "success");
    // A client of Ollama's may use OpenAI's routes by the same name.
    edge.script.chat("2 + 2?", THOUGHT);
    edge.chat("2 + 2?", json!({"model": MODEL})).await;
}

#[tokio::test]
async fn errors_are_one_sentence() {
    let edge = Edge::start();
    let error = |answer: Answer, status: u16| {
        assert_eq!(answer.status, status, "{}", answer.text());
        let body = answer.json();
        assert_eq!(body.as_object().unwrap().len(), 1);
        body["error"].as_str().unwrap().to_string()
    };
    assert!(error(edge.post("/api/pull", &json!({"model": "llama3"})).await, 404).contains("llama3"));
    error(edge.post("/api/show", &json!({"model": "llama3"})).await, 404);
    error(edge.post("/api/chat", &json!({"model": "llama3", "messages": []})).await, 404);
    assert!(error(edge.post("/api/embed", &json!({"model": MODEL, "input": "x"})).await, 400).contains("embedding"));
    error(edge.post("/api/chat", &json!({"messages": []})).await, 400);
    error(edge.post("/api/chat", &chat("x", json!({"format": "xml"}))).await, 400);
    error(edge.get("/api/nothing").await, 404);
    error(edge.get("/api/chat").await, 405);
    edge.script.fail.store(true, std::sync::atomic::Ordering::Relaxed);
    let lines = edge.post("/api/chat", &chat("x", json!({}))).await.lines();
    assert!(lines.last().unwrap()["error"].as_str().unwrap().contains("the test said so"));
}

#[tokio::test]
async fn ollamas_port_greets_as_ollama_does() {
    let edge = Edge::start();
    let get = |path: &str| Request::builder().uri(path).body(Body::empty()).unwrap();
    let router = ollama_router(edge.state.clone());
    let greeting = Answer::read(router.clone().oneshot(get("/")).await.unwrap()).await;
    assert_eq!((greeting.status.as_u16(), greeting.text()), (200, "Ollama is running"));
    assert_eq!(Answer::read(router.oneshot(get("/v1/models")).await.unwrap()).await.ok()["object"], "list");
}
