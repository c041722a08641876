//! Anthropic's protocol: messages, the counting of their tokens, and a list of models in its shape.

mod blocks;
mod conversation;
mod messages;
pub(crate) mod models;
mod request;

use axum::Router;
use axum::routing::{get, head, post};

use crate::state::ApiState;

/// The routes, at their usual place and below `/anthropic`.
pub(crate) fn routes() -> Router<ApiState> {
    let routes = Router::new()
        .route("/v1/messages", post(messages::create))
        .route("/v1/messages/count_tokens", post(messages::count_tokens));
    let below = routes.clone().route("/v1/models", get(models::list)).route("/v1/models/{*id}", get(models::one));
    // Clients ask whether anybody is there before they say anything.
    let there = Router::new().route("/anthropic", head(async || ())).route("/anthropic/", head(async || ()));
    routes.nest("/anthropic", below).merge(there)
}
