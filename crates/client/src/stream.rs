//! Events as they come in.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_util::Stream;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Streaming;

use crate::{Error, TokenLogprob};

/// The events of one call, of which the last says why generation finished; also a [`Stream`]. Dropping it cancels the
/// call.
pub struct EventStream<W: Wire> {
    inner: Streaming<W>,
    deadline: Option<Pin<Box<Sleep>>>,
    logprobs: Vec<TokenLogprob>,
    ended: bool,
}

/// Messages that carry events.
#[doc(hidden)]
pub trait Wire {
    /// What is in them.
    type Event;

    /// The event, unless it is of a kind that this client does not know, and log-probabilities that came with it.
    fn open(self) -> (Option<Self::Event>, Vec<TokenLogprob>);

    /// Whether nothing follows it.
    fn is_last(event: &Self::Event) -> bool;
}

impl<W: Wire> EventStream<W> {
    pub(crate) fn new(inner: Streaming<W>, deadline: Option<Instant>) -> Self {
        let deadline = deadline.map(|deadline| Box::pin(sleep_until(deadline)));
        Self { inner, deadline, logprobs: Vec::new(), ended: false }
    }

    /// Waits for the next event; `None` after the last, and after an error.
    pub async fn next(&mut self) -> Option<Result<W::Event, Error>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// Takes the log-probabilities that have come with the events so far. Those of generated tokens come in their events
    /// instead.
    pub fn take_logprobs(&mut self) -> Vec<TokenLogprob> {
        std::mem::take(&mut self.logprobs)
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Result<W::Event, Error>> {
        if let Some(deadline) = &mut self.deadline
            && deadline.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Err(Error::DeadlineExceeded));
        }
        loop {
            let message = match ready!(Pin::new(&mut self.inner).poll_next(cx)) {
                None => return Poll::Ready(Err(Error::Incomplete)),
                Some(Err(status)) => return Poll::Ready(Err(status.into())),
                Some(Ok(message)) => message,
            };
            let (event, logprobs) = message.open();
            self.logprobs.extend(logprobs);
            if let Some(event) = event {
                return Poll::Ready(Ok(event));
            }
        }
    }
}

impl<W: Wire> Stream for EventStream<W> {
    type Item = Result<W::Event, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let event = ready!(self.poll_event(cx));
        self.ended = event.as_ref().map_or(true, W::is_last);
        Poll::Ready(Some(event))
    }
}

// All that is pinned in it is pinned in boxes.
impl<W: Wire> Unpin for EventStream<W> {}
