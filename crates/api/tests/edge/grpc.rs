//! The gRPC service while the model comes and goes. What it does in between is tested with the real program.

use std::time::Duration;

use tandem_api::{ApiSettings, ApiState, ModelInfo, serve_grpc};
use tandem_client::{ChatEvent, Client, Error, Retry, proto::health_reply::State};
use tandem_engine::EngineSettings;
use tokio::net::TcpListener;
use tokio::time::timeout;
use tonic::transport::Endpoint;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::{HealthCheckRequest, health_check_response::ServingStatus};

use crate::edge::Edge;

/// Longest wait for what must happen; machines are busy.
const SOON: Duration = Duration::from_secs(60);

/// Serves a state; its URL.
async fn serve(state: ApiState) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(serve_grpc(listener, state, std::future::pending()));
    url
}

fn once(url: &str) -> Client {
    Client::builder(url).retry(Retry::never()).build().unwrap()
}

#[tokio::test]
async fn health_follows_the_model() {
    let (state, ready) = ApiState::new(ApiSettings::default());
    let url = serve(state).await;
    let client = once(&url);
    let mut standard = HealthClient::new(Endpoint::from_shared(url).unwrap().connect().await.unwrap());
    let service = "tandem.v1.Inference".to_string();
    let mut watch = standard.watch(HealthCheckRequest { service }).await.unwrap().into_inner();
    let mut next = async || timeout(SOON, watch.message()).await.expect("news").unwrap().unwrap().status();
    assert_eq!(next().await, ServingStatus::NotServing);
    assert_eq!(client.health().await.unwrap().state(), State::Loading);
    assert!(client.models().await.unwrap().is_empty());
    let early = client.chat().user("Hi").send().await;
    assert!(matches!(early, Err(Error::Unavailable { retry_after: Some(_), .. })), "{early:?}");
    let nothing = standard.check(HealthCheckRequest { service: "nothing".into() }).await.unwrap_err();
    assert_eq!(nothing.code(), tonic::Code::NotFound);

    let edge = Edge::start();
    ready.ready(edge.engine.clone(), ModelInfo { id: "late".into(), ..ModelInfo::default() });
    assert_eq!(next().await, ServingStatus::Serving);
    assert_eq!(client.health().await.unwrap().state(), State::Serving);
    assert_eq!(client.models().await.unwrap()[0].names, ["late"]);

    edge.engine.shutdown(SOON);
    assert_eq!(next().await, ServingStatus::NotServing);
    let health = client.health().await.unwrap();
    assert_eq!((health.state(), health.trouble.is_empty()), (State::Failed, false));
}

#[tokio::test]
async fn a_client_is_as_patient_as_it_is_told() {
    let (state, ready) = ApiState::new(ApiSettings::default());
    let url = serve(state).await;
    let edge = Edge::start();
    edge.script.chat("Hi", "<|channel|>final<|message|>Hello!");
    let (engine, info) = (edge.engine.clone(), ModelInfo { vocab: 201_088, context: 2048, ..ModelInfo::default() });
    let patient = Client::builder(&url).retry(Retry { attempts_max: 20, ..Retry::default() }).timeout(SOON).build();
    let chat = patient.unwrap().chat().user("Hi");
    let (reply, ()) = tokio::join!(chat.send(), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        ready.ready(engine, info);
    });
    assert_eq!(reply.unwrap().content, "Hello!");
    // The deadline holds over all attempts.
    let nobody = Client::builder("http://127.0.0.1:1").retry(Retry { attempts_max: 1000, ..Retry::default() });
    let hurried = nobody.timeout(Duration::from_secs(1)).build().unwrap();
    let failed = timeout(SOON, hurried.health()).await.expect("an end");
    assert!(matches!(failed, Err(Error::Connection { .. } | Error::DeadlineExceeded)), "{failed:?}");
}

#[tokio::test]
async fn messages_and_replies_have_limits() {
    let settings =
        ApiSettings { body_bytes_max: 10_000, request_timeout: Duration::from_millis(500), ..Default::default() };
    let edge = Edge::with(settings, Edge::capacity(), EngineSettings::default());
    let client = once(&serve(edge.state.clone()).await);
    let large = client.chat().user("x".repeat(20_000)).send().await;
    assert!(matches!(large, Err(Error::Busy { retry_after: None, .. })), "{large:?}");
    // The server's own time limit, for a client that has none.
    edge.script.chat("Hi", &format!("<|channel|>final<|message|>{}", "word ".repeat(1000)));
    edge.slow_down(Duration::from_millis(5));
    let slow = client.chat().user("Hi").send().await;
    assert!(matches!(slow, Err(Error::DeadlineExceeded)), "{slow:?}");
    let mut events = client.chat().user("Hi").stream().await.unwrap();
    let error = loop {
        match events.next().await.expect("an error before the end") {
            Ok(ChatEvent::Finished(finished)) => panic!("{finished:?}"),
            Ok(_) => {}
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::DeadlineExceeded), "{error:?}");
    edge.until_idle().await;
}
