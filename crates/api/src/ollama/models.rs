//! The model as Ollama's clients see it: `/api/version`, `tags`, `ps`, `show`, `pull`, and `embed`, which it cannot.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use axum::Json;
use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::body;
use crate::date::{rfc3339, unix_seconds};
use crate::error::ApiError;
use crate::protocol::Protocol;
use crate::served_model::{DEFAULT_TAG, ServedModel};
use crate::sse;
use crate::state::ApiState;

/// The release of Ollama whose API this follows: clients ask before they use what is newer.
const OLLAMA_VERSION: &str = "0.14.0";
/// How long the model is said to stay loaded, which is for as long as the server runs.
const STAYS: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

/// A request that names a model, in its new or its old way.
#[derive(Debug, Deserialize)]
struct NamedFields {
    model: Option<String>,
    name: Option<String>,
    stream: Option<bool>,
}

/// The version of the API, and of this software.
pub(super) async fn version() -> Json<Value> {
    Json(json!({"version": OLLAMA_VERSION, "tandem": env!("CARGO_PKG_VERSION")}))
}

/// The models that there are: one.
pub(super) async fn tags(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    Ok(Json(json!({"models": [entry(&served.model)]})))
}

/// The models that are loaded: the same one.
pub(super) async fn running(State(state): State<ApiState>) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    let mut entry = entry(&served.model);
    entry["expires_at"] = json!(rfc3339(unix_seconds() + STAYS.as_secs()));
    entry["size_vram"] = json!(0);
    entry["context_length"] = json!(served.model.info.context);
    Ok(Json(json!({"models": [entry]})))
}

/// What the model is and can.
pub(super) async fn show(State(state): State<ApiState>, request: Request) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    let (model, _) = named(&state, request).await?;
    check_name(&served.model, &model)?;
    let info = &served.model.info;
    Ok(Json(json!({
        "license": "",
        "modelfile": format!("FROM {}", name(&served.model)),
        "parameters": "",
        "template": "",
        "details": details(&served.model),
        "model_info": {
            "general.architecture": "gptoss",
            "general.basename": info.id,
            "general.parameter_count": info.parameters,
            "gptoss.context_length": info.context,
        },
        "capabilities": ["completion", "tools", "thinking"],
        "modified_at": rfc3339(info.created),
    })))
}

/// Says that the model that is loaded is there. Others cannot be fetched.
pub(super) async fn pull(State(state): State<ApiState>, request: Request) -> Result<Response, ApiError> {
    let served = state.served()?;
    let (model, stream) = named(&state, request).await?;
    check_name(&served.model, &model)?;
    if !stream {
        return Ok(Json(json!({"status": "success"})).into_response());
    }
    let keep_alive = state.settings().keep_alive;
    Ok(sse::response(Protocol::Ollama, keep_alive, |lines| async move {
        for status in ["pulling manifest", "success"] {
            lines.send_line(&json!({ "status": status })).await?;
        }
        Ok(())
    }))
}

/// There are no embeddings.
pub(super) async fn embed() -> ApiError {
    ApiError::unsupported("model", "this model writes text; it has no embeddings. Use an embedding model elsewhere.")
}

/// The name of the model in this protocol.
pub(super) fn name(model: &ServedModel) -> String {
    let family = model.names().iter().find(|name| name.starts_with("gpt-oss:"));
    family.cloned().unwrap_or_else(|| model.name().to_string() + DEFAULT_TAG)
}

/// Checks that `name` is one of the model's, with a tag or without.
pub(super) fn check_name(model: &ServedModel, name: &str) -> Result<(), ApiError> {
    let untagged = name.strip_suffix(DEFAULT_TAG).unwrap_or(name);
    // The family's name without a tag is its smaller model's, and there is only one to mean.
    if untagged == "gpt-oss" && self::name(model).starts_with("gpt-oss:") { Ok(()) } else { model.check_name(name) }
}

async fn named(state: &ApiState, request: Request) -> Result<(String, bool), ApiError> {
    let (parts, body) = request.into_parts();
    let value = body::read(&parts.headers, body, state.settings()).await?;
    let fields: NamedFields = body::typed(&value)?;
    let name = fields.model.or(fields.name).ok_or_else(|| ApiError::missing("model"))?;
    Ok((name, fields.stream.unwrap_or(true)))
}

fn entry(model: &ServedModel) -> Value {
    let name = name(model);
    json!({
        "name": name,
        "model": name,
        "modified_at": rfc3339(model.info.created),
        "size": model.info.checkpoint_bytes,
        "digest": digest(model),
        "details": details(model),
    })
}

fn details(model: &ServedModel) -> Value {
    json!({
        "parent_model": "",
        "format": "safetensors",
        "family": "gptoss",
        "families": ["gptoss"],
        "parameter_size": parameter_size(model.info.parameters),
        "quantization_level": "MXFP4",
    })
}

/// Something of a digest's form that is the same for the same model: clients tell models apart by it.
fn digest(model: &ServedModel) -> String {
    let part = |part: u8| {
        let mut hasher = DefaultHasher::new();
        (part, &model.info.id, model.info.checkpoint_bytes, model.info.parameters).hash(&mut hasher);
        format!("{:016x}", hasher.finish())
    };
    (0..4).map(part).collect()
}

/// A count of parameters as Ollama writes it: `20.9B`, `1.2M`.
fn parameter_size(parameters: u64) -> String {
    let (unit, letter) = if parameters >= 1_000_000_000 { (1e9, 'B') } else { (1e6, 'M') };
    format!("{:.1}{letter}", parameters as f64 / unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::{ApiSettings, ModelInfo};

    fn model(id: &str) -> ServedModel {
        ServedModel::new(ModelInfo { id: id.into(), ..ModelInfo::default() }, &ApiSettings::default())
    }

    #[test]
    fn names() {
        for (id, expected) in
            [("gpt-oss-20b", "gpt-oss:20b"), ("gpt-oss-120b", "gpt-oss:120b"), ("demo", "demo:latest")]
        {
            let model = model(id);
            assert_eq!(name(&model), expected);
            for accepted in [id, expected, &format!("{id}:latest")] {
                assert!(check_name(&model, accepted).is_ok(), "{accepted}");
            }
        }
        assert!(check_name(&model("gpt-oss-20b"), "gpt-oss").is_ok());
        assert!(check_name(&model("gpt-oss-20b"), "gpt-oss:120b").is_err());
        assert!(check_name(&model("demo"), "gpt-oss").is_err());
    }

    #[test]
    fn sizes() {
        assert_eq!(parameter_size(20_914_757_184), "20.9B");
        assert_eq!(parameter_size(5_250_000), "5.2M");
    }
}
