//! The gRPC services: inference (`proto/tandem/v1/inference.proto`), health and reflection.
//!
//! Requests become what those of the HTTP protocols become (`request`), so that they are checked in the same places, and
//! errors are the same errors in other words (`status`).

mod call;
mod chat;
mod complete;
mod generate;
mod health;
mod request;
mod server;
mod service;
mod status;
mod stream;
mod tokens;

use axum::{Router, middleware};
use tandem_proto::v1::FILE_DESCRIPTOR_SET;
use tandem_proto::v1::inference_server::InferenceServer;
use tonic::service::Routes;

pub(crate) use health::Health;

use crate::state::ApiState;
use service::Service;

/// The services, and what keeps their health up to date.
pub(crate) async fn routes(state: ApiState) -> (Router, Health) {
    let (health, health_service) = Health::new().await;
    let body_bytes_max = state.settings().body_bytes_max;
    let inference = InferenceServer::new(Service(state.clone())).max_decoding_message_size(body_bytes_max);
    let routes = Routes::new(inference).add_service(health_service);
    // Some tools only know the older name of the same protocol.
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let routes = match (reflection().build_v1(), reflection().build_v1alpha()) {
        (Ok(v1), Ok(v1alpha)) => routes.add_service(v1).add_service(v1alpha),
        (Err(error), _) | (_, Err(error)) => {
            tracing::error!(%error, "reflection is not served: our own descriptors cannot be read");
            routes
        }
    };
    let routes = routes.into_axum_router();
    (routes.layer(middleware::from_fn_with_state(state, call::around)), health)
}
