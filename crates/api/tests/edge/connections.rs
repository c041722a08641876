//! Connections that are slow, broken or gone, and the ends of requests, engine and server.

use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::http::Request;
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tandem_api::{ApiSettings, serve};
use tandem_engine::EngineSettings;
use tandem_harmony::Tokenizer;
use tandem_step::Capacity;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};

use crate::edge::{Answer, Edge};

const CHAT: &str = "/v1/chat/completions";
const SOON: Duration = Duration::from_secs(60);

/// An edge whose model answers "go" with 1,900 tokens of text.
fn talkative(settings: ApiSettings) -> Edge {
    talkative_with(settings, Edge::capacity(), EngineSettings::default())
}

fn talkative_with(settings: ApiSettings, capacity: Capacity, engine: EngineSettings) -> Edge {
    let edge = Edge::with(settings, capacity, engine);
    let mut reply = Tokenizer::shared().encode_with_special("<|channel|>final<|message|>");
    reply.extend(std::iter::repeat_n(Tokenizer::shared().encode(" word")[0], 1897));
    edge.script.chat_tokens("go", reply);
    edge
}

fn go(extra: Value) -> Value {
    let mut request = json!({"messages": [{"role": "user", "content": "go"}], "max_tokens": 1900});
    request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    request
}

fn post(body: &Value) -> Request<Body> {
    Request::builder().method("POST").uri(CHAT).body(Body::from(body.to_string())).unwrap()
}

/// A server on a port of the system's choice.
struct Server {
    edge: Edge,
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    running: JoinHandle<std::io::Result<()>>,
}

impl Server {
    async fn start(edge: Edge) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let state = edge.state.clone();
        let running = tokio::spawn(serve(listener, state, async {
            let _ = stopped.await;
        }));
        Self { edge, address, stop: Some(stop), running }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn send(&self, bytes: &[u8]) -> TcpStream {
        let mut stream = self.connect().await;
        stream.write_all(bytes).await.unwrap();
        stream
    }

    fn stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }
}

fn http(body: &Value, headers: &str) -> Vec<u8> {
    let body = body.to_string();
    format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n{headers}\r\n{body}", body.len()).into_bytes()
}

/// Everything until the server closes the connection, however it does.
async fn rest(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    let _ = timeout(SOON, stream.read_to_end(&mut bytes)).await.expect("the server closes the connection");
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn until_text(stream: &mut TcpStream, text: &str) {
    let mut bytes = Vec::new();
    let mut piece = [0; 4096];
    while !String::from_utf8_lossy(&bytes).contains(text) {
        let count = timeout(SOON, stream.read(&mut piece)).await.expect("the server answers").unwrap();
        assert!(count > 0, "closed after {}", String::from_utf8_lossy(&bytes));
        bytes.extend_from_slice(&piece[..count]);
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_request() {
    let server = Server::start(talkative(ApiSettings::default())).await;
    server.edge.slow_down(Duration::from_millis(5));
    for stream in [true, false] {
        let client = server.send(&http(&go(json!({"stream": stream, "n": 2})), "")).await;
        server.edge.until("both run", |stats| stats.running == 2).await;
        let before = server.edge.engine.stats().generated_tokens;
        drop(client);
        server.edge.until_idle().await;
        let generated = server.edge.engine.stats().generated_tokens - before;
        assert!(generated < 1000, "stream {stream}: {generated} more tokens were generated");
    }
}

#[tokio::test]
async fn a_client_that_leaves_the_queue_is_forgotten() {
    let capacity = Capacity { max_streams: 1, ..Edge::capacity() };
    let edge = talkative_with(ApiSettings::default(), capacity, EngineSettings::default());
    edge.slow_down(Duration::from_millis(5));
    let running = edge.send(post(&go(json!({"stream": true})))).await;
    let waiting = edge.send(post(&go(json!({"stream": true})))).await;
    edge.until("one waits", |stats| stats.waiting == 1).await;
    drop(waiting);
    edge.until("none waits", |stats| stats.waiting == 0 && stats.running == 1).await;
    drop(running);
    edge.until_idle().await;
}

#[tokio::test]
async fn a_full_queue_says_when_to_come_back() {
    let capacity = Capacity { max_streams: 1, ..Edge::capacity() };
    let engine = EngineSettings { max_queue: 1, ..EngineSettings::default() };
    let edge = talkative_with(ApiSettings::default(), capacity, engine);
    edge.slow_down(Duration::from_millis(5));
    let running = edge.send(post(&go(json!({"stream": true})))).await;
    edge.until("one runs", |stats| stats.running == 1).await;
    let waiting = edge.send(post(&go(json!({"stream": true})))).await;
    for stream in [true, false] {
        let answer = Answer::read(edge.send(post(&go(json!({"stream": stream})))).await).await;
        assert_eq!((answer.status.as_u16(), answer.error()["code"].as_str()), (503, Some("queue_full")));
        assert!(answer.headers["retry-after"].to_str().unwrap().parse::<u32>().unwrap() >= 1);
    }
    drop((running, waiting));
    edge.until_idle().await;
    edge.slow_down(Duration::ZERO);
    assert_eq!(Answer::read(edge.send(post(&go(json!({"max_tokens": 3})))).await).await.status, 200);
}

/// The events of a stream that ends badly: all but the last, and the error in the last.
fn broken(body: &[u8]) -> (Vec<Value>, Value) {
    let text = std::str::from_utf8(body).unwrap();
    assert!(!text.contains("[DONE]"), "{text}");
    let events = text.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    let mut events: Vec<Value> = events.map(|event| serde_json::from_str(event).unwrap()).collect();
    let last = events.pop().expect("there is an error");
    assert!(events.iter().all(|event| event.get("error").is_none()));
    (events, last["error"].clone())
}

#[tokio::test]
async fn a_failing_model_ends_requests_with_one_error() {
    let edge = talkative(ApiSettings::default());
    edge.slow_down(Duration::from_millis(2));
    let stream = edge.send(post(&go(json!({"stream": true})))).await;
    edge.until("it runs", |stats| stats.generated_tokens > 10).await;
    edge.script.fail.store(true, Ordering::Relaxed);
    let (events, error) = broken(&Answer::read(stream).await.body);
    assert!(events.len() > 5);
    assert_eq!((error["type"].as_str(), error["code"].as_str()), (Some("server_error"), Some("engine_failed")));
    assert!(error["message"].as_str().unwrap().contains("the test said so"), "{error}");
    let answer = Answer::read(edge.send(post(&go(json!({})))).await).await;
    assert!(answer.status.is_server_error());
    answer.error();
}

#[tokio::test]
async fn a_reader_far_behind_loses_its_stream() {
    let settings = ApiSettings { pending_updates_max: 20, ..ApiSettings::default() };
    let edge = talkative(settings);
    let stream = edge.send(post(&go(json!({"stream": true})))).await;
    edge.until("the engine gave up", |stats| stats.generated_tokens >= 20 && stats.running == 0).await;
    assert!(edge.engine.stats().generated_tokens < 1000, "{:?}", edge.engine.stats());
    let (_, error) = broken(&Answer::read(stream).await.body);
    assert_eq!(error["code"], "slow_reader");
}

#[tokio::test]
async fn a_client_that_stops_reading_is_dropped() {
    let settings = ApiSettings {
        write_timeout: Duration::from_millis(300),
        pending_updates_max: 1 << 20,
        ..ApiSettings::default()
    };
    let server = Server::start(talkative(settings)).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut client = socket.connect(server.address).await.unwrap();
    // More than the system's buffers hold.
    let request = go(json!({"stream": true, "n": 4, "logprobs": true, "top_logprobs": 20}));
    client.write_all(&http(&request, "connection: close\r\n")).await.unwrap();
    server.edge.until("it was served", |stats| stats.generated_tokens > 100).await;
    server.edge.until_idle().await;
    sleep(Duration::from_millis(1000)).await;
    let text = rest(&mut client).await;
    assert!(text.starts_with("HTTP/1.1 200") && !text.contains("[DONE]"), "{} bytes arrived", text.len());
}

#[tokio::test]
async fn slow_requests_are_not_waited_for() {
    let settings = ApiSettings {
        header_timeout: Duration::from_millis(300),
        body_timeout: Duration::from_millis(300),
        ..ApiSettings::default()
    };
    let server = Server::start(talkative(settings)).await;
    for headers in ["", "POST / HT", "POST / HTTP/1.1\r\nhost: x\r\n"] {
        let mut client = server.send(headers.as_bytes()).await;
        let started = Instant::now();
        let text = rest(&mut client).await;
        assert!(started.elapsed() < Duration::from_secs(3), "{headers:?}");
        let answered = text.starts_with("HTTP/1.1 408") && text.contains("\"request_timeout\"");
        assert!(if headers.is_empty() { text.is_empty() } else { answered }, "{headers:?}: {text}");
    }
    let headers = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\n{{\"messages\"");
    let mut client = server.send(headers.as_bytes()).await;
    let text = rest(&mut client).await;
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("\"request_timeout\""), "{text}");
}

#[tokio::test]
async fn garbage_is_answered_or_dropped() {
    let settings = ApiSettings { header_timeout: Duration::from_millis(500), ..ApiSettings::default() };
    let server = Server::start(talkative(settings)).await;
    let huge_header = format!("GET /health HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(200_000));
    let garbage: [&[u8]; 6] = [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /health HTTP/9.9\r\n\r\n",
        huge_header.as_bytes(),
    ];
    for bytes in garbage {
        let mut client = server.connect().await;
        let _ = client.write_all(bytes).await;
        let text = rest(&mut client).await;
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 4"), "{text}");
    }
}

#[tokio::test]
async fn oversized_bodies_are_read_away_so_that_the_answer_arrives() {
    let settings = ApiSettings { body_bytes_max: 1 << 20, ..ApiSettings::default() };
    let server = Server::start(talkative(settings)).await;
    let mut client = server.connect().await;
    let request = http(&json!({"messages": "x".repeat(3 << 20)}), "connection: close\r\n");
    client.write_all(&request).await.expect("the server reads on");
    let text = rest(&mut client).await;
    assert!(text.starts_with("HTTP/1.1 413") && text.contains("request_too_large"), "{text}");
}

#[tokio::test]
async fn connections_are_kept_and_bounded() {
    let settings =
        ApiSettings { connections_max: 1, header_timeout: Duration::from_millis(500), ..ApiSettings::default() };
    let server = Server::start(talkative(settings)).await;
    let mut first = server.connect().await;
    for _ in 0..3 {
        first.write_all(&http(&go(json!({"max_tokens": 4})), "")).await.unwrap();
        until_text(&mut first, "\"usage\"").await;
    }
    // The second gets its turn when the first, idle, is closed.
    let started = Instant::now();
    let mut second = server.send(&http(&go(json!({"max_tokens": 4})), "connection: close\r\n")).await;
    assert!(rest(&mut second).await.starts_with("HTTP/1.1 200"));
    assert!(started.elapsed() > Duration::from_millis(300), "{:?}", started.elapsed());
}

#[tokio::test]
async fn silent_streams_are_kept_open() {
    let edge = talkative(ApiSettings { keep_alive: Duration::from_millis(30), ..ApiSettings::default() });
    edge.slow_down(Duration::from_millis(200));
    let answer = Answer::read(edge.send(post(&go(json!({"stream": true, "max_tokens": 4})))).await).await;
    assert!(answer.text().starts_with(": keep-alive\n\n"), "{}", answer.text());
    answer.events();
}

#[tokio::test]
async fn requests_have_a_time_limit() {
    let settings = ApiSettings { request_timeout: Duration::from_millis(300), ..ApiSettings::default() };
    let edge = talkative(settings);
    edge.slow_down(Duration::from_millis(20));
    let answer = Answer::read(edge.send(post(&go(json!({})))).await).await;
    assert_eq!((answer.status.as_u16(), answer.error()["code"].as_str()), (504, Some("time_limit")));
    let answer = Answer::read(edge.send(post(&go(json!({"stream": true})))).await).await;
    assert_eq!(broken(&answer.body).1["code"], "time_limit");
    edge.until_idle().await;
}

#[tokio::test]
async fn a_shutdown_lets_open_requests_finish() {
    let mut server = Server::start(talkative(ApiSettings::default())).await;
    server.edge.slow_down(Duration::from_millis(5));
    let mut client = server.send(&http(&go(json!({"stream": true, "max_tokens": 100})), "")).await;
    until_text(&mut client, " word").await;
    server.stop();
    let text = rest(&mut client).await;
    assert!(text.contains("[DONE]"), "{text}");
    timeout(SOON, &mut server.running).await.expect("it ends").unwrap().unwrap();
    assert!(TcpStream::connect(server.address).await.is_err(), "nobody listens any more");
}

#[tokio::test]
async fn a_shutdown_has_a_deadline() {
    let settings = ApiSettings { shutdown_grace: Duration::from_millis(200), ..ApiSettings::default() };
    let mut server = Server::start(talkative(settings)).await;
    server.edge.slow_down(Duration::from_millis(20));
    let mut client = server.send(&http(&go(json!({"stream": true})), "")).await;
    let mut idle = server.connect().await;
    until_text(&mut client, " word").await;
    server.stop();
    let text = rest(&mut client).await;
    assert!(text.contains("\"shutting_down\"") && !text.contains("[DONE]"), "{text}");
    rest(&mut idle).await;
    timeout(SOON, &mut server.running).await.expect("it ends").unwrap().unwrap();
    server.edge.until_idle().await;
}

#[tokio::test]
async fn dropping_a_response_unread_ends_its_request() {
    let edge = talkative(ApiSettings::default());
    edge.slow_down(Duration::from_millis(5));
    let mut response = edge.send(post(&go(json!({"stream": true})))).await;
    response.body_mut().frame().await.expect("it begins").unwrap();
    drop(response);
    edge.until_idle().await;
    assert!(edge.engine.stats().generated_tokens < 500);
}

#[tokio::test]
async fn headers_beyond_the_limit_are_refused() {
    let server = Server::start(talkative(ApiSettings::default())).await;
    let many = (0..200).map(|at| format!("x-{at}: x\r\n")).collect();
    for headers in [format!("x-filler: {}\r\n", "x".repeat(80 << 10)), many] {
        let mut stream = server.send(&http(&go(json!({})), &headers)).await;
        let answer = rest(&mut stream).await;
        // A server that closes with something unread resets the connection, and the answer may be lost with it.
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
        assert_eq!(server.edge.engine.stats().steps, 0);
    }
}
