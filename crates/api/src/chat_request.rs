//! A chat completion request: from JSON to a prompt.

use serde::Deserialize;
use serde_json::{Value, json};
use tandem_harmony::{Conversation, Message, Rendered, Tokenizer, ToolNames, render};

use crate::body;
use crate::conversation::{self, MessageFields, ToolFields};
use crate::error::ApiError;
use crate::params::{self, Params};
use crate::state::{ApiState, Served};

/// The fields that only chat completions have, as typed by the client.
#[derive(Debug, Deserialize)]
struct ChatFields {
    messages: Vec<MessageFields>,
    tools: Option<Vec<ToolFields>>,
    tool_choice: Option<Value>,
    functions: Option<Value>,
    reasoning_effort: Option<String>,
    chat_template_kwargs: Option<TemplateFields>,
    response_format: Option<FormatFields>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
}

/// vLLM's way to say what a chat template should do; the effort is all that harmony's can.
#[derive(Debug, Deserialize)]
struct TemplateFields {
    reasoning_effort: Option<String>,
}

#[derive(Debug, Deserialize)]
struct FormatFields {
    #[serde(rename = "type")]
    kind: String,
    json_schema: Option<SchemaFields>,
}

#[derive(Debug, Deserialize)]
struct SchemaFields {
    name: String,
    description: Option<String>,
    schema: Option<Value>,
}

/// A chat completion request, checked and rendered.
pub(crate) struct ChatPlan {
    pub params: Params,
    /// Token ids, through the header that `tool_choice` forces, if any.
    pub prompt: Vec<u32>,
    /// The end of `prompt` that belongs to the reply: the header of a forced call.
    pub forced: Vec<u32>,
    pub tool_names: ToolNames,
    /// Alternatives per token, where log-probabilities are asked for.
    pub logprobs: Option<u8>,
    /// Most tokens to generate.
    pub output_tokens: u32,
}

/// Which tools the model may call, and whether it must.
#[derive(Debug, PartialEq)]
enum ToolChoice {
    None,
    Auto,
    Required,
    Named(String),
}

/// What harmony makes of a request.
struct RenderedChat {
    prompt: Vec<u32>,
    forced: Vec<u32>,
    tool_names: ToolNames,
}

/// Reads, checks and renders a request.
pub(crate) fn plan(value: &Value, state: &ApiState, served: &Served) -> Result<ChatPlan, ApiError> {
    served.check_model(value)?;
    let params = Params::read(value, &served.model, state.settings())?;
    let fields: ChatFields = body::typed(value)?;
    let logprobs = logprobs(fields.logprobs, fields.top_logprobs)?;
    let RenderedChat { prompt, forced, tool_names } = rendered(fields, state, served)?;
    let output_tokens = params.output_tokens("messages", prompt.len(), served.model.context)?;
    if output_tokens == 0 {
        return Err(ApiError::invalid_value("max_tokens", "'max_tokens' is 0; a reply needs at least one token"));
    }
    Ok(ChatPlan { params, prompt, forced, tool_names, logprobs, output_tokens })
}

/// The prompt of a request, whatever its length.
pub(crate) fn prompt(value: &Value, state: &ApiState, served: &Served) -> Result<Vec<u32>, ApiError> {
    Ok(rendered(body::typed(value)?, state, served)?.prompt)
}

fn rendered(fields: ChatFields, state: &ApiState, served: &Served) -> Result<RenderedChat, ApiError> {
    if fields.functions.as_ref().is_some_and(|functions| !functions.is_null()) {
        return Err(ApiError::unsupported("functions", "'functions' is not supported; use 'tools'"));
    }
    check_vocabulary(served)?;
    let effort = fields.reasoning_effort.or(fields.chat_template_kwargs.and_then(|kwargs| kwargs.reasoning_effort));
    let effort = conversation::effort(effort.as_deref())?;
    let tools = conversation::tools(fields.tools.unwrap_or_default())?;
    let choice = tool_choice(fields.tool_choice.as_ref(), tools.iter().map(|tool| tool.name.as_str()))?;
    let mut messages = conversation::messages(fields.messages)?;
    recall_tokens(&mut messages, state);
    if let Some(format) = fields.response_format {
        add_instructions(&mut messages, response_format(format)?);
    }
    // What the model does not know of it cannot call.
    let tools = if choice == ToolChoice::None { Vec::new() } else { tools };
    let conversation = Conversation { messages, tools, effort, date: state.date(), ..Conversation::default() };
    let Rendered { tokens: mut prompt, tool_names } =
        render(&conversation).map_err(|error| ApiError::invalid_value("messages", error.to_string()))?;
    let forced = forced_header(&choice, &conversation, &tool_names);
    prompt.extend_from_slice(&forced);
    Ok(RenderedChat { prompt, forced, tool_names })
}

/// Text needs the whole tokenizer; some test checkpoints have fewer rows than it has ids.
pub(crate) fn check_vocabulary(served: &Served) -> Result<(), ApiError> {
    let (vocab, needed) = (served.model.vocab as usize, Tokenizer::VOCAB_SIZE);
    if vocab >= needed {
        return Ok(());
    }
    let message = format!(
        "the model '{}' has a vocabulary of {vocab} token ids, fewer than the {needed} of the tokenizer: it cannot read \
         text. Send token ids as the 'prompt' of /v1/completions.",
        served.name()
    );
    Err(ApiError::unsupported("model", message))
}

fn logprobs(wanted: Option<bool>, top: Option<i64>) -> Result<Option<u8>, ApiError> {
    let top = top.map(|top| params::top_logprobs("top_logprobs", top)).transpose()?;
    match (wanted.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid_value("top_logprobs", "'top_logprobs' needs 'logprobs' to be true")),
    }
}

fn tool_choice<'a>(
    value: Option<&Value>,
    mut names: impl ExactSizeIterator<Item = &'a str>,
) -> Result<ToolChoice, ApiError> {
    let invalid = |message: String| Err(ApiError::invalid_value("tool_choice", message));
    let choice = match value {
        None | Some(Value::Null) => ToolChoice::Auto,
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => ToolChoice::None,
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            other => {
                return invalid(format!(
                    "'tool_choice' is '{other}', but must be 'none', 'auto', 'required' or name a function"
                ));
            }
        },
        Some(Value::Object(object)) => match object.get("type").and_then(Value::as_str) {
            Some("function") => match value.and_then(|value| value["function"]["name"].as_str()) {
                Some(name) => ToolChoice::Named(name.to_string()),
                None => return Err(ApiError::missing("tool_choice.function.name")),
            },
            other => {
                let message = format!("'tool_choice.type' is '{}'; only 'function' is supported", other.unwrap_or(""));
                return Err(ApiError::unsupported("tool_choice.type", message));
            }
        },
        Some(other) => {
            let message = format!("'tool_choice' is {}; a string or an object is expected", body::kind(other));
            return Err(ApiError::invalid_type("tool_choice", message));
        }
    };
    match &choice {
        ToolChoice::Required if names.len() == 0 => {
            invalid("'tool_choice' is 'required', but there are no 'tools'".into())
        }
        ToolChoice::Named(name) if !names.any(|known| known == name) => {
            invalid(format!("'tool_choice' names '{name}', which is not among the 'tools'"))
        }
        _ => Ok(choice),
    }
}

/// The header that makes a reply the call that `tool_choice` demands; the model writes what follows. Where it may
/// choose among several tools, the header stops before the name.
fn forced_header(choice: &ToolChoice, conversation: &Conversation, names: &ToolNames) -> Vec<u32> {
    let header = match (choice, &conversation.tools[..]) {
        (ToolChoice::Named(name), _) => call_header(&names.model_name(name)),
        (ToolChoice::Required, [only]) => call_header(&names.model_name(&only.name)),
        (ToolChoice::Required, _) => "<|channel|>commentary to=functions".to_string(),
        (ToolChoice::None | ToolChoice::Auto, _) => return Vec::new(),
    };
    Tokenizer::shared().encode_with_special(&header)
}

fn call_header(name: &str) -> String {
    format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>")
}

/// Fills in the model's own tokens of replies that are sent back as they were.
fn recall_tokens(messages: &mut [Message], state: &ApiState) {
    for message in messages {
        if let Message::Assistant { content, tool_calls, tokens, .. } = message {
            *tokens = state.replay().recall(content.as_deref().unwrap_or_default(), tool_calls);
        }
    }
}

/// The section of the developer message that harmony prescribes for a response format; empty for plain text.
fn response_format(format: FormatFields) -> Result<String, ApiError> {
    let (name, description, schema) = match format.kind.as_str() {
        "text" => return Ok(String::new()),
        "json_object" => {
            let description = "The whole answer is one JSON object.".to_string();
            ("json_object".to_string(), Some(description), json!({"type": "object"}))
        }
        "json_schema" => {
            let fields = format.json_schema.ok_or_else(|| ApiError::missing("response_format.json_schema"))?;
            let param = "response_format.json_schema.schema";
            match fields.schema {
                Some(schema @ Value::Object(_)) => (fields.name, fields.description, schema),
                None | Some(Value::Null) => return Err(ApiError::missing(param)),
                Some(other) => {
                    let message = format!("'{param}' is {}; a JSON schema object is expected", body::kind(&other));
                    return Err(ApiError::invalid_type(param, message));
                }
            }
        }
        other => {
            let message =
                format!("'response_format.type' is '{other}', but must be 'text', 'json_object' or 'json_schema'");
            return Err(ApiError::invalid_value("response_format.type", message));
        }
    };
    let comment: String = description.iter().flat_map(|text| text.lines()).map(|line| format!("// {line}\n")).collect();
    Ok(format!("# Response Formats\n\n## {name}\n\n{comment}{schema}"))
}

/// Appends a section to the developer message, or makes one.
fn add_instructions(messages: &mut Vec<Message>, section: String) {
    if section.is_empty() {
        return;
    }
    match messages.first_mut() {
        Some(Message::System { text } | Message::Developer { text }) if !text.is_empty() => {
            *text = format!("{text}\n\n{section}");
        }
        Some(Message::System { text } | Message::Developer { text }) => *text = section,
        _ => messages.insert(0, Message::Developer { text: section }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tool_choices() {
        let read = |value: Value| tool_choice(Some(&value), ["f", "g"].into_iter());
        assert_eq!(read(json!("none")).unwrap(), ToolChoice::None);
        assert_eq!(read(json!(null)).unwrap(), ToolChoice::Auto);
        let named = json!({"type": "function", "function": {"name": "g"}});
        assert_eq!(read(named).unwrap(), ToolChoice::Named("g".into()));
        let param = |value: Value| read(value).unwrap_err().body()["error"]["param"].as_str().unwrap().to_string();
        assert_eq!(param(json!("maybe")), "tool_choice");
        assert_eq!(param(json!(1)), "tool_choice");
        assert_eq!(param(json!({"type": "allowed_tools"})), "tool_choice.type");
        assert_eq!(param(json!({"type": "function"})), "tool_choice.function.name");
        assert_eq!(param(json!({"type": "function", "function": {"name": "h"}})), "tool_choice");
        assert!(tool_choice(Some(&json!("required")), [].into_iter()).is_err());
    }

    #[test]
    fn response_formats_become_a_section() {
        let read = |value: Value| response_format(body::typed(&value).unwrap());
        let format = json!({"type": "json_schema", "json_schema":
            {"name": "list", "description": "A list\nof things", "schema": {"type": "array"}, "strict": true}});
        let expected = "# Response Formats\n\n## list\n\n// A list\n// of things\n{\"type\":\"array\"}";
        assert_eq!(read(format).unwrap(), expected);
        assert_eq!(read(json!({"type": "text"})).unwrap(), "");
        let param = |value: Value| read(value).unwrap_err().body()["error"]["param"].as_str().unwrap().to_string();
        assert_eq!(param(json!({"type": "xml"})), "response_format.type");
        assert_eq!(param(json!({"type": "json_schema"})), "response_format.json_schema");
        let odd = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": 1}});
        assert_eq!(param(odd), "response_format.json_schema.schema");
        let mut messages = vec![Message::System { text: "Be brief.".into() }];
        add_instructions(&mut messages, "# X".into());
        assert_eq!(messages, [Message::System { text: "Be brief.\n\n# X".into() }]);
    }
}
