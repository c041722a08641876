//! OpenAI's responses: input and output as items, and a bounded memory of both.

mod background;
mod create;
mod items;
mod output;
mod request;
mod response;
mod store;
mod stored;
mod tools;

use axum::Router;
use axum::routing::{get, post};

pub(crate) use store::ResponseStore;

use crate::state::ApiState;

/// The routes.
pub(crate) fn routes() -> Router<ApiState> {
    Router::new()
        .route("/v1/responses", post(create::create))
        .route("/v1/responses/input_tokens", post(create::input_tokens))
        .route("/v1/responses/{id}", get(stored::get).delete(stored::delete))
        .route("/v1/responses/{id}/cancel", post(stored::cancel))
        .route("/v1/responses/{id}/input_items", get(stored::input_items))
}
