//! A chat request's messages and tools, checked, as the conversation that harmony renders.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::Value;
use tandem_harmony::{Effort, Message, Tool, ToolCall};

use crate::body::kind;
use crate::demands::StrictTools;
use crate::error::ApiError;

/// A message as typed by the client.
#[derive(Debug, Deserialize)]
pub(crate) struct MessageFields {
    pub role: String,
    pub content: Option<Value>,
    pub tool_calls: Option<Vec<ToolCallFields>>,
    pub tool_call_id: Option<String>,
    pub reasoning: Option<String>,
    pub reasoning_content: Option<String>,
}

/// A call as typed by the client.
#[derive(Debug, Deserialize)]
pub(crate) struct ToolCallFields {
    pub id: String,
    pub function: CalledFields,
}

/// What is called.
#[derive(Debug, Deserialize)]
pub(crate) struct CalledFields {
    pub name: String,
    pub arguments: Option<Value>,
}

/// A tool as typed by the client.
#[derive(Debug, Deserialize)]
pub(crate) struct ToolFields {
    #[serde(rename = "type")]
    pub kind: Option<String>,
    pub function: FunctionFields,
}

/// The function of a tool.
#[derive(Debug, Deserialize)]
pub(crate) struct FunctionFields {
    pub name: String,
    pub description: Option<String>,
    pub parameters: Option<Value>,
    pub strict: Option<bool>,
}

/// The messages, each checked; tool results must answer a call before them.
pub(crate) fn messages(fields: Vec<MessageFields>) -> Result<Vec<Message>, ApiError> {
    if fields.is_empty() {
        return Err(ApiError::invalid_value("messages", "'messages' is empty; at least one message is needed"));
    }
    let mut calls = HashSet::new();
    let mut messages = Vec::with_capacity(fields.len());
    for (at, fields) in fields.into_iter().enumerate() {
        let message = message(&format!("messages[{at}]"), fields, &calls)?;
        if let Message::Assistant { tool_calls, .. } = &message {
            calls.extend(tool_calls.iter().map(|call| call.id.clone()));
        }
        messages.push(message);
    }
    Ok(messages)
}

/// The tools, each checked; no two may have the same name.
pub(crate) fn tools(fields: Vec<ToolFields>) -> Result<Vec<Tool>, ApiError> {
    let mut names = HashSet::new();
    fields
        .into_iter()
        .enumerate()
        .map(|(at, fields)| {
            let tool = tool(&format!("tools[{at}]"), fields)?;
            if !names.insert(tool.name.clone()) {
                let message = format!("two tools are named '{}': a call could not be told apart", tool.name);
                return Err(ApiError::invalid_value(format!("tools[{at}].function.name"), message));
            }
            Ok(tool)
        })
        .collect()
}

/// The tools whose arguments must fit their schemas.
pub(crate) fn strict_tools(fields: &[ToolFields]) -> StrictTools {
    let strict = fields.iter().enumerate().filter(|(_, tool)| tool.function.strict == Some(true));
    strict.map(|(at, tool)| (tool.function.name.clone(), format!("tools[{at}].function.parameters"))).collect()
}

/// The effort by its name, in the field `param`. The model has three; what goes beyond them on either side means the
/// nearest.
pub(crate) fn effort(param: &str, name: Option<&str>) -> Result<Effort, ApiError> {
    match name {
        None | Some("medium") => Ok(Effort::Medium),
        Some("none" | "minimal" | "low") => Ok(Effort::Low),
        Some("high" | "xhigh" | "max") => Ok(Effort::High),
        Some(other) => {
            let message = format!("'{param}' is '{other}', but must be 'low', 'medium' or 'high'");
            Err(ApiError::invalid_value(param, message))
        }
    }
}

/// A JSON schema that must be there.
pub(crate) fn schema(param: &str, value: Option<Value>) -> Result<Value, ApiError> {
    match value {
        Some(schema @ Value::Object(_)) => Ok(schema),
        None | Some(Value::Null) => Err(ApiError::missing(param)),
        Some(other) => {
            let message = format!("'{param}' is {}; a JSON schema object is expected", kind(&other));
            Err(ApiError::invalid_type(param, message))
        }
    }
}

fn message(path: &str, fields: MessageFields, calls: &HashSet<String>) -> Result<Message, ApiError> {
    let content = text(&format!("{path}.content"), fields.content.as_ref())?;
    let required = |content: Option<String>| content.ok_or_else(|| ApiError::missing(format!("{path}.content")));
    match fields.role.as_str() {
        "system" => Ok(Message::System { text: required(content)? }),
        "developer" => Ok(Message::Developer { text: required(content)? }),
        "user" => Ok(Message::User { text: required(content)? }),
        "assistant" => {
            let tool_calls = fields.tool_calls.unwrap_or_default();
            let tool_calls: Vec<ToolCall> = tool_calls
                .into_iter()
                .enumerate()
                .map(|(at, call)| tool_call(&format!("{path}.tool_calls[{at}]"), call))
                .collect::<Result<_, _>>()?;
            let reasoning = fields.reasoning.or(fields.reasoning_content);
            if content.is_none() && tool_calls.is_empty() && reasoning.is_none() {
                let message = format!("'{path}' has neither 'content' nor 'tool_calls'");
                return Err(ApiError::invalid_value(format!("{path}.content"), message));
            }
            Ok(Message::Assistant { reasoning, content, tool_calls, tokens: None })
        }
        "tool" => {
            let param = format!("{path}.tool_call_id");
            let call_id = fields.tool_call_id.ok_or_else(|| ApiError::missing(&param))?;
            if !calls.contains(&call_id) {
                let message = format!("'{param}' is '{call_id}', which no assistant message before it has called");
                return Err(ApiError::invalid_value(param, message));
            }
            Ok(Message::ToolResult { call_id, name: None, text: required(content)? })
        }
        other => {
            let message =
                format!("'{path}.role' is '{other}', but must be 'system', 'developer', 'user', 'assistant' or 'tool'");
            Err(ApiError::invalid_value(format!("{path}.role"), message))
        }
    }
}

fn tool_call(path: &str, fields: ToolCallFields) -> Result<ToolCall, ApiError> {
    let arguments = match fields.function.arguments {
        None | Some(Value::Null) => "{}".to_string(),
        Some(Value::String(text)) => text,
        Some(object @ Value::Object(_)) => object.to_string(),
        Some(other) => {
            let param = format!("{path}.function.arguments");
            let message = format!("'{param}' is {}; a string of JSON is expected", kind(&other));
            return Err(ApiError::invalid_type(param, message));
        }
    };
    if fields.id.is_empty() {
        return Err(ApiError::invalid_value(format!("{path}.id"), format!("'{path}.id' is empty")));
    }
    let name = nonempty(format!("{path}.function.name"), fields.function.name)?;
    Ok(ToolCall { id: fields.id, name, arguments })
}

fn tool(path: &str, fields: ToolFields) -> Result<Tool, ApiError> {
    if let Some(other) = fields.kind.filter(|kind| kind != "function") {
        let message = format!("'{path}.type' is '{other}'; this server offers tools of type 'function' only");
        return Err(ApiError::unsupported(format!("{path}.type"), message));
    }
    let FunctionFields { name, description, parameters, .. } = fields.function;
    let param = format!("{path}.function.parameters");
    let parameters = parameters.map_or(Ok(Value::Null), |parameters| schema(&param, Some(parameters)))?;
    let name = nonempty(format!("{path}.function.name"), name)?;
    Ok(Tool { name, description: description.unwrap_or_default(), parameters })
}

fn nonempty(param: String, value: String) -> Result<String, ApiError> {
    if value.is_empty() {
        let message = format!("'{param}' is empty");
        return Err(ApiError::invalid_value(param, message));
    }
    Ok(value)
}

/// Content as text: a string, or parts of type `text`, each on a line of its own. `None` for `null`.
fn text(path: &str, content: Option<&Value>) -> Result<Option<String>, ApiError> {
    match content {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(Value::Array(parts)) if parts.is_empty() => {
            Err(ApiError::invalid_value(path, format!("'{path}' is an empty array")))
        }
        Some(Value::Array(parts)) => {
            let parts = parts.iter().enumerate().map(|(at, part)| text_part(&format!("{path}[{at}]"), part));
            Ok(Some(parts.collect::<Result<Vec<&str>, _>>()?.join("\n")))
        }
        Some(other) => {
            let message = format!("'{path}' is {}; a string or an array of content parts is expected", kind(other));
            Err(ApiError::invalid_type(path, message))
        }
    }
}

fn text_part<'a>(path: &str, part: &'a Value) -> Result<&'a str, ApiError> {
    let field = match part["type"].as_str() {
        Some("text") => "text",
        Some("refusal") => "refusal",
        Some(other) => {
            let message = format!("'{path}.type' is '{other}'; this model reads parts of type 'text' only");
            return Err(ApiError::unsupported(format!("{path}.type"), message));
        }
        None => return Err(ApiError::missing(format!("{path}.type"))),
    };
    match &part[field] {
        Value::String(text) => Ok(text),
        Value::Null => Err(ApiError::missing(format!("{path}.{field}"))),
        other => {
            let message = format!("'{path}.{field}' is {}; a string is expected", kind(other));
            Err(ApiError::invalid_type(format!("{path}.{field}"), message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::body::typed;

    fn read(value: Value) -> Result<Vec<Message>, ApiError> {
        #[derive(Deserialize)]
        struct Fields {
            messages: Vec<MessageFields>,
        }
        messages(typed::<Fields>(&json!({ "messages": value }))?.messages)
    }

    #[test]
    fn faults_are_named() {
        let call = json!({"role": "assistant", "tool_calls": [{"id": "a", "function": {"name": "f"}}]});
        let cases = [
            (json!([]), "messages"),
            (json!({}), "messages"),
            (json!("hi"), "messages"),
            (json!(["hi"]), "messages[0]"),
            (json!([{}]), "messages[0].role"),
            (json!([{"role": 5, "content": "x"}]), "messages[0].role"),
            (json!([{"role": "function", "content": "x"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": null}]), "messages[0].content"),
            (json!([{"role": "user", "content": 5}]), "messages[0].content"),
            (json!([{"role": "user", "content": []}]), "messages[0].content"),
            (json!([{"role": "user", "content": ["x"]}]), "messages[0].content[0].type"),
            (json!([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content[0].text"),
            (json!([{"role": "user", "content": [{"type": "text", "text": 1}]}]), "messages[0].content[0].text"),
            (json!([{"role": "user", "content": [{"type": "image_url"}]}]), "messages[0].content[0].type"),
            (json!([{"role": "assistant"}]), "messages[0].content"),
            (json!([{"role": "assistant", "tool_calls": [{}]}]), "messages[0].tool_calls[0].id"),
            (json!([{"role": "assistant", "tool_calls": [{"id": "a"}]}]), "messages[0].tool_calls[0].function"),
            (json!([call, {"role": "tool", "content": "x"}]), "messages[1].tool_call_id"),
            (json!([call, {"role": "tool", "tool_call_id": "b", "content": "x"}]), "messages[1].tool_call_id"),
            (json!([{"role": "tool", "tool_call_id": "a", "content": "x"}, call]), "messages[0].tool_call_id"),
            (json!([call, {"role": "tool", "tool_call_id": "a"}]), "messages[1].content"),
        ];
        for (value, param) in cases {
            let error = read(value.clone()).expect_err(&value.to_string());
            assert_eq!(
                (error.status().as_u16(), error.body()["error"]["param"].as_str()),
                (400, Some(param)),
                "{value}"
            );
        }
    }

    #[test]
    fn what_clients_send_is_read() {
        let messages = read(json!([
            {"role": "developer", "content": "d", "name": "x"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {"role": "assistant", "content": null, "reasoning_content": "r", "refusal": null, "audio": null,
             "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]},
            {"role": "tool", "tool_call_id": "1", "content": ""},
        ]))
        .unwrap();
        assert_eq!(messages[1], Message::User { text: "a\nb".into() });
        let Message::Assistant { reasoning, content, tool_calls, .. } = &messages[2] else { panic!() };
        assert_eq!((reasoning.as_deref(), content, tool_calls[0].arguments.as_str()), (Some("r"), &None, "{\"x\":1}"));
    }

    #[test]
    fn tools_must_be_functions() {
        let read = |value: Value| typed::<Vec<ToolFields>>(&value).and_then(tools);
        let param = |value: Value| read(value).unwrap_err().body()["error"]["param"].as_str().unwrap().to_string();
        assert_eq!(param(json!([{"type": "function"}])), "[0].function");
        assert_eq!(param(json!([{"type": "web_search", "function": {"name": "f"}}])), "tools[0].type");
        assert_eq!(param(json!([{"type": "function", "function": {}}])), "[0].function.name");
        assert_eq!(param(json!([{"type": "function", "function": {"name": ""}}])), "tools[0].function.name");
        let twice = json!([{"function": {"name": "f"}}, {"function": {"name": "f"}}]);
        assert_eq!(param(twice), "tools[1].function.name");
        let odd = json!([{"function": {"name": "f", "parameters": "none"}}]);
        assert_eq!(param(odd), "tools[0].function.parameters");
    }
}
