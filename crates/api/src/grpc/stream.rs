//! Streams of events: a task produces them, the connection sends them.

use std::pin::Pin;

use futures_util::Stream;
use futures_util::stream::poll_fn;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::Status;
use tracing::Instrument;

use super::status::status;
use crate::error::ApiError;
use crate::state::ApiState;

/// Events that wait for the connection; behind them their source waits.
const EVENTS_MAX: usize = 16;

/// What a streaming call answers with.
pub(super) type EventStream<E> = Pin<Box<dyn Stream<Item = Result<E, Status>> + Send>>;

/// A reply that is told in events.
pub(super) trait Source: Send + 'static {
    type Event: Send + 'static;

    /// The next events; `None` after the last.
    fn next(&mut self) -> impl Future<Output = Result<Option<Vec<Self::Event>>, ApiError>> + Send;

    /// The reply is given up for this reason.
    fn failed(&mut self, error: &ApiError);
}

/// The events of `source` until `deadline`. A client that cancels, or leaves, ends it at once.
pub(super) fn stream<S: Source>(source: S, deadline: Instant, state: &ApiState) -> EventStream<S::Event> {
    let (sender, mut events) = mpsc::channel(EVENTS_MAX);
    tokio::spawn(produce(source, sender, deadline, state.clone()).in_current_span());
    Box::pin(poll_fn(move |cx| events.poll_recv(cx)))
}

async fn produce<S: Source>(
    mut source: S,
    events: mpsc::Sender<Result<S::Event, Status>>,
    deadline: Instant,
    state: ApiState,
) {
    let ended = tokio::select! {
        biased;
        () = events.closed() => return,
        ended = timeout_at(deadline, send_all(&mut source, &events, &state)) => ended,
    };
    let error = match ended {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(_) => ApiError::deadline_exceeded(),
    };
    source.failed(&error);
    // The engine is done with it, whether or not anybody hears of it.
    drop(source);
    let _ = timeout(state.settings().write_timeout, events.send(Err(status(&error)))).await;
}

async fn send_all<S: Source>(
    source: &mut S,
    events: &mpsc::Sender<Result<S::Event, Status>>,
    state: &ApiState,
) -> Result<(), ApiError> {
    while let Some(some) = source.next().await? {
        for event in some {
            let sent = timeout(state.settings().write_timeout, events.send(Ok(event))).await;
            // Closed is closed: whoever waits for that ends this.
            let _ = sent.map_err(|_| ApiError::slow_reader())?;
        }
    }
    Ok(())
}
