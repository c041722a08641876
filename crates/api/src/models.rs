//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Value, json};

use crate::anthropic;
use crate::error::ApiError;
use crate::served_model::ServedModel;
use crate::state::ApiState;

/// Lists the model under each of its names, to clients of Anthropic's protocol in their way.
pub(crate) async fn list(state: State<ApiState>, headers: HeaderMap) -> Result<Json<Value>, ApiError> {
    if anthropic::models::is_asked_for(&headers) {
        return anthropic::models::list(state).await;
    }
    let served = state.served()?;
    let model = &served.model;
    let models: Vec<Value> = model.names().iter().map(|name| entry(model, name)).collect();
    Ok(Json(json!({"object": "list", "data": models})))
}

/// The model of that name.
pub(crate) async fn one(
    state: State<ApiState>,
    headers: HeaderMap,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    if anthropic::models::is_asked_for(&headers) {
        return anthropic::models::one(state, name).await;
    }
    let Path(name) = name.map_err(|error| ApiError::invalid_value("model", error.body_text()))?;
    let served = state.served()?;
    let model = &served.model;
    model.check_name(&name)?;
    Ok(Json(entry(model, &name)))
}

fn entry(model: &ServedModel, name: &str) -> Value {
    let mut entry = json!({
        "id": name,
        "object": "model",
        "created": model.info.created,
        "owned_by": "tandem",
        "root": model.info.id,
        "max_model_len": model.info.context,
    });
    if let Some(notice) = &model.info.notice {
        entry["notice"] = json!(notice);
    }
    entry
}
