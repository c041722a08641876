//! What happens around every call: its name, its key, its deadline and its message.

use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderValue};
use axum::middleware::Next;
use axum::response::Response;
use tandem_proto::v1::inference_server::SERVICE_NAME;
use tokio::time::{Instant, timeout_at};
use tonic::{Code, Status};
use tracing::Instrument;

use super::status::status;
use crate::access;
use crate::body;
use crate::error::ApiError;
use crate::router::{RequestName, X_REQUEST_ID, name_request};
use crate::state::ApiState;

/// Deadlines beyond this are none; it keeps clocks from overflowing.
const DEADLINE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// What a handler knows of its call besides the message.
#[derive(Clone, Debug)]
pub(super) struct Call {
    pub name: String,
    pub arrived: std::time::Instant,
    /// Until when the client waits.
    pub deadline: Instant,
}

impl Call {
    /// The call of a request, and its message.
    pub(super) fn open<T>(request: tonic::Request<T>) -> Result<(Self, T), ApiError> {
        let (_, extensions, message) = request.into_parts();
        match extensions.get::<Self>() {
            Some(call) => Ok((call.clone(), message)),
            None => Err(ApiError::internal("a call came in past its middleware")),
        }
    }
}

/// Names the call, lets it in if it may, and answers it within its deadline.
pub(super) async fn around(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    let (name, span) = name_request(&mut request);
    let path = request.uri().path().to_string();
    let mut response = admit(&state, request, next).instrument(span.clone()).await;
    let code = Status::from_header_map(response.headers()).map_or(Code::Ok, |status| status.code());
    state.metrics().count_response(http_status(code));
    span.in_scope(|| match http_status(code) {
        500.. => tracing::warn!(path, ?code, "call"),
        400.. => tracing::info!(path, ?code, "call"),
        _ => tracing::debug!(path, ?code, "call"),
    });
    response.headers_mut().insert(X_REQUEST_ID, name);
    response
}

async fn admit(state: &ApiState, request: Request, next: Next) -> Response {
    match access::check(&request, state.settings()) {
        Ok(admitted) => admitted.held(within_deadline(state, request, next).await),
        Err(error) => status(&error).into_http(),
    }
}

/// Answers the call, or says that its deadline has passed. A stream's answer begins here; its events watch the deadline
/// themselves.
async fn within_deadline(state: &ApiState, request: Request, next: Next) -> Response {
    let limit = match time_limit(request.headers()) {
        Ok(limit) => limit,
        Err(error) => return status(&error).into_http(),
    };
    let deadline = Instant::now() + limit;
    let answered = timeout_at(deadline, answer(state, request, next, deadline)).await;
    answered.unwrap_or_else(|_| status(&ApiError::deadline_exceeded()).into_http())
}

async fn answer(state: &ApiState, mut request: Request, next: Next, deadline: Instant) -> Response {
    let name = request.extensions().get::<RequestName>().map_or(String::new(), |RequestName(name)| name.clone());
    request.extensions_mut().insert(Call { name, arrived: std::time::Instant::now(), deadline });
    let is_inference = request.uri().path()[1..].strip_prefix(SERVICE_NAME).is_some_and(|rest| rest.starts_with('/'));
    // Its calls have one message each, which is read under the limits that bodies have.
    if !is_inference {
        return next.run(request).await;
    }
    let (parts, body) = request.into_parts();
    match body::bytes(&parts.headers, body, state.settings()).await {
        Ok(message) => next.run(Request::from_parts(parts, Body::from(message))).await,
        Err(error) => status(&error).into_http(),
    }
}

/// How long the client waits, from the header that gRPC has for it: up to eight digits and a unit.
fn time_limit(headers: &HeaderMap) -> Result<Duration, ApiError> {
    let Some(value) = headers.get("grpc-timeout") else { return Ok(DEADLINE_MAX) };
    parse_timeout(value).map(|limit| limit.min(DEADLINE_MAX)).ok_or_else(|| {
        ApiError::invalid_value("grpc-timeout", format!("'grpc-timeout' is {value:?}; a time like 500m is expected"))
    })
}

fn parse_timeout(value: &HeaderValue) -> Option<Duration> {
    let (digits, unit) = value.to_str().ok()?.split_at_checked(value.len().checked_sub(1)?)?;
    if !(1..=8).contains(&digits.len()) || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

/// The class that the call counts in on the status page, as an HTTP status.
fn http_status(code: Code) -> u16 {
    match code {
        Code::Ok => 200,
        Code::Internal | Code::Unknown | Code::Unavailable | Code::DataLoss | Code::DeadlineExceeded => 500,
        _ => 400,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts() {
        let read = |text: &'static str| parse_timeout(&HeaderValue::from_static(text));
        assert_eq!(read("500m"), Some(Duration::from_millis(500)));
        assert_eq!(read("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(read("1u"), Some(Duration::from_micros(1)));
        for wrong in ["", "m", "1", "1s", "-1S", "+1S", "1.5S", "123456789S", " 1S"] {
            assert_eq!(read(wrong), None, "{wrong:?}");
        }
        assert_eq!(parse_timeout(&HeaderValue::from_bytes(b"1\xff").unwrap()), None);
    }
}
