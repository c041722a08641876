//! Anthropic's protocol: messages whole and streamed, and what Claude Code sends.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};
use tandem_api::ApiSettings;
use tandem_engine::EngineSettings;

use crate::edge::{Answer, Edge};

const THOUGHT: &str =
    "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>";
const CALL: &str = "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me \
                    look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather \
                    <|constrain|>json<|message|>{\"city\": \"Oslo\"}<|call|>";

fn request(said: &str, more: Value) -> Value {
    let mut request = json!({
        "model": "claude-sonnet-4-5-20250929",
        "max_tokens": 100,
        "messages": [{"role": "user", "content": said}],
    });
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

fn tools() -> Value {
    json!([{"name": "get_weather", "description": "Weather", "input_schema":
        {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}])
}

async fn message(edge: &Edge, said: &str, more: Value) -> Value {
    edge.post("/v1/messages", &request(said, more)).await.ok()
}

async fn events(edge: &Edge, said: &str, more: Value) -> Vec<Value> {
    let mut request = request(said, more);
    request["stream"] = json!(true);
    edge.post("/v1/messages?beta=true", &request).await.named_events()
}

/// What the prompt of a request looks like, by way of a chat completion that renders alike.
async fn input_tokens(edge: &Edge, request: &Value) -> u64 {
    edge.post("/v1/messages/count_tokens", request).await.ok()["input_tokens"].as_u64().unwrap()
}

/// The message that the events build, put together as clients do it.
fn built(events: &[Value]) -> Value {
    let mut message = Value::Null;
    let mut open: Option<Value> = None;
    let mut json = String::new();
    for event in events {
        match event["type"].as_str().unwrap() {
            "message_start" => message = event["message"].clone(),
            "content_block_start" => {
                assert!(open.is_none(), "one block at a time");
                assert_eq!(event["index"], message["content"].as_array().unwrap().len());
                open = Some(event["content_block"].clone());
            }
            "content_block_delta" => {
                let (delta, block) = (&event["delta"], open.as_mut().expect("a block is open"));
                let field = match delta["type"].as_str().unwrap() {
                    "text_delta" => "text",
                    "thinking_delta" => "thinking",
                    "signature_delta" => "signature",
                    "input_json_delta" => {
                        json += delta["partial_json"].as_str().unwrap();
                        continue;
                    }
                    other => panic!("{other}"),
                };
                block[field] = json!(block[field].as_str().unwrap().to_string() + delta[field].as_str().unwrap());
            }
            "content_block_stop" => {
                let mut block = open.take().expect("a block is open");
                if block["type"] == "tool_use" {
                    block["input"] = serde_json::from_str(&std::mem::take(&mut json)).unwrap();
                }
                message["content"].as_array_mut().unwrap().push(block);
            }
            "message_delta" => {
                message["stop_reason"] = event["delta"]["stop_reason"].clone();
                message["stop_sequence"] = event["delta"]["stop_sequence"].clone();
                message["usage"] = event["usage"].clone();
            }
            "message_stop" | "ping" => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(events.last().unwrap()["type"], "message_stop");
    message
}

#[tokio::test]
async fn a_message_whole_and_streamed() {
    let edge = Edge::start();
    edge.script.chat("2 + 2?", THOUGHT);
    let thinking = json!({"thinking": {"type": "adaptive"}});
    let whole = message(&edge, "2 + 2?", thinking.clone()).await;
    assert_eq!(
        (&whole["type"], &whole["role"], &whole["stop_reason"]),
        (&json!("message"), &json!("assistant"), &json!("end_turn"))
    );
    assert_eq!(whole["model"], "claude-sonnet-4-5-20250929");
    assert_eq!(whole["content"][0]["thinking"], "Easy.");
    assert!(!whole["content"][0]["signature"].as_str().unwrap().is_empty());
    assert_eq!(whole["content"][1], json!({"type": "text", "text": "It is 4."}));
    assert_eq!(whole["content"].as_array().unwrap().len(), 2);
    let events = events(&edge, "2 + 2?", thinking).await;
    let streamed = built(&events);
    assert_eq!((&streamed["content"], &streamed["stop_reason"]), (&whole["content"], &whole["stop_reason"]));
    let usage = &events[0]["message"]["usage"];
    let sum =
        |usage: &Value| usage["input_tokens"].as_u64().unwrap() + usage["cache_read_input_tokens"].as_u64().unwrap();
    assert_eq!(sum(usage), input_tokens(&edge, &request("2 + 2?", json!({}))).await);
    assert!(usage["cache_read_input_tokens"].as_u64().unwrap() > 0, "the second request finds the first: {usage}");
    assert_eq!(sum(&whole["usage"]), sum(usage));
}

#[tokio::test]
async fn reasoning_is_shown_only_where_it_is_asked_for() {
    let edge = Edge::start();
    edge.script.chat("2 + 2?", THOUGHT);
    let hidden = message(&edge, "2 + 2?", json!({})).await;
    assert_eq!(hidden["content"], json!([{"type": "text", "text": "It is 4."}]));
    let hidden = built(&events(&edge, "2 + 2?", json!({"thinking": {"type": "disabled"}})).await);
    assert_eq!(hidden["content"], json!([{"type": "text", "text": "It is 4."}]));
    let omitted = json!({"thinking": {"type": "adaptive", "display": "omitted"}});
    let signed = message(&edge, "2 + 2?", omitted.clone()).await;
    assert_eq!(signed["content"][0]["thinking"], "");
    assert_eq!(built(&events(&edge, "2 + 2?", omitted).await)["content"], signed["content"]);
}

#[tokio::test]
async fn stop_reasons() {
    let edge = Edge::start();
    edge.script.chat("2 + 2?", THOUGHT);
    let stopped = message(&edge, "2 + 2?", json!({"stop_sequences": ["zzz", " 4"]})).await;
    assert_eq!((&stopped["stop_reason"], &stopped["stop_sequence"]), (&json!("stop_sequence"), &json!(" 4")));
    assert_eq!(stopped["content"][0]["text"], "It is");
    let cut = message(&edge, "2 + 2?", json!({"max_tokens": 4})).await;
    assert_eq!((&cut["stop_reason"], &cut["content"]), (&json!("max_tokens"), &json!([])));
    assert_eq!(cut["usage"]["output_tokens"], 4);
    edge.script.chat("Oslo?", CALL);
    let called = message(&edge, "Oslo?", json!({"tools": tools()})).await;
    assert_eq!(called["stop_reason"], "tool_use");
}

#[tokio::test]
async fn a_tool_loop_repeats_the_models_own_tokens() {
    let edge = Edge::start();
    edge.script.chat("Oslo?", CALL);
    edge.script.chat("Rain.", "<|channel|>final<|message|>Take an umbrella.<|return|>");
    for thinking in [json!({}), json!({"thinking": {"type": "adaptive"}})] {
        let mut options = json!({"tools": tools()});
        options.as_object_mut().unwrap().extend(thinking.as_object().unwrap().clone());
        let first = built(&events(&edge, "Oslo?", options.clone()).await);
        let call = first["content"].as_array().unwrap().last().unwrap();
        assert_eq!((&call["name"], &call["input"]), (&json!("get_weather"), &json!({"city": "Oslo"})));
        edge.until_idle().await;
        options["messages"] = json!([
            {"role": "user", "content": "Oslo?"},
            {"role": "assistant", "content": first["content"]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call["id"], "content": "Rain."}]},
        ]);
        let second = message(&edge, "", options).await;
        assert_eq!(second["content"], json!([{"type": "text", "text": "Take an umbrella."}]));
        // The prompt of the first request and its reply, but for the last token, which the model was never fed.
        let usage = &first["usage"];
        let known: u64 = ["input_tokens", "cache_read_input_tokens", "output_tokens"]
            .iter()
            .map(|name| usage[name].as_u64().unwrap())
            .sum();
        let cached = second["usage"]["cache_read_input_tokens"].as_u64().unwrap();
        assert!(cached + 1 >= known, "{cached} of {known} known tokens were cached");
    }
}

/// Two requests as Claude Code sends them one after the other: what differs must not reach the prompt.
#[tokio::test]
async fn what_claude_code_varies_does_not_change_the_prompt() {
    let edge = Edge::start();
    let request = |digits: &str, marked: bool| {
        let mark = if marked { json!({"type": "ephemeral"}) } else { Value::Null };
        json!({
            "model": "claude-opus-4-6",
            "max_tokens": 100,
            "system": [
                {"type": "text", "text": format!("x-anthropic-billing-header: cc_version=2.1; cch={digits};")},
                {"type": "text", "text": "You are Claude Code.", "cache_control": {"type": "ephemeral"}},
                {"type": "text", "text": "Be brief.", "cache_control": mark},
            ],
            "thinking": {"type": "adaptive"},
            "output_config": {"effort": "medium"},
            "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
            "metadata": {"user_id": "u"},
            "tools": tools(),
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "Hello", "cache_control": mark}]},
                {"role": "system", "content": "The date has changed."},
            ],
        })
    };
    let first = edge.post("/v1/messages?beta=true", &request("c0ffee", true)).await.ok();
    edge.until_idle().await;
    let second = edge.post("/anthropic/v1/messages?beta=true", &request("bad5eed", false)).await.ok();
    let prompt = input_tokens(&edge, &request("1", true)).await;
    assert_eq!(first["usage"]["input_tokens"], prompt);
    assert_eq!(
        second["usage"]["cache_read_input_tokens"],
        prompt - 1,
        "all but the last token, which is computed again"
    );
    let mut without = request("1", true);
    without["system"].as_array_mut().unwrap().remove(0);
    assert_eq!(input_tokens(&edge, &without).await, prompt);
    without["messages"].as_array_mut().unwrap().pop();
    assert!(input_tokens(&edge, &without).await < prompt, "system messages in place are read");
}

#[tokio::test]
async fn results_in_any_order_and_with_parts_answer_their_calls() {
    let edge = Edge::start();
    let request = |results: Value| {
        let call = |id: &str, city: &str| json!({"type": "tool_use", "id": id, "name": "get_weather", "input": {"city": city}});
        let mut content = results.as_array().unwrap().clone();
        content.push(json!({"type": "text", "text": "And now?"}));
        request(
            "",
            json!({"tools": tools(), "messages": [
                {"role": "user", "content": "Oslo and Rome?"},
                {"role": "assistant", "content": [call("a", "Oslo"), call("b", "Rome")]},
                {"role": "user", "content": content},
            ]}),
        )
    };
    let oslo = json!({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "text", "text": "Rain."}]});
    let rome = json!({"type": "tool_result", "tool_use_id": "b", "content": "Sun.", "is_error": false});
    edge.script.chat("And now?", "<|channel|>final<|message|>Go.<|return|>");
    let first = edge.post("/v1/messages", &request(json!([oslo, rome]))).await.ok();
    edge.until_idle().await;
    let second = edge.post("/v1/messages", &request(json!([rome, oslo]))).await.ok();
    assert_eq!(
        first["usage"]["input_tokens"].as_u64().unwrap() - 1,
        second["usage"]["cache_read_input_tokens"].as_u64().unwrap()
    );
    // A screenshot is no reason to end a conversation.
    let image = json!({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image", "source": {}}]});
    edge.post("/v1/messages", &request(json!([image, rome]))).await.ok();
    let orphan = json!({"type": "tool_result", "tool_use_id": "c", "content": "x"});
    let refused = edge.post("/v1/messages", &request(json!([orphan]))).await;
    assert_eq!(error(&refused, 400)["type"], "invalid_request_error");
}

#[tokio::test]
async fn two_requests_at_once_one_with_a_schema() {
    let edge = Edge::start();
    edge.script.chat("Hello", "<|channel|>final<|message|>Hi.<|return|>");
    edge.script.chat("Title?", "<|channel|>final<|message|>{\"title\": \"Greeting\"}<|return|>");
    let schema = json!({"type": "object", "properties": {"title": {"type": "string"}}, "required": ["title"]});
    let title = json!({"tools": [], "output_config": {"format": {"type": "json_schema", "schema": schema}}});
    let (hello, title) =
        tokio::join!(events(&edge, "Hello", json!({"tools": tools()})), events(&edge, "Title?", title));
    assert_eq!(built(&hello)["content"][0]["text"], "Hi.");
    assert_eq!(built(&title)["content"][0]["text"], "{\"title\": \"Greeting\"}");
}

fn error(answer: &Answer, status: u16) -> Value {
    assert_eq!(answer.status, status, "{}", answer.text());
    let body = answer.json();
    assert_eq!(body["type"], "error");
    assert_eq!(body["request_id"], answer.headers["request-id"].to_str().unwrap());
    body["error"].clone()
}

#[tokio::test]
async fn errors_have_the_protocols_shape_wherever_they_come_from() {
    let edge = Edge::start();
    let path = "/v1/messages";
    let refused = |answer: Answer, status, kind: &str| {
        let error = error(&answer, status);
        assert_eq!(error["type"], kind, "{error}");
        error["message"].as_str().unwrap().to_string()
    };
    let missing = edge.post(path, &json!({"messages": [{"role": "user", "content": "x"}]})).await;
    assert!(refused(missing, 400, "invalid_request_error").contains("max_tokens"));
    let unknown = edge.post(path, &request("x", json!({"model": "gpt-9"}))).await;
    assert!(refused(unknown, 404, "not_found_error").contains("gpt-9"));
    refused(edge.request("POST", path, "{").await, 400, "invalid_request_error");
    refused(edge.get(path).await, 405, "invalid_request_error");
    refused(edge.get("/anthropic/v1/nothing").await, 404, "not_found_error");
    let long = edge.post(path, &request(&"word ".repeat(3000), json!({}))).await;
    let message = refused(long, 400, "invalid_request_error");
    assert!(message.starts_with("prompt is too long: 30") && message.ends_with(" tokens > 2048 maximum"), "{message}");
    let much = edge.post(path, &request("x", json!({"max_tokens": 32000}))).await;
    let message = refused(much, 400, "invalid_request_error");
    assert!(message.starts_with("input length and `max_tokens` exceed context limit: "), "{message}");
    assert!(message.contains(" + 32000 > 2048"), "{message}");
}

#[tokio::test]
async fn a_long_wait_is_filled_with_pings() {
    let settings = ApiSettings { keep_alive: Duration::from_millis(20), ..ApiSettings::default() };
    let edge = Edge::with(settings, Edge::capacity(), EngineSettings::default());
    edge.script.chat("2 + 2?", THOUGHT);
    edge.slow_down(Duration::from_millis(100));
    let events = events(&edge, "2 + 2?", json!({"thinking": {"type": "adaptive"}})).await;
    assert!(events.iter().any(|event| event["type"] == "ping"), "{events:?}");
    assert_eq!(built(&events)["content"][1]["text"], "It is 4.");
}

#[tokio::test]
async fn a_failure_in_the_stream_is_its_last_event() {
    let edge = Edge::start();
    edge.script.chat("2 + 2?", THOUGHT);
    edge.script.fail.store(true, std::sync::atomic::Ordering::Relaxed);
    let events = events(&edge, "2 + 2?", json!({})).await;
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["error"]["type"]), (&json!("error"), &json!("api_error")));
}

#[tokio::test]
async fn models_are_found_by_names_that_clients_accept() {
    let edge = Edge::start();
    let get = |path: &str| {
        Request::builder().uri(path).header("anthropic-version", "2023-06-01").body(Body::empty()).unwrap()
    };
    for path in ["/v1/models?limit=1000", "/anthropic/v1/models"] {
        let list = Answer::read(edge.send(get(path)).await).await.ok();
        let models = list["data"].as_array().unwrap();
        assert!(models.len() >= 4 && list["has_more"] == false);
        for model in models {
            let id = model["id"].as_str().unwrap();
            assert!(id.starts_with("claude") || id.starts_with("anthropic"), "{id}");
            assert!(model["display_name"].as_str().unwrap().contains("gpt-oss-test"), "{model}");
            edge.post("/v1/messages/count_tokens", &request("x", json!({"model": id}))).await.ok();
            Answer::read(edge.send(get(&format!("/v1/models/{id}"))).await).await.ok();
        }
    }
    assert_eq!(edge.get("/v1/models").await.ok()["object"], "list");
    for path in ["/", "/anthropic", "/anthropic/"] {
        assert_eq!(edge.request("HEAD", path, Body::empty()).await.status, 200, "{path}");
    }
}
