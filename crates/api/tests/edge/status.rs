//! What `/status.json` says.

use serde_json::{Value, json};
use tandem_api::{ApiSettings, ApiState, Status, router};
use tower::ServiceExt;

use crate::edge::{Answer, Edge};

#[tokio::test]
async fn the_status_follows_the_work() {
    let edge = Edge::start();
    edge.script.chat("Hi", "<|channel|>final<|message|>Hello there!");
    let idle: Status = serde_json::from_value(edge.get("/status.json").await.ok()).unwrap();
    assert_eq!(idle.model.as_ref().unwrap().names, ["gpt-oss-test", "openai/gpt-oss-test"]);
    assert_eq!((idle.nodes.len(), idle.nodes[0].device.as_str()), (1, "a worker that recites"));
    assert!(idle.nodes[0].resident_bytes.is_some_and(|bytes| bytes > 1 << 20));
    assert!(idle.link.is_none() && idle.trouble.is_none());
    assert_eq!((idle.latency.request.count, idle.latency.request.p50_s), (0, None));
    assert_eq!(idle.prefix_cache.hit_rate, None);

    edge.chat("Hi", json!({})).await;
    edge.chat("Hi", json!({})).await;
    edge.post("/v1/completions", &json!({"prompt": 5})).await.error();
    edge.until_idle().await;
    let busy: Status = serde_json::from_value(edge.get("/status.json").await.ok()).unwrap();
    let engine = busy.engine.unwrap();
    assert_eq!((engine.running, engine.waiting, engine.max_streams), (0, 0, 4));
    assert_eq!(engine.kv_tokens, 1024 * 16);
    assert_eq!(engine.generated_tokens, edge.engine.stats().generated_tokens);
    assert_eq!((busy.requests.stop, busy.requests.refused, busy.requests.server_errors), (2, 1, 0));
    assert_eq!((busy.latency.request.count, busy.latency.time_to_first_token.count), (2, 2));
    assert!(busy.latency.inter_token.p99_s.unwrap() >= busy.latency.inter_token.p50_s.unwrap());
    assert!(busy.prefix_cache.hit_rate.is_some_and(|rate| rate > 0.3 && rate < 1.0), "{:?}", busy.prefix_cache);
}

#[tokio::test]
async fn a_model_that_is_loading_has_a_status_too() {
    let (state, _ready) = ApiState::new(ApiSettings::default());
    let request = axum::http::Request::builder().uri("/status.json").body(axum::body::Body::empty()).unwrap();
    let answer = Answer::read(router(state).oneshot(request).await.unwrap()).await.ok();
    assert_eq!((&answer["model"], &answer["engine"], &answer["nodes"]), (&Value::Null, &Value::Null, &json!([])));
}
