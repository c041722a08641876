//! Text that follows text.

use std::time::Duration;

use tandem_proto::v1::{CompleteReply, CompleteRequest};

use crate::builder::Inference;
use crate::sampling::request_methods;
use crate::stream::{EventStream, Wire};
use crate::{Client, Error};

pub use tandem_proto::v1::complete_event::Event as CompleteEvent;

/// A text to go on from. It can be sent any number of times.
#[derive(Clone)]
pub struct Complete {
    client: Client,
    request: CompleteRequest,
    timeout: Option<Duration>,
}

/// The text that follows, piece by piece.
pub type CompleteStream = EventStream<tandem_proto::v1::CompleteEvent>;

impl Complete {
    pub(crate) fn new(client: Client, request: CompleteRequest) -> Self {
        Self { client, request, timeout: None }
    }

    /// Ends the text before this one.
    pub fn stop(mut self, text: impl Into<String>) -> Self {
        self.sampling_mut().stop.push(text.into());
        self
    }

    request_methods!();

    /// The whole text.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn send(&self) -> Result<CompleteReply, Error> {
        let call = async |mut inference: Inference, request| inference.complete(request).await;
        Ok(self.client.call(self.request.clone(), self.timeout, call).await?.0)
    }

    /// The text as it is generated.
    ///
    /// # Errors
    /// See [`Error`]; once the stream has begun, it ends with one.
    pub async fn stream(&self) -> Result<CompleteStream, Error> {
        let call = async |mut inference: Inference, request| inference.complete_stream(request).await;
        let (events, deadline) = self.client.call(self.request.clone(), self.timeout, call).await?;
        Ok(EventStream::new(events, deadline))
    }
}

impl Wire for tandem_proto::v1::CompleteEvent {
    type Event = CompleteEvent;

    fn open(self) -> (Option<CompleteEvent>, Vec<crate::TokenLogprob>) {
        (self.event, self.logprobs)
    }

    fn is_last(event: &CompleteEvent) -> bool {
        matches!(event, CompleteEvent::Finished(_))
    }
}
