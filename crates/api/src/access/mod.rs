//! Who may ask what: keys, their limits, and pages of other sites.
//!
//! Without keys everybody may use everything, which is why the server listens on the loopback address unless told
//! otherwise. With keys, all but [`OPEN_PATHS`] needs one.

mod allowance;
mod caller;
mod key_file;
mod keyring;
mod origins;

use std::pin::Pin;
use std::task::{Context, Poll};

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{HeaderMap, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use hyper::body::{Frame, SizeHint};

pub(crate) use caller::Caller;
pub use key_file::{KeyEntry, KeyFile, KeyFileError, KeyLimits};
pub use keyring::Keyring;
pub use origins::{BadOrigin, Origins};

use crate::body;
use crate::error::ApiError;
use crate::settings::ApiSettings;
use crate::state::ApiState;
use allowance::Permit;

/// What needs no key: whether the server works, and what is the same on every server, such as the pages, which ask for
/// a key themselves.
const OPEN_PATHS: &[&str] = &[
    "/",
    "/anthropic",
    "/anthropic/",
    "/status",
    "/health",
    "/ready",
    "/openapi.json",
    "/favicon.ico",
    "/tandem.v1.Inference/Health",
];
/// Likewise, everything below. To gRPC, a service is a folder and its calls are what is in it.
const OPEN_FOLDERS: &[&str] = &[
    "/assets/",
    "/grpc.health.v1.Health/",
    "/grpc.reflection.v1.ServerReflection/",
    "/grpc.reflection.v1alpha.ServerReflection/",
];

/// Lets a request through if it may, and for as long as its answer takes counts it against its key.
pub(crate) async fn admit(State(state): State<ApiState>, mut request: Request, next: Next) -> Response {
    match check(&request, state.settings()) {
        Ok(admitted) => {
            request.extensions_mut().insert(admitted.caller);
            admitted.held(next.run(request).await)
        }
        Err(error) => {
            let (parts, unread) = request.into_parts();
            // A client that is still sending when the connection closes may never see the answer.
            body::discard(&parts.headers, unread, state.settings()).await;
            error.into_response()
        }
    }
}

/// A request that may come in.
pub(crate) struct Admitted {
    pub caller: Caller,
    permit: Option<Permit>,
}

impl Admitted {
    /// The answer to the request, which counts until it is sent or dropped.
    pub(crate) fn held(self, response: Response) -> Response {
        match self.permit {
            Some(permit) => response.map(|body| Body::new(Held { body, _permit: permit })),
            None => response,
        }
    }
}

/// Whether a request may come in, and whose it is.
pub(crate) fn check(request: &Request, settings: &ApiSettings) -> Result<Admitted, ApiError> {
    let (headers, path) = (request.headers(), request.uri().path());
    if !request.method().is_safe() && !settings.cors_origins.admit(headers) {
        return Err(ApiError::cross_site());
    }
    match &settings.keys {
        Some(keys) if needs_key(path, settings) => {
            let key = keys.find(&given_keys(headers)).ok_or_else(|| no_key(headers))?;
            tracing::Span::current().record("key", key.name());
            let permit = key.take(std::time::Instant::now())?;
            Ok(Admitted { caller: key.caller(), permit: Some(permit) })
        }
        _ => Ok(Admitted { caller: Caller::default(), permit: None }),
    }
}

/// Whether a request of this path needs a key, where any does.
pub(crate) fn needs_key(path: &str, settings: &ApiSettings) -> bool {
    let open = OPEN_PATHS.contains(&path) || OPEN_FOLDERS.iter().any(|folder| path.starts_with(folder));
    !(open || settings.open_metrics && path == "/metrics")
}

/// What a request offers as keys: OpenAI's clients send a bearer token, Anthropic's `x-api-key`, and some both.
fn given_keys(headers: &HeaderMap) -> Vec<&[u8]> {
    let bearer = headers.get(header::AUTHORIZATION).map(|value| value.as_bytes()).and_then(|value| {
        let (scheme, token) = value.split_at_checked("Bearer ".len())?;
        scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
    });
    bearer.into_iter().chain(headers.get("x-api-key").map(|value| value.as_bytes())).collect()
}

fn no_key(headers: &HeaderMap) -> ApiError {
    match given_keys(headers)[..] {
        [] => ApiError::unauthorized("missing_api_key", "this server needs an API key: 'Authorization: Bearer KEY'"),
        _ => ApiError::unauthorized("invalid_api_key", "this server does not know the API key that was sent"),
    }
}

/// A response body that counts against a key until it is sent or dropped.
struct Held {
    body: Body,
    _permit: Permit,
}

impl hyper::body::Body for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn keys_are_found_where_clients_put_them() {
        let keys = |pairs: &[(&'static str, &'static str)]| {
            let headers = pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value)));
            let headers: HeaderMap = headers.collect();
            let given = given_keys(&headers);
            given.into_iter().map(|key| String::from_utf8(key.to_vec()).unwrap()).collect::<Vec<_>>()
        };
        assert_eq!(keys(&[("authorization", "Bearer abc")]), ["abc"]);
        assert_eq!(keys(&[("authorization", "bearer  abc ")]), ["abc"]);
        assert_eq!(keys(&[("authorization", "Basic abc")]), [""; 0]);
        assert_eq!(keys(&[("authorization", "Bearer")]), [""; 0]);
        assert_eq!(keys(&[("x-api-key", "def")]), ["def"]);
        assert_eq!(keys(&[("authorization", "Bearer abc"), ("x-api-key", "def")]), ["abc", "def"]);
    }

    #[test]
    fn only_what_tells_nothing_is_open() {
        let settings = ApiSettings::default();
        for path in ["/", "/status", "/health", "/ready", "/openapi.json", "/assets/chat.js"] {
            assert!(!needs_key(path, &settings), "{path}");
        }
        for path in ["/v1/models", "/metrics", "/version", "/status.json", "/v1/chat/completions", "/nothing", "//"] {
            assert!(needs_key(path, &settings), "{path}");
        }
        assert!(!needs_key("/metrics", &ApiSettings { open_metrics: true, ..settings }));
    }
}
