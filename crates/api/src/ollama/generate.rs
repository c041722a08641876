//! `POST /api/generate`.

use axum::extract::{Request, State};
use axum::response::Response;
use serde::Deserialize;
use serde_json::Value;
use tandem_harmony::Message;

use super::chat::answer;
use super::conversation::check_images;
use super::request::Asked;
use super::stream::Shape;
use crate::body;
use crate::demands::StrictTools;
use crate::error::ApiError;
use crate::state::ApiState;

/// The fields that only generate requests have.
#[derive(Debug, Deserialize)]
struct GenerateFields {
    prompt: Option<String>,
    system: Option<String>,
    images: Option<Vec<Value>>,
    raw: Option<bool>,
    suffix: Option<String>,
    template: Option<String>,
    context: Option<Vec<u32>>,
}

/// Answers a generate request, as a stream unless it says otherwise.
pub(super) async fn create(State(state): State<ApiState>, request: Request) -> Result<Response, ApiError> {
    answer(state, request, Shape::Generate, "prompt", asked).await
}

/// The prompt as a user's message; none where it is empty.
fn asked(value: &Value) -> Result<Option<Asked>, ApiError> {
    let fields: GenerateFields = body::typed(value)?;
    check_images("", fields.images.as_ref())?;
    let set = |text: &Option<String>| text.as_ref().is_some_and(|text| !text.is_empty());
    let refused = [
        ("raw", fields.raw == Some(true), "use /v1/completions, which takes raw prompts"),
        ("suffix", set(&fields.suffix), "this model does not fill gaps"),
        ("template", set(&fields.template), "this model's format is harmony, and no other"),
        ("context", fields.context.is_some_and(|context| !context.is_empty()), "use /api/chat, and send the messages"),
    ];
    if let Some((name, _, advice)) = refused.into_iter().find(|(_, given, _)| *given) {
        return Err(ApiError::unsupported(name, format!("'{name}' is not supported: {advice}")));
    }
    let system = fields.system.filter(|text| !text.is_empty()).map(|text| Message::System { text });
    let prompt = fields.prompt.filter(|text| !text.is_empty());
    let messages = |text| system.into_iter().chain([Message::User { text }]).collect();
    Ok(prompt.map(|text| Asked { messages: messages(text), tools: Vec::new(), strict: StrictTools::new() }))
}
