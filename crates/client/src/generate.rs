//! Tokens that follow tokens.

use std::time::Duration;

use tandem_proto::v1::GenerateRequest;

use crate::builder::Inference;
use crate::sampling::request_methods;
use crate::stream::{EventStream, Wire};
use crate::{Client, Error};

pub use tandem_proto::v1::generate_event::Event as GenerateEvent;

/// Tokens to go on from. They can be sent any number of times.
#[derive(Clone)]
pub struct Generate {
    client: Client,
    request: GenerateRequest,
    timeout: Option<Duration>,
}

/// The tokens that follow, one by one.
pub type GenerateStream = EventStream<tandem_proto::v1::GenerateEvent>;

impl Generate {
    pub(crate) fn new(client: Client, request: GenerateRequest) -> Self {
        Self { client, request, timeout: None }
    }

    /// Ends after this token, besides those by which the model ends.
    pub fn stop_token(mut self, token: u32) -> Self {
        self.sampling_mut().stop_token_ids.push(token);
        self
    }

    /// Scores the prompt as well. Needs [`Generate::logprobs`].
    pub fn score_prompt(mut self) -> Self {
        self.request.score_prompt = true;
        self
    }

    request_methods!();

    /// The tokens as they are generated.
    ///
    /// # Errors
    /// See [`Error`]; once the stream has begun, it ends with one.
    pub async fn stream(&self) -> Result<GenerateStream, Error> {
        let call = async |mut inference: Inference, request| inference.generate(request).await;
        let (events, deadline) = self.client.call(self.request.clone(), self.timeout, call).await?;
        Ok(EventStream::new(events, deadline))
    }
}

impl Wire for tandem_proto::v1::GenerateEvent {
    type Event = GenerateEvent;

    fn open(self) -> (Option<GenerateEvent>, Vec<crate::TokenLogprob>) {
        (self.event, Vec::new())
    }

    fn is_last(event: &GenerateEvent) -> bool {
        matches!(event, GenerateEvent::Finished(_))
    }
}
