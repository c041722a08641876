//! The server, from the client's side.

use std::time::Duration;

use tandem_proto::v1::{
    ChatRequest, ClusterStatusReply, ClusterStatusRequest, CompleteRequest, DetokenizeRequest, GenerateRequest,
    HealthReply, HealthRequest, ListModelsRequest, Model, TokenizeReply, TokenizeRequest, tokenize_request::Input,
};
use tokio::time::{Instant, sleep, timeout_at};
use tonic::{Request, Response, Status};

use crate::builder::Inference;
use crate::{Chat, ClientBuilder, Complete, Error, Generate, Retry};

/// A server. Clones share its connection, on which any number of calls may be open.
#[derive(Clone)]
pub struct Client {
    inference: Inference,
    timeout: Option<Duration>,
    retry: Retry,
}

impl Client {
    /// The server at a URL like `http://127.0.0.1:50051`, with the defaults of [`Client::builder`].
    ///
    /// # Errors
    /// [`Error::Setup`] where the URL cannot be used. Whether somebody is there shows with the first call.
    pub fn new(url: &str) -> Result<Self, Error> {
        Self::builder(url).build()
    }

    /// The server at a URL, with further settings.
    pub fn builder(url: &str) -> ClientBuilder {
        ClientBuilder::new(url)
    }

    pub(crate) fn with(inference: Inference, timeout: Option<Duration>, retry: Retry) -> Self {
        Self { inference, timeout, retry }
    }

    /// Begins a conversation.
    pub fn chat(&self) -> Chat {
        Chat::new(self.clone(), ChatRequest::default())
    }

    /// Asks what follows `prompt`.
    pub fn complete(&self, prompt: impl Into<String>) -> Complete {
        Complete::new(self.clone(), CompleteRequest { prompt: prompt.into(), ..Default::default() })
    }

    /// Asks which tokens follow these.
    pub fn generate(&self, prompt: impl Into<Vec<u32>>) -> Generate {
        Generate::new(self.clone(), GenerateRequest { prompt: prompt.into(), ..Default::default() })
    }

    /// Text as token ids, as [`Client::complete`] reads it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn tokenize(&self, text: impl Into<String>) -> Result<Vec<u32>, Error> {
        let request = TokenizeRequest { model: String::new(), input: Some(Input::Text(text.into())) };
        Ok(self.tokens(request, None).await?.tokens)
    }

    /// The text of token ids.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn detokenize(&self, tokens: impl Into<Vec<u32>>) -> Result<String, Error> {
        let request = DetokenizeRequest { model: String::new(), tokens: tokens.into() };
        let call = async |mut inference: Inference, request| inference.detokenize(request).await;
        Ok(self.call(request, None, call).await?.0.text)
    }

    /// What is served; nothing while the model loads.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn models(&self) -> Result<Vec<Model>, Error> {
        let call = async |mut inference: Inference, request| inference.list_models(request).await;
        Ok(self.call(ListModelsRequest {}, None, call).await?.0.models)
    }

    /// Whether requests are served. Needs no key.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn health(&self) -> Result<HealthReply, Error> {
        let call = async |mut inference: Inference, request| inference.health(request).await;
        Ok(self.call(HealthRequest {}, None, call).await?.0)
    }

    /// The nodes, their memory, the link between them, and how fast it all goes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn cluster_status(&self) -> Result<ClusterStatusReply, Error> {
        let call = async |mut inference: Inference, request| inference.cluster_status(request).await;
        Ok(self.call(ClusterStatusRequest {}, None, call).await?.0)
    }

    pub(crate) async fn tokens(
        &self,
        request: TokenizeRequest,
        timeout: Option<Duration>,
    ) -> Result<TokenizeReply, Error> {
        let call = async |mut inference: Inference, request| inference.tokenize(request).await;
        Ok(self.call(request, timeout, call).await?.0)
    }

    /// Makes a call, again where that is worth it. Returns what it gave, and until when whatever follows may go on.
    pub(crate) async fn call<M, R, F>(
        &self,
        message: M,
        timeout: Option<Duration>,
        call: F,
    ) -> Result<(R, Option<Instant>), Error>
    where
        M: Clone,
        F: AsyncFn(Inference, Request<M>) -> Result<Response<R>, Status>,
    {
        let deadline = timeout.or(self.timeout).and_then(|timeout| Instant::now().checked_add(timeout));
        let mut attempts = self.retry.attempts();
        loop {
            let mut request = Request::new(message.clone());
            if let Some(deadline) = deadline {
                request.set_timeout(deadline.saturating_duration_since(Instant::now()));
            }
            let called = call(self.inference.clone(), request);
            let error = match within(deadline, called).await {
                Ok(response) => return Ok((response.into_inner(), deadline)),
                Err(error) => error,
            };
            let Some(pause) = attempts.pause_after(&error) else { return Err(error) };
            if deadline.is_some_and(|deadline| Instant::now() + pause >= deadline) {
                return Err(error);
            }
            sleep(pause).await;
        }
    }
}

async fn within<R>(
    deadline: Option<Instant>,
    called: impl Future<Output = Result<Response<R>, Status>>,
) -> Result<Response<R>, Error> {
    let answered = match deadline {
        Some(deadline) => timeout_at(deadline, called).await.map_err(|_| Error::DeadlineExceeded)?,
        None => called.await,
    };
    answered.map_err(Error::from)
}
