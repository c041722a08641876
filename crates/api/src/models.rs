//! `GET /v1/models` and `GET /v1/models/{id}`.

use axum::Json;
use axum::extract::{Path, State};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::{ApiState, Served};

/// Lists the model under each of its names.
pub(crate) async fn list(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    let models: Vec<Value> = served.names().iter().map(|name| entry(&served, name)).collect();
    Ok(Json(json!({"object": "list", "data": models})))
}

/// The model of that name.
pub(crate) async fn one(State(state): State<ApiState>, Path(name): Path<String>) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    served.check_name(&name)?;
    Ok(Json(entry(&served, &name)))
}

fn entry(served: &Served, name: &str) -> Value {
    let mut entry = json!({
        "id": name,
        "object": "model",
        "created": served.model.created,
        "owned_by": "tandem",
        "root": served.model.id,
        "max_model_len": served.model.context,
    });
    if let Some(notice) = &served.model.notice {
        entry["notice"] = json!(notice);
    }
    entry
}
