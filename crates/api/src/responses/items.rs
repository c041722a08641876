//! Input items, checked, as the conversation that harmony renders.

use std::collections::HashSet;

use serde_json::Value;
use tandem_harmony::{Message, ToolCall};

use super::tools::{Called, custom_arguments};
use crate::body::kind;
use crate::error::ApiError;
use crate::sealed;

/// What the servers' own tools leave in a conversation, and what only its server could read: left out of the prompt.
const IGNORED: [&str; 14] = [
    "additional_tools", // read with the tools
    "code_interpreter_call",
    "compaction",
    "computer_call",
    "computer_call_output",
    "file_search_call",
    "image_generation_call",
    "mcp_approval_request",
    "mcp_approval_response",
    "mcp_call",
    "mcp_list_tools",
    "tool_search_call",
    "tool_search_output",
    "web_search_call",
];
/// Between two messages of the assistant's that follow each other; the parser puts the same between the model's own.
const BETWEEN_MESSAGES: &str = "\n\n";

/// The messages that items make up, instructions first. `path` names an item by its place, for errors.
pub(super) fn messages<'a>(
    instructions: Option<&str>,
    items: impl Iterator<Item = (String, &'a Value)>,
) -> Result<Vec<Message>, ApiError> {
    let system = instructions.filter(|text| !text.is_empty()).map(|text| Message::System { text: text.to_string() });
    let mut reader = Reader { messages: system.into_iter().collect(), ..Reader::default() };
    for (path, item) in items {
        reader.item(&path, item)?;
    }
    reader.end_assistant();
    Ok(reader.messages)
}

/// The conversation as far as it is read.
#[derive(Default)]
struct Reader {
    messages: Vec<Message>,
    /// What the assistant's latest items make up so far.
    assistant: Assistant,
    /// The ids of the calls so far.
    calls: HashSet<String>,
}

#[derive(Default)]
struct Assistant {
    reasoning: String,
    content: String,
    calls: Vec<ToolCall>,
}

impl Reader {
    fn item(&mut self, path: &str, item: &Value) -> Result<(), ApiError> {
        let kind = match &item["type"] {
            // The short form of a message has none.
            Value::Null => "message",
            Value::String(kind) => kind.as_str(),
            other => {
                return Err(ApiError::invalid_type(format!("{path}.type"), expected(path, "type", other, "a string")));
            }
        };
        match kind {
            "message" => self.message(path, item),
            "reasoning" => {
                let reasoning = reasoning(item);
                self.said(|assistant| assistant.reasoning += &reasoning);
                Ok(())
            }
            "function_call" | "custom_tool_call" => {
                self.call(path, item, called(path, item, kind)?, |item| match item["type"].as_str() {
                    Some("custom_tool_call") => Some(custom_arguments(item["input"].as_str()?)),
                    _ => item["arguments"].as_str().map(str::to_string),
                })
            }
            "local_shell_call" | "shell_call" => {
                self.call(path, item, plain(kind), |item| Some(item["action"].to_string()))
            }
            "apply_patch_call" => self.call(path, item, plain(kind), |item| Some(item["operation"].to_string())),
            "function_call_output"
            | "custom_tool_call_output"
            | "local_shell_call_output"
            | "shell_call_output"
            | "apply_patch_call_output" => self.output(path, item),
            kind if IGNORED.contains(&kind) => Ok(()),
            other => {
                let message = format!("'{path}.type' is '{other}', which this server does not read");
                Err(ApiError::unsupported(format!("{path}.type"), message))
            }
        }
    }

    fn message(&mut self, path: &str, item: &Value) -> Result<(), ApiError> {
        let role = string(path, item, "role")?;
        let (param, content) = (format!("{path}.content"), &item["content"]);
        let message = match role {
            "assistant" => {
                let text = text(&param, content, "")?;
                self.said(|assistant| {
                    let apart = !assistant.content.is_empty() && !text.starts_with(BETWEEN_MESSAGES);
                    assistant.content += if apart { BETWEEN_MESSAGES } else { "" };
                    assistant.content += &text;
                });
                return Ok(());
            }
            "user" => Message::User { text: text(&param, content, "\n")? },
            "system" => Message::System { text: text(&param, content, "\n")? },
            "developer" => Message::Developer { text: text(&param, content, "\n")? },
            other => {
                let message =
                    format!("'{path}.role' is '{other}', but must be 'user', 'assistant', 'system' or 'developer'");
                return Err(ApiError::invalid_value(format!("{path}.role"), message));
            }
        };
        self.end_assistant();
        self.messages.push(message);
        Ok(())
    }

    fn call(
        &mut self,
        path: &str,
        item: &Value,
        called: Called,
        arguments: impl Fn(&Value) -> Option<String>,
    ) -> Result<(), ApiError> {
        let id = string(path, item, "call_id")?.to_string();
        let arguments = arguments(item).ok_or_else(|| {
            let field = if item["type"] == "custom_tool_call" { "input" } else { "arguments" };
            ApiError::missing(format!("{path}.{field}"))
        })?;
        self.calls.insert(id.clone());
        self.assistant.calls.push(ToolCall { id, name: called.known_as(), arguments });
        Ok(())
    }

    fn output(&mut self, path: &str, item: &Value) -> Result<(), ApiError> {
        let call_id = string(path, item, "call_id")?.to_string();
        if !self.calls.contains(&call_id) {
            let message = format!("no tool call found for function call output with call_id '{call_id}'");
            return Err(ApiError::invalid_value(format!("{path}.call_id"), message));
        }
        let text = output_text(&format!("{path}.output"), &item["output"])?;
        self.end_assistant();
        self.messages.push(Message::ToolResult { call_id, name: None, text });
        Ok(())
    }

    /// Adds to the assistant's message. What comes after calls is a message of its own.
    fn said(&mut self, add: impl FnOnce(&mut Assistant)) {
        if !self.assistant.calls.is_empty() {
            self.end_assistant();
        }
        add(&mut self.assistant);
    }

    fn end_assistant(&mut self) {
        let Assistant { reasoning, content, calls } = std::mem::take(&mut self.assistant);
        if reasoning.is_empty() && content.is_empty() && calls.is_empty() {
            return;
        }
        let some = |text: String| Some(text).filter(|text| !text.is_empty());
        self.messages.push(Message::Assistant {
            reasoning: some(reasoning),
            content: some(content),
            tool_calls: calls,
            tokens: None,
        });
    }
}

fn called(path: &str, item: &Value, kind: &str) -> Result<Called, ApiError> {
    let name = string(path, item, "name")?.to_string();
    let namespace = item["namespace"].as_str().map(str::to_string);
    Ok(Called { namespace, name, custom: kind == "custom_tool_call" })
}

/// The tool behind a call of one of OpenAI's own kinds, such as `shell_call`.
fn plain(kind: &str) -> Called {
    Called { namespace: None, name: kind.trim_end_matches("_call").to_string(), custom: false }
}

/// What the model thought: in full, or sealed, or at least in summary.
fn reasoning(item: &Value) -> String {
    let joined = |field: &str| -> Option<String> {
        let texts: Vec<&str> = item[field].as_array()?.iter().filter_map(|part| part["text"].as_str()).collect();
        (!texts.is_empty()).then(|| texts.join(BETWEEN_MESSAGES))
    };
    let sealed = || item["encrypted_content"].as_str().and_then(sealed::open);
    joined("content").or_else(sealed).or_else(|| joined("summary")).unwrap_or_default()
}

/// Content as text: a string, or parts that are text.
fn text(path: &str, content: &Value, between: &str) -> Result<String, ApiError> {
    match content {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => {
            let parts = parts.iter().enumerate().map(|(at, part)| text_part(&format!("{path}[{at}]"), part));
            Ok(parts.collect::<Result<Vec<&str>, _>>()?.join(between))
        }
        Value::Null => Err(ApiError::missing(path)),
        other => {
            let message = format!("'{path}' is {}; a string or an array of content parts is expected", kind(other));
            Err(ApiError::invalid_type(path, message))
        }
    }
}

fn text_part<'a>(path: &str, part: &'a Value) -> Result<&'a str, ApiError> {
    match part["type"].as_str() {
        Some("input_text" | "output_text" | "text" | "summary_text" | "reasoning_text") => string(path, part, "text"),
        Some("refusal") => string(path, part, "refusal"),
        Some(other) => {
            let message = format!("'{path}.type' is '{other}'; this model reads text only");
            Err(ApiError::unsupported(format!("{path}.type"), message))
        }
        None => Err(ApiError::missing(format!("{path}.type"))),
    }
}

/// A tool's output as text. A conversation goes on after a tool returned an image: the model is told.
fn output_text(path: &str, output: &Value) -> Result<String, ApiError> {
    let part = |(at, part): (usize, &Value)| match part["type"].as_str() {
        Some(seen @ ("input_image" | "input_file")) => {
            let what = seen.trim_start_matches("input_");
            Ok(format!("[a tool returned a {what}, which this model cannot see]"))
        }
        Some(_) => text_part(&format!("{path}[{at}]"), part).map(str::to_string),
        // A shell's outcome: `stdout`, `stderr` and how it ended.
        None => Ok(part.to_string()),
    };
    match output {
        Value::String(text) => Ok(text.clone()),
        Value::Array(parts) => Ok(parts.iter().enumerate().map(part).collect::<Result<Vec<_>, _>>()?.join("\n")),
        Value::Null => Err(ApiError::missing(path)),
        other => Ok(other.to_string()),
    }
}

fn string<'a>(path: &str, value: &'a Value, field: &str) -> Result<&'a str, ApiError> {
    match &value[field] {
        Value::String(text) => Ok(text),
        Value::Null => Err(ApiError::missing(format!("{path}.{field}"))),
        other => Err(ApiError::invalid_type(format!("{path}.{field}"), expected(path, field, other, "a string"))),
    }
}

fn expected(path: &str, field: &str, found: &Value, expected: &str) -> String {
    format!("'{path}.{field}' is {}; {expected} is expected", kind(found))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(items: Value) -> Result<Vec<Message>, ApiError> {
        let items = items.as_array().unwrap().iter().enumerate();
        messages(None, items.map(|(at, item)| (format!("input[{at}]"), item)))
    }

    #[test]
    fn the_items_of_one_reply_are_one_message() {
        let read = read(json!([
            {"role": "user", "content": "Oslo?"},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me look."}]},
            {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": sealed::seal("\n\nWeather.")},
            {"type": "function_call", "call_id": "a", "name": "f", "namespace": "n", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "b", "name": "c", "input": "x"},
            {"type": "web_search_call", "id": "ws_1", "status": "completed"},
            {"type": "function_call_output", "call_id": "a", "output": "Rain."},
            {"type": "custom_tool_call_output", "call_id": "b", "output": [{"type": "input_text", "text": "Sun."}]},
        ]))
        .unwrap();
        let Message::Assistant { reasoning, content, tool_calls, .. } = &read[1] else { panic!("{read:?}") };
        assert_eq!((reasoning.as_deref(), content.as_deref()), (Some("Hm.\n\nWeather."), Some("Let me look.")));
        let calls: Vec<_> = tool_calls.iter().map(|call| (call.name.as_str(), call.arguments.as_str())).collect();
        assert_eq!(calls, [("n.f", "{}"), ("c", "{\"input\":\"x\"}")]);
        let result = |id: &str, text: &str| Message::ToolResult { call_id: id.into(), name: None, text: text.into() };
        assert_eq!(read[2..], [result("a", "Rain."), result("b", "Sun.")]);
    }

    #[test]
    fn reasoning_of_another_server_is_left_out() {
        let item = json!({"type": "reasoning", "summary": [], "encrypted_content": "gAAAAABo"});
        assert_eq!(read(json!([item])).unwrap(), []);
    }

    #[test]
    fn faults_are_named() {
        let cases = [
            (json!([{"role": "user"}]), "input[0].content"),
            (json!([{"content": "x"}]), "input[0].role"),
            (json!([{"type": 5}]), "input[0].type"),
            (json!([{"type": "song"}]), "input[0].type"),
            (json!([{"role": "tool", "content": "x"}]), "input[0].role"),
            (json!([{"role": "user", "content": [{"type": "input_image"}]}]), "input[0].content[0].type"),
            (json!([{"role": "user", "content": [{"type": "input_text"}]}]), "input[0].content[0].text"),
            (json!([{"type": "function_call", "name": "f", "arguments": "{}"}]), "input[0].call_id"),
            (json!([{"type": "function_call", "call_id": "a", "name": "f"}]), "input[0].arguments"),
            (json!([{"type": "custom_tool_call", "call_id": "a", "name": "f"}]), "input[0].input"),
            (json!([{"type": "function_call_output", "call_id": "a", "output": "x"}]), "input[0].call_id"),
        ];
        for (items, param) in cases {
            assert_eq!(read(items.clone()).unwrap_err().body()["error"]["param"], param, "{items}");
        }
    }
}
