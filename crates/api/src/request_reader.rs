//! Requests read but not served.

use crate::error::ApiError;
use crate::served_model::ServedModel;
use crate::settings::{ApiSettings, ModelInfo};
use crate::state::ApiState;
use crate::{body, chat_request, completion_request};

/// Does what the server does with a request's body up to the point where the engine takes over, and no more: for
/// fuzzing, and for measuring what that costs.
pub struct RequestReader {
    state: ApiState,
    model: ServedModel,
}

impl RequestReader {
    /// A reader of requests for `model`.
    pub fn new(settings: ApiSettings, model: ModelInfo) -> Self {
        let model = ServedModel::new(model, &settings);
        let (state, _) = ApiState::new(settings);
        Self { state, model }
    }

    /// The token ids of a chat completion's prompt.
    pub fn chat(&self, body: &[u8]) -> Result<Vec<u32>, ApiError> {
        let value = body::parse(body)?;
        Ok(chat_request::plan(&value, &self.state, &self.model)?.prompt)
    }

    /// The token ids of a completion's prompts.
    pub fn completion(&self, body: &[u8]) -> Result<Vec<Vec<u32>>, ApiError> {
        let value = body::parse(body)?;
        Ok(completion_request::plan(&value, &self.state, &self.model)?.prompts)
    }
}
