//! API keys and their limits, and requests from web pages.

use std::path::PathBuf;
use std::time::Duration;

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tandem_api::{ApiSettings, KeyFile, KeyFileError, KeyLimits, Keyring, Origins};
use tandem_engine::EngineSettings;
use tandem_harmony::Tokenizer;
use tempfile::TempDir;

use crate::edge::{Answer, Edge};

/// An edge that wants keys, and one key of it.
struct Locked {
    edge: Edge,
    key: String,
    file: PathBuf,
    keys: Keyring,
    _folder: TempDir,
}

impl Locked {
    fn with(limits: KeyLimits, settings: ApiSettings) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys.toml");
        let key = KeyFile::update(&file, |keys| Ok::<_, KeyFileError>(keys.add("tester", limits).unwrap())).unwrap();
        let keys = Keyring::open(&file).unwrap();
        let settings = ApiSettings { keys: Some(keys.clone()), ..settings };
        let edge = Edge::with(settings, Edge::capacity(), EngineSettings::default());
        edge.script.chat("Hi", "<|channel|>final<|message|>Hello!");
        let mut long = Tokenizer::shared().encode_with_special("<|channel|>final<|message|>");
        long.extend(std::iter::repeat_n(Tokenizer::shared().encode(" word")[0], 1500));
        edge.script.chat_tokens("go", long);
        Self { edge, key, file, keys, _folder: folder }
    }

    fn start() -> Self {
        Self::with(KeyLimits::default(), ApiSettings::default())
    }

    fn bearer(&self) -> Vec<(&'static str, String)> {
        vec![("authorization", format!("Bearer {}", self.key))]
    }
}

fn request(method: &str, path: &str, headers: &[(&'static str, String)], body: &Value) -> Request<Body> {
    let request = Request::builder().method(method).uri(path);
    let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, value));
    request.body(if body.is_null() { Body::empty() } else { Body::from(body.to_string()) }).unwrap()
}

async fn send(edge: &Edge, method: &str, path: &str, headers: &[(&'static str, String)], body: &Value) -> Answer {
    Answer::read(edge.send(request(method, path, headers, body)).await).await
}

fn chat(said: &str) -> Value {
    json!({"messages": [{"role": "user", "content": said}]})
}

const CHAT: &str = "/v1/chat/completions";

#[tokio::test]
async fn a_key_opens_what_is_closed_without() {
    let locked = Locked::start();
    let none = send(&locked.edge, "POST", CHAT, &[], &chat("Hi")).await;
    assert_eq!((none.status.as_u16(), &none.error()["code"]), (401, &json!("missing_api_key")));
    assert_eq!(none.headers["www-authenticate"], "Bearer");
    for wrong in [format!("{}0", locked.key), locked.key[..locked.key.len() - 1].to_string(), String::new()] {
        for header in ["authorization", "x-api-key"] {
            let value = if header == "authorization" { format!("Bearer {wrong}") } else { wrong.clone() };
            let answer = send(&locked.edge, "POST", CHAT, &[(header, value)], &chat("Hi")).await;
            assert_eq!(answer.status, 401, "{header}: {wrong}");
            assert_eq!(answer.error()["code"], "invalid_api_key");
        }
    }
    for headers in [locked.bearer(), vec![("x-api-key", locked.key.clone())]] {
        let answer = send(&locked.edge, "POST", CHAT, &headers, &chat("Hi")).await.ok();
        assert_eq!(answer["choices"][0]["message"]["content"], "Hello!");
    }
    let both = [("authorization", "Bearer a-key-of-another-service".into()), ("x-api-key", locked.key.clone())];
    send(&locked.edge, "POST", CHAT, &both, &chat("Hi")).await.ok();
}

#[tokio::test]
async fn only_what_tells_nothing_needs_no_key() {
    let locked = Locked::start();
    for (path, status) in [
        ("/health", 200),
        ("/ready", 200),
        ("/v1/models", 401),
        ("/metrics", 401),
        ("/version", 401),
        ("/tokenize", 401),
        ("/nothing/here", 401),
    ] {
        assert_eq!(locked.edge.get(path).await.status, status, "{path}");
    }
    let settings = ApiSettings { open_metrics: true, ..ApiSettings::default() };
    let open = Locked::with(KeyLimits::default(), settings);
    assert_eq!(open.edge.get("/metrics").await.status, 200);
    assert_eq!(open.edge.get("/v1/models").await.status, 401);
}

#[tokio::test]
async fn refusals_have_the_shape_of_the_protocol() {
    let locked = Locked::start();
    let anthropic = send(&locked.edge, "POST", "/v1/messages", &[], &chat("Hi")).await;
    assert_eq!((anthropic.status.as_u16(), &anthropic.json()["type"]), (401, &json!("error")));
    assert_eq!(anthropic.json()["error"]["type"], "authentication_error");
    let ollama = send(&locked.edge, "POST", "/api/chat", &[], &chat("Hi")).await;
    assert_eq!(ollama.status, 401);
    assert!(ollama.json()["error"].as_str().unwrap().contains("API key"));
}

#[tokio::test]
async fn a_key_has_so_many_requests_open_and_no_more() {
    let limits = KeyLimits { max_concurrent: Some(1), requests_per_minute: None };
    let locked = Locked::with(limits, ApiSettings::default());
    locked.edge.slow_down(Duration::from_millis(5));
    let mut body = chat("go");
    body["stream"] = json!(true);
    let mut open = locked.edge.send(request("POST", CHAT, &locked.bearer(), &body)).await.into_body();
    open.frame().await.expect("the stream begins").unwrap();
    let refused = send(&locked.edge, "POST", CHAT, &locked.bearer(), &chat("Hi")).await;
    assert_eq!((refused.status.as_u16(), &refused.error()["code"]), (429, &json!("rate_limit_exceeded")));
    assert_eq!(refused.headers["retry-after"], "1");
    assert!(refused.text().contains("tester"), "{}", refused.text());
    assert_eq!(locked.edge.get("/health").await.status, 200, "what needs no key does not count");
    drop(open);
    locked.edge.until_idle().await;
    send(&locked.edge, "POST", CHAT, &locked.bearer(), &chat("Hi")).await.ok();
    send(&locked.edge, "POST", CHAT, &locked.bearer(), &chat("Hi")).await.ok();
}

#[tokio::test]
async fn a_key_sends_so_many_requests_a_minute() {
    let limits = KeyLimits { max_concurrent: None, requests_per_minute: Some(2) };
    let locked = Locked::with(limits, ApiSettings::default());
    for status in [200, 200, 429] {
        let answer = send(&locked.edge, "GET", "/v1/models", &locked.bearer(), &Value::Null).await;
        assert_eq!(answer.status, status, "{}", answer.text());
        if status == 429 {
            let wait: u32 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
            assert!((1..=30).contains(&wait), "{wait}");
        }
    }
}

#[tokio::test]
async fn a_changed_file_is_read_again() {
    let locked = Locked::start();
    let following = tokio::spawn(locked.keys.clone().follow());
    KeyFile::update(&locked.file, |keys| {
        keys.remove("tester");
        Ok::<_, KeyFileError>(())
    })
    .unwrap();
    let started = std::time::Instant::now();
    while send(&locked.edge, "GET", "/v1/models", &locked.bearer(), &Value::Null).await.status != 401 {
        assert!(started.elapsed() < Duration::from_secs(60), "the key is gone and still opens");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    following.abort();
}

fn from_page(origin: &str, site: &str) -> Vec<(&'static str, String)> {
    vec![("origin", origin.into()), ("sec-fetch-site", site.into())]
}

#[tokio::test]
async fn other_sites_are_kept_out_unless_named() {
    let edge = Edge::start();
    edge.script.chat("Hi", "<|channel|>final<|message|>Hello!");
    let theirs = from_page("https://theirs.example", "cross-site");
    let refused = send(&edge, "POST", CHAT, &theirs, &chat("Hi")).await;
    assert_eq!((refused.status.as_u16(), &refused.error()["code"]), (403, &json!("cross_site")));
    assert!(refused.headers.get("access-control-allow-origin").is_none());
    assert_eq!(edge.engine.stats().steps, 0);
    let own = from_page("http://127.0.0.1:8000", "same-origin");
    send(&edge, "POST", CHAT, &own, &chat("Hi")).await.ok();
    assert_eq!(send(&edge, "OPTIONS", CHAT, &theirs, &Value::Null).await.status, 405);
}

#[tokio::test]
async fn named_sites_may_ask_and_read() {
    let settings =
        ApiSettings { cors_origins: Origins::parse(&["https://ours.example"]).unwrap(), ..Default::default() };
    let locked = Locked::with(KeyLimits::default(), settings);
    let mut preflight = from_page("https://ours.example", "cross-site");
    preflight.push(("access-control-request-method", "POST".into()));
    preflight.push(("access-control-request-headers", "authorization,content-type,x-stainless-os".into()));
    let allowed = send(&locked.edge, "OPTIONS", CHAT, &preflight, &Value::Null).await;
    assert_eq!(allowed.status, 200);
    assert_eq!(allowed.headers["access-control-allow-origin"], "https://ours.example");
    assert!(allowed.headers["access-control-allow-headers"].to_str().unwrap().contains("x-stainless-os"));
    let without_key =
        send(&locked.edge, "POST", CHAT, &from_page("https://ours.example", "cross-site"), &chat("Hi")).await;
    assert_eq!(without_key.status, 401);
    assert_eq!(without_key.headers["access-control-allow-origin"], "https://ours.example", "the page may read why");
    let headers = [from_page("https://ours.example", "cross-site"), locked.bearer()].concat();
    send(&locked.edge, "POST", CHAT, &headers, &chat("Hi")).await.ok();
    let theirs = [from_page("https://theirs.example", "cross-site"), locked.bearer()].concat();
    let refused = send(&locked.edge, "POST", CHAT, &theirs, &chat("Hi")).await;
    assert_eq!(refused.status, 403);
    assert!(refused.headers.get("access-control-allow-origin").is_none());
}

#[tokio::test]
async fn stored_responses_are_for_the_key_that_made_them() {
    let locked = Locked::start();
    let add = |keys: &mut KeyFile| Ok::<_, KeyFileError>(keys.add("other", KeyLimits::default()).unwrap());
    let other = KeyFile::update(&locked.file, add).unwrap();
    locked.keys.reload().unwrap();
    let (own, others) = (locked.bearer(), vec![("authorization", format!("Bearer {other}"))]);
    let made = send(&locked.edge, "POST", "/v1/responses", &own, &json!({"input": "Hi"})).await.ok();
    let path = format!("/v1/responses/{}", made["id"].as_str().unwrap());
    for (method, path) in [
        ("GET", path.clone()),
        ("DELETE", path.clone()),
        ("POST", format!("{path}/cancel")),
        ("GET", format!("{path}/input_items")),
    ] {
        let refused = send(&locked.edge, method, &path, &others, &Value::Null).await;
        assert_eq!((refused.status.as_u16(), &refused.error()["code"]), (404, &json!("response_not_found")), "{path}");
    }
    let going_on = json!({"input": "Hi", "previous_response_id": made["id"]});
    let refused = send(&locked.edge, "POST", "/v1/responses", &others, &going_on).await;
    assert_eq!(refused.error()["code"], "previous_response_not_found");
    let referring = json!({"input": [{"type": "item_reference", "id": made["output"][0]["id"]}]});
    let refused = send(&locked.edge, "POST", "/v1/responses", &others, &referring).await;
    assert_eq!((refused.status.as_u16(), &refused.error()["param"]), (400, &json!("input[0].id")));
    assert_eq!(send(&locked.edge, "GET", &path, &own, &Value::Null).await.ok()["id"], made["id"]);
    send(&locked.edge, "DELETE", &path, &own, &Value::Null).await.ok();
}
