//! The calls of the inference service.

use tandem_proto::v1 as proto;
use tandem_proto::v1::inference_server::Inference;
use tonic::{Request, Response, Status};

use super::call::Call;
use super::chat::Chat;
use super::complete::Completion;
use super::generate::Generate;
use super::status::status;
use super::stream::{EventStream, stream};
use super::{server, tokens};
use crate::error::ApiError;
use crate::state::ApiState;

/// The service in front of a model.
pub(super) struct Service(pub ApiState);

/// What a handler answers, in gRPC's words.
fn answer<T>(result: Result<T, ApiError>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| status(&error))
}

impl Service {
    async fn chat(&self, request: Request<proto::ChatRequest>) -> Result<proto::ChatReply, ApiError> {
        let (call, request) = Call::open(request)?;
        Chat::start(&self.0, &call, request, false).await?.whole().await
    }

    async fn chat_stream(
        &self,
        request: Request<proto::ChatRequest>,
    ) -> Result<EventStream<proto::ChatEvent>, ApiError> {
        let (call, request) = Call::open(request)?;
        let chat = Chat::start(&self.0, &call, request, true).await?;
        Ok(stream(chat, call.deadline, &self.0))
    }

    async fn complete(&self, request: Request<proto::CompleteRequest>) -> Result<proto::CompleteReply, ApiError> {
        let (call, request) = Call::open(request)?;
        Completion::start(&self.0, &call, request, false).await?.whole().await
    }

    async fn complete_stream(
        &self,
        request: Request<proto::CompleteRequest>,
    ) -> Result<EventStream<proto::CompleteEvent>, ApiError> {
        let (call, request) = Call::open(request)?;
        let completion = Completion::start(&self.0, &call, request, true).await?;
        Ok(stream(completion, call.deadline, &self.0))
    }

    async fn generate(
        &self,
        request: Request<proto::GenerateRequest>,
    ) -> Result<EventStream<proto::GenerateEvent>, ApiError> {
        let (call, request) = Call::open(request)?;
        let generate = Generate::start(&self.0, &call, request).await?;
        Ok(stream(generate, call.deadline, &self.0))
    }
}

#[tonic::async_trait]
impl Inference for Service {
    type ChatStreamStream = EventStream<proto::ChatEvent>;
    type CompleteStreamStream = EventStream<proto::CompleteEvent>;
    type GenerateStream = EventStream<proto::GenerateEvent>;

    async fn chat(&self, request: Request<proto::ChatRequest>) -> Result<Response<proto::ChatReply>, Status> {
        answer(Service::chat(self, request).await)
    }

    async fn chat_stream(
        &self,
        request: Request<proto::ChatRequest>,
    ) -> Result<Response<EventStream<proto::ChatEvent>>, Status> {
        answer(Service::chat_stream(self, request).await)
    }

    async fn complete(
        &self,
        request: Request<proto::CompleteRequest>,
    ) -> Result<Response<proto::CompleteReply>, Status> {
        answer(Service::complete(self, request).await)
    }

    async fn complete_stream(
        &self,
        request: Request<proto::CompleteRequest>,
    ) -> Result<Response<EventStream<proto::CompleteEvent>>, Status> {
        answer(Service::complete_stream(self, request).await)
    }

    async fn generate(
        &self,
        request: Request<proto::GenerateRequest>,
    ) -> Result<Response<EventStream<proto::GenerateEvent>>, Status> {
        answer(Service::generate(self, request).await)
    }

    async fn tokenize(
        &self,
        request: Request<proto::TokenizeRequest>,
    ) -> Result<Response<proto::TokenizeReply>, Status> {
        answer(tokens::tokenize(&self.0, request.into_inner()).await)
    }

    async fn detokenize(
        &self,
        request: Request<proto::DetokenizeRequest>,
    ) -> Result<Response<proto::DetokenizeReply>, Status> {
        answer(tokens::detokenize(&self.0, request.into_inner()).await)
    }

    async fn list_models(
        &self,
        _request: Request<proto::ListModelsRequest>,
    ) -> Result<Response<proto::ListModelsReply>, Status> {
        Ok(Response::new(server::models(&self.0)))
    }

    async fn health(&self, _request: Request<proto::HealthRequest>) -> Result<Response<proto::HealthReply>, Status> {
        Ok(Response::new(server::health(&self.0)))
    }

    async fn cluster_status(
        &self,
        _request: Request<proto::ClusterStatusRequest>,
    ) -> Result<Response<proto::ClusterStatusReply>, Status> {
        Ok(Response::new(server::cluster(&self.0)))
    }
}
