//! What can go wrong.

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt;

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The client's own settings cannot be used.
    #[error("{what}: {source}")]
    Setup {
        /// Which setting.
        what: String,
        /// What is wrong with it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no connection to the server, or no longer.
    #[error("no connection to the server: {status}")]
    Connection {
        /// What the transport says.
        status: Box<Status>,
    },
    /// A field of the request cannot be used.
    #[error("{message}")]
    Invalid {
        /// Its place, as in `messages[0].content`, where there is one.
        field: Option<String>,
        /// What is wrong with it.
        message: String,
    },
    /// Prompt and output together exceed the model's context.
    #[error("{message}")]
    TooLong {
        /// The figures.
        message: String,
    },
    /// No such model is served.
    #[error("{message}")]
    NotFound {
        /// Which.
        message: String,
    },
    /// The server wants an API key that it knows.
    #[error("{message}")]
    Unauthenticated {
        /// What was wrong with the one sent, if any.
        message: String,
    },
    /// The queue is full, or the key has used up what it may.
    #[error("{message}")]
    Busy {
        /// What is used up.
        message: String,
        /// When to try again; never where it would be no use, as with a request that is too large.
        retry_after: Option<Duration>,
    },
    /// The model is still loading, or the server is going down.
    #[error("{message}")]
    Unavailable {
        /// Which.
        message: String,
        /// When to try again.
        retry_after: Option<Duration>,
    },
    /// The call's deadline has passed, or the server's time limit.
    #[error("the deadline has passed")]
    DeadlineExceeded,
    /// The server ended the call because its events were not read in time.
    #[error("{message}")]
    Cancelled {
        /// What the server says.
        message: String,
    },
    /// The model or the server failed.
    #[error("{message}")]
    Failed {
        /// How.
        message: String,
        /// gRPC's name for it.
        code: Code,
    },
    /// A stream ended before its last event.
    #[error("the stream ended in the middle")]
    Incomplete,
}

impl Error {
    pub(crate) fn setup(what: String, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        Self::Setup { what, source: source.into() }
    }

    /// Whether the same call may succeed later, and how soon at the earliest.
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Connection { .. } => Some(Duration::ZERO),
            Self::Busy { retry_after, .. } | Self::Unavailable { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        let message = status.message().to_string();
        let retry_after = status.get_details_retry_info().and_then(|retry| retry.retry_delay);
        // What the server itself says has a reason.
        let is_servers = status.get_details_error_info().is_some();
        match status.code() {
            Code::InvalidArgument => {
                let violations = status.get_details_bad_request().map(|request| request.field_violations);
                let field = violations.and_then(|violations| violations.into_iter().next()).map(|first| first.field);
                Self::Invalid { field, message }
            }
            Code::OutOfRange => Self::TooLong { message },
            Code::NotFound => Self::NotFound { message },
            Code::Unauthenticated => Self::Unauthenticated { message },
            Code::ResourceExhausted => Self::Busy { message, retry_after },
            Code::Unavailable if is_servers => Self::Unavailable { message, retry_after },
            Code::Unavailable => Self::Connection { status: Box::new(status) },
            Code::DeadlineExceeded => Self::DeadlineExceeded,
            // The transport says so when the deadline passes on this side first.
            Code::Cancelled if !is_servers && message.contains("Timeout expired") => Self::DeadlineExceeded,
            Code::Cancelled => Self::Cancelled { message },
            code => Self::Failed { message, code },
        }
    }
}
