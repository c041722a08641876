//! The messages, system prompt and tools of a request, checked, as the conversation that harmony renders.

use std::collections::HashSet;

use serde::Deserialize;
use serde_json::Value;
use tandem_harmony::{Message, Tool, ToolCall};

use crate::body::kind;
use crate::demands::StrictTools;
use crate::error::ApiError;
use crate::sealed;

/// How the block begins that Claude Code puts first. It counts requests, so that no two prompts would begin alike.
const BILLING_HEADER: &str = "x-anthropic-billing-header:";
/// Tools that run at Anthropic's, by how their types begin. A client that offers one can do without.
const SERVER_TOOLS: [&str; 5] = ["web_search_", "web_fetch_", "code_execution_", "tool_search_tool_", "advisor_"];
/// What a tool result holds where the client sent something that the model cannot see.
const UNSEEN: &str = "was returned, which this model cannot see";

/// A message as typed by the client.
#[derive(Debug, Deserialize)]
pub(super) struct MessageFields {
    role: String,
    content: Value,
}

/// A tool as typed by the client.
#[derive(Debug, Deserialize)]
pub(super) struct ToolFields {
    #[serde(rename = "type")]
    kind: Option<String>,
    name: Option<String>,
    description: Option<String>,
    input_schema: Option<Value>,
    strict: Option<bool>,
}

/// The system prompt and the messages, each checked; tool results must answer a call before them.
pub(super) fn messages(system: Option<&Value>, fields: &[MessageFields]) -> Result<Vec<Message>, ApiError> {
    if fields.is_empty() {
        return Err(ApiError::invalid_value("messages", "messages: at least one message is required"));
    }
    let mut reader = Reader { messages: system_prompt(system)?.into_iter().collect(), calls: HashSet::new() };
    for (at, fields) in fields.iter().enumerate() {
        reader.message(&format!("messages[{at}]"), fields)?;
    }
    match reader.messages.iter().rfind(|message| !matches!(message, Message::System { .. })) {
        Some(Message::Assistant { .. }) => Err(ApiError::invalid_value(
            "messages",
            "This model does not support assistant message prefill. The conversation must end with a user message.",
        )),
        _ => Ok(reader.messages),
    }
}

/// The tools that the model may call, each checked. Tools that would run at Anthropic's are left out.
pub(super) fn tools(fields: Vec<ToolFields>) -> Result<Vec<Tool>, ApiError> {
    let mut names = HashSet::new();
    let mut tools = Vec::with_capacity(fields.len());
    for (at, fields) in fields.into_iter().enumerate() {
        let path = format!("tools[{at}]");
        match fields.kind.as_deref() {
            None | Some("custom") => {}
            Some(kind) if SERVER_TOOLS.iter().any(|server| kind.starts_with(server)) => continue,
            Some(other) => {
                let message = format!("'{path}.type' is '{other}'; this server offers tools of type 'custom' only");
                return Err(ApiError::unsupported(format!("{path}.type"), message));
            }
        }
        let name = fields.name.filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| ApiError::missing(format!("{path}.name")))?;
        let parameters = crate::conversation::schema(&format!("{path}.input_schema"), fields.input_schema)?;
        if !names.insert(name.clone()) {
            let message = format!("two tools are named '{name}': a call could not be told apart");
            return Err(ApiError::invalid_value(format!("{path}.name"), message));
        }
        tools.push(Tool { name, description: fields.description.unwrap_or_default(), parameters });
    }
    Ok(tools)
}

/// The tools whose arguments must fit their schemas.
pub(super) fn strict_tools(fields: &[ToolFields]) -> StrictTools {
    let strict = fields.iter().enumerate().filter(|(_, tool)| tool.strict == Some(true));
    strict.filter_map(|(at, tool)| Some((tool.name.clone()?, format!("tools[{at}].input_schema")))).collect()
}

/// The system prompt without the block that changes from request to request.
fn system_prompt(system: Option<&Value>) -> Result<Option<Message>, ApiError> {
    let blocks = match system {
        None | Some(Value::Null) => return Ok(None),
        Some(system) => texts("system", system)?,
    };
    let kept: Vec<&str> = blocks.into_iter().filter(|text| !text.trim_start().starts_with(BILLING_HEADER)).collect();
    let text = kept.join("\n");
    Ok((!text.is_empty()).then_some(Message::System { text }))
}

/// The conversation as far as it is read.
struct Reader {
    messages: Vec<Message>,
    /// The ids of the calls so far.
    calls: HashSet<String>,
}

impl Reader {
    fn message(&mut self, path: &str, fields: &MessageFields) -> Result<(), ApiError> {
        let content = format!("{path}.content");
        match fields.role.as_str() {
            "user" => self.user(&content, &fields.content),
            "assistant" => self.assistant(&content, &fields.content),
            "system" => {
                let text = texts(&content, &fields.content)?.join("\n");
                self.messages.push(Message::System { text });
                Ok(())
            }
            other => {
                let message = format!("'{path}.role' is '{other}', but must be 'user', 'assistant' or 'system'");
                Err(ApiError::invalid_value(format!("{path}.role"), message))
            }
        }
    }

    /// Results of tools, then what the user says.
    fn user(&mut self, path: &str, content: &Value) -> Result<(), ApiError> {
        let (mut said, mut answered) = (Vec::new(), false);
        for (path, block) in blocks(path, content)? {
            match block_type(&path, block)? {
                "tool_result" => {
                    answered = true;
                    let result = self.tool_result(&path, block)?;
                    self.messages.push(result);
                }
                _ => said.push(shown(&path, block)?),
            }
        }
        if said.is_empty() && !answered {
            return Err(ApiError::invalid_value(path, format!("'{path}' is empty")));
        }
        if !said.is_empty() {
            self.messages.push(Message::User { text: said.join("\n") });
        }
        Ok(())
    }

    fn tool_result(&self, path: &str, block: &Value) -> Result<Message, ApiError> {
        let call_id = string(path, block, "tool_use_id")?.to_string();
        if !self.calls.contains(&call_id) {
            let param = format!("{path}.tool_use_id");
            let message = format!(
                "unexpected `tool_use_id` in `tool_result` blocks: '{param}' is '{call_id}', which no `tool_use` \
                         block before it has"
            );
            return Err(ApiError::invalid_value(param, message));
        }
        let parts = match &block["content"] {
            Value::Null => Vec::new(),
            content => blocks(&format!("{path}.content"), content)?,
        };
        let parts = parts.iter().map(|(path, part)| result_part(path, part)).collect::<Result<Vec<_>, _>>()?;
        let text = parts.join("\n");
        let failed = block["is_error"] == true;
        Ok(Message::ToolResult { call_id, name: None, text: if failed { format!("Error: {text}") } else { text } })
    }

    fn assistant(&mut self, path: &str, content: &Value) -> Result<(), ApiError> {
        let (mut reasoning, mut said, mut tool_calls) = (String::new(), String::new(), Vec::new());
        for (path, block) in blocks(path, content)? {
            match block_type(&path, block)? {
                "text" => said += string(&path, block, "text")?,
                "thinking" => reasoning += &thinking(block),
                "redacted_thinking" => {
                    reasoning += &sealed::open(block["data"].as_str().unwrap_or("")).unwrap_or_default()
                }
                "tool_use" => tool_calls.push(tool_use(&path, block)?),
                // What Anthropic's own tools left behind when the conversation was there.
                kind if kind == "server_tool_use" || kind.ends_with("_tool_result") => {}
                other => return Err(unsupported_block(&path, other)),
            }
        }
        self.calls.extend(tool_calls.iter().map(|call| call.id.clone()));
        let reasoning = Some(reasoning).filter(|text| !text.is_empty());
        self.messages.push(Message::Assistant { reasoning, content: Some(said), tool_calls, tokens: None });
        Ok(())
    }
}

fn tool_use(path: &str, block: &Value) -> Result<ToolCall, ApiError> {
    let arguments = match &block["input"] {
        Value::Null => "{}".to_string(),
        input => input.to_string(),
    };
    let (id, name) = (string(path, block, "id")?, string(path, block, "name")?);
    for (field, value) in [("id", id), ("name", name)] {
        if value.is_empty() {
            let param = format!("{path}.{field}");
            return Err(ApiError::invalid_value(&param, format!("'{param}' is empty")));
        }
    }
    Ok(ToolCall { id: id.to_string(), name: name.to_string(), arguments })
}

/// What the model thought, from the block itself or, where it was not to be shown, from its signature.
fn thinking(block: &Value) -> String {
    match block["thinking"].as_str() {
        Some(text) if !text.is_empty() => text.to_string(),
        _ => sealed::open(block["signature"].as_str().unwrap_or_default()).unwrap_or_default(),
    }
}

/// A block of a user's message as text.
fn shown(path: &str, block: &Value) -> Result<String, ApiError> {
    match block_type(path, block)? {
        "text" => Ok(string(path, block, "text")?.to_string()),
        "search_result" => search_result(path, block),
        "document" => document(path, block),
        other => Err(unsupported_block(path, other)),
    }
}

/// A block of a tool's result as text. A conversation goes on after a tool returned an image: the model is told.
fn result_part(path: &str, block: &Value) -> Result<String, ApiError> {
    match block_type(path, block)? {
        "image" => Ok(format!("[an image {UNSEEN}]")),
        "document" => Ok(document(path, block).unwrap_or_else(|_| format!("[a document {UNSEEN}]"))),
        "tool_reference" => Ok(format!("[tool {}]", block["tool_name"].as_str().unwrap_or_default())),
        _ => shown(path, block),
    }
}

fn search_result(path: &str, block: &Value) -> Result<String, ApiError> {
    let content = texts(&format!("{path}.content"), &block["content"])?.join("\n");
    let [title, source] = ["title", "source"].map(|field| block[field].as_str().unwrap_or_default());
    Ok(format!("{title}\n{source}\n{content}"))
}

/// A document that is text; others are for models that see.
fn document(path: &str, block: &Value) -> Result<String, ApiError> {
    let (source, param) = (&block["source"], format!("{path}.source"));
    let text = match source["type"].as_str() {
        Some("text") => string(&param, source, "data")?.to_string(),
        Some("content") => texts(&format!("{param}.content"), &source["content"])?.join("\n"),
        other => {
            let other = other.unwrap_or("nothing");
            let message = format!("'{param}.type' is '{other}'; this model reads 'text' documents only");
            return Err(ApiError::unsupported(format!("{param}.type"), message));
        }
    };
    let title = block["title"].as_str().map(|title| format!("{title}\n")).unwrap_or_default();
    Ok(title + &text)
}

/// Content that must be text: a string or text blocks.
fn texts<'a>(path: &str, content: &'a Value) -> Result<Vec<&'a str>, ApiError> {
    if let Value::String(text) = content {
        return Ok(vec![text]);
    }
    let text = |(path, block): (String, &'a Value)| match block_type(&path, block)? {
        "text" => string(&path, block, "text"),
        other => Err(unsupported_block(&path, other)),
    };
    blocks(path, content)?.into_iter().map(text).collect()
}

/// The blocks of content, each with its path. A string is one text block, and has none inside.
fn blocks<'a>(path: &str, content: &'a Value) -> Result<Vec<(String, &'a Value)>, ApiError> {
    match content {
        Value::String(_) => Ok(vec![(path.to_string(), content)]),
        Value::Array(blocks) => {
            Ok(blocks.iter().enumerate().map(|(at, block)| (format!("{path}[{at}]"), block)).collect())
        }
        other => {
            let message = format!("'{path}' is {}; a string or an array of content blocks is expected", kind(other));
            Err(ApiError::invalid_type(path, message))
        }
    }
}

fn block_type<'a>(path: &str, block: &'a Value) -> Result<&'a str, ApiError> {
    match block {
        Value::String(_) => Ok("text"),
        block => block["type"].as_str().ok_or_else(|| ApiError::missing(format!("{path}.type"))),
    }
}

fn string<'a>(path: &str, block: &'a Value, field: &str) -> Result<&'a str, ApiError> {
    match (block, &block[field]) {
        (Value::String(text), _) | (_, Value::String(text)) => Ok(text),
        (_, Value::Null) => Err(ApiError::missing(format!("{path}.{field}"))),
        (_, other) => {
            let message = format!("'{path}.{field}' is {}; a string is expected", kind(other));
            Err(ApiError::invalid_type(format!("{path}.{field}"), message))
        }
    }
}

fn unsupported_block(path: &str, kind: &str) -> ApiError {
    let message = format!("'{path}.type' is '{kind}'; this model reads text only");
    ApiError::unsupported(format!("{path}.type"), message)
}
