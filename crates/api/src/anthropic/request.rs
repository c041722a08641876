//! A messages request: from JSON to a turn.

use serde::Deserialize;
use serde_json::Value;
use tandem_harmony::Effort;

use super::conversation::{self, MessageFields, ToolFields};
use super::models;
use crate::body;
use crate::conversation::{effort, schema};
use crate::error::ApiError;
use crate::params::SamplingFields;
use crate::served_model::ServedModel;
use crate::state::ApiState;
use crate::turn::{OutputFormat, ToolChoice, Turn, TurnPlan};

/// Up to this budget the model thinks little, and up to the next a fair amount: clients that give a budget in tokens
/// instead of an effort use about 4,000, 10,000 and 32,000.
const LOW_BUDGET_TOKENS: i64 = 4_096;
const MEDIUM_BUDGET_TOKENS: i64 = 16_384;

/// A request as typed by the client, without what other servers do and this one does not.
#[derive(Debug, Deserialize)]
struct MessagesFields {
    messages: Vec<MessageFields>,
    system: Option<Value>,
    tools: Option<Vec<ToolFields>>,
    tool_choice: Option<ToolChoiceFields>,
    thinking: Option<ThinkingFields>,
    output_config: Option<OutputFields>,
    /// Where `output_config.format` was at first.
    output_format: Option<FormatFields>,
}

#[derive(Debug, Deserialize)]
struct SamplingNames {
    max_tokens: i64,
    stop_sequences: Option<Vec<String>>,
    stream: Option<bool>,
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<i64>,
}

#[derive(Debug, Deserialize)]
struct ToolChoiceFields {
    #[serde(rename = "type")]
    kind: String,
    name: Option<String>,
}

#[derive(Debug, Deserialize)]
struct ThinkingFields {
    #[serde(rename = "type")]
    kind: String,
    budget_tokens: Option<i64>,
    display: Option<String>,
}

#[derive(Debug, Deserialize)]
struct OutputFields {
    effort: Option<String>,
    format: Option<FormatFields>,
}

#[derive(Debug, Deserialize)]
struct FormatFields {
    #[serde(rename = "type")]
    kind: String,
    schema: Option<Value>,
}

/// What the client is shown of the model's reasoning.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Thinking {
    /// All of it.
    Shown,
    /// That there was some, and a signature that holds it.
    Signed,
    /// Nothing: it was not asked for.
    Hidden,
}

/// A messages request, checked and rendered.
pub(super) struct MessagesPlan {
    pub turn: TurnPlan,
    pub thinking: Thinking,
    /// The model by the name that the request used.
    pub model: String,
}

/// Reads, checks and renders a request.
pub(super) fn plan(value: &Value, state: &ApiState, model: &ServedModel) -> Result<MessagesPlan, ApiError> {
    let name = model_name(value, model)?;
    let params = sampling(body::typed(value)?).check(&model.info, state.settings());
    let params = params.map_err(|error| error.renamed("stop", "stop_sequences"))?;
    let (turn, thinking) = turn(body::typed(value)?)?;
    Ok(MessagesPlan { turn: turn.plan(params, None, state, model)?, thinking, model: name })
}

/// The tokens of a request's prompt.
pub(super) fn count(value: &Value, state: &ApiState, model: &ServedModel) -> Result<usize, ApiError> {
    model_name(value, model)?;
    let (turn, _) = turn(body::typed(value)?)?;
    Ok(turn.render(state, model)?.tokens.len())
}

/// The name in the request, which must be one of the model's; its own where there is none.
fn model_name(value: &Value, model: &ServedModel) -> Result<String, ApiError> {
    match value["model"].as_str() {
        Some(name) => models::check_name(model, name).map(|()| name.to_string()),
        None => model.check_request(value).map(|()| model.name().to_string()),
    }
}

fn sampling(names: SamplingNames) -> SamplingFields {
    SamplingFields {
        max_tokens: Some(names.max_tokens),
        stop: names.stop_sequences.map(Value::from),
        stream: names.stream,
        temperature: names.temperature,
        top_p: names.top_p,
        top_k: names.top_k,
        ..SamplingFields::default()
    }
}

fn turn(fields: MessagesFields) -> Result<(Turn, Thinking), ApiError> {
    let output = fields.output_config.unwrap_or(OutputFields { effort: None, format: None });
    let (thinking, thought) = thinking(fields.thinking)?;
    let effort = match output.effort {
        Some(name) => effort("output_config.effort", Some(&name))?,
        None => thought,
    };
    let tools = fields.tools.unwrap_or_default();
    let turn = Turn {
        strict: conversation::strict_tools(&tools),
        messages: conversation::messages(fields.system.as_ref(), &fields.messages)?,
        tools: conversation::tools(tools)?,
        tool_choice: tool_choice(fields.tool_choice)?,
        effort,
        format: output.format.or(fields.output_format).map(format).transpose()?,
        guided: None,
        param: "messages",
    };
    Ok((turn, thinking))
}

/// What is shown of the reasoning, and how much of it there should be where no effort is given.
fn thinking(fields: Option<ThinkingFields>) -> Result<(Thinking, Effort), ApiError> {
    let Some(fields) = fields else { return Ok((Thinking::Hidden, Effort::Medium)) };
    let effort = match (fields.kind.as_str(), fields.budget_tokens) {
        ("disabled", _) => return Ok((Thinking::Hidden, Effort::Low)),
        ("enabled", Some(..=LOW_BUDGET_TOKENS)) => Effort::Low,
        ("enabled", Some(..=MEDIUM_BUDGET_TOKENS)) => Effort::Medium,
        ("enabled", Some(_)) => Effort::High,
        ("enabled" | "adaptive" | "between_tools", _) => Effort::Medium,
        (other, _) => {
            let message = format!("'thinking.type' is '{other}', but must be 'adaptive', 'enabled' or 'disabled'");
            return Err(ApiError::invalid_value("thinking.type", message));
        }
    };
    let thinking = if fields.display.as_deref() == Some("omitted") { Thinking::Signed } else { Thinking::Shown };
    Ok((thinking, effort))
}

fn tool_choice(fields: Option<ToolChoiceFields>) -> Result<ToolChoice, ApiError> {
    let Some(fields) = fields else { return Ok(ToolChoice::Auto) };
    match (fields.kind.as_str(), fields.name) {
        ("auto", _) => Ok(ToolChoice::Auto),
        ("any", _) => Ok(ToolChoice::Required),
        ("none", _) => Ok(ToolChoice::None),
        ("tool", Some(name)) => Ok(ToolChoice::Named(name)),
        ("tool", None) => Err(ApiError::missing("tool_choice.name")),
        (other, _) => {
            let message = format!("'tool_choice.type' is '{other}', but must be 'auto', 'any', 'tool' or 'none'");
            Err(ApiError::invalid_value("tool_choice.type", message))
        }
    }
}

fn format(fields: FormatFields) -> Result<OutputFormat, ApiError> {
    if fields.kind != "json_schema" {
        let message = format!("'output_config.format.type' is '{}', but must be 'json_schema'", fields.kind);
        return Err(ApiError::invalid_value("output_config.format.type", message));
    }
    let schema = schema("output_config.format.schema", fields.schema)?;
    Ok(OutputFormat { name: "answer".to_string(), description: None, schema, param: "output_config.format.schema" })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> Result<(Turn, Thinking), ApiError> {
        let mut body = json!({"messages": [{"role": "user", "content": "hi"}]});
        body.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
        turn(body::typed(&body)?)
    }

    #[test]
    fn effort_and_thinking() {
        let cases = [
            (json!({}), Thinking::Hidden, Effort::Medium),
            (json!({"thinking": {"type": "disabled"}}), Thinking::Hidden, Effort::Low),
            (json!({"thinking": {"type": "adaptive"}}), Thinking::Shown, Effort::Medium),
            (json!({"thinking": {"type": "adaptive", "display": "omitted"}}), Thinking::Signed, Effort::Medium),
            (json!({"thinking": {"type": "enabled", "budget_tokens": 1024}}), Thinking::Shown, Effort::Low),
            (json!({"thinking": {"type": "enabled", "budget_tokens": 31999}}), Thinking::Shown, Effort::High),
            (json!({"output_config": {"effort": "low"}}), Thinking::Hidden, Effort::Low),
            (json!({"output_config": {"effort": "xhigh"}}), Thinking::Hidden, Effort::High),
            (json!({"output_config": {"effort": "max"}}), Thinking::Hidden, Effort::High),
        ];
        for (value, thinking, effort) in cases {
            let (turn, shown) = read(value.clone()).unwrap();
            assert_eq!((shown, turn.effort), (thinking, effort), "{value}");
        }
    }

    #[test]
    fn faults_are_named() {
        let cases = [
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "tool", "content": "x"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (json!({"messages": [{"role": "user", "content": []}]}), "messages[0].content"),
            (json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]}), "messages[0].content[0].type"),
            (json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}), "messages[0].content[0].text"),
            (
                json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}),
                "messages",
            ),
            (
                json!({"messages": [{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a"}]}]}),
                "messages[0].content[0].tool_use_id",
            ),
            (json!({"system": 5}), "system"),
            (json!({"system": [{"type": "image"}]}), "system[0].type"),
            (json!({"tools": [{"name": "f"}]}), "tools[0].input_schema"),
            (json!({"tools": [{"input_schema": {}}]}), "tools[0].name"),
            (json!({"tools": [{"type": "bash_20250124", "name": "bash"}]}), "tools[0].type"),
            (json!({"tool_choice": {"type": "maybe"}}), "tool_choice.type"),
            (json!({"tool_choice": {"type": "tool"}}), "tool_choice.name"),
            (json!({"thinking": {"type": "often"}}), "thinking.type"),
            (json!({"output_config": {"effort": "some"}}), "output_config.effort"),
            (json!({"output_config": {"format": {"type": "xml"}}}), "output_config.format.type"),
            (json!({"output_config": {"format": {"type": "json_schema"}}}), "output_config.format.schema"),
        ];
        for (value, param) in cases {
            let error = read(value.clone()).expect_err(&value.to_string());
            assert_eq!(error.body()["error"]["param"], param, "{value}");
        }
    }

    #[test]
    fn tools_of_the_servers_own_are_left_out() {
        let tools = json!([{"type": "web_search_20250305", "name": "web_search"}, {"name": "f", "input_schema": {}}]);
        let (turn, _) = read(json!({"tools": tools})).unwrap();
        assert_eq!(turn.tools.iter().map(|tool| tool.name.as_str()).collect::<Vec<_>>(), ["f"]);
    }
}
