//! The model by the names that requests may use.

use serde_json::Value;

use crate::body;
use crate::error::ApiError;
use crate::settings::{ApiSettings, ModelInfo};

/// The tag of a name that has none, to Ollama's clients.
pub(crate) const DEFAULT_TAG: &str = ":latest";

/// A model and its names.
pub(crate) struct ServedModel {
    pub info: ModelInfo,
    /// At least one; the first is the one that replies carry.
    names: Vec<String>,
}

impl ServedModel {
    /// The model under the names that it has of itself and those of the settings.
    pub(crate) fn new(info: ModelInfo, settings: &ApiSettings) -> Self {
        let name = settings.served_model_name.clone().unwrap_or_else(|| info.id.clone());
        let mut names = vec![name];
        let others = info.aliases.iter().chain(&settings.model_aliases).cloned();
        for alias in others.chain(family_name(&info.id)) {
            if !names.contains(&alias) {
                names.push(alias);
            }
        }
        Self { info, names }
    }

    /// The name that replies carry.
    pub(crate) fn name(&self) -> &str {
        &self.names[0]
    }

    /// All names that requests may use, the first being [`ServedModel::name`].
    pub(crate) fn names(&self) -> &[String] {
        &self.names
    }

    /// Checks the `model` of a request; none means the one served.
    pub(crate) fn check_request(&self, request: &Value) -> Result<(), ApiError> {
        match &request["model"] {
            Value::Null => Ok(()),
            Value::String(name) => self.check_name(name),
            other => {
                let message = format!("'model' is {}; a string is expected", body::kind(other));
                Err(ApiError::invalid_type("model", message))
            }
        }
    }

    /// Checks that `name` is one of the model's, or one with the tag that Ollama's clients give every name.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), ApiError> {
        let untagged = name.strip_suffix(DEFAULT_TAG).unwrap_or(name);
        match self.names.iter().any(|known| known == name || known == untagged) {
            true => Ok(()),
            false => Err(ApiError::model_not_found(name, self.name())),
        }
    }

    /// Identifies the software and the model, as OpenAI's `system_fingerprint` does.
    pub(crate) fn fingerprint(&self) -> String {
        format!("tandem-{}-{}", env!("CARGO_PKG_VERSION"), self.info.id)
    }
}

/// What Ollama's clients call the two models; they ask for them by these names alone.
fn family_name(id: &str) -> Option<String> {
    let size = ["20b", "120b"].into_iter().find(|size| id.ends_with(&format!("gpt-oss-{size}")))?;
    Some(format!("gpt-oss:{size}"))
}
