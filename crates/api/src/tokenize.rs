//! `POST /tokenize` and `POST /detokenize`.

use axum::Json;
use axum::extract::{Request, State};
use serde::Deserialize;
use serde_json::{Value, json};
use tandem_harmony::Tokenizer;

use crate::blocking::blocking;
use crate::body;
use crate::chat_request;
use crate::error::ApiError;
use crate::logprobs::token_text;
use crate::params::check_tokens;
use crate::state::ApiState;
use crate::turn::check_vocabulary;

/// What to tokenize: `prompt`, as `/v1/completions` reads it, or the `messages` of a chat completion request.
#[derive(Deserialize)]
struct TokenizeFields {
    prompt: Option<String>,
    messages: Option<Value>,
    return_token_strs: Option<bool>,
}

#[derive(Deserialize)]
struct DetokenizeFields {
    tokens: Vec<u32>,
}

/// Text, or a conversation, as token ids.
pub(crate) async fn tokenize(State(state): State<ApiState>, request: Request) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    let (parts, body) = request.into_parts();
    let body = body::read(&parts.headers, body, state.settings()).await?;
    blocking(move || {
        served.model.check_request(&body)?;
        let fields: TokenizeFields = body::typed(&body)?;
        check_vocabulary(&served.model)?;
        let tokens = match (fields.prompt, fields.messages) {
            (Some(prompt), None) => Tokenizer::shared().encode_with_special(&prompt),
            (None, Some(_)) => chat_request::prompt(&body, &state, &served.model)?,
            (Some(_), Some(_)) => {
                return Err(ApiError::invalid_value("prompt", "'prompt' and 'messages' exclude each other"));
            }
            (None, None) => return Err(ApiError::missing("prompt")),
        };
        let strings = fields
            .return_token_strs
            .unwrap_or(false)
            .then(|| -> Vec<String> { tokens.iter().map(|&token| token_text(token)).collect() });
        let (count, context) = (tokens.len(), served.model.info.context);
        Ok(Json(json!({"count": count, "max_model_len": context, "tokens": tokens, "token_strs": strings})))
    })
    .await
}

/// Token ids as text.
pub(crate) async fn detokenize(State(state): State<ApiState>, request: Request) -> Result<Json<Value>, ApiError> {
    let served = state.served()?;
    let (parts, body) = request.into_parts();
    let body = body::read(&parts.headers, body, state.settings()).await?;
    blocking(move || {
        served.model.check_request(&body)?;
        let fields: DetokenizeFields = body::typed(&body)?;
        check_tokens("tokens", &fields.tokens, Tokenizer::VOCAB_SIZE as u32)?;
        Ok(Json(json!({"prompt": Tokenizer::shared().decode(&fields.tokens)})))
    })
    .await
}
