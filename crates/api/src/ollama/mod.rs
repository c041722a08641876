//! Ollama's own API, for clients that look for it on its port.

mod chat;
mod conversation;
mod generate;
mod models;
mod request;
mod stream;

use axum::Router;
use axum::routing::{get, post};

use crate::state::ApiState;

/// The routes.
pub(crate) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/api/version", get(models::version))
        .route("/api/tags", get(models::tags))
        .route("/api/ps", get(models::running))
        .route("/api/show", post(models::show))
        .route("/api/pull", post(models::pull))
        .route("/api/chat", post(chat::create))
        .route("/api/generate", post(generate::create))
        .route("/api/embed", post(models::embed))
        .route("/api/embeddings", post(models::embed))
}

/// What clients look for at the root of Ollama's port.
pub(crate) async fn greeting() -> &'static str {
    "Ollama is running"
}
