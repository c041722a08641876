//! What a client is told when a request cannot be served.

use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};
use tandem_engine::SubmitError;

/// An error in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` under an HTTP status.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{status}: {message}")]
pub struct ApiError {
    status: StatusCode,
    kind: &'static str,
    code: Option<&'static str>,
    param: Option<String>,
    message: String,
    retry_after_s: Option<u32>,
    overflow: Option<Overflow>,
}

/// The figures of a request that does not fit the context, in tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Overflow {
    pub prompt: usize,
    pub output: u32,
    pub context: u32,
}

impl ApiError {
    fn new(status: StatusCode, kind: &'static str, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self { status, kind, code, param: None, message: message.into(), retry_after_s: None, overflow: None }
    }

    fn invalid_request(status: StatusCode, code: Option<&'static str>, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", code, message)
    }

    fn unavailable(code: &'static str, retry_after_s: u32, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", Some(code), message);
        Self { retry_after_s: Some(retry_after_s), ..error }
    }

    /// 400: a field has the wrong type, or no type would do.
    pub(crate) fn invalid_type(param: impl Into<String>, message: impl Into<String>) -> Self {
        let message = message.into();
        Self::invalid_request(StatusCode::BAD_REQUEST, Some("invalid_type"), message).with_param(param)
    }

    /// 400: a field has a value that cannot be used.
    pub(crate) fn invalid_value(param: impl Into<String>, message: impl Into<String>) -> Self {
        let message = message.into();
        Self::invalid_request(StatusCode::BAD_REQUEST, Some("invalid_value"), message).with_param(param)
    }

    /// 400: a field that must be there is not.
    pub(crate) fn missing(param: impl Into<String>) -> Self {
        let param = param.into();
        let message = format!("missing required field '{param}'");
        Self::invalid_request(StatusCode::BAD_REQUEST, Some("missing_required_parameter"), message).with_param(param)
    }

    /// 400: a field asks for something that this server does not do.
    pub(crate) fn unsupported(param: impl Into<String>, message: impl Into<String>) -> Self {
        let message = message.into();
        Self::invalid_request(StatusCode::BAD_REQUEST, Some("unsupported_value"), message).with_param(param)
    }

    /// 400: the body is not a JSON object.
    pub(crate) fn invalid_body(message: impl Into<String>) -> Self {
        Self::invalid_request(StatusCode::BAD_REQUEST, Some("invalid_json"), message)
    }

    /// 400: prompt and output together exceed the context.
    pub(crate) fn context_exceeded(param: &str, context: u32, prompt: usize, output: u32) -> Self {
        let message = format!(
            "this model's maximum context length is {context} tokens, but {} were requested: {prompt} in the prompt and \
             {output} to generate. Please shorten the prompt or ask for fewer tokens.",
            prompt as u64 + u64::from(output)
        );
        let error = Self::invalid_request(StatusCode::BAD_REQUEST, Some("context_length_exceeded"), message);
        Self { overflow: Some(Overflow { prompt, output, context }), ..error }.with_param(param)
    }

    /// 401: a key is needed, and none that counts was sent.
    pub(crate) fn unauthorized(code: &'static str, message: &str) -> Self {
        Self::invalid_request(StatusCode::UNAUTHORIZED, Some(code), message)
    }

    /// 403: a web page of another site sent this.
    pub(crate) fn cross_site() -> Self {
        let message = "pages of other sites may not use this server; --cors-origin names those that may";
        Self::invalid_request(StatusCode::FORBIDDEN, Some("cross_site"), message)
    }

    /// 429: a key has used what it may.
    pub(crate) fn rate_limited(retry_after_s: u32, message: impl Into<String>) -> Self {
        let error = Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", Some("rate_limit_exceeded"), message);
        Self { retry_after_s: Some(retry_after_s), ..error }
    }

    /// 404: no such model is served.
    pub(crate) fn model_not_found(name: &str, served: &str) -> Self {
        let message = format!("the model '{name}' does not exist; this server has '{served}'");
        Self::invalid_request(StatusCode::NOT_FOUND, Some("model_not_found"), message).with_param("model")
    }

    /// 400: the response that a request goes on from is not stored, or no longer.
    pub(crate) fn previous_response_not_found(id: &str) -> Self {
        let message =
            format!("the previous response '{id}' is not stored here, or no longer; send the whole conversation");
        let error = Self::invalid_request(StatusCode::BAD_REQUEST, Some("previous_response_not_found"), message);
        error.with_param("previous_response_id")
    }

    /// 404: no such response is stored.
    pub(crate) fn response_not_found(id: &str) -> Self {
        let message = format!("response with id '{id}' not found: it was not stored, or is no longer");
        Self::invalid_request(StatusCode::NOT_FOUND, Some("response_not_found"), message).with_param("response_id")
    }

    /// 404: no such route.
    pub(crate) fn unknown_route(method: &str, path: &str) -> Self {
        Self::invalid_request(StatusCode::NOT_FOUND, Some("unknown_url"), format!("unknown URL: {method} {path}"))
    }

    /// 405: the route exists, for other methods.
    pub(crate) fn method_not_allowed(method: &str, path: &str) -> Self {
        let message = format!("{method} is not allowed on {path}; the allow header lists what is");
        Self::invalid_request(StatusCode::METHOD_NOT_ALLOWED, Some("method_not_allowed"), message)
    }

    /// 408: the client did not send its body in time.
    pub(crate) fn body_timeout(seconds: u64) -> Self {
        let message = format!("the request body did not arrive within {seconds} s");
        Self::invalid_request(StatusCode::REQUEST_TIMEOUT, Some("request_timeout"), message)
    }

    /// 408: the client did not send its headers in time.
    pub(crate) fn header_timeout(seconds: u64) -> Self {
        let message = format!("the request's headers did not arrive within {seconds} s");
        Self::invalid_request(StatusCode::REQUEST_TIMEOUT, Some("request_timeout"), message)
    }

    /// 413: the body is larger than the settings allow.
    pub(crate) fn body_too_large(limit_bytes: usize) -> Self {
        let message = format!("the request body exceeds the limit of {limit_bytes} bytes");
        Self::invalid_request(StatusCode::PAYLOAD_TOO_LARGE, Some("request_too_large"), message)
    }

    /// 503: the model is not loaded yet.
    pub(crate) fn loading() -> Self {
        Self::unavailable("model_loading", 5, "the model is still loading; /ready answers 200 once it is there")
    }

    /// 503: the server is going down.
    pub(crate) fn shutting_down() -> Self {
        Self::unavailable("shutting_down", 10, "the server is shutting down")
    }

    /// 503: the engine takes no requests.
    pub(crate) fn engine_not_running(reason: &str) -> Self {
        Self::unavailable("engine_not_running", 5, format!("the engine is not running: {reason}"))
    }

    /// 504: the client's own deadline has passed.
    pub(crate) fn deadline_exceeded() -> Self {
        let message = "the deadline that came with the request has passed";
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", Some("deadline_exceeded"), message)
    }

    /// 504: the request ran into the time limit.
    pub(crate) fn time_limit(seconds: u64) -> Self {
        let message = format!("the request was ended after the time limit of {seconds} s");
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", Some("time_limit"), message)
    }

    /// For the end of a stream: the client reads more slowly than the model writes.
    pub(crate) fn slow_reader() -> Self {
        let message = "the stream was ended: its reader fell too far behind the model";
        Self::invalid_request(StatusCode::REQUEST_TIMEOUT, Some("slow_reader"), message)
    }

    /// 500: the model failed.
    pub(crate) fn engine_failed(reason: &str) -> Self {
        let message = format!("the model failed while serving this request: {reason}");
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("engine_failed"), message)
    }

    /// 500: a fault of this server's own.
    pub(crate) fn internal(reason: &str) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", Some("internal_error"), reason)
    }

    /// The same error, naming the field at fault.
    pub(crate) fn with_param(self, param: impl Into<String>) -> Self {
        Self { param: Some(param.into()), ..self }
    }

    /// The same error, for protocols that call the field `from` something else.
    pub(crate) fn renamed(self, from: &str, to: &str) -> Self {
        match &self.param {
            Some(param) if param == from => {
                let message = self.message.replace(&format!("'{from}'"), &format!("'{to}'"));
                Self { param: Some(to.to_string()), message, ..self }
            }
            _ => self,
        }
    }

    /// The same error of a value that was read on its own, and whose place is `path`.
    pub(crate) fn below(self, path: &str) -> Self {
        let param = match &self.param {
            Some(param) => format!("{path}.{param}"),
            None => return self.with_param(path),
        };
        self.with_param(param)
    }

    /// The HTTP status.
    pub fn status(&self) -> StatusCode {
        self.status
    }

    /// What is wrong, in a sentence.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    /// The field at fault, if it is one.
    pub(crate) fn param(&self) -> Option<&str> {
        self.param.as_deref()
    }

    /// When to try again, where that makes sense.
    pub(crate) fn retry_after_s(&self) -> Option<u32> {
        self.retry_after_s
    }

    /// The figures, where the context is too small.
    pub(crate) fn overflow(&self) -> Option<Overflow> {
        self.overflow
    }

    /// The error code.
    pub(crate) fn code(&self) -> &'static str {
        self.code.unwrap_or(self.kind)
    }

    /// The body, which is also what a stream carries once its status is sent.
    pub(crate) fn body(&self) -> Value {
        json!({"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}})
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        match &error {
            SubmitError::QueueFull { .. } => Self::unavailable("queue_full", 1, error.to_string()),
            SubmitError::NotRunning(reason) => Self::engine_not_running(reason),
            SubmitError::PromptTooLong { prompt, context } => Self::context_exceeded("prompt", *context, *prompt, 1),
            SubmitError::EmptyPrompt | SubmitError::UnknownToken { .. } => {
                Self::invalid_value("prompt", error.to_string())
            }
        }
    }
}

impl IntoResponse for ApiError {
    /// In OpenAI's shape; the error itself goes along, for routes of other protocols to say it in theirs.
    fn into_response(self) -> Response {
        let mut response = (self.status, Json(self.body())).into_response();
        if let Some(seconds) = self.retry_after_s {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        if self.status == StatusCode::UNAUTHORIZED {
            response.headers_mut().insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response.extensions_mut().insert(self);
        response
    }
}
