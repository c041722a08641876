//! Connections: accepted up to a bound, each with its deadlines, and ended in an orderly way.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1::{self, Parts};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{interval, sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::error::ApiError;
use crate::grpc;
use crate::http2;
use crate::router::{ollama_router, router};
use crate::settings::ApiSettings;
use crate::state::{ApiState, is_true};
use crate::status;
use crate::tls::Tls;
use crate::write_deadline::WriteDeadline;

/// Pause after the system refused to accept a connection, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for requests to send their last words after they were told to end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Most bytes of a request's line and headers.
pub(crate) const HEADER_BYTES_MAX: usize = 64 << 10;
/// Most headers of a request.
const HEADERS_MAX: usize = 100;

/// What is spoken on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wire {
    /// What all HTTP clients can, the official ones included.
    Http1,
    /// What gRPC needs.
    Http2,
}

/// Where connections come in.
pub struct Listening {
    listener: TcpListener,
    tls: Option<Tls>,
}

impl Listening {
    /// Connections that must speak TLS.
    pub fn with_tls(listener: TcpListener, tls: Tls) -> Self {
        Self { listener, tls: Some(tls) }
    }
}

impl From<TcpListener> for Listening {
    fn from(listener: TcpListener) -> Self {
        Self { listener, tls: None }
    }
}

/// Serves connections of `listening` until `shutdown` completes. Then it accepts no more, lets open requests go on for
/// the settings' grace, and ends those that are left with an error.
pub async fn serve(
    listening: impl Into<Listening>,
    state: ApiState,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let served = serve_routes(listening.into(), router(state.clone()), Wire::Http1, state.clone(), shutdown);
    tokio::select! {
        served = served => served,
        never = sample(&state) => match never {},
    }
}

/// Serves connections of a listener at Ollama's port, likewise.
pub async fn serve_ollama(
    listener: TcpListener,
    state: ApiState,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    serve_routes(listener.into(), ollama_router(state.clone()), Wire::Http1, state, shutdown).await
}

/// Serves the gRPC services to connections of `listening`, likewise.
pub async fn serve_grpc(
    listening: impl Into<Listening>,
    state: ApiState,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let (routes, health) = grpc::routes(state.clone()).await;
    let shutdown = async {
        shutdown.await;
        health.end().await;
    };
    let served = serve_routes(listening.into(), routes, Wire::Http2, state.clone(), shutdown);
    tokio::select! {
        served = served => served,
        never = health.follow(&state) => match never {},
    }
}

/// Takes the figures of the status page for as long as the server is there.
async fn sample(state: &ApiState) -> Infallible {
    let mut seconds = interval(Duration::from_secs(1));
    loop {
        seconds.tick().await;
        status::sample(state);
    }
}

async fn serve_routes(
    listening: Listening,
    service: Router,
    wire: Wire,
    state: ApiState,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let Listening { listener, tls } = listening;
    let (closing, _) = watch::channel(false);
    let mut connections = JoinSet::new();
    let permits = Arc::new(Semaphore::new(state.settings().connections_max.clamp(1, Semaphore::MAX_PERMITS)));
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        tokio::select! {
            biased;
            () = &mut shutdown => break,
            Some(_) = connections.join_next() => {}
            (stream, permit) = accept(&listener, &permits) => {
                let tls = tls.as_ref().map(|tls| tls.acceptor(wire));
                let connection = Connection { wire, service: service.clone(), state: state.clone(), closing: closing.subscribe() };
                connections.spawn(connection.serve(stream, tls, permit));
            }
        }
    }
    drop(listener);
    closing.send_replace(true);
    drain(connections, &state).await;
    Ok(())
}

/// Waits for a place, then for a client to take it.
async fn accept(listener: &TcpListener, permits: &Arc<Semaphore>) -> (TcpStream, OwnedSemaphorePermit) {
    let permit = permits.clone().acquire_owned().await.expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, _)) => return (stream, permit),
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// What a connection is served with.
struct Connection {
    wire: Wire,
    service: Router,
    state: ApiState,
    closing: watch::Receiver<bool>,
}

impl Connection {
    /// Serves the connection, request after request.
    async fn serve(self, stream: TcpStream, tls: Option<TlsAcceptor>, _permit: OwnedSemaphorePermit) {
        // Tokens are small and should not wait for each other.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "setting TCP_NODELAY");
        }
        let state = self.state.clone();
        let Some(tls) = tls else {
            if let Some(stream) = self.requests(stream).await {
                refuse_slow_headers(&stream, state.settings());
            }
            return;
        };
        match timeout(state.settings().header_timeout, tls.accept(stream)).await {
            Ok(Ok(stream)) => drop(self.requests(stream).await),
            Ok(Err(error)) => tracing::debug!(%error, "a connection that does not speak TLS"),
            Err(_) => tracing::debug!("a connection that takes too long to agree on TLS"),
        }
    }

    /// Serves requests until the stream ends. Returns the stream where it ended in the middle of slow headers.
    async fn requests<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(self, stream: S) -> Option<S> {
        match self.wire {
            Wire::Http1 => requests(stream, self.service, &self.state, self.closing).await,
            Wire::Http2 => {
                http2::calls(stream, self.service, &self.state, self.closing).await;
                None
            }
        }
    }
}

/// Serves requests of HTTP/1 until the stream ends. Returns the stream where it ended in the middle of slow headers.
async fn requests<S: AsyncRead + AsyncWrite + Unpin>(
    stream: S,
    service: Router,
    state: &ApiState,
    mut closing: watch::Receiver<bool>,
) -> Option<S> {
    let stream = TokioIo::new(WriteDeadline::new(stream, state.settings().write_timeout));
    let mut connection = http(state.settings()).serve_connection(stream, TowerToHyperService::new(service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = is_true(&mut closing) => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    let error = ended.err()?;
    tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended early");
    let Parts { io, read_buf, .. } = connection.into_parts();
    // An idle connection is closed without a word, as an answer could be taken for that of the next request.
    (error.is_timeout() && !read_buf.is_empty()).then(|| io.into_inner().into_inner())
}

/// Answers a request whose headers did not arrive in time, as far as that goes without waiting.
fn refuse_slow_headers(stream: &TcpStream, settings: &ApiSettings) {
    let body = ApiError::header_timeout(settings.header_timeout.as_secs()).body().to_string();
    let answer = format!(
        "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\
         connection: close\r\n\r\n{body}",
        body.len()
    );
    if let Err(error) = stream.try_write(answer.as_bytes()) {
        tracing::debug!(%error, "answering a request whose headers came too slowly");
    }
}

fn http(settings: &ApiSettings) -> http1::Builder {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(settings.header_timeout);
    http.max_buf_size(HEADER_BYTES_MAX).max_header_size(HEADER_BYTES_MAX).max_headers(HEADERS_MAX);
    http
}

/// Waits for open connections, less and less patiently.
async fn drain(mut connections: JoinSet<()>, state: &ApiState) {
    let mut all_ended = async |limit| timeout(limit, async { while connections.join_next().await.is_some() {} }).await;
    if all_ended(state.settings().shutdown_grace).await.is_ok() {
        return;
    }
    tracing::warn!("ending the requests that are still open");
    state.end_requests();
    if all_ended(LAST_WORDS).await.is_err() {
        tracing::warn!("dropping connections that do not end");
    }
}
