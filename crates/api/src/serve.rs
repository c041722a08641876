//! Connections: accepted up to a bound, each with its deadlines, and ended in an orderly way.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1::{self, Parts};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::error::ApiError;
use crate::router::router;
use crate::settings::ApiSettings;
use crate::state::{ApiState, is_true};
use crate::write_deadline::WriteDeadline;

/// Pause after the system refused to accept a connection, as when there are no file descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Time for requests to send their last words after they were told to end.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Most bytes of a request's line and headers.
const HEADER_BYTES_MAX: usize = 64 << 10;

/// Serves connections of `listener` until `shutdown` completes. Then it accepts no more, lets open requests go on for
/// the settings' grace, and ends those that are left with an error.
pub async fn serve(
    listener: TcpListener,
    state: ApiState,
    shutdown: impl Future<Output = ()> + Send,
) -> io::Result<()> {
    let service = router(state.clone());
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
                connections.spawn(connection(stream, permit, service.clone(), state.clone(), closing.subscribe()));
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

/// Serves one connection, request after request.
async fn connection(
    stream: TcpStream,
    _permit: OwnedSemaphorePermit,
    service: Router,
    state: ApiState,
    mut closing: watch::Receiver<bool>,
) {
    // Tokens are small and should not wait for each other.
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "setting TCP_NODELAY");
    }
    let stream = TokioIo::new(WriteDeadline::new(stream, state.settings().write_timeout));
    let mut connection = http(state.settings()).serve_connection(stream, TowerToHyperService::new(service));
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = is_true(&mut closing) => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended early");
        let Parts { io, read_buf, .. } = connection.into_parts();
        // An idle connection is closed without a word, as an answer could be taken for that of the next request.
        if error.is_timeout() && !read_buf.is_empty() {
            refuse_slow_headers(io.into_inner().get_ref(), state.settings());
        }
    }
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
    http.timer(TokioTimer::new()).header_read_timeout(settings.header_timeout).max_buf_size(HEADER_BYTES_MAX);
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
