//! The messages and tools of a request, checked, as the conversation that harmony renders.

use std::collections::VecDeque;

use serde::Deserialize;
use serde_json::{Map, Value};
use tandem_harmony::{Message, ToolCall};

use crate::error::ApiError;

/// A message as typed by the client.
#[derive(Debug, Deserialize)]
pub(super) struct MessageFields {
    role: String,
    content: Option<String>,
    thinking: Option<String>,
    images: Option<Vec<Value>>,
    tool_calls: Option<Vec<ToolCallFields>>,
    tool_name: Option<String>,
    tool_call_id: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ToolCallFields {
    id: Option<String>,
    function: CalledFields,
}

#[derive(Debug, Deserialize)]
struct CalledFields {
    name: String,
    arguments: Option<Map<String, Value>>,
}

/// The messages, each checked. Calls have no ids unless the client kept ours: a result then answers the first call that
/// is still open, of the tool that it names if it names one.
pub(super) fn messages(fields: Vec<MessageFields>) -> Result<Vec<Message>, ApiError> {
    let mut reader = Reader::default();
    fields.into_iter().enumerate().map(|(at, fields)| reader.message(&format!("messages[{at}]"), fields)).collect()
}

/// Refuses images.
pub(super) fn check_images(path: &str, images: Option<&Vec<Value>>) -> Result<(), ApiError> {
    match images {
        Some(images) if !images.is_empty() => {
            let param = format!("{path}images");
            let message = format!("'{param}' is not empty; this model reads text only");
            Err(ApiError::unsupported(param, message))
        }
        _ => Ok(()),
    }
}

#[derive(Default)]
struct Reader {
    /// Calls without a result yet: id and tool.
    open: VecDeque<(String, String)>,
    calls: usize,
}

impl Reader {
    fn message(&mut self, path: &str, fields: MessageFields) -> Result<Message, ApiError> {
        check_images(&format!("{path}."), fields.images.as_ref())?;
        let text = fields.content.unwrap_or_default();
        match fields.role.as_str() {
            "system" => Ok(Message::System { text }),
            "developer" => Ok(Message::Developer { text }),
            "user" => Ok(Message::User { text }),
            "assistant" => {
                let tool_calls = fields.tool_calls.unwrap_or_default();
                let tool_calls = tool_calls.into_iter().map(|call| self.call(call)).collect();
                let reasoning = fields.thinking.filter(|text| !text.is_empty());
                Ok(Message::Assistant { reasoning, content: Some(text), tool_calls, tokens: None })
            }
            "tool" => {
                let called = |(id, tool): &(String, String)| match (&fields.tool_call_id, &fields.tool_name) {
                    (Some(wanted), _) => id == wanted,
                    (None, Some(name)) => tool == name,
                    (None, None) => true,
                };
                let at = self.open.iter().position(called);
                let (call_id, _) = at.and_then(|at| self.open.remove(at)).ok_or_else(|| {
                    let message = format!("'{path}' is a result, but no call before it waits for one");
                    ApiError::invalid_value(path, message)
                })?;
                Ok(Message::ToolResult { call_id, name: None, text })
            }
            other => {
                let message =
                    format!("'{path}.role' is '{other}', but must be 'system', 'user', 'assistant' or 'tool'");
                Err(ApiError::invalid_value(format!("{path}.role"), message))
            }
        }
    }

    fn call(&mut self, fields: ToolCallFields) -> ToolCall {
        let id = fields.id.filter(|id| !id.is_empty()).unwrap_or_else(|| format!("call {}", self.calls));
        self.calls += 1;
        self.open.push_back((id.clone(), fields.function.name.clone()));
        let arguments = Value::Object(fields.function.arguments.unwrap_or_default()).to_string();
        ToolCall { id, name: fields.function.name, arguments }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::body::typed;

    fn read(value: Value) -> Result<Vec<Message>, ApiError> {
        messages(typed(&value).unwrap())
    }

    #[test]
    fn results_find_their_calls() {
        let call = |name: &str| json!({"function": {"name": name, "arguments": {}}});
        let read = read(json!([
            {"role": "assistant", "content": "", "tool_calls": [call("f"), call("g"), call("f")]},
            {"role": "tool", "tool_name": "g", "content": "1"},
            {"role": "tool", "content": "2"},
            {"role": "tool", "tool_name": "f", "content": "3"},
        ]))
        .unwrap();
        let Message::Assistant { tool_calls, .. } = &read[0] else { panic!() };
        let answered = read[1..].iter().map(|message| match message {
            Message::ToolResult { call_id, .. } => tool_calls.iter().position(|call| call.id == *call_id).unwrap(),
            other => panic!("{other:?}"),
        });
        assert_eq!(answered.collect::<Vec<_>>(), [1, 0, 2]);
    }

    #[test]
    fn faults_are_named() {
        let cases = [
            (json!([{"role": "bot"}]), "messages[0].role"),
            (json!([{"role": "user", "content": "x", "images": ["aGk="]}]), "messages[0].images"),
            (json!([{"role": "tool", "content": "x"}]), "messages[0]"),
        ];
        for (value, param) in cases {
            assert_eq!(read(value.clone()).unwrap_err().body()["error"]["param"], param, "{value}");
        }
    }
}
