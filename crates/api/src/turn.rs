//! The assistant's next turn, asked for in any protocol: from a conversation to a prompt.
//!
//! A protocol reads its request into a [`Turn`]; what follows is the same for all of them: the prompt is rendered here,
//! and the reply is read back by [`Reply`](crate::reply::Reply).

use std::collections::HashMap;

use serde_json::Value;
use tandem_grammar::Content;
use tandem_harmony::{Conversation, Effort, Message, Rendered, Tokenizer, Tool, ToolNames, render};
use tandem_step::Constraint;

use crate::demands::{self, Demand, ReplyDemands, StrictTools};
use crate::error::ApiError;
use crate::params::Params;
use crate::served_model::ServedModel;
use crate::state::ApiState;

/// A conversation that waits for the assistant, and what the request asks of its answer.
#[derive(Debug)]
pub(crate) struct Turn {
    pub messages: Vec<Message>,
    pub tools: Vec<Tool>,
    pub tool_choice: ToolChoice,
    pub effort: Effort,
    /// The form of the visible answer; `None` for plain text.
    pub format: Option<OutputFormat>,
    /// What the answer must look like where the model is not told: the client's prompt does that.
    pub guided: Option<Demand>,
    /// The tools whose arguments must fit their schemas.
    pub strict: StrictTools,
    /// The field that holds the conversation, for errors.
    pub param: &'static str,
}

/// Which tools the model may call, and whether it must.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum ToolChoice {
    None,
    Auto,
    Required,
    Named(String),
    /// These tools alone may be called, though the model is told of all: the prompt stays the same, and cached.
    Allowed {
        names: Vec<String>,
        required: bool,
    },
}

/// A form that the answer must have.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct OutputFormat {
    pub name: String,
    pub description: Option<String>,
    /// A JSON schema.
    pub schema: Value,
    /// The field of the request that holds it.
    pub param: &'static str,
}

/// A turn, checked and rendered.
pub(crate) struct TurnPlan {
    pub params: Params,
    /// Token ids, through the header that the tool choice forces, if any.
    pub prompt: Vec<u32>,
    /// The end of `prompt` that belongs to the reply: the header of a forced call.
    pub forced: Vec<u32>,
    pub tool_names: ToolNames,
    /// Alternatives per token, where log-probabilities are asked for.
    pub logprobs: Option<u8>,
    /// Most tokens to generate.
    pub output_tokens: u32,
    /// What the reply must look like.
    pub constraint: Option<Constraint>,
}

/// The prompt of a turn.
pub(crate) struct Prompt {
    pub tokens: Vec<u32>,
    /// Its end that belongs to the reply.
    pub forced: Vec<u32>,
    pub tool_names: ToolNames,
}

impl Turn {
    /// Checks the turn against the model and renders it.
    pub(crate) fn plan(
        self,
        params: Params,
        logprobs: Option<u8>,
        state: &ApiState,
        model: &ServedModel,
    ) -> Result<TurnPlan, ApiError> {
        let param = self.param;
        let demands = self.demands(params.ignore_eos)?;
        let Prompt { tokens: prompt, forced, tool_names } = self.render(state, model)?;
        let output_tokens = params.output_tokens(param, prompt.len(), model.info.context)?;
        if output_tokens == 0 {
            return Err(ApiError::invalid_value("max_tokens", "'max_tokens' is 0; a reply needs at least one token"));
        }
        let constraint = demands.constraint(&tool_names, &forced)?;
        Ok(TurnPlan { params, prompt, forced, tool_names, logprobs, output_tokens, constraint })
    }

    fn demands(&self, ignore_eos: bool) -> Result<ReplyDemands, ApiError> {
        let format = self.format.as_ref().map(OutputFormat::demand);
        let answer = demands::at_most_one(format.into_iter().chain(self.guided.clone()))?;
        let tools = self.tools.iter().filter(|tool| self.tool_choice.allows(&tool.name)).cloned().collect();
        let must_call = self.tool_choice.must_call();
        Ok(ReplyDemands { answer, tools, strict: self.strict.clone(), must_call, ignore_eos })
    }

    /// The prompt, whatever its length.
    pub(crate) fn render(self, state: &ApiState, model: &ServedModel) -> Result<Prompt, ApiError> {
        check_vocabulary(model)?;
        self.tool_choice.check(&self.tools)?;
        let Self { mut messages, tools, tool_choice, effort, format, param, .. } = self;
        order_results(&mut messages);
        recall_tokens(&mut messages, state);
        if let Some(format) = format {
            add_instructions(&mut messages, format.section());
        }
        // What the model does not know of it cannot call.
        let tools = if tool_choice == ToolChoice::None { Vec::new() } else { tools };
        let effort = effort.min(state.settings().effort_max);
        let conversation = Conversation { messages, tools, effort, date: state.date(), ..Conversation::default() };
        let Rendered { mut tokens, tool_names } =
            render(&conversation).map_err(|error| ApiError::invalid_value(param, error.to_string()))?;
        let forced = tool_choice.forced_header(&conversation.tools, &tool_names);
        tokens.extend_from_slice(&forced);
        Ok(Prompt { tokens, forced, tool_names })
    }
}

impl TurnPlan {
    /// What the engine is asked for choice `index`.
    pub(crate) fn engine_request(&self, index: usize) -> tandem_engine::Request {
        tandem_engine::Request {
            prompt: self.prompt.clone(),
            max_tokens: self.output_tokens,
            sampling: self.params.sampling_of(index, self.logprobs),
            stop_tokens: self.params.stop_tokens.clone(),
            prompt_logprobs: None,
            constraint: self.constraint.clone(),
        }
    }
}

impl ToolChoice {
    /// Checks that what must be called is there.
    fn check(&self, tools: &[Tool]) -> Result<(), ApiError> {
        let fault = match self {
            Self::Required if tools.is_empty() => "a tool call is required, but there are no 'tools'".to_string(),
            Self::Named(name) if !tools.iter().any(|tool| tool.name == *name) => {
                format!("'tool_choice' names '{name}', which is not among the 'tools'")
            }
            Self::Allowed { names, .. } => {
                match names.iter().find(|name| !tools.iter().any(|tool| tool.name == **name)) {
                    Some(name) => format!("'tool_choice' allows '{name}', which is not among the 'tools'"),
                    None if names.is_empty() => "'tool_choice' allows no tool at all; say 'none' instead".to_string(),
                    None => return Ok(()),
                }
            }
            _ => return Ok(()),
        };
        Err(ApiError::invalid_value("tool_choice", fault))
    }

    /// Whether the model may call a tool.
    fn allows(&self, tool: &str) -> bool {
        match self {
            Self::None => false,
            Self::Auto | Self::Required => true,
            Self::Named(name) => name == tool,
            Self::Allowed { names, .. } => names.iter().any(|name| name == tool),
        }
    }

    fn must_call(&self) -> bool {
        matches!(self, Self::Required | Self::Named(_) | Self::Allowed { required: true, .. })
    }

    /// The header that makes a reply the call that is demanded; the model writes what follows. Where it may choose among
    /// several tools, the header stops before the name.
    fn forced_header(&self, tools: &[Tool], names: &ToolNames) -> Vec<u32> {
        let header = match (self, tools) {
            (Self::Named(name), _) => call_header(&names.model_name(name)),
            (Self::Required, [only]) => call_header(&names.model_name(&only.name)),
            (Self::Allowed { names: allowed, required: true }, _) if allowed.len() == 1 => {
                call_header(&names.model_name(&allowed[0]))
            }
            (Self::Required | Self::Allowed { required: true, .. }, _) => {
                "<|channel|>commentary to=functions".to_string()
            }
            (Self::None | Self::Auto | Self::Allowed { required: false, .. }, _) => return Vec::new(),
        };
        Tokenizer::shared().encode_with_special(&header)
    }
}

impl OutputFormat {
    /// Any JSON object.
    pub(crate) fn json_object() -> Self {
        Self {
            name: "json_object".to_string(),
            description: Some("The whole answer is one JSON object.".to_string()),
            schema: serde_json::json!({"type": "object"}),
            param: "response_format",
        }
    }

    /// The same as a demand.
    pub(crate) fn demand(&self) -> Demand {
        Demand { content: Content::Json(self.schema.clone()), param: self.param.to_string() }
    }

    /// The section of the developer message that harmony prescribes.
    fn section(&self) -> String {
        let Self { name, description, schema, .. } = self;
        let lines = description.iter().flat_map(|text| text.lines());
        let comment: String = lines.map(|line| format!("// {line}\n")).collect();
        format!("# Response Formats\n\n## {name}\n\n{comment}{schema}")
    }
}

/// Text needs the whole tokenizer; some test checkpoints have fewer rows than it has ids.
pub(crate) fn check_vocabulary(model: &ServedModel) -> Result<(), ApiError> {
    let (vocab, needed) = (model.info.vocab as usize, Tokenizer::VOCAB_SIZE);
    if vocab >= needed {
        return Ok(());
    }
    let message = format!(
        "the model '{}' has a vocabulary of {vocab} token ids, fewer than the {needed} of the tokenizer: it cannot read \
         text. Send token ids as the 'prompt' of /v1/completions.",
        model.name()
    );
    Err(ApiError::unsupported("model", message))
}

fn call_header(name: &str) -> String {
    format!("<|channel|>commentary to=functions.{name} <|constrain|>json<|message|>")
}

/// Puts results that follow each other in the order of their calls: harmony has no call ids, so two results of one tool
/// are told apart by their order alone. Clients send them as they come in.
fn order_results(messages: &mut [Message]) {
    let mut calls: HashMap<String, usize> = HashMap::new();
    let is_result = |message: &Message| matches!(message, Message::ToolResult { .. });
    for run in messages.chunk_by_mut(|one, other| is_result(one) == is_result(other)) {
        for message in run.iter() {
            if let Message::Assistant { tool_calls, .. } = message {
                for call in tool_calls {
                    let place = calls.len();
                    calls.insert(call.id.clone(), place);
                }
            }
        }
        run.sort_by_key(|message| match message {
            Message::ToolResult { call_id, .. } => calls.get(call_id).copied().unwrap_or(0),
            _ => 0,
        });
    }
}

/// Fills in the model's own tokens of replies that are sent back as they were.
fn recall_tokens(messages: &mut [Message], state: &ApiState) {
    for message in messages {
        if let Message::Assistant { content, tool_calls, tokens, .. } = message {
            *tokens = state.replay().recall(content.as_deref().unwrap_or_default(), tool_calls);
        }
    }
}

/// Appends a section to the developer message, or makes one.
fn add_instructions(messages: &mut Vec<Message>, section: String) {
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
    use serde_json::json;
    use tandem_harmony::ToolCall;

    use super::*;

    #[test]
    fn a_choice_that_cannot_be_met_is_refused() {
        let tools = vec![Tool { name: "f".into(), description: String::new(), parameters: Value::Null }];
        assert!(ToolChoice::Named("f".into()).check(&tools).is_ok());
        assert!(ToolChoice::Named("h".into()).check(&tools).is_err());
        assert!(ToolChoice::Required.check(&tools).is_ok());
        assert!(ToolChoice::Required.check(&[]).is_err());
    }

    #[test]
    fn a_format_becomes_a_section_of_the_instructions() {
        let description = Some("A list\nof things".to_string());
        let format =
            OutputFormat { name: "list".into(), description, schema: json!({"type": "array"}), param: "format" };
        let expected = "# Response Formats\n\n## list\n\n// A list\n// of things\n{\"type\":\"array\"}";
        assert_eq!(format.section(), expected);
        let mut messages = vec![Message::System { text: "Be brief.".into() }];
        add_instructions(&mut messages, "# X".into());
        assert_eq!(messages, [Message::System { text: "Be brief.\n\n# X".into() }]);
    }

    #[test]
    fn results_come_in_the_order_of_their_calls() {
        let call = |id: &str| ToolCall { id: id.into(), name: "f".into(), arguments: "{}".into() };
        let result = |id: &str| Message::ToolResult { call_id: id.into(), name: None, text: id.into() };
        let calling = |ids: [&str; 2]| Message::Assistant {
            reasoning: None,
            content: None,
            tool_calls: ids.map(call).to_vec(),
            tokens: None,
        };
        let user = Message::User { text: "u".into() };
        let mut messages = vec![calling(["a", "b"]), result("b"), result("a"), user.clone()];
        messages.extend([calling(["c", "d"]), result("d"), result("c")]);
        order_results(&mut messages);
        let expected =
            [calling(["a", "b"]), result("a"), result("b"), user, calling(["c", "d"]), result("c"), result("d")];
        assert_eq!(messages, expected);
    }
}
