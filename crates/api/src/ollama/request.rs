//! What chat and generate requests have in common: from JSON to a turn.

use serde::Deserialize;
use serde_json::Value;
use tandem_harmony::{Effort, Message, Tool};

use super::models;
use crate::body::{self, kind};
use crate::demands::StrictTools;
use crate::error::ApiError;
use crate::params::{SamplingFields, top_logprobs};
use crate::served_model::ServedModel;
use crate::state::ApiState;
use crate::turn::{OutputFormat, ToolChoice, Turn, TurnPlan};

/// The fields that both kinds of request have.
#[derive(Debug, Deserialize)]
struct CommonFields {
    model: String,
    stream: Option<bool>,
    think: Option<Value>,
    format: Option<Value>,
    options: Option<OptionFields>,
    logprobs: Option<bool>,
    top_logprobs: Option<i64>,
}

/// How tokens are chosen. What concerns the loading of models is not among them.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct OptionFields {
    num_predict: Option<i64>,
    temperature: Option<f64>,
    top_k: Option<i64>,
    top_p: Option<f64>,
    min_p: Option<f64>,
    seed: Option<i128>,
    stop: Option<Value>,
    repeat_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
}

/// What a request asks.
pub(super) struct Asked {
    pub messages: Vec<Message>,
    pub tools: Vec<Tool>,
    /// Those of them whose arguments must fit their schemas.
    pub strict: StrictTools,
}

/// A request, checked and rendered.
pub(super) struct OllamaPlan {
    /// The model by the name that the request used.
    pub model: String,
    pub thinking: bool,
    /// `None` where the request only asks that the model be loaded.
    pub turn: Option<TurnPlan>,
    pub stream: bool,
}

/// Checks what both kinds of request have and renders the turn. `asked` is none where there is
/// nothing to answer.
pub(super) fn plan(
    value: &Value,
    asked: Option<Asked>,
    param: &'static str,
    state: &ApiState,
    model: &ServedModel,
) -> Result<OllamaPlan, ApiError> {
    let fields: CommonFields = body::typed(value)?;
    models::check_name(model, &fields.model)?;
    let (thinking, effort) = think(fields.think.as_ref())?;
    let format = fields.format.map_or(Ok(None), format)?;
    let logprobs = match (fields.logprobs, fields.top_logprobs) {
        (Some(true), top) => Some(top_logprobs("top_logprobs", top.unwrap_or(0))?),
        _ => None,
    };
    let stream = fields.stream.unwrap_or(true);
    let params = sampling(fields.options.unwrap_or_default(), stream).check(&model.info, state.settings());
    let params = params.map_err(|error| {
        let error = ["temperature", "top_k", "top_p", "min_p", "seed", "stop", "presence_penalty", "frequency_penalty"]
            .iter()
            .fold(error, |error, name| error.renamed(name, &format!("options.{name}")));
        error.renamed("max_tokens", "options.num_predict").renamed("repetition_penalty", "options.repeat_penalty")
    })?;
    let turn = asked.map(|Asked { messages, tools, strict }| {
        let tool_choice = ToolChoice::Auto;
        let turn = Turn { messages, tools, tool_choice, effort, format, guided: None, strict, param };
        turn.plan(params, logprobs, state, model)
    });
    Ok(OllamaPlan { model: fields.model, thinking, turn: turn.transpose()?, stream })
}

fn sampling(options: OptionFields, stream: bool) -> SamplingFields {
    SamplingFields {
        stream: Some(stream),
        // Negative numbers mean as many as there is room for.
        max_tokens: options.num_predict.filter(|&count| count >= 0),
        temperature: options.temperature,
        top_k: options.top_k,
        top_p: options.top_p,
        min_p: options.min_p,
        seed: options.seed.filter(|&seed| seed != -1),
        stop: options.stop,
        repetition_penalty: options.repeat_penalty,
        presence_penalty: options.presence_penalty,
        frequency_penalty: options.frequency_penalty,
        ..SamplingFields::default()
    }
}

/// Whether reasoning is shown, and how much of it there should be. The model always reasons.
fn think(value: Option<&Value>) -> Result<(bool, Effort), ApiError> {
    match value {
        None | Some(Value::Null | Value::Bool(true)) => Ok((true, Effort::Medium)),
        Some(Value::Bool(false)) => Ok((false, Effort::Low)),
        Some(Value::String(name)) => Ok((true, crate::conversation::effort("think", Some(name))?)),
        Some(other) => {
            let message = format!("'think' is {}; a boolean, or 'low', 'medium' or 'high' is expected", kind(other));
            Err(ApiError::invalid_type("think", message))
        }
    }
}

fn format(value: Value) -> Result<Option<OutputFormat>, ApiError> {
    match value {
        Value::Null => Ok(None),
        Value::String(name) if name.is_empty() => Ok(None),
        Value::String(name) if name == "json" => Ok(Some(OutputFormat::json_object())),
        schema @ Value::Object(_) => {
            Ok(Some(OutputFormat { name: "answer".to_string(), description: None, schema, param: "format" }))
        }
        _ => Err(ApiError::invalid_value("format", "'format' must be \"json\" or a JSON schema")),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn thinking() {
        let cases = [
            (json!(null), (true, Effort::Medium)),
            (json!(true), (true, Effort::Medium)),
            (json!(false), (false, Effort::Low)),
            (json!("high"), (true, Effort::High)),
        ];
        for (value, expected) in cases {
            assert_eq!(think(Some(&value)).unwrap(), expected, "{value}");
        }
        assert!(think(Some(&json!("some"))).is_err() && think(Some(&json!(1))).is_err());
    }

    #[test]
    fn formats() {
        assert_eq!(format(json!("")).unwrap(), None);
        assert_eq!(format(json!("json")).unwrap(), Some(OutputFormat::json_object()));
        assert_eq!(format(json!({"type": "array"})).unwrap().unwrap().schema, json!({"type": "array"}));
        assert!(format(json!("xml")).is_err() && format(json!(1)).is_err());
    }
}
