//! Messages of the service as what the HTTP protocols' requests become, too.

use serde_json::{Value, json};
use tandem_grammar::Content;
use tandem_harmony::Effort;
use tandem_proto::v1 as proto;

use crate::conversation::{self, CalledFields, FunctionFields, MessageFields, ToolCallFields, ToolFields};
use crate::demands::Demand;
use crate::error::ApiError;
use crate::params::{Params, SamplingFields, top_logprobs};
use crate::served_model::ServedModel;
use crate::state::ApiState;
use crate::turn::{OutputFormat, ToolChoice, Turn};

/// Checks a request's model; an empty name means the one served.
pub(super) fn check_model(name: &str, model: &ServedModel) -> Result<(), ApiError> {
    if name.is_empty() { Ok(()) } else { model.check_name(name) }
}

/// The turn that a chat asks for.
pub(super) fn turn(request: proto::ChatRequest) -> Result<Turn, ApiError> {
    let tools: Vec<ToolFields> = request.tools.into_iter().enumerate().map(tool).collect::<Result<_, _>>()?;
    let (format, guided) = match request.format.map_or(Ok(None), form)? {
        None => (None, None),
        Some(Form::Shown(format)) => (Some(format), None),
        Some(Form::Demanded(demand)) => (None, Some(demand)),
    };
    Ok(Turn {
        strict: conversation::strict_tools(&tools),
        tools: conversation::tools(tools)?,
        tool_choice: tool_choice(request.tool_choice)?,
        effort: effort(request.effort)?,
        messages: conversation::messages(request.messages.into_iter().map(message).collect())?,
        format,
        guided,
        param: "messages",
    })
}

/// How tokens are chosen. `stream` is for the log.
pub(super) fn params(
    sampling: Option<proto::Sampling>,
    stream: bool,
    state: &ApiState,
    model: &ServedModel,
) -> Result<Params, ApiError> {
    let sampling = sampling.unwrap_or_default();
    let logit_bias = sampling.logit_bias.into_iter().map(|(token, bias)| (token.to_string(), bias)).collect();
    let fields = SamplingFields {
        stream: Some(stream),
        max_tokens: sampling.max_tokens.map(i64::from),
        min_tokens: sampling.min_tokens.map(i64::from),
        ignore_eos: Some(sampling.ignore_eos),
        stop: Some(json!(sampling.stop)),
        stop_token_ids: Some(sampling.stop_token_ids),
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k.map(i64::from),
        min_p: sampling.min_p,
        seed: sampling.seed.map(i128::from),
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        repetition_penalty: sampling.repetition_penalty,
        logit_bias: Some(logit_bias),
        ..SamplingFields::default()
    };
    fields.check(&model.info, state.settings())
}

/// Alternatives per token, where log-probabilities are asked for.
pub(super) fn logprobs(top: Option<u32>) -> Result<Option<u8>, ApiError> {
    top.map(|top| top_logprobs("top_logprobs", i64::from(top))).transpose()
}

/// What is demanded of a text for which there is nobody to be shown a schema.
pub(super) fn demand(format: Option<proto::Format>) -> Result<Option<Demand>, ApiError> {
    let form = format.map_or(Ok(None), form)?;
    Ok(form.map(|form| match form {
        Form::Shown(format) => format.demand(),
        Form::Demanded(demand) => demand,
    }))
}

/// A form that text must have.
enum Form {
    /// The model is told.
    Shown(OutputFormat),
    /// It is only held to it.
    Demanded(Demand),
}

fn form(format: proto::Format) -> Result<Option<Form>, ApiError> {
    use proto::format::Kind;
    let demanded = |content, param: &str| Some(Form::Demanded(Demand { content, param: param.into() }));
    Ok(match format.kind {
        None => None,
        Some(Kind::JsonObject(_)) => {
            Some(Form::Shown(OutputFormat { param: "format.json_object", ..OutputFormat::json_object() }))
        }
        Some(Kind::JsonSchema(schema)) => Some(Form::Shown(json_schema(schema)?)),
        Some(Kind::Regex(regex)) => demanded(Content::Regex(regex), "format.regex"),
        Some(Kind::Choice(choice)) => demanded(Content::Choice(choice.texts), "format.choice.texts"),
        Some(Kind::Grammar(grammar)) => demanded(Content::Lark(grammar), "format.grammar"),
    })
}

fn json_schema(schema: proto::JsonSchema) -> Result<OutputFormat, ApiError> {
    let param = "format.json_schema.schema_json";
    if schema.name.is_empty() {
        return Err(ApiError::missing("format.json_schema.name"));
    }
    let description = Some(schema.description).filter(|text| !text.is_empty());
    let schema_value = conversation::schema(param, json_text(param, &schema.schema_json)?)?;
    Ok(OutputFormat { name: schema.name, description, schema: schema_value, param })
}

fn message(message: proto::Message) -> MessageFields {
    use proto::Role;
    let role = match Role::try_from(message.role) {
        Ok(Role::System) => "system",
        Ok(Role::Developer) => "developer",
        Ok(Role::User) => "user",
        Ok(Role::Assistant) => "assistant",
        Ok(Role::Tool) => "tool",
        // Refused where all roles are checked.
        Ok(Role::Unspecified) | Err(_) => "",
    };
    MessageFields {
        role: role.to_string(),
        content: message.content.map(Value::String),
        tool_calls: Some(message.tool_calls.into_iter().map(tool_call).collect()),
        tool_call_id: message.tool_call_id,
        reasoning: message.reasoning,
        reasoning_content: None,
    }
}

fn tool_call(call: proto::ToolCall) -> ToolCallFields {
    let arguments = Some(call.arguments_json).filter(|text| !text.is_empty()).map(Value::String);
    ToolCallFields { id: call.id, function: CalledFields { name: call.name, arguments } }
}

fn tool((at, tool): (usize, proto::Tool)) -> Result<ToolFields, ApiError> {
    let parameters = json_text(&format!("tools[{at}].parameters_json"), &tool.parameters_json)?;
    let description = Some(tool.description);
    let function = FunctionFields { name: tool.name, description, parameters, strict: Some(tool.strict) };
    Ok(ToolFields { kind: None, function })
}

/// JSON in a field; none where it is empty.
fn json_text(param: &str, text: &str) -> Result<Option<Value>, ApiError> {
    if text.is_empty() {
        return Ok(None);
    }
    let wrong = |error| ApiError::invalid_value(param, format!("'{param}' is not JSON: {error}"));
    serde_json::from_str(text).map(Some).map_err(wrong)
}

fn tool_choice(choice: Option<proto::ToolChoice>) -> Result<ToolChoice, ApiError> {
    use proto::tool_choice::Mode;
    let proto::ToolChoice { mode, allowed: names } = choice.unwrap_or_default();
    match (Mode::try_from(mode), names.is_empty()) {
        (Ok(Mode::None), _) => Ok(ToolChoice::None),
        (Ok(Mode::Auto), true) => Ok(ToolChoice::Auto),
        (Ok(Mode::Required), true) => Ok(ToolChoice::Required),
        (Ok(mode), false) => Ok(ToolChoice::Allowed { names, required: mode == Mode::Required }),
        (Err(_), _) => Err(unknown("tool_choice.mode", mode)),
    }
}

fn effort(effort: i32) -> Result<Effort, ApiError> {
    match proto::Effort::try_from(effort) {
        Ok(proto::Effort::Unspecified | proto::Effort::Medium) => Ok(Effort::Medium),
        Ok(proto::Effort::Low) => Ok(Effort::Low),
        Ok(proto::Effort::High) => Ok(Effort::High),
        Err(_) => Err(unknown("effort", effort)),
    }
}

fn unknown(param: &str, value: i32) -> ApiError {
    ApiError::invalid_value(param, format!("'{param}' is {value}, which this server does not know"))
}
