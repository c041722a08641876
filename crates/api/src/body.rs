//! Request bodies: bytes to JSON to types, with errors that say where.

use axum::body::Body;
use axum::http::{HeaderMap, header};
use http_body_util::BodyExt;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::timeout;

use crate::blocking::blocking;
use crate::error::ApiError;
use crate::settings::ApiSettings;
use crate::strict::Strict;

/// How much of a refused body is read away, in multiples of the limit: a client that is still sending when the
/// connection closes may never see the answer.
const DISCARD_FACTOR: usize = 4;

/// Reads a body whole and as JSON, within the settings' limits of size and time.
pub(crate) async fn read(headers: &HeaderMap, body: Body, settings: &ApiSettings) -> Result<Value, ApiError> {
    let bytes = bytes(headers, body, settings).await?;
    blocking(move || parse(&bytes)).await
}

/// Reads a body whole, within the same limits.
pub(crate) async fn bytes(headers: &HeaderMap, body: Body, settings: &ApiSettings) -> Result<Vec<u8>, ApiError> {
    timeout(settings.body_timeout, collect(headers, body, settings.body_bytes_max))
        .await
        .map_err(|_| ApiError::body_timeout(settings.body_timeout.as_secs()))?
}

/// Reads a body away, within the same limits, unless its sender waits to be told to send it.
pub(crate) async fn discard(headers: &HeaderMap, mut body: Body, settings: &ApiSettings) {
    if headers.contains_key(header::EXPECT) {
        return;
    }
    let read_away = async {
        let mut left = settings.body_bytes_max;
        while let Some(Ok(frame)) = body.frame().await {
            let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, |data| data.len())) else { return };
            left = rest;
        }
    };
    // Whether it was read to its end matters to the client alone.
    let _ = timeout(settings.body_timeout, read_away).await;
}

/// The JSON object in `bytes`.
pub(crate) fn parse(bytes: &[u8]) -> Result<Value, ApiError> {
    let text = std::str::from_utf8(bytes).map_err(|error| {
        ApiError::invalid_body(format!("the body is not UTF-8 from byte {} on", error.valid_up_to()))
    })?;
    if text.trim_ascii().is_empty() {
        return Err(ApiError::invalid_body("the body is empty; a JSON object is expected"));
    }
    let value: Value = serde_json::from_str(text)
        .map_err(|error| ApiError::invalid_body(format!("the body is not valid JSON: {error}")))?;
    match value {
        Value::Object(_) => Ok(value),
        other => Err(ApiError::invalid_body(format!("the body is {}; a JSON object is expected", kind(&other)))),
    }
}

/// Reads a type out of JSON; an error names the field. Fields that the type does not have are ignored.
pub(crate) fn typed<'a, T: Deserialize<'a>>(value: &'a Value) -> Result<T, ApiError> {
    serde_path_to_error::deserialize(Strict(value)).map_err(|error| {
        let path = error.path().to_string();
        let reason = readable(&error.inner().to_string());
        match missing_field(&reason) {
            Some(field) if path == "." => ApiError::missing(field),
            Some(field) => ApiError::missing(format!("{path}.{field}")),
            None if path == "." => ApiError::invalid_body(format!("invalid body: {reason}")),
            None => ApiError::invalid_type(path.clone(), format!("invalid value for '{path}': {reason}")),
        }
    })
}

/// What a JSON value is, in a sentence.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

async fn collect(headers: &HeaderMap, mut body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
    let mut bytes = Vec::with_capacity(announced.unwrap_or(0).min(limit));
    let mut received = 0usize;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| ApiError::invalid_body(format!("the body could not be read: {error}")))?;
        let Ok(data) = frame.into_data() else { continue };
        received = received.saturating_add(data.len());
        if received <= limit {
            bytes.extend_from_slice(&data);
        } else if received > limit.saturating_mul(DISCARD_FACTOR) {
            break;
        }
    }
    if received > limit { Err(ApiError::body_too_large(limit)) } else { Ok(bytes) }
}

/// serde's message with JSON's names for types.
fn readable(reason: &str) -> String {
    const NAMES: [(&str, &str); 6] = [
        ("expected f64", "expected a number"),
        ("expected i64", "expected an integer"),
        ("expected i128", "expected an integer"),
        ("expected u32", "expected a token id"),
        ("expected a sequence", "expected an array"),
        ("expected a map", "expected an object"),
    ];
    let found = NAMES.iter().find(|(name, _)| reason.ends_with(name));
    found.map_or(reason.to_string(), |(name, plain)| format!("{}{plain}", &reason[..reason.len() - name.len()]))
}

fn missing_field(reason: &str) -> Option<&str> {
    reason.strip_prefix("missing field `")?.strip_suffix('`')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[expect(dead_code)]
    struct Outer {
        list: Vec<Inner>,
        number: Option<f64>,
        whole: Option<i64>,
    }

    #[derive(Debug, Deserialize)]
    #[expect(dead_code)]
    struct Inner {
        name: String,
    }

    fn fault(body: &str) -> (String, Value) {
        let error = parse(body.as_bytes()).and_then(|value| typed::<Outer>(&value).map(drop)).unwrap_err();
        assert_eq!(error.status(), 400);
        let body = error.body();
        (body["error"]["message"].as_str().unwrap().to_string(), body["error"]["param"].clone())
    }

    #[test]
    fn syntax_errors_say_where() {
        let (message, _) = fault("{\"list\": [\n1,, 2]}");
        assert!(message.contains("line 2 column 3"), "{message}");
        assert!(fault("").0.contains("empty"));
        assert!(fault("[1]").0.contains("an array"));
        assert!(parse(b"{\"a\": \"\xff\"}").unwrap_err().to_string().contains("byte 7"));
        assert!(fault(&"[".repeat(100_000)).0.contains("recursion limit"));
    }

    #[test]
    fn type_errors_name_the_field() {
        let (message, param) = fault(r#"{"list": [{"name": "a"}, {"name": 1}]}"#);
        assert_eq!(param, "list[1].name");
        assert!(message.contains("expected a string"), "{message}");
        assert_eq!(fault(r#"{"list": [{}]}"#).1, "list[0].name");
        assert_eq!(fault("{}").1, "list");
        let (message, param) = fault(r#"{"list": [], "number": "1"}"#);
        assert_eq!((param.as_str(), message.ends_with("expected a number")), (Some("number"), true), "{message}");
        let (message, _) = fault(r#"{"list": [], "whole": 1.5}"#);
        assert!(message.ends_with("expected an integer"), "{message}");
        assert_eq!(fault(r#"{"list": {}}"#).0, "invalid value for 'list': invalid type: map, expected an array");
    }
}
