//! Streams: a task writes events, the connection reads them.

use std::convert::Infallible;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use http_body_util::BodyExt;
use hyper::body::Frame;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tracing::Instrument;

use crate::error::ApiError;
use crate::protocol::Protocol;

/// Events that wait for the connection; behind them the writer waits.
const EVENTS_MAX: usize = 16;

/// Where a stream's events go.
pub(crate) struct EventSender(mpsc::Sender<Bytes>);

/// The client is gone, and nobody wants the rest.
#[derive(Debug)]
pub(crate) struct Disconnected;

/// How the writing of a stream ended before its time.
pub(crate) enum Broken {
    /// With an error that the client is to be told.
    Failed(ApiError),
    /// Without anybody to tell.
    Disconnected,
}

impl From<ApiError> for Broken {
    fn from(error: ApiError) -> Self {
        Self::Failed(error)
    }
}

impl From<Disconnected> for Broken {
    fn from(_: Disconnected) -> Self {
        Self::Disconnected
    }
}

impl EventSender {
    /// Sends one event with `data` as JSON.
    pub(crate) async fn send(&self, data: &impl Serialize) -> Result<(), Disconnected> {
        let mut event = b"data: ".to_vec();
        // What is sent are our own types, whose maps have string keys: they always serialise.
        serde_json::to_writer(&mut event, data).map_err(|_| Disconnected)?;
        event.extend_from_slice(b"\n\n");
        self.send_bytes(event.into()).await
    }

    /// Sends one event with a name, which is also the `type` in its `data`.
    pub(crate) async fn send_named(&self, data: &Value) -> Result<(), Disconnected> {
        let name = data["type"].as_str().unwrap_or_default();
        self.send_bytes(format!("event: {name}\ndata: {data}\n\n").into()).await
    }

    /// Sends one line of JSON.
    pub(crate) async fn send_line(&self, data: &Value) -> Result<(), Disconnected> {
        self.send_bytes(format!("{data}\n").into()).await
    }

    async fn send_bytes(&self, bytes: Bytes) -> Result<(), Disconnected> {
        self.0.send(bytes).await.map_err(|_| Disconnected)
    }
}

/// A response whose events `write` sends. It ends as the protocol has it, with one error event where `write` failed. A
/// client that leaves ends `write` at once.
pub(crate) fn response<W, F>(protocol: Protocol, keep_alive: Duration, write: W) -> Response
where
    W: FnOnce(EventSender) -> F,
    F: Future<Output = Result<(), Broken>> + Send + 'static,
{
    let (sender, events) = mpsc::channel(EVENTS_MAX);
    let writing = write(EventSender(sender.clone()));
    tokio::spawn(drive(protocol, writing, EventSender(sender), keep_alive).in_current_span());
    let headers = [
        (header::CONTENT_TYPE, protocol.stream_type()),
        (header::CACHE_CONTROL, "no-cache"),
        // nginx would collect the stream before passing it on.
        (header::HeaderName::from_static("x-accel-buffering"), "no"),
    ];
    (headers, Body::new(EventBody(events).boxed_unsync())).into_response()
}

async fn drive(
    protocol: Protocol,
    writing: impl Future<Output = Result<(), Broken>>,
    sender: EventSender,
    keep_alive: Duration,
) {
    let mut writing = std::pin::pin!(writing);
    let ended = loop {
        tokio::select! {
            biased;
            ended = &mut writing => break ended,
            () = sender.0.closed() => return,
            () = tokio::time::sleep(keep_alive) => {
                if let Some(comment) = protocol.keep_alive() {
                    // A full channel means that the connection has something to send anyway.
                    let _ = sender.0.try_send(comment);
                }
            }
        }
    };
    let last = match ended {
        Ok(()) => protocol.done(),
        Err(Broken::Failed(error)) => Some(protocol.last_words(&error)),
        Err(Broken::Disconnected) => None,
    };
    if let Some(last) = last {
        // Whoever has left by now needs no farewell.
        let _ = sender.send_bytes(last).await;
    }
}

/// The events as a response body; dropping it is how the connection says that the client is gone.
struct EventBody(mpsc::Receiver<Bytes>);

impl hyper::body::Body for EventBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.0.poll_recv(cx).map(|event| event.map(|bytes| Ok(Frame::data(bytes))))
    }
}
