//! The gRPC service of the real binary, through the Rust SDK and the standard clients of health and reflection.

use std::time::Duration;

use serde_json::{Value, json};
use tandem_client::{ChatEvent, Client, Error, Finish, GenerateEvent, Retry, proto};
use tokio::runtime::Runtime;
use tokio::time::{sleep, timeout};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::server::{Server, tandem};

#[path = "../../crates/client/examples/chat.rs"]
#[expect(dead_code, reason = "the example's main")]
mod example_chat;
#[path = "../../crates/client/examples/stream.rs"]
#[expect(dead_code, reason = "the example's main")]
mod example_stream;
#[path = "../../crates/client/examples/tokens.rs"]
#[expect(dead_code, reason = "the example's main")]
mod example_tokens;
#[path = "../../crates/client/examples/tools.rs"]
#[expect(dead_code, reason = "the example's main")]
mod example_tools;

/// Longest wait for what must happen; machines are busy.
const SOON: Duration = Duration::from_secs(120);

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn demo(args: &[&str]) -> Server {
    Server::start(&[&["--context", "1024", "--memory", "2G", "--grpc-port", "0"][..], args].concat())
}

/// A model that writes until its budget is used up.
fn endless(args: &[&str]) -> Server {
    demo(&[&["--synthetic", "tiny"][..], args].concat())
}

fn once(url: &str) -> Client {
    Client::builder(url).retry(Retry::never()).build().unwrap()
}

fn running(server: &Server) -> u64 {
    let status: Value = serde_json::from_str(&server.get("/status.json").1).unwrap();
    status["engine"]["running"].as_u64().unwrap() + status["engine"]["waiting"].as_u64().unwrap()
}

async fn until_idle(server: &Server) {
    let idle = async {
        while running(server) > 0 {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(SOON, idle).await.expect("what nobody waits for is not computed");
}

#[test]
fn a_chat_is_the_same_as_over_http() {
    let server = demo(&["--exact"]);
    let question = "What is seven plus five?";
    let over_http = server.ok(
        "/v1/chat/completions",
        &json!({"messages": [{"role": "user", "content": question}], "seed": 7, "temperature": 0.7, "max_tokens": 150}),
    );
    let http = &over_http["choices"][0]["message"];
    runtime().block_on(async {
        let client = once(server.grpc_url());
        let chat = client.chat().user(question).seed(7).temperature(0.7).max_tokens(150).logprobs(1);
        let whole = chat.send().await.unwrap();
        assert_eq!(
            (http["content"].as_str(), http["reasoning"].as_str().unwrap_or("")),
            (Some(&*whole.content), &*whole.reasoning)
        );
        assert_eq!(over_http["usage"]["completion_tokens"], whole.usage.unwrap().generated_tokens);
        let mut stream = chat.stream().await.unwrap();
        let (mut content, mut reasoning, mut last) = (String::new(), String::new(), None);
        let mut started = 0;
        while let Some(event) = stream.next().await {
            assert!(last.is_none(), "something follows the end");
            match event.unwrap() {
                ChatEvent::Started(_) => started += 1,
                ChatEvent::Content(text) => content += &text,
                ChatEvent::Reasoning(text) => reasoning += &text,
                ChatEvent::Finished(finished) => last = Some(finished),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!((started, &content, &reasoning), (1, &whole.content, &whole.reasoning));
        let last = last.unwrap();
        assert_eq!(
            (last.finish(), last.usage.unwrap().generated_tokens),
            (whole.finish(), whole.usage.unwrap().generated_tokens)
        );
        let logprobs = stream.take_logprobs();
        assert_eq!(logprobs, whole.logprobs);
        let text: Vec<u8> = logprobs.iter().flat_map(|logprob| logprob.text.clone()).collect();
        assert_eq!(String::from_utf8(text).unwrap().trim(), content.trim());
        assert!(logprobs.iter().all(|logprob| logprob.top.len() == 1 && logprob.logprob <= 0.0));
    });
}

#[test]
fn text_and_tokens_are_the_same_as_over_http() {
    let server = demo(&["--exact"]);
    let body = json!({"prompt": "Once upon", "max_tokens": 12, "temperature": 0, "return_token_ids": true});
    let over_http = server.ok("/v1/completions", &body);
    let expected = &over_http["choices"][0];
    runtime().block_on(async {
        let client = once(server.grpc_url());
        let complete = client.complete("Once upon").max_tokens(12).temperature(0.0);
        assert_eq!(Some(&*complete.send().await.unwrap().text), expected["text"].as_str());
        let mut stream = complete.stream().await.unwrap();
        let mut text = String::new();
        while let Some(event) = stream.next().await {
            if let tandem_client::CompleteEvent::Text(more) = event.unwrap() {
                text += &more;
            }
        }
        assert_eq!(Some(&*text), expected["text"].as_str());
        let prompt = client.tokenize("Once upon").await.unwrap();
        assert_eq!(client.detokenize(prompt.clone()).await.unwrap(), "Once upon");
        let generate = client.generate(prompt.clone()).max_tokens(12).temperature(0.0).logprobs(2).score_prompt();
        let mut stream = generate.stream().await.unwrap();
        let (mut tokens, mut scores, mut finish) = (Vec::new(), 0, None);
        while let Some(event) = stream.next().await {
            match event.unwrap() {
                GenerateEvent::Started(started) => assert_eq!(started.prompt_tokens as usize, prompt.len()),
                GenerateEvent::PromptScores(part) => scores += part.tokens.len(),
                GenerateEvent::Token(token) => {
                    assert_eq!(token.logprob.unwrap().top.len(), 2);
                    tokens.push(token.token);
                }
                GenerateEvent::Finished(finished) => finish = Some(finished.finish()),
            }
        }
        assert_eq!((json!(tokens), scores, finish), (expected["token_ids"].clone(), prompt.len() - 1, finish));
        assert!(matches!(finish, Some(Finish::Length | Finish::Stop)));
        let refused = client.generate(prompt).sampling(|sampling| sampling.stop.push("x".into())).stream().await;
        assert!(matches!(refused.err(), Some(Error::Invalid { field: Some(field), .. }) if field == "sampling.stop"));
    });
}

#[test]
fn the_sdks_examples_work() {
    let server = demo(&[]);
    let url = server.grpc_url().to_string();
    runtime().block_on(async {
        let question = "How many letters are in the word SGLang?";
        let answer = example_chat::ask(&url, question).await.unwrap();
        assert!(answer.contains('6'), "{answer}");
        let mut heard = String::new();
        let tokens = example_stream::listen(&url, question, |text| heard += text).await.unwrap();
        assert!(tokens > 0 && heard.contains('6'), "{tokens} tokens: {heard}");
        let weather = |arguments: &str| {
            let arguments: Value = serde_json::from_str(arguments).expect("JSON that fits the schema");
            assert!(arguments["city"].is_string(), "{arguments}");
            r#"{"temperature": 21, "sky": "sunny"}"#.to_string()
        };
        let (arguments, answer) = example_tools::ask(&url, weather).await.unwrap();
        assert!(arguments.contains("Lisbon") && answer.contains("21"), "{arguments}: {answer}");
        let generated = example_tokens::go_on(&url, "Once upon a time", 5).await.unwrap();
        assert!((1..=5).contains(&generated.len()) && generated.iter().all(|(_, logprob)| *logprob <= 0.0));
    });
}

#[test]
fn a_deadline_ends_the_request_too() {
    let server = endless(&[]);
    runtime().block_on(async {
        let client = once(server.grpc_url());
        let chat = client.chat().user("Hi").ignore_eos().max_tokens(900).timeout(Duration::from_millis(300));
        assert!(matches!(chat.send().await, Err(Error::DeadlineExceeded)));
        until_idle(&server).await;
        let mut stream = chat.stream().await.unwrap();
        let error = loop {
            match stream.next().await.expect("an error before the end") {
                Ok(ChatEvent::Finished(_)) => panic!("it should have taken longer"),
                Ok(_) => {}
                Err(error) => break error,
            }
        };
        assert!(matches!(error, Error::DeadlineExceeded), "{error:?}");
        assert!(stream.next().await.is_none());
        until_idle(&server).await;
        // The server says so itself to a client that does not watch the time.
        let mut raw = raw(&server).await;
        let request = proto::ChatRequest {
            messages: vec![proto::Message { role: 3, content: Some("Hi".into()), ..Default::default() }],
            sampling: Some(proto::Sampling { max_tokens: Some(900), ignore_eos: true, ..Default::default() }),
            ..Default::default()
        };
        let mut request = tonic::Request::new(request);
        request.metadata_mut().insert("grpc-timeout", "300m".parse().unwrap());
        let status = match raw.chat_stream(request).await {
            Err(status) => status,
            Ok(events) => {
                let mut events = events.into_inner();
                loop {
                    match events.message().await {
                        Ok(Some(_)) => {}
                        Ok(None) => panic!("it ended well"),
                        Err(status) => break status,
                    }
                }
            }
        };
        assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
        until_idle(&server).await;
    });
}

#[test]
fn a_cancelled_call_is_not_computed_any_further() {
    let server = endless(&[]);
    runtime().block_on(async {
        let client = once(server.grpc_url());
        let chat = client.chat().user("Hi").ignore_eos().max_tokens(900);
        let mut stream = chat.stream().await.unwrap();
        for _ in 0..3 {
            stream.next().await.unwrap().unwrap();
        }
        drop(stream);
        until_idle(&server).await;
        // A call that waits for its whole answer.
        let waiting = timeout(Duration::from_millis(300), chat.send()).await;
        assert!(waiting.is_err(), "{waiting:?}");
        until_idle(&server).await;
        let status: Value = serde_json::from_str(&server.get("/status.json").1).unwrap();
        assert_eq!((status["requests"]["aborted"].as_u64(), status["requests"]["length"].as_u64()), (Some(2), Some(0)));
    });
}

#[test]
fn a_full_queue_is_said_and_tried_again() {
    let server = endless(&["--max-streams", "1", "--max-queue", "1"]);
    runtime().block_on(async {
        let client = once(server.grpc_url());
        let chat = client.chat().user("Hi").ignore_eos().max_tokens(900);
        let mut first = chat.stream().await.unwrap();
        first.next().await.unwrap().unwrap();
        let second = chat.stream().await.unwrap();
        let refused = chat.stream().await.err();
        assert!(matches!(refused, Some(Error::Busy { retry_after: Some(_), .. })), "{refused:?}");
        let patient = Client::builder(server.grpc_url()).retry(Retry { attempts_max: 100, ..Retry::default() }).build();
        let patient = patient.unwrap().chat().user("Hi").max_tokens(2);
        let (reply, ()) = tokio::join!(patient.send(), async {
            sleep(Duration::from_millis(500)).await;
            drop((first, second));
        });
        assert_eq!(reply.unwrap().usage.unwrap().generated_tokens, 2);
    });
}

#[test]
fn faults_are_named() {
    let server = demo(&[]);
    runtime().block_on(async {
        let client = once(server.grpc_url());
        let field = |error: Error| match error {
            Error::Invalid { field, .. } => field.unwrap_or_default(),
            other => panic!("{other:?}"),
        };
        let cases = [
            (client.chat(), "messages"),
            (client.chat().user("Hi").temperature(3.0), "sampling.temperature"),
            (client.chat().tool_result("nothing", "x"), "messages[0].tool_call_id"),
            (client.chat().message(proto::Message::default()), "messages[0].role"),
            (client.chat().user("Hi").tool("f", "", "{"), "tools[0].parameters_json"),
            (client.chat().user("Hi").tool("", "", ""), "tools[0].name"),
            (client.chat().user("Hi").require_tool(["f"]), "tool_choice"),
            (client.chat().user("Hi").regex("("), "format.regex"),
            (client.chat().user("Hi").json_schema("a", "[]"), "format.json_schema.schema_json"),
            (client.chat().user("Hi").logprobs(21), "top_logprobs"),
        ];
        for (chat, expected) in cases {
            assert_eq!(field(chat.send().await.expect_err(expected)), expected);
            assert_eq!(field(chat.stream().await.err().expect(expected)), expected);
        }
        assert!(matches!(client.chat().model("other").user("Hi").send().await, Err(Error::NotFound { .. })));
        let long = client.chat().user("word ".repeat(2000)).send().await;
        assert!(matches!(long, Err(Error::TooLong { .. })), "{long:?}");
        let status = raw(&server).await.tokenize(proto::TokenizeRequest::default()).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
    });
}

#[test]
fn keys_and_tls() {
    let folder = tempfile::tempdir().unwrap();
    let keys = folder.path().join("keys.toml");
    let keys = keys.to_str().unwrap();
    let made = tandem(&["key", "add", "me", "--max-concurrent", "1", "--api-keys", keys]).output().unwrap();
    let key = String::from_utf8(made.stdout).unwrap().trim().to_string();
    let rcgen::CertifiedKey { cert, signing_key } =
        rcgen::generate_simple_self_signed(["127.0.0.1".to_string()]).unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_string()
    };
    let (certificate, secret) = (write("c.pem", &cert.pem()), write("k.pem", &signing_key.serialize_pem()));
    let trust = ureq::tls::Certificate::from_pem(cert.pem().as_bytes()).unwrap();
    let trust = ureq::tls::TlsConfig::builder().root_certs(ureq::tls::RootCerts::new_with_certs(&[trust])).build();
    let args = [
        "--api-keys",
        keys,
        "--tls-certificate",
        &certificate,
        "--tls-key",
        &secret,
        "--grpc-port",
        "0",
        "--synthetic",
        "tiny",
        "--memory",
        "2G",
    ];
    let server = Server::start_trusting(trust, &args);
    assert!(server.grpc_url().starts_with("https://"));
    let client = |key: Option<&str>| {
        let builder = Client::builder(server.grpc_url()).retry(Retry::never()).ca_certificate(cert.pem());
        key.map_or(builder.clone(), |key| builder.api_key(key)).build().unwrap()
    };
    runtime().block_on(async {
        for wrong in [None, Some("sk-wrong"), Some(&key[..key.len() - 1])] {
            let client = client(wrong);
            let refused = client.chat().user("Hi").send().await;
            assert!(matches!(refused, Err(Error::Unauthenticated { .. })), "{refused:?}");
            assert!(matches!(client.cluster_status().await, Err(Error::Unauthenticated { .. })));
            assert_eq!(client.health().await.unwrap().state(), proto::health_reply::State::Serving);
        }
        let client = client(Some(&key));
        assert_eq!(client.chat().user("Hi").max_tokens(2).send().await.unwrap().usage.unwrap().generated_tokens, 2);
        let mut open = client.chat().user("Hi").ignore_eos().max_tokens(900).stream().await.unwrap();
        open.next().await.unwrap().unwrap();
        let second = client.models().await;
        assert!(matches!(second, Err(Error::Busy { .. })), "{second:?}");
        drop(open);
        let free = async {
            while client.models().await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(SOON, free).await.expect("the key's one request is over");
        let untrusting = Client::builder(server.grpc_url()).retry(Retry::never()).build().unwrap();
        assert!(matches!(untrusting.health().await, Err(Error::Connection { .. })));
    });
}

#[test]
fn the_server_says_what_it_is() {
    let server = demo(&[]);
    runtime().block_on(async {
        let client = once(server.grpc_url());
        let models = client.models().await.unwrap();
        assert_eq!((models.len(), models[0].context), (1, 1024));
        assert!(!models[0].notice.is_empty(), "the demonstration says that it is one");
        client.chat().user("Hi").max_tokens(3).send().await.unwrap();
        let status = client.cluster_status().await.unwrap();
        assert_eq!((status.nodes.len(), status.link), (1, None));
        assert!(!status.nodes[0].device.is_empty() && !status.nodes[0].memory.is_empty());
        assert_eq!(status.engine.unwrap().generated_tokens, 3);
        // A call that does not exist, and a protocol that is not spoken here.
        let channel = channel(&server).await;
        let mut grpc = tonic::client::Grpc::new(channel);
        grpc.ready().await.unwrap();
        let codec = tonic_prost_codec();
        let unknown = grpc
            .unary(tonic::Request::new(proto::HealthRequest {}), "/tandem.v1.Inference/Nothing".parse().unwrap(), codec)
            .await;
        assert_eq!(unknown.unwrap_err().code(), Code::Unimplemented);
    });
    let (status, text) = server.get_from(server.grpc_url());
    assert_eq!((status, text.contains("gRPC")), (400, true), "{text}");
}

#[test]
fn reflection_lists_the_services() {
    use tonic_reflection::pb::v1::ServerReflectionRequest;
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let server = demo(&[]);
    runtime().block_on(async {
        let mut client = ServerReflectionClient::new(channel(&server).await);
        let mut ask = async |request: MessageRequest| {
            let request = ServerReflectionRequest { host: String::new(), message_request: Some(request) };
            let requests = futures_util::stream::iter([request]);
            let mut answers = client.server_reflection_info(requests).await.unwrap().into_inner();
            answers.message().await.unwrap().unwrap().message_response.unwrap()
        };
        let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())).await else {
            panic!("no list")
        };
        let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
        for name in ["tandem.v1.Inference", "grpc.health.v1.Health", "grpc.reflection.v1.ServerReflection"] {
            assert!(names.iter().any(|known| known == name), "{name} is not in {names:?}");
        }
        let symbol = MessageRequest::FileContainingSymbol("tandem.v1.Inference.ChatStream".into());
        assert!(matches!(ask(symbol).await, MessageResponse::FileDescriptorResponse(_)));
    });
}

#[test]
fn health_becomes_serving() {
    let server = Server::start_loading(&["--context", "512", "--memory", "2G", "--grpc-port", "0"]);
    runtime().block_on(async {
        let mut standard = HealthClient::new(channel(&server).await);
        let mut watch = standard.watch(HealthCheckRequest { service: String::new() }).await.unwrap().into_inner();
        let serving = async { while watch.message().await.unwrap().unwrap().status() != ServingStatus::Serving {} };
        timeout(SOON, serving).await.expect("it is there at last");
        let name = "tandem.v1.Inference".to_string();
        let answer = standard.check(HealthCheckRequest { service: name }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving);
        // A watcher does not hold up the end: it is told, and let go.
        let started = std::time::Instant::now();
        server.interrupt();
        let mut last = ServingStatus::Serving;
        while let Ok(Some(change)) = timeout(SOON, watch.message()).await.expect("the stream ends") {
            last = change.status();
        }
        assert_eq!(last, ServingStatus::NotServing, "after {:?}", started.elapsed());
    });
}

async fn channel(server: &Server) -> Channel {
    Endpoint::from_shared(server.grpc_url().to_string()).unwrap().connect().await.expect("a connection")
}

async fn raw(server: &Server) -> proto::inference_client::InferenceClient<Channel> {
    proto::inference_client::InferenceClient::new(channel(server).await)
}

fn tonic_prost_codec() -> tonic_prost::ProstCodec<proto::HealthRequest, proto::HealthReply> {
    tonic_prost::ProstCodec::default()
}
