//! A responses request: from JSON to a turn.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::items;
use super::store::Text;
use super::tools::{self, Tools};
use crate::access::Caller;
use crate::body;
use crate::conversation::{effort, schema};
use crate::error::ApiError;
use crate::ids::unique_name;
use crate::params::{SamplingFields, top_logprobs};
use crate::served_model::ServedModel;
use crate::state::ApiState;
use crate::turn::{OutputFormat, Turn, TurnPlan};

/// A request as typed by the client, without what changes nothing here.
#[derive(Debug, Deserialize)]
struct ResponseFields {
    input: Option<Value>,
    instructions: Option<String>,
    previous_response_id: Option<String>,
    conversation: Option<Value>,
    prompt: Option<Value>,
    tools: Option<Vec<Value>>,
    tool_choice: Option<Value>,
    reasoning: Option<ReasoningFields>,
    text: Option<TextFields>,
    include: Option<Vec<String>>,
    top_logprobs: Option<i64>,
    store: Option<bool>,
    background: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct SamplingNames {
    max_output_tokens: Option<i64>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    stream: Option<bool>,
}

#[derive(Debug, Deserialize)]
struct ReasoningFields {
    effort: Option<String>,
}

#[derive(Debug, Deserialize)]
struct TextFields {
    format: Option<FormatFields>,
}

#[derive(Debug, Deserialize)]
struct FormatFields {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
    description: Option<String>,
    schema: Option<Value>,
}

/// A responses request, checked and rendered.
pub(super) struct ResponsePlan {
    pub turn: TurnPlan,
    pub tools: Tools,
    /// The request's settings as the response repeats them.
    pub echo: Map<String, Value>,
    /// The conversation before this request.
    pub history: Vec<Arc<Text>>,
    /// The request's own items.
    pub input: Vec<Value>,
    pub store: bool,
    pub background: bool,
    /// Reasoning items carry their text sealed, too.
    pub sealed: bool,
}

/// What a request says, before the prompt is rendered.
struct Reading {
    turn: Turn,
    tools: Tools,
    history: Vec<Arc<Text>>,
    input: Vec<Value>,
    logprobs: Option<u8>,
    store: bool,
    background: bool,
    sealed: bool,
}

/// Reads, checks and renders a request.
pub(super) fn plan(
    value: &Value,
    caller: Caller,
    state: &ApiState,
    model: &ServedModel,
) -> Result<ResponsePlan, ApiError> {
    model.check_request(value)?;
    let params = sampling(body::typed(value)?).check(&model.info, state.settings());
    let params = params.map_err(|error| error.renamed("max_tokens", "max_output_tokens"))?;
    let Reading { turn, tools, history, input, logprobs, store, background, sealed } =
        read(body::typed(value)?, caller, state)?;
    let wrong = match (background, store, params.stream) {
        (true, false, _) => "'background' needs 'store': its result could not be asked for",
        (true, _, true) => {
            "'background' and 'stream' exclude each other on this server: ask for the response by its id"
        }
        _ => "",
    };
    if !wrong.is_empty() {
        return Err(ApiError::unsupported("background", wrong));
    }
    let turn = turn.plan(params, logprobs, state, model)?;
    let mut echo = echo(value);
    echo.extend([("store".to_string(), json!(store)), ("background".to_string(), json!(background))]);
    Ok(ResponsePlan { turn, tools, echo, history, input, store, background, sealed })
}

/// The tokens of a request's prompt.
pub(super) fn count(value: &Value, caller: Caller, state: &ApiState, model: &ServedModel) -> Result<usize, ApiError> {
    model.check_request(value)?;
    Ok(read(body::typed(value)?, caller, state)?.turn.render(state, model)?.tokens.len())
}

fn sampling(names: SamplingNames) -> SamplingFields {
    SamplingFields {
        max_tokens: names.max_output_tokens,
        temperature: names.temperature,
        top_p: names.top_p,
        stream: names.stream,
        ..SamplingFields::default()
    }
}

fn read(fields: ResponseFields, caller: Caller, state: &ApiState) -> Result<Reading, ApiError> {
    for (name, value) in [("conversation", &fields.conversation), ("prompt", &fields.prompt)] {
        if value.as_ref().is_some_and(|value| !value.is_null()) {
            let message = format!("'{name}' refers to what is kept at OpenAI; send 'input', or 'previous_response_id'");
            return Err(ApiError::unsupported(name, message));
        }
    }
    let history = fields.previous_response_id.map_or(Ok(Vec::new()), |id| history(&id, caller, state))?;
    let input = input(fields.input, caller, state)?;
    let earlier: Vec<Value> = history.iter().map(|text| text.value()).collect();
    let mut tools = Tools::default();
    tools.add("tools", &fields.tools.unwrap_or_default())?;
    for item in earlier.iter().chain(&input).filter(|item| item["type"] == "additional_tools") {
        tools.add("input.tools", item["tools"].as_array().map_or(&[][..], Vec::as_slice))?;
    }
    let tool_choice = tools::choice(fields.tool_choice.as_ref(), &mut tools)?;
    let named = |list: &'static str| move |(at, item)| (format!("{list}[{at}]"), item);
    let all = earlier.iter().enumerate().map(named("previous")).chain(input.iter().enumerate().map(named("input")));
    let messages = items::messages(fields.instructions.as_deref(), all)?;
    if messages.is_empty() {
        return Err(ApiError::invalid_value("input", "'input' is empty; at least one item is needed"));
    }
    let include = fields.include.unwrap_or_default();
    let includes = |name: &str| include.iter().any(|included| included == name);
    let effort_name = fields.reasoning.and_then(|reasoning| reasoning.effort);
    Ok(Reading {
        turn: Turn {
            messages,
            tools: tools.tools.clone(),
            tool_choice,
            guided: None,
            strict: tools.strict.clone(),
            effort: effort("reasoning.effort", effort_name.as_deref())?,
            format: fields.text.and_then(|text| text.format).map_or(Ok(None), format)?,
            param: "input",
        },
        tools,
        history,
        input,
        logprobs: logprobs(fields.top_logprobs, includes("message.output_text.logprobs"))?,
        store: fields.store.unwrap_or(true),
        background: fields.background.unwrap_or(false),
        sealed: includes("reasoning.encrypted_content"),
    })
}

fn logprobs(top: Option<i64>, included: bool) -> Result<Option<u8>, ApiError> {
    let top = top.map(|top| top_logprobs("top_logprobs", top)).transpose()?;
    Ok(if included { Some(top.unwrap_or(0)) } else { top.filter(|&top| top > 0) })
}

/// The items of the conversation that the response of this id ends.
fn history(id: &str, caller: Caller, state: &ApiState) -> Result<Vec<Arc<Text>>, ApiError> {
    let mut store = state.responses();
    match store.get(id, caller) {
        Some(stored) if stored.running.is_some() => {
            let message = format!("the previous response '{id}' is not complete yet");
            Err(ApiError::invalid_value("previous_response_id", message))
        }
        Some(stored) => Ok(stored.items.clone()),
        None => Err(ApiError::previous_response_not_found(id)),
    }
}

/// The request's items, each with a type and an id; references are replaced by what they refer to.
fn input(input: Option<Value>, caller: Caller, state: &ApiState) -> Result<Vec<Value>, ApiError> {
    let items = match input {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(text)) => {
            vec![json!({"role": "user", "content": [{"type": "input_text", "text": text}]})]
        }
        Some(Value::Array(items)) => items,
        Some(other) => {
            let message = format!("'input' is {}; a string or an array of items is expected", body::kind(&other));
            return Err(ApiError::invalid_type("input", message));
        }
    };
    let item = |(at, item): (usize, Value)| normal(&format!("input[{at}]"), item, caller, state);
    items.into_iter().enumerate().map(item).collect()
}

fn normal(path: &str, mut item: Value, caller: Caller, state: &ApiState) -> Result<Value, ApiError> {
    let is_reference = item["type"] == "item_reference" || (item["type"].is_null() && item["role"].is_null());
    if let (true, Some(id)) = (is_reference, item["id"].as_str()) {
        return state.responses().item(id, caller).ok_or_else(|| {
            let message = format!("item '{id}' is not known; only items of stored responses can be referred to");
            ApiError::invalid_value(format!("{path}.id"), message)
        });
    }
    let Value::Object(fields) = &mut item else {
        let message = format!("'{path}' is {}; an item is expected", body::kind(&item));
        return Err(ApiError::invalid_type(path, message));
    };
    if fields.get("type").is_none_or(Value::is_null) {
        fields.insert("type".into(), json!("message"));
    }
    if fields.get("id").is_none_or(Value::is_null) {
        let prefix = if fields["type"] == "message" { "msg_" } else { "item_" };
        fields.insert("id".into(), json!(unique_name(prefix)));
    }
    Ok(item)
}

/// The form that a text format demands; none for plain text.
fn format(format: FormatFields) -> Result<Option<OutputFormat>, ApiError> {
    match format.kind.as_str() {
        "text" => Ok(None),
        "json_object" => Ok(Some(OutputFormat::json_object())),
        "json_schema" => {
            let name = format.name.ok_or_else(|| ApiError::missing("text.format.name"))?;
            let param = "text.format.schema";
            let schema = schema(param, format.schema)?;
            Ok(Some(OutputFormat { name, description: format.description, schema, param }))
        }
        other => {
            let message =
                format!("'text.format.type' is '{other}', but must be 'text', 'json_object' or 'json_schema'");
            Err(ApiError::invalid_value("text.format.type", message))
        }
    }
}

/// The request's settings, defaults filled in.
fn echo(request: &Value) -> Map<String, Value> {
    let defaults = [
        ("instructions", Value::Null),
        ("max_output_tokens", Value::Null),
        ("max_tool_calls", Value::Null),
        ("metadata", json!({})),
        ("parallel_tool_calls", json!(true)),
        ("previous_response_id", Value::Null),
        ("prompt_cache_key", Value::Null),
        ("reasoning", json!({"effort": null, "summary": null})),
        ("safety_identifier", Value::Null),
        ("temperature", json!(1.0)),
        ("text", json!({"format": {"type": "text"}})),
        ("tool_choice", json!("auto")),
        ("tools", json!([])),
        ("top_logprobs", json!(0)),
        ("top_p", json!(1.0)),
        ("user", Value::Null),
    ];
    let given = |name: &str| request.get(name).filter(|value| !value.is_null()).cloned();
    let mut echo: Map<String, Value> =
        defaults.into_iter().map(|(name, default)| (name.to_string(), given(name).unwrap_or(default))).collect();
    // Nothing is ever cut off, whatever was asked for, and there is one tier.
    echo.extend([("truncation".to_string(), json!("disabled")), ("service_tier".to_string(), json!("default"))]);
    echo
}
