//! Models, probes, metrics, names.

use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use serde_json::json;
use tandem_api::{ApiSettings, ApiState, LinkReport, ModelInfo, NodeReport, router};
use tandem_engine::EngineSettings;
use tower::ServiceExt;

use crate::edge::{Answer, CONTEXT, Edge};

#[tokio::test]
async fn models_under_all_their_names() {
    let edge = Edge::start();
    let list = edge.get("/v1/models").await.ok();
    assert_eq!(list["object"], "list");
    let ids: Vec<&str> = list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["gpt-oss-test", "openai/gpt-oss-test"]);
    for path in ["/v1/models/gpt-oss-test", "/v1/models/openai/gpt-oss-test", "/v1/models/openai%2Fgpt-oss-test"] {
        let model = edge.get(path).await.ok();
        assert_eq!((&model["object"], &model["created"]), (&json!("model"), &json!(1_700_000_000)));
    }
    edge.script.chat("hi", "<|channel|>final<|message|>Hello<|return|>");
    let reply = edge.chat("hi", json!({"model": "openai/gpt-oss-test"})).await;
    assert_eq!(reply["model"], "gpt-oss-test");
}

#[tokio::test]
async fn a_served_name_replaces_the_models_own() {
    let settings = ApiSettings {
        served_model_name: Some("house".into()),
        model_aliases: vec!["gpt-4o".into()],
        ..ApiSettings::default()
    };
    let edge = Edge::with(settings, Edge::capacity(), EngineSettings::default());
    edge.script.chat("hi", "<|channel|>final<|message|>Hello<|return|>");
    assert_eq!(edge.chat("hi", json!({"model": "gpt-4o"})).await["model"], "house");
    let request = json!({"model": "gpt-oss-test", "messages": [{"role": "user", "content": "hi"}]});
    assert_eq!(edge.post("/v1/chat/completions", &request).await.status, 404);
}

#[tokio::test]
async fn nothing_is_served_before_the_model_is_loaded() {
    let (state, ready) = ApiState::new(ApiSettings::default());
    let router = router(state.clone());
    let call = async |method: &str, path: &str| {
        let request = Request::builder().method(method).uri(path).body(Body::from("{}")).unwrap();
        Answer::read(router.clone().oneshot(request).await.unwrap()).await
    };
    assert_eq!(call("GET", "/health").await.status, 200);
    assert_eq!(call("GET", "/version").await.ok()["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(call("GET", "/metrics").await.status, 200);
    let paths = [
        ("GET", "/ready"),
        ("GET", "/v1/models"),
        ("POST", "/v1/chat/completions"),
        ("POST", "/v1/completions"),
        ("POST", "/tokenize"),
    ];
    for (method, path) in paths {
        let answer = call(method, path).await;
        assert_eq!((answer.status.as_u16(), answer.error()["code"].as_str()), (503, Some("model_loading")), "{path}");
        assert!(answer.headers.contains_key("retry-after"));
    }
    let edge = Edge::start();
    ready.ready(edge.engine.clone(), ModelInfo { id: "late".into(), ..ModelInfo::default() });
    assert!(state.is_ready());
    assert_eq!(call("GET", "/ready").await.ok()["model"], "late");
    assert_eq!(call("GET", "/health").await.ok(), json!({"status": "ok"}));

    // Who computes may change while it is served.
    let nodes = vec![NodeReport { name: "a".into(), ..NodeReport::default() }];
    let degraded = Some("1 of 2 nodes missing".to_string());
    ready.changed(ModelInfo { id: "late".into(), nodes, degraded, ..ModelInfo::default() });
    assert_eq!(call("GET", "/health").await.ok()["degraded"], "1 of 2 nodes missing");
    let status = call("GET", "/status.json").await.ok();
    assert_eq!((&status["degraded"], &status["nodes"][0]["name"]), (&json!("1 of 2 nodes missing"), &json!("a")));
}

#[tokio::test]
async fn the_link_between_nodes_is_told_with_what_was_measured() {
    let (state, ready) = ApiState::new(ApiSettings::default());
    let edge = Edge::start();
    let link = LinkReport { transport: "TCP to 192.0.2.2".into(), exchange_us: 25.0, bytes_per_s: 2.5e9 };
    let info = ModelInfo { id: "pair".into(), link: Some(link.clone()), ..ModelInfo::default() };
    ready.ready(edge.engine.clone(), info);
    let get = async |path: &str| {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        Answer::read(router(state.clone()).oneshot(request).await.unwrap()).await
    };
    assert_eq!(get("/status.json").await.ok()["link"], serde_json::to_value(link).unwrap());
    let answer = get("/metrics").await;
    let metrics = answer.text();
    assert!(metrics.contains("tandem_link_exchange_seconds{model_name=\"pair\"} 0.000025\n"), "{metrics}");
    assert!(metrics.contains("tandem_link_bytes_per_second{model_name=\"pair\"} 2500000000\n"), "{metrics}");
    assert!(!edge.get("/metrics").await.text().contains("tandem_link"), "one node has none");
}

#[tokio::test]
async fn a_stopped_engine_is_not_healthy() {
    let edge = Edge::start();
    assert_eq!(edge.get("/ready").await.status, 200);
    edge.engine.shutdown(Duration::from_secs(1));
    for path in ["/ready", "/health"] {
        assert_eq!(edge.get(path).await.error()["code"], "engine_not_running");
    }
    let request = json!({"messages": [{"role": "user", "content": "hi"}]});
    let answer = edge.post("/v1/chat/completions", &request).await;
    assert_eq!((answer.status.as_u16(), answer.headers.contains_key("retry-after")), (503, true));
}

#[tokio::test]
async fn request_ids_are_echoed() {
    let edge = Edge::start();
    let id = async |given: &str| {
        let request = Request::builder().uri("/health").header("x-request-id", given).body(Body::empty()).unwrap();
        Answer::read(edge.send(request).await).await.headers["x-request-id"].to_str().unwrap().to_string()
    };
    assert_eq!(id("abc-123").await, "abc-123");
    assert_ne!(id("two words").await, "two words");
    assert_ne!(id(&"x".repeat(200)).await.len(), 200);
    assert!(edge.get("/nowhere").await.headers.contains_key("x-request-id"));
}

/// The value of a sample, by the beginning of its line.
fn sample(page: &str, name: &str) -> f64 {
    let line = page.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("no {name} in\n{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test]
async fn metrics_count_what_happened() {
    let edge = Edge::start();
    edge.script.chat("hi", "<|channel|>final<|message|>Hello there<|return|>");
    edge.script.chat("talk", &format!("<|channel|>final<|message|>Well{}", " and so on".repeat(400)));
    edge.script.chat("call", "<|channel|>commentary to=functions.unknown<|message|>{}<|call|>");
    edge.chat("hi", json!({})).await;
    edge.chat("hi", json!({"max_tokens": 2})).await;
    edge.slow_down(Duration::from_millis(2));
    edge.chat("talk", json!({"stop": "so"})).await;
    edge.slow_down(Duration::ZERO);
    edge.chat("call", json!({})).await;
    edge.post("/v1/chat/completions", &json!({})).await;
    edge.until_idle().await;
    let answer = edge.get("/metrics").await;
    assert!(answer.headers["content-type"].to_str().unwrap().starts_with("text/plain"));
    let page = answer.text();
    let names = [
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "prompt_tokens_total",
        "generation_tokens_total",
        "request_success_total",
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_sum",
        "e2e_request_latency_seconds_count",
        "request_queue_time_seconds_count",
        "request_prefill_time_seconds_count",
        "request_decode_time_seconds_count",
    ];
    for name in names {
        assert!(page.contains(&format!("\ntandem_{name}{{model_name=\"gpt-oss-test\"")), "{name} is missing");
    }
    let model = "{model_name=\"gpt-oss-test\"";
    assert_eq!(sample(page, &format!("tandem_request_success_total{model},finished_reason=\"length\"")), 1.0);
    assert_eq!(sample(page, &format!("tandem_request_success_total{model},finished_reason=\"stop\"")), 3.0);
    assert_eq!(sample(page, &format!("tandem_time_to_first_token_seconds_count{model}")), 4.0);
    assert_eq!(sample(page, &format!("tandem_tool_calls_total{model}")), 1.0);
    assert_eq!(sample(page, &format!("tandem_unknown_recipients_total{model}")), 1.0);
    assert_eq!(sample(page, &format!("tandem_http_responses_total{model},status=\"2xx\"")), 4.0);
    assert_eq!(sample(page, &format!("tandem_http_responses_total{model},status=\"4xx\"")), 1.0);
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        assert!(name.starts_with("tandem_") && name.ends_with('}') && value.parse::<f64>().is_ok(), "{line}");
    }
}

#[tokio::test]
async fn text_there_and_back() {
    let edge = Edge::start();
    let hello = edge.post("/tokenize", &json!({"prompt": "Hello"})).await.ok();
    assert_eq!(hello, json!({"count": 1, "max_model_len": CONTEXT, "tokens": [13225], "token_strs": null}));
    let text = "Grüße, <|end|> 🦀!";
    let tokens = edge.post("/tokenize", &json!({"prompt": text, "return_token_strs": true})).await.ok();
    assert_eq!(tokens["count"], tokens["tokens"].as_array().unwrap().len());
    assert!(tokens["token_strs"].as_array().unwrap().contains(&json!("<|end|>")));
    let back = edge.post("/detokenize", &json!({"tokens": tokens["tokens"]})).await.ok();
    assert_eq!(back["prompt"], text);
}

#[tokio::test]
async fn pages_may_load_nothing_from_elsewhere() {
    let edge = Edge::start();
    let page = edge.get("/").await;
    assert_eq!(
        (page.status.as_u16(), &page.headers["content-type"]),
        (200, &"text/html; charset=utf-8".parse().unwrap())
    );
    let policy = page.headers["content-security-policy"].to_str().unwrap();
    for part in
        ["default-src 'none'", "script-src 'self'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"]
    {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http"), "{policy}");
    assert_eq!(page.headers["x-content-type-options"], "nosniff");
    let head = edge.request("HEAD", "/", "").await;
    assert_eq!((head.status.as_u16(), head.body.len()), (200, 0));

    let script = edge.get("/assets/chat.js").await;
    assert_eq!(
        (script.status.as_u16(), &script.headers["content-type"]),
        (200, &"text/javascript; charset=utf-8".parse().unwrap())
    );
    let known = Request::builder().uri("/assets/chat.js").header("if-none-match", &script.headers["etag"]);
    let again = Answer::read(edge.send(known.body(Body::empty()).unwrap()).await).await;
    assert_eq!((again.status.as_u16(), again.body.len()), (304, 0));
    assert_eq!(edge.get("/assets/nothing.js").await.status, 404);
    assert_eq!(edge.get("/favicon.ico").await.headers["content-type"], "image/svg+xml");
}
