//! `GET` and `DELETE /v1/responses/{id}`, `POST /v1/responses/{id}/cancel` and `GET /v1/responses/{id}/input_items`.

use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Extension, Path, Query, State};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::access::Caller;
use crate::error::ApiError;
use crate::state::ApiState;

/// Items listed where the request does not say, and most of them; OpenAI's values.
const ITEMS_DEFAULT: usize = 20;
const ITEMS_MAX: usize = 100;

/// What may be asked of a stored response.
#[derive(Debug, Deserialize)]
pub(super) struct GetFields {
    stream: Option<bool>,
}

/// Which part of a list.
#[derive(Debug, Deserialize)]
pub(super) struct ListFields {
    after: Option<String>,
    limit: Option<usize>,
    order: Option<String>,
}

/// The response as it stands.
pub(super) async fn get(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    fields: Result<Query<GetFields>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(fields) = fields.map_err(|error| ApiError::invalid_value("stream", error.body_text()))?;
    if fields.stream == Some(true) {
        let message = "a stored response is sent whole; ask for it again while its status is 'queued' or 'in_progress'";
        return Err(ApiError::unsupported("stream", message));
    }
    let mut store = state.responses();
    let stored = store.get(&id, caller).ok_or_else(|| ApiError::response_not_found(&id))?;
    Ok(Json(stored.response.value()))
}

/// Forgets the response, and ends it if it is still computed.
pub(super) async fn delete(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    match state.responses().remove(&id, caller) {
        true => Ok(Json(json!({"id": id, "object": "response", "deleted": true}))),
        false => Err(ApiError::response_not_found(&id)),
    }
}

/// Ends a response that is computed in the background. One that has ended stays as it is.
pub(super) async fn cancel(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Json<Value>, ApiError> {
    let mut store = state.responses();
    let stored = store.get(&id, caller).ok_or_else(|| ApiError::response_not_found(&id))?;
    let mut response = stored.response.value();
    if response["background"] != true {
        let message = format!("response '{id}' was not started with 'background'; only such can be cancelled");
        return Err(ApiError::invalid_value("response_id", message));
    }
    if stored.running.is_some() {
        response["status"] = json!("cancelled");
        store.update(&id, &response, Vec::new(), true);
    }
    Ok(Json(response))
}

/// The items that the response was asked with.
pub(super) async fn input_items(
    State(state): State<ApiState>,
    Extension(caller): Extension<Caller>,
    Path(id): Path<String>,
    fields: Result<Query<ListFields>, QueryRejection>,
) -> Result<Json<Value>, ApiError> {
    let Query(fields) = fields.map_err(|error| ApiError::invalid_value("limit", error.body_text()))?;
    let mut store = state.responses();
    let stored = store.get(&id, caller).ok_or_else(|| ApiError::response_not_found(&id))?;
    let mut items: Vec<Value> = stored.items[stored.input.clone()].iter().map(|text| text.value()).collect();
    match fields.order.as_deref() {
        Some("asc") => {}
        None | Some("desc") => items.reverse(),
        Some(other) => {
            let message = format!("'order' is '{other}', but must be 'asc' or 'desc'");
            return Err(ApiError::invalid_value("order", message));
        }
    }
    let after = |after: String| items.iter().position(|item| item["id"] == after).map_or(0, |at| at + 1);
    let from = fields.after.map_or(0, after);
    let limit = fields.limit.unwrap_or(ITEMS_DEFAULT).clamp(1, ITEMS_MAX);
    let page: Vec<Value> = items.drain(from..).take(limit).collect();
    let has_more = from + page.len() < stored.input.len();
    let ids = [page.first(), page.last()].map(|item| item.map(|item| item["id"].clone()));
    let [first_id, last_id] = ids;
    Ok(Json(json!({"object": "list", "data": page, "first_id": first_id, "last_id": last_id, "has_more": has_more})))
}
