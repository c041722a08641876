//! The response object.

use serde_json::{Map, Value, json};

use super::output::Output;
use crate::error::ApiError;
use crate::usage::Tally;

/// How far a response has got.
#[derive(Clone, Debug)]
pub(super) enum Status {
    Queued,
    InProgress,
    Completed,
    /// Out of tokens.
    Incomplete,
    Failed(ApiError),
}

/// What stays the same of a response from its first event to its last.
pub(super) struct ResponseHead {
    pub id: String,
    pub created: u64,
    pub model: String,
    /// The request's settings, which the response repeats.
    pub echo: Map<String, Value>,
}

impl Status {
    pub(super) fn as_str(&self) -> &'static str {
        match self {
            Self::Queued => "queued",
            Self::InProgress => "in_progress",
            Self::Completed => "completed",
            Self::Incomplete => "incomplete",
            Self::Failed(_) => "failed",
        }
    }
}

impl ResponseHead {
    /// The object, with the output as far as it is complete.
    pub(super) fn object(&self, status: &Status, output: &Output, tally: Tally, now: u64) -> Value {
        let ended = matches!(status, Status::Completed | Status::Incomplete);
        let error = match status {
            Status::Failed(error) => json!({"code": "server_error", "message": error.message()}),
            _ => Value::Null,
        };
        let incomplete = match status {
            Status::Incomplete => json!({"reason": "max_output_tokens"}),
            _ => Value::Null,
        };
        let mut object = json!({
            "id": self.id,
            "object": "response",
            "created_at": self.created,
            "completed_at": matches!(status, Status::Completed).then_some(now),
            "status": status.as_str(),
            "error": error,
            "incomplete_details": incomplete,
            "model": self.model,
            "output": output.items(),
            "usage": ended.then(|| usage(tally)),
        });
        if let Value::Object(fields) = &mut object {
            fields.extend(self.echo.clone());
        }
        object
    }
}

fn usage(tally: Tally) -> Value {
    json!({
        "input_tokens": tally.prompt,
        "input_tokens_details": {"cached_tokens": tally.cached, "cache_write_tokens": 0},
        "output_tokens": tally.generated,
        "output_tokens_details": {"reasoning_tokens": tally.reasoning},
        "total_tokens": u64::from(tally.prompt) + u64::from(tally.generated),
    })
}
