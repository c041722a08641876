//! `GET /health`, `/ready`, `/metrics` and `/version`: for whoever watches the server.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::error::ApiError;
use crate::state::ApiState;

/// 200 while the process works: a model that is loading is healthy, for the first time or after a worker was lost; an
/// engine that stopped is not. It says why fewer nodes compute than should, if so.
pub(crate) async fn health(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let served = state.served().ok();
    if let Some(reason) = served.as_ref().and_then(|served| served.engine.ended()) {
        return Err(ApiError::engine_not_running(&reason));
    }
    let mut health = json!({"status": "ok"});
    if let Some(degraded) = served.and_then(|served| served.model.info.degraded.clone()) {
        health["degraded"] = degraded.into();
    }
    Ok(Json(health))
}

/// 200 once requests are served.
pub(crate) async fn ready(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    check_engine(&state)?;
    Ok(Json(json!({"status": "ready", "model": served.model.name()})))
}

/// The figures in Prometheus' text format.
pub(crate) async fn metrics(State(state): State<ApiState>) -> Response {
    let served = state.served().ok();
    let model = served.as_ref().map_or("", |served| served.model.name());
    let stats = served.as_ref().map(|served| served.engine.stats());
    let link = served.as_ref().and_then(|served| served.model.info.link.as_ref());
    let page = state.metrics().write(model, stats, link);
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], page).into_response()
}

/// The version of this software.
pub(crate) async fn version() -> Json<Value> {
    Json(json!({"version": env!("CARGO_PKG_VERSION")}))
}

fn check_engine(state: &ApiState) -> Result<(), ApiError> {
    match state.served().ok().and_then(|served| served.engine.trouble()) {
        Some(reason) => Err(ApiError::engine_not_running(&reason)),
        None => Ok(()),
    }
}
