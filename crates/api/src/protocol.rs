//! The protocols that are spoken, as far as they differ outside their own routes: errors, and how a stream is framed.

use axum::body::Bytes;
use serde_json::{Value, json};

use crate::error::ApiError;

/// Whose language a request is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    /// OpenAI's completions, and everything that is nobody's in particular.
    OpenAi,
    /// OpenAI's responses.
    Responses,
    /// Anthropic's messages.
    Anthropic,
    /// Ollama's own API.
    Ollama,
}

impl Protocol {
    /// The protocol of a route, known or not.
    pub(crate) fn of_path(path: &str) -> Self {
        let below = |base: &str| path.strip_prefix(base).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if below("/v1/messages") || below("/anthropic") {
            Self::Anthropic
        } else if below("/v1/responses") {
            Self::Responses
        } else if below("/api") {
            Self::Ollama
        } else {
            Self::OpenAi
        }
    }

    /// An error's body in the protocol's shape. `id` is the request's, where its reader cannot know it yet.
    pub(crate) fn error_body(self, error: &ApiError, id: Option<&str>) -> Value {
        match self {
            Self::OpenAi | Self::Responses => error.body(),
            Self::Anthropic => json!({
                "type": "error",
                "error": {"type": anthropic_type(error), "message": anthropic_message(error)},
                "request_id": id,
            }),
            Self::Ollama => json!({"error": error.message()}),
        }
    }

    /// The media type of a stream.
    pub(crate) fn stream_type(self) -> &'static str {
        if self == Self::Ollama { "application/x-ndjson" } else { "text/event-stream" }
    }

    /// What keeps a silent stream open; nothing where every line means something.
    pub(crate) fn keep_alive(self) -> Option<Bytes> {
        match self {
            Self::OpenAi | Self::Responses => Some(Bytes::from_static(b": keep-alive\n\n")),
            Self::Anthropic => Some(Bytes::from_static(b"event: ping\ndata: {\"type\": \"ping\"}\n\n")),
            Self::Ollama => None,
        }
    }

    /// What ends a stream that went well, after its last event.
    pub(crate) fn done(self) -> Option<Bytes> {
        (self == Self::OpenAi).then(|| Bytes::from_static(b"data: [DONE]\n\n"))
    }

    /// The event that ends a stream that failed.
    pub(crate) fn last_words(self, error: &ApiError) -> Bytes {
        // The headers, sent long ago, said which request this is.
        let body = self.error_body(error, None);
        match self {
            Self::OpenAi => format!("data: {body}\n\n").into(),
            Self::Responses | Self::Anthropic => format!("event: error\ndata: {body}\n\n").into(),
            Self::Ollama => format!("{body}\n").into(),
        }
    }
}

/// Anthropic's name for an error of this status.
fn anthropic_type(error: &ApiError) -> &'static str {
    match error.status().as_u16() {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        408 | 504 => "timeout_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        503 => "overloaded_error",
        500.. => "api_error",
        _ => "invalid_request_error",
    }
}

/// Clients of this protocol look for two texts word by word: they then ask for less, or shorten the conversation.
fn anthropic_message(error: &ApiError) -> String {
    match error.overflow() {
        Some(over) if over.prompt >= over.context as usize => {
            format!("prompt is too long: {} tokens > {} maximum", over.prompt, over.context)
        }
        Some(over) => format!(
            "input length and `max_tokens` exceed context limit: {} + {} > {}, decrease input length or `max_tokens` and \
             try again",
            over.prompt, over.output, over.context
        ),
        None => error.message().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_tell_protocols() {
        let cases = [
            ("/v1/messages", Protocol::Anthropic),
            ("/v1/messages/count_tokens", Protocol::Anthropic),
            ("/v1/messages_of_another", Protocol::OpenAi),
            ("/anthropic/v1/nothing", Protocol::Anthropic),
            ("/v1/responses/resp_1", Protocol::Responses),
            ("/api/chat", Protocol::Ollama),
            ("/apis", Protocol::OpenAi),
            ("/", Protocol::OpenAi),
        ];
        for (path, protocol) in cases {
            assert_eq!(Protocol::of_path(path), protocol, "{path}");
        }
    }

    #[test]
    fn overflows_have_the_texts_that_clients_look_for() {
        let error = |prompt, output| ApiError::context_exceeded("m", 1000, prompt, output);
        let text = |prompt, output| Protocol::Anthropic.error_body(&error(prompt, output), None);
        assert_eq!(text(1000, 1)["error"]["message"], "prompt is too long: 1000 tokens > 1000 maximum");
        let message = text(990, 20)["error"]["message"].to_string();
        assert!(message.contains("input length and `max_tokens` exceed context limit: 990 + 20 > 1000"), "{message}");
    }
}
