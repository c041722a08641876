//! The model by the names that requests may use.

use serde_json::Value;

use crate::body;
use crate::error::ApiError;
use crate::settings::{ApiSettings, ModelInfo};

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
        for alias in info.aliases.iter().chain(&settings.model_aliases) {
            if !names.contains(alias) {
                names.push(alias.clone());
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

    /// Checks that `name` is one of the model's.
    pub(crate) fn check_name(&self, name: &str) -> Result<(), ApiError> {
        match self.names.iter().any(|known| known == name) {
            true => Ok(()),
            false => Err(ApiError::model_not_found(name, self.name())),
        }
    }

    /// Identifies the software and the model, as OpenAI's `system_fingerprint` does.
    pub(crate) fn fingerprint(&self) -> String {
        format!("tandem-{}-{}", env!("CARGO_PKG_VERSION"), self.info.id)
    }
}
