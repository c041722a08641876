//! Errors as gRPC says them.

use std::collections::HashMap;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

use crate::error::ApiError;

/// Whose reasons the details speak of.
const DOMAIN: &str = "tandem";
/// Fields that the HTTP protocols have at the top of a request, and the service in a message of their own.
const SAMPLING: [&str; 14] = [
    "frequency_penalty",
    "ignore_eos",
    "logit_bias",
    "max_tokens",
    "min_p",
    "min_tokens",
    "presence_penalty",
    "repetition_penalty",
    "seed",
    "stop",
    "stop_token_ids",
    "temperature",
    "top_k",
    "top_p",
];

/// The same error, with its details.
pub(super) fn status(error: &ApiError) -> Status {
    let mut details = ErrorDetails::with_error_info(error.code(), DOMAIN, HashMap::new());
    let mut message = error.message().to_string();
    if let Some(param) = error.param() {
        let field = field(param);
        message = message.replace(&format!("'{param}'"), &format!("'{field}'"));
        details.add_bad_request_violation(field, message.clone());
    }
    if let Some(seconds) = error.retry_after_s() {
        details.set_retry_info(Some(Duration::from_secs(seconds.into())));
    }
    Status::with_error_details(code(error), message, details)
}

fn code(error: &ApiError) -> Code {
    match (error.status().as_u16(), error.code()) {
        (_, "context_length_exceeded") => Code::OutOfRange,
        (_, "slow_reader") => Code::Cancelled,
        (_, "queue_full") => Code::ResourceExhausted,
        (401, _) => Code::Unauthenticated,
        (403, _) => Code::PermissionDenied,
        (404, _) => Code::NotFound,
        (408 | 504, _) => Code::DeadlineExceeded,
        (413 | 429, _) => Code::ResourceExhausted,
        (503, _) => Code::Unavailable,
        (500.., _) => Code::Internal,
        _ => Code::InvalidArgument,
    }
}

/// A field by the name that it has in the service's messages.
fn field(param: &str) -> String {
    let first = param.split(['.', '[']).next().unwrap_or(param);
    if SAMPLING.contains(&first) {
        return format!("sampling.{param}");
    }
    let param = param.replace(".function.parameters", ".parameters_json");
    param.replace(".function.arguments", ".arguments_json").replace(".function.", ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_have_the_names_of_the_messages() {
        for (param, name) in [
            ("messages[0].content", "messages[0].content"),
            ("messages[1].tool_calls[0].function.name", "messages[1].tool_calls[0].name"),
            ("tools[0].function.parameters.items.not", "tools[0].parameters_json.items.not"),
            ("temperature", "sampling.temperature"),
            ("stop[3]", "sampling.stop[3]"),
            ("logit_bias.5", "sampling.logit_bias.5"),
            ("format.regex", "format.regex"),
        ] {
            assert_eq!(field(param), name);
        }
    }

    #[test]
    fn details_go_along() {
        let error = ApiError::invalid_value("temperature", "'temperature' is 3, but must be between 0 and 2");
        let status = status(&error);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.message(), "'sampling.temperature' is 3, but must be between 0 and 2");
        let violations = status.get_details_bad_request().unwrap().field_violations;
        assert_eq!(violations[0].field, "sampling.temperature");
        let full = super::status(&ApiError::from(tandem_engine::SubmitError::QueueFull { waiting: 1 }));
        assert_eq!(full.code(), Code::ResourceExhausted);
        assert_eq!(full.get_details_retry_info().unwrap().retry_delay, Some(Duration::from_secs(1)));
        assert_eq!(full.get_details_error_info().unwrap().reason, "queue_full");
        assert_eq!(super::status(&ApiError::loading()).code(), Code::Unavailable);
        assert_eq!(super::status(&ApiError::context_exceeded("prompt", 1, 2, 3)).code(), Code::OutOfRange);
    }
}
