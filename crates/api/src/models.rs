//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::served_model::ServedModel;
use crate::state::ApiState;

/// Lists the model under each of its names.
pub(crate) async fn list(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    let model = &served.model;
    let models: Vec<Value> = model.names().iter().map(|name| entry(model, name)).collect();
    Ok(Json(json!({"object": "list", "data": models})))
}

/// The model of that name.
pub(crate) async fn one(
    State(state): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
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
