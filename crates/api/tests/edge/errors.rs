//! What is refused: always a 4xx in OpenAI's shape that names what is wrong.

use axum::body::Body;
use proptest::prelude::*;
use serde_json::{Value, json};
use tandem_api::ApiSettings;
use tandem_engine::EngineSettings;

use crate::edge::{CONTEXT, Edge};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";

/// Requests, and the `param` and `code` that the answer must have.
async fn refused(edge: &Edge, path: &str, cases: &[(Value, &str, &str)]) {
    for (request, param, code) in cases {
        let answer = edge.post(path, request).await;
        assert_eq!(answer.status, 400, "{request}: {}", answer.text());
        let error = answer.error();
        assert_eq!(
            (error["param"].as_str(), error["code"].as_str()),
            (Some(*param), Some(*code)),
            "{request}: {error}"
        );
        assert_eq!(error["type"], "invalid_request_error");
    }
}

#[tokio::test]
async fn chat_requests() {
    let edge = Edge::start();
    let user = json!([{"role": "user", "content": "x"}]);
    let tools = json!([{"type": "function", "function": {"name": "f"}}]);
    let cases = [
        (json!({}), "messages", "missing_required_parameter"),
        (json!({"messages": null}), "messages", "invalid_type"),
        (json!({"messages": "x"}), "messages", "invalid_type"),
        (json!({"messages": []}), "messages", "invalid_value"),
        (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role", "invalid_value"),
        (json!({"messages": user, "temperature": 3}), "temperature", "invalid_value"),
        (json!({"messages": user, "temperature": "hot"}), "temperature", "invalid_type"),
        (json!({"messages": user, "top_p": 2}), "top_p", "invalid_value"),
        (json!({"messages": user, "n": 0}), "n", "invalid_value"),
        (json!({"messages": user, "max_tokens": 0}), "max_tokens", "invalid_value"),
        (json!({"messages": user, "logit_bias": {"999999": 1}}), "logit_bias.999999", "invalid_value"),
        (json!({"messages": user, "logprobs": true, "top_logprobs": 21}), "top_logprobs", "invalid_value"),
        (json!({"messages": user, "top_logprobs": 2}), "top_logprobs", "invalid_value"),
        (json!({"messages": user, "logprobs": 2}), "logprobs", "invalid_type"),
        (json!({"messages": user, "reasoning_effort": "huge"}), "reasoning_effort", "invalid_value"),
        (json!({"messages": user, "reasoning_effort": 3}), "reasoning_effort", "invalid_type"),
        (json!({"messages": user, "tools": [{"type": "function"}]}), "tools[0].function", "missing_required_parameter"),
        (json!({"messages": user, "tools": {}}), "tools", "invalid_type"),
        (json!({"messages": user, "tool_choice": "required"}), "tool_choice", "invalid_value"),
        (json!({"messages": user, "tools": tools, "tool_choice": "some"}), "tool_choice", "invalid_value"),
        (json!({"messages": user, "functions": []}), "functions", "unsupported_value"),
        (json!({"messages": user, "response_format": {"type": "xml"}}), "response_format.type", "invalid_value"),
        (json!({"messages": user, "response_format": "json"}), "response_format", "invalid_type"),
        (json!({"messages": user, "model": 5}), "model", "invalid_type"),
        (json!({"messages": user, "max_tokens": CONTEXT}), "messages", "context_length_exceeded"),
        (
            json!({"messages": [{"role": "tool", "tool_call_id": "x", "content": "y"}]}),
            "messages[0].tool_call_id",
            "invalid_value",
        ),
        (
            json!({"messages": [{"role": "user", "content": "word ".repeat(3000)}]}),
            "messages",
            "context_length_exceeded",
        ),
    ];
    refused(&edge, CHAT, &cases).await;
    let streamed = json!({"messages": user, "stream": true, "top_p": 2});
    assert_eq!(edge.post(CHAT, &streamed).await.error()["param"], "top_p");
}

#[tokio::test]
async fn completion_requests() {
    let edge = Edge::start();
    let cases = [
        (json!({}), "prompt", "missing_required_parameter"),
        (json!({"prompt": null}), "prompt", "missing_required_parameter"),
        (json!({"prompt": ""}), "prompt", "invalid_value"),
        (json!({"prompt": []}), "prompt", "invalid_value"),
        (json!({"prompt": [[]]}), "prompt[0]", "invalid_value"),
        (json!({"prompt": {"text": "x"}}), "prompt", "invalid_type"),
        (json!({"prompt": 5}), "prompt", "invalid_type"),
        (json!({"prompt": [1, "x"]}), "prompt[1]", "invalid_type"),
        (json!({"prompt": [1, -1]}), "prompt[1]", "invalid_type"),
        (json!({"prompt": [1, 1.5]}), "prompt[1]", "invalid_type"),
        (json!({"prompt": ["x", 1]}), "prompt[1]", "invalid_type"),
        (json!({"prompt": [[1], [201088]]}), "prompt[1]", "invalid_value"),
        (json!({"prompt": [true]}), "prompt[0]", "invalid_type"),
        (json!({"prompt": "x", "logprobs": 21}), "logprobs", "invalid_value"),
        (json!({"prompt": "x", "logprobs": true}), "logprobs", "invalid_type"),
        (json!({"prompt": "x", "suffix": "y"}), "suffix", "unsupported_value"),
        (json!({"prompt": "x", "best_of": 3}), "best_of", "unsupported_value"),
        (json!({"prompt": "x", "echo": "yes"}), "echo", "invalid_type"),
        (json!({"prompt": "x", "max_tokens": CONTEXT}), "prompt", "context_length_exceeded"),
        (json!({"prompt": vec!["x"; 100], "n": 100}), "prompt", "invalid_value"),
    ];
    refused(&edge, COMPLETIONS, &cases).await;
    let answer = edge.post(COMPLETIONS, &json!({"prompt": vec![1; 2000], "max_tokens": 100})).await;
    let message = answer.error()["message"].to_string();
    assert!(["2048", "2100", "2000", "100"].iter().all(|number| message.contains(number)), "{message}");
}

#[tokio::test]
async fn other_endpoints() {
    let edge = Edge::start();
    let cases = [
        (json!({}), "prompt", "missing_required_parameter"),
        (json!({"prompt": "x", "messages": []}), "prompt", "invalid_value"),
        (json!({"messages": []}), "messages", "invalid_value"),
    ];
    refused(&edge, "/tokenize", &cases).await;
    let cases = [
        (json!({}), "tokens", "missing_required_parameter"),
        (json!({"tokens": ["x"]}), "tokens[0]", "invalid_type"),
        (json!({"tokens": [201_088]}), "tokens", "invalid_value"),
    ];
    refused(&edge, "/detokenize", &cases).await;
}

#[tokio::test]
async fn bodies_that_are_no_json_object() {
    let edge = Edge::start();
    let bodies: [&[u8]; 9] = [
        b"",
        b"  ",
        b"{",
        b"[]",
        b"\"x\"",
        b"{\"messages\": [,]}",
        b"\xff\xfe",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xc3\"}]}",
        b"{\"messages\": [{\"role\": \"user\", \"content\": \"\\ud800\"}]}",
    ];
    for path in [CHAT, COMPLETIONS, "/tokenize", "/detokenize"] {
        for body in bodies {
            let answer = edge.request("POST", path, body).await;
            assert_eq!(answer.status, 400, "{}", answer.text());
            assert_eq!(answer.error()["code"], "invalid_json");
        }
    }
    let message = edge.request("POST", CHAT, "{\n\"messages\": nope}").await.error()["message"].to_string();
    assert!(message.contains("line 2 column"), "{message}");
    let deep = format!("{{\"messages\": {}", "[".repeat(200_000));
    assert_eq!(edge.request("POST", CHAT, deep).await.status, 400);
}

#[tokio::test]
async fn oversized_bodies() {
    let settings = ApiSettings { body_bytes_max: 1000, ..ApiSettings::default() };
    let edge = Edge::with(settings, Edge::capacity(), EngineSettings::default());
    for size in [1001, 5000, 100_000] {
        let answer = edge.request("POST", CHAT, " ".repeat(size)).await;
        assert_eq!((answer.status.as_u16(), answer.error()["code"].as_str()), (413, Some("request_too_large")));
        assert!(answer.error()["message"].as_str().unwrap().contains("1000"));
    }
    assert_eq!(edge.request("POST", CHAT, " ".repeat(1000)).await.status, 400);
}

#[tokio::test]
async fn routes_and_methods() {
    let edge = Edge::start();
    let answer = edge.get("/v2/nothing").await;
    assert_eq!((answer.status.as_u16(), answer.error()["code"].as_str()), (404, Some("unknown_url")));
    assert!(answer.error()["message"].as_str().unwrap().contains("GET /v2/nothing"));
    for (method, path) in [("GET", CHAT), ("DELETE", COMPLETIONS), ("POST", "/v1/models"), ("PUT", "/health")] {
        let answer = edge.request(method, path, Body::empty()).await;
        assert_eq!((answer.status.as_u16(), answer.error()["code"].as_str()), (405, Some("method_not_allowed")));
        assert!(answer.headers.contains_key("allow"), "{path}: {:?}", answer.headers);
    }
}

#[tokio::test]
async fn unknown_models() {
    let edge = Edge::start();
    let request = json!({"model": "gpt-5", "messages": [{"role": "user", "content": "x"}], "prompt": "x"});
    for path in [CHAT, COMPLETIONS, "/tokenize"] {
        let answer = edge.post(path, &request).await;
        assert_eq!((answer.status.as_u16(), answer.error()["code"].as_str()), (404, Some("model_not_found")));
        assert_eq!(answer.error()["param"], "model");
    }
    assert_eq!(edge.get("/v1/models/%ff").await.error()["code"], "invalid_value");
    assert_eq!(edge.get("/v1/models/gpt-5").await.error()["code"], "model_not_found");
}

#[tokio::test]
async fn unknown_fields_are_ignored() {
    let edge = Edge::start();
    edge.script.chat("hi", "<|channel|>final<|message|>Hello<|return|>");
    let request = json!({"user": "me", "store": false, "metadata": {"a": 1}, "service_tier": "auto", "frobnicate": [1, 2],
                         "parallel_tool_calls": true, "tools": null, "response_format": null, "stop": null});
    assert_eq!(edge.chat("hi", request).await["choices"][0]["message"]["content"], "Hello");
}

#[tokio::test]
async fn a_vocabulary_too_small_for_text() {
    let capacity = tandem_step::Capacity { vocab: 512, ..Edge::capacity() };
    let edge = Edge::with(ApiSettings::default(), capacity, EngineSettings::default());
    edge.script.tokens(vec![5, 6, 7], vec![8, 9, 10]);
    let reply =
        edge.complete(json!({"prompt": [5, 6, 7], "max_tokens": 3, "return_token_ids": true, "logprobs": 1})).await;
    assert_eq!(reply["choices"][0]["token_ids"], json!([8, 9, 10]));
    let requests = [
        (CHAT, json!({"messages": [{"role": "user", "content": "x"}]})),
        (COMPLETIONS, json!({"prompt": "x"})),
        (COMPLETIONS, json!({"prompt": ["x", "y"]})),
        ("/tokenize", json!({"prompt": "x"})),
    ];
    for (path, request) in requests {
        let answer = edge.post(path, &request).await;
        assert_eq!(answer.status, 400);
        let message = answer.error()["message"].to_string();
        assert!(message.contains("512") && message.contains("201088"), "{message}");
    }
    assert_eq!(edge.post(COMPLETIONS, &json!({"prompt": [512]})).await.error()["param"], "prompt");
}

/// JSON of any shape, with the names that requests use.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-2i64..5).prop_map(Value::from),
        prop::sample::select(vec![
            "user",
            "assistant",
            "tool",
            "system",
            "text",
            "function",
            "auto",
            "required",
            "x",
            "",
            "<|end|>",
            "json_schema",
        ])
        .prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, |inner| {
        let names = prop::sample::select(vec![
            "messages",
            "role",
            "content",
            "type",
            "text",
            "tools",
            "function",
            "name",
            "parameters",
            "tool_calls",
            "id",
            "tool_call_id",
            "arguments",
            "tool_choice",
            "stop",
            "n",
            "logprobs",
            "top_logprobs",
            "logit_bias",
            "prompt",
            "echo",
            "max_tokens",
            "temperature",
            "response_format",
            "json_schema",
            "schema",
            "stop_token_ids",
            "seed",
        ]);
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((names, inner), 0..6)
                .prop_map(|fields| fields.into_iter().map(|(name, value)| (name.to_string(), value)).collect()),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]
    #[test]
    fn no_request_is_answered_with_a_5xx(mut body in any_json(), messages in any_json(), role in any_json()) {
        if let Value::Object(fields) = &mut body {
            fields.entry("messages").or_insert(json!([{"role": "user", "content": messages}, role]));
            fields.entry("prompt").or_insert(messages);
            fields.insert("max_tokens".into(), json!(3));
            fields.insert("n".into(), json!(1));
        }
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let edge = Edge::start();
            for path in [CHAT, COMPLETIONS, "/tokenize", "/detokenize"] {
                let answer = edge.post(path, &body).await;
                assert!(answer.status.as_u16() < 500, "{body}: {}", answer.text());
                if answer.status.is_client_error() {
                    answer.error();
                }
            }
        });
    }
}
