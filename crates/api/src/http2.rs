//! Connections that speak HTTP/2, many calls at a time.

use std::io::Cursor;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::serve::HEADER_BYTES_MAX;
use crate::settings::ApiSettings;
use crate::state::{ApiState, is_true};
use crate::write_deadline::WriteDeadline;

/// What every client of HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8; 24] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Calls that are open at a time on one connection.
const CALLS_MAX: u32 = 256;
/// A client that is silent for so long is asked whether it is still there, and how long it may take to say so.
const PING_AFTER: Duration = Duration::from_secs(20);
const PONG_WITHIN: Duration = Duration::from_secs(20);

/// Serves calls until the stream ends.
pub(crate) async fn calls<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    service: Router,
    state: &ApiState,
    mut closing: watch::Receiver<bool>,
) {
    let Some(stream) = greeted(stream, state.settings()).await else { return };
    let stream = TokioIo::new(WriteDeadline::new(stream, state.settings().write_timeout));
    let connection = builder().serve_connection(stream, TowerToHyperService::new(service));
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = is_true(&mut closing) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(error = &error as &dyn std::error::Error, "a connection ended early");
    }
}

/// Waits for the client's first words, which HTTP/2 itself sets no time for. Others are told where they are.
async fn greeted<S: AsyncRead + AsyncWrite + Unpin + Send + 'static>(
    stream: S,
    settings: &ApiSettings,
) -> Option<impl AsyncRead + AsyncWrite + Unpin + Send + 'static> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let mut first = [0; PREFACE.len()];
    let read = timeout(settings.header_timeout, reader.read_exact(&mut first)).await;
    if !matches!(read, Ok(Ok(_))) {
        tracing::debug!("a connection without the preface of HTTP/2");
        return None;
    }
    if first != *PREFACE {
        let text = "this port speaks gRPC, which is HTTP/2; the HTTP API has another\n";
        let length = text.len();
        let answer = format!(
            "HTTP/1.1 400 Bad Request\r\ncontent-type: text/plain\r\ncontent-length: {length}\r\n\
             connection: close\r\n\r\n{text}"
        );
        // Whoever speaks neither does not understand this either.
        let _ = timeout(settings.write_timeout, writer.write_all(answer.as_bytes())).await;
        return None;
    }
    Some(tokio::io::join(Cursor::new(first).chain(reader), writer))
}

fn builder() -> Builder<TokioExecutor> {
    let mut http = Builder::new(TokioExecutor::new());
    http.timer(TokioTimer::new()).keep_alive_interval(PING_AFTER).keep_alive_timeout(PONG_WITHIN);
    http.max_concurrent_streams(CALLS_MAX).max_header_list_size(HEADER_BYTES_MAX as u32);
    http
}
