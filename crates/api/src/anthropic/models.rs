//! `GET /v1/models` and `GET /v1/models/{id}` for clients of Anthropic's protocol.

use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::HeaderMap;
use serde_json::{Value, json};

use crate::date::rfc3339;
use crate::error::ApiError;
use crate::served_model::ServedModel;
use crate::state::ApiState;

/// The names that clients of this protocol know; they list no other kind.
const FAMILIES: [&str; 3] = ["claude-opus", "claude-sonnet", "claude-haiku"];

/// Whether a list of models is asked for in this protocol: its clients always send their version of it.
pub(crate) fn is_asked_for(headers: &HeaderMap) -> bool {
    headers.contains_key("anthropic-version")
}

/// Whether this protocol's requests may use `name`: any version of any family means the model that is served.
pub(crate) fn is_alias(name: &str) -> bool {
    let family = |family: &&str| *family == name || name.contains(family.trim_start_matches("claude-"));
    ["opus", "sonnet", "haiku"].contains(&name)
        || (name.starts_with("claude") && FAMILIES.iter().any(family))
        || name.starts_with("anthropic/")
}

/// The model under its families' names and its own, each as this protocol's clients accept it.
pub(crate) async fn list(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    let model = &served.model;
    let names = FAMILIES.iter().map(|family| family.to_string()).chain([own_name(model)]);
    let models: Vec<Value> = names.map(|name| entry(model, &name)).collect();
    Ok(Json(json!({
        "data": models,
        "has_more": false,
        "first_id": FAMILIES[0],
        "last_id": own_name(model),
    })))
}

/// The model of that name.
pub(crate) async fn one(
    State(state): State<ApiState>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, ApiError> {
    let Path(name) = name.map_err(|error| ApiError::invalid_value("model", error.body_text()))?;
    let served = state.served()?;
    check_name(&served.model, &name)?;
    Ok(Json(entry(&served.model, &name)))
}

/// Checks that requests of this protocol may use `name`.
pub(crate) fn check_name(model: &ServedModel, name: &str) -> Result<(), ApiError> {
    if is_alias(name) { Ok(()) } else { model.check_name(name) }
}

fn own_name(model: &ServedModel) -> String {
    format!("anthropic/{}", model.name())
}

fn entry(model: &ServedModel, name: &str) -> Value {
    json!({
        "type": "model",
        "id": name,
        "display_name": format!("{} (Tandem)", model.name()),
        "created_at": rfc3339(model.info.created),
        "max_input_tokens": model.info.context,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_version_of_every_family_is_an_alias() {
        let aliases = [
            "claude-opus-4-6",
            "claude-3-5-haiku-20241022",
            "claude-sonnet-4-5[1m]",
            "sonnet",
            "anthropic/gpt-oss-20b",
        ];
        assert!(aliases.into_iter().all(is_alias));
        assert!(!["gpt-4o", "claude", "opus-mt", "my-sonnet"].into_iter().any(is_alias));
    }
}
