//! A chat completion request: from JSON to a turn.

use serde::Deserialize;
use serde_json::Value;

use crate::body;
use crate::conversation::{self, MessageFields, ToolFields};
use crate::demands::{self, Demand};
use crate::error::ApiError;
use crate::params::{self, Params};
use crate::served_model::ServedModel;
use crate::state::ApiState;
use crate::turn::{OutputFormat, ToolChoice, Turn, TurnPlan};

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

/// The form of the answer, as typed by the client.
#[derive(Debug, Deserialize)]
pub(crate) struct FormatFields {
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

/// Reads, checks and renders a request.
pub(crate) fn plan(value: &Value, state: &ApiState, model: &ServedModel) -> Result<TurnPlan, ApiError> {
    model.check_request(value)?;
    let params = Params::read(value, &model.info, state.settings())?;
    let fields: ChatFields = body::typed(value)?;
    let logprobs = logprobs(fields.logprobs, fields.top_logprobs)?;
    turn(fields, demands::guided(value)?)?.plan(params, logprobs, state, model)
}

/// The prompt of a request, whatever its length.
pub(crate) fn prompt(value: &Value, state: &ApiState, model: &ServedModel) -> Result<Vec<u32>, ApiError> {
    Ok(turn(body::typed(value)?, None)?.render(state, model)?.tokens)
}

fn turn(fields: ChatFields, guided: Option<Demand>) -> Result<Turn, ApiError> {
    if fields.functions.as_ref().is_some_and(|functions| !functions.is_null()) {
        return Err(ApiError::unsupported("functions", "'functions' is not supported; use 'tools'"));
    }
    let effort = fields.reasoning_effort.or(fields.chat_template_kwargs.and_then(|kwargs| kwargs.reasoning_effort));
    let tools = fields.tools.unwrap_or_default();
    Ok(Turn {
        strict: conversation::strict_tools(&tools),
        guided,
        effort: conversation::effort("reasoning_effort", effort.as_deref())?,
        tools: conversation::tools(tools)?,
        tool_choice: tool_choice(fields.tool_choice.as_ref())?,
        messages: conversation::messages(fields.messages)?,
        format: fields.response_format.map_or(Ok(None), response_format)?,
        param: "messages",
    })
}

fn logprobs(wanted: Option<bool>, top: Option<i64>) -> Result<Option<u8>, ApiError> {
    let top = top.map(|top| params::top_logprobs("top_logprobs", top)).transpose()?;
    match (wanted.unwrap_or(false), top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, None | Some(0)) => Ok(None),
        (false, Some(_)) => Err(ApiError::invalid_value("top_logprobs", "'top_logprobs' needs 'logprobs' to be true")),
    }
}

fn tool_choice(value: Option<&Value>) -> Result<ToolChoice, ApiError> {
    match value {
        None | Some(Value::Null) => Ok(ToolChoice::Auto),
        Some(Value::String(choice)) => match choice.as_str() {
            "none" => Ok(ToolChoice::None),
            "auto" => Ok(ToolChoice::Auto),
            "required" => Ok(ToolChoice::Required),
            other => {
                let message =
                    format!("'tool_choice' is '{other}', but must be 'none', 'auto', 'required' or name a function");
                Err(ApiError::invalid_value("tool_choice", message))
            }
        },
        Some(object @ Value::Object(_)) => match object["type"].as_str() {
            Some("function") => match object["function"]["name"].as_str() {
                Some(name) => Ok(ToolChoice::Named(name.to_string())),
                None => Err(ApiError::missing("tool_choice.function.name")),
            },
            Some("allowed_tools") => allowed_tools(&object["allowed_tools"]),
            other => {
                let message = format!(
                    "'tool_choice.type' is '{}'; only 'function' and 'allowed_tools' are supported",
                    other.unwrap_or("")
                );
                Err(ApiError::unsupported("tool_choice.type", message))
            }
        },
        Some(other) => {
            let message = format!("'tool_choice' is {}; a string or an object is expected", body::kind(other));
            Err(ApiError::invalid_type("tool_choice", message))
        }
    }
}

/// A choice among some of the tools.
fn allowed_tools(value: &Value) -> Result<ToolChoice, ApiError> {
    let required = match value["mode"].as_str() {
        Some("auto") => false,
        Some("required") => true,
        _ => {
            let param = "tool_choice.allowed_tools.mode";
            return Err(ApiError::invalid_value(param, format!("'{param}' must be 'auto' or 'required'")));
        }
    };
    let tools = value["tools"].as_array().ok_or_else(|| ApiError::missing("tool_choice.allowed_tools.tools"))?;
    let name = |(at, tool): (usize, &Value)| match tool["function"]["name"].as_str() {
        Some(name) => Ok(name.to_string()),
        None => Err(ApiError::missing(format!("tool_choice.allowed_tools.tools[{at}].function.name"))),
    };
    let names = tools.iter().enumerate().map(name).collect::<Result<_, _>>()?;
    Ok(ToolChoice::Allowed { names, required })
}

/// The form that a response format demands; none for plain text.
pub(crate) fn response_format(format: FormatFields) -> Result<Option<OutputFormat>, ApiError> {
    match format.kind.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(OutputFormat::json_object())),
        "json_schema" => {
            let fields = format.json_schema.ok_or_else(|| ApiError::missing("response_format.json_schema"))?;
            let param = "response_format.json_schema.schema";
            let schema = conversation::schema(param, fields.schema)?;
            Ok(Some(OutputFormat { name: fields.name, description: fields.description, schema, param }))
        }
        other => {
            let message =
                format!("'response_format.type' is '{other}', but must be 'text', 'json_object' or 'json_schema'");
            Err(ApiError::invalid_value("response_format.type", message))
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn tool_choices() {
        let read = |value: Value| tool_choice(Some(&value));
        assert_eq!(read(json!("none")).unwrap(), ToolChoice::None);
        assert_eq!(read(json!(null)).unwrap(), ToolChoice::Auto);
        let named = json!({"type": "function", "function": {"name": "g"}});
        assert_eq!(read(named).unwrap(), ToolChoice::Named("g".into()));
        let param = |value: Value| read(value).unwrap_err().body()["error"]["param"].as_str().unwrap().to_string();
        assert_eq!(param(json!("maybe")), "tool_choice");
        assert_eq!(param(json!(1)), "tool_choice");
        let allowed = json!({"mode": "required", "tools": [{"type": "function", "function": {"name": "g"}}]});
        let expected = ToolChoice::Allowed { names: vec!["g".into()], required: true };
        assert_eq!(read(json!({"type": "allowed_tools", "allowed_tools": allowed})).unwrap(), expected);
        assert_eq!(param(json!({"type": "allowed_tools"})), "tool_choice.allowed_tools.mode");
        assert_eq!(param(json!({"type": "custom"})), "tool_choice.type");
        assert_eq!(param(json!({"type": "function"})), "tool_choice.function.name");
    }

    #[test]
    fn response_formats() {
        let read = |value: Value| response_format(body::typed(&value).unwrap());
        let format = json!({"type": "json_schema", "json_schema":
            {"name": "list", "schema": {"type": "array"}, "strict": true}});
        assert_eq!(read(format).unwrap().unwrap().schema, json!({"type": "array"}));
        assert_eq!(read(json!({"type": "json_object"})).unwrap(), Some(OutputFormat::json_object()));
        assert_eq!(read(json!({"type": "text"})).unwrap(), None);
        let param = |value: Value| read(value).unwrap_err().body()["error"]["param"].as_str().unwrap().to_string();
        assert_eq!(param(json!({"type": "xml"})), "response_format.type");
        assert_eq!(param(json!({"type": "json_schema"})), "response_format.json_schema");
        let odd = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": 1}});
        assert_eq!(param(odd), "response_format.json_schema.schema");
    }
}
