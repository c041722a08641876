//! A conversation as the prompt that gpt-oss was trained on.
//!
//! The layout follows OpenAI's harmony format: a system message with fixed lines, a developer message with the
//! instructions and the tools, then the turns. It ends with `<|start|>assistant`, where the model takes over.

use std::collections::{HashMap, HashSet};

use crate::conversation::{Conversation, Message, RecipientPosition, Tool, ToolCall};
use crate::header::{HeaderReader, Opening};
use crate::schema;
use crate::special::{CALL, CHANNEL, CONSTRAIN, END, MESSAGE, RETURN, START, is_special};
use crate::tokenizer::Tokenizer;
use crate::tool_names::ToolNames;

const IDENTITY: &str = "You are ChatGPT, a large language model trained by OpenAI.\nKnowledge cutoff: 2024-06";
const CHANNELS: &str = "# Valid channels: analysis, commentary, final. Channel must be included for every message.";
const CHANNEL_OF_TOOLS: &str = "\nCalls to these tools must go to the commentary channel: 'functions'.";

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    /// The token ids, from the system message through `<|start|>assistant`.
    pub tokens: Vec<u32>,
    /// What the tools are called in there: the [`Parser`](crate::Parser) needs it to map the names back.
    pub tool_names: ToolNames,
}

/// Why a conversation has no prompt.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RenderError {
    /// Two tools have the same name.
    #[error("two tools are named {name:?}: a call could not be told apart")]
    DuplicateTool {
        /// The name.
        name: String,
    },
    /// A tool's name is empty.
    #[error("a tool has an empty name")]
    UnnamedTool,
    /// A tool result refers to no call before it.
    #[error("the tool result for {call:?} answers no tool call of an assistant message before it")]
    OrphanToolResult {
        /// The call's id, or the tool's name where the client gave no id.
        call: String,
    },
    /// The date is not a date.
    #[error("the date {date:?} of the conversation is not of the form YYYY-MM-DD")]
    InvalidDate {
        /// The date as given.
        date: String,
    },
}

/// Renders the prompt for the assistant's next message.
pub fn render(conversation: &Conversation) -> Result<Rendered, RenderError> {
    let tool_names = ToolNames::new(&conversation.tools)?;
    let mut prompt = Prompt::new(conversation, tool_names);
    prompt.system()?;
    let (instructions, turns) = leading_instructions(&conversation.messages);
    prompt.instructions_and_tools(instructions);
    let analysis_from = if conversation.keep_analysis { 0 } else { current_turn(turns) };
    for (index, message) in turns.iter().enumerate() {
        prompt.message(message, index >= analysis_from)?;
    }
    prompt.control(START);
    prompt.text("assistant");
    Ok(Rendered { tokens: prompt.tokens, tool_names: prompt.names })
}

/// The leading system or developer text, and the messages after it.
fn leading_instructions(messages: &[Message]) -> (&str, &[Message]) {
    match messages {
        [Message::System { text } | Message::Developer { text }, rest @ ..] => (text, rest),
        _ => ("", messages),
    }
}

/// The index after the last user message or final answer: reasoning from there on belongs to work in progress.
fn current_turn(messages: &[Message]) -> usize {
    let ends_turn = |message: &Message| match message {
        Message::User { .. } => true,
        Message::Assistant { content, tool_calls, .. } => {
            tool_calls.is_empty() && content.as_ref().is_some_and(|text| !text.is_empty())
        }
        _ => false,
    };
    messages.iter().rposition(ends_turn).map_or(0, |last| last + 1)
}

/// The prompt as far as it is written.
struct Prompt<'a> {
    conversation: &'a Conversation,
    names: ToolNames,
    tokens: Vec<u32>,
    /// The client's tool name by call id, of the calls so far.
    called: HashMap<&'a str, &'a str>,
    /// The names among them, for results without an id.
    called_names: HashSet<&'a str>,
}

impl<'a> Prompt<'a> {
    fn new(conversation: &'a Conversation, names: ToolNames) -> Self {
        Self { conversation, names, tokens: Vec::new(), called: HashMap::new(), called_names: HashSet::new() }
    }

    fn control(&mut self, token: u32) {
        self.tokens.push(token);
    }

    fn text(&mut self, text: &str) {
        Tokenizer::shared().encode_into(text, &mut self.tokens);
    }

    /// A whole message: `author`, then `channel` if not empty, then `text`.
    fn plain(&mut self, author: &str, channel: &str, text: &str) {
        self.control(START);
        self.text(author);
        if !channel.is_empty() {
            self.control(CHANNEL);
            self.text(channel);
        }
        self.control(MESSAGE);
        self.text(text);
        self.control(END);
    }

    fn system(&mut self) -> Result<(), RenderError> {
        let Conversation { date, effort, tools, .. } = self.conversation;
        if !is_date(date) {
            return Err(RenderError::InvalidDate { date: date.clone() });
        }
        let channel_of_tools = if tools.is_empty() { "" } else { CHANNEL_OF_TOOLS };
        let effort = effort.as_str();
        let text = format!("{IDENTITY}\nCurrent date: {date}\n\nReasoning: {effort}\n\n{CHANNELS}{channel_of_tools}");
        self.plain("system", "", &text);
        Ok(())
    }

    fn instructions_and_tools(&mut self, instructions: &str) {
        let mut sections = Vec::new();
        if !instructions.is_empty() {
            sections.push(format!("# Instructions\n\n{instructions}"));
        }
        if !self.conversation.tools.is_empty() {
            sections.push(tools_section(&self.conversation.tools, &self.names));
        }
        if !sections.is_empty() {
            self.plain("developer", "", &sections.join("\n\n"));
        }
    }

    fn message(&mut self, message: &'a Message, keep_analysis: bool) -> Result<(), RenderError> {
        match message {
            Message::System { text } | Message::Developer { text } if text.is_empty() => {}
            Message::System { text } | Message::Developer { text } => {
                self.plain("developer", "", &format!("# Instructions\n\n{text}"));
            }
            Message::User { text } => self.plain("user", "", text),
            Message::Assistant { reasoning, content, tool_calls, tokens } => {
                for call in tool_calls {
                    self.called.insert(&call.id, &call.name);
                    self.called_names.insert(&call.name);
                }
                match tokens.as_deref().and_then(own_messages) {
                    Some(messages) => self.replay(&messages, keep_analysis),
                    None => {
                        let reasoning = reasoning.as_deref().filter(|_| keep_analysis);
                        self.assistant(reasoning, content.as_deref(), tool_calls);
                    }
                }
            }
            Message::ToolResult { call_id, name, text } => self.tool_result(call_id, name.as_deref(), text)?,
        }
        Ok(())
    }

    fn assistant(&mut self, reasoning: Option<&str>, content: Option<&str>, calls: &[ToolCall]) {
        if let Some(text) = reasoning.filter(|text| !text.is_empty()) {
            self.plain("assistant", "analysis", text);
        }
        if let Some(text) = content.filter(|text| !text.is_empty()) {
            self.plain("assistant", if calls.is_empty() { "final" } else { "commentary" }, text);
        }
        for call in calls {
            self.call(call);
        }
    }

    fn call(&mut self, call: &ToolCall) {
        let recipient = format!(" to=functions.{}", self.names.model_name(&call.name));
        self.control(START);
        self.text("assistant");
        match self.conversation.recipient {
            RecipientPosition::Channel => {
                self.control(CHANNEL);
                self.text(&format!("commentary{recipient} "));
            }
            RecipientPosition::Role => {
                self.text(&recipient);
                self.control(CHANNEL);
                self.text("commentary ");
            }
        }
        self.control(CONSTRAIN);
        self.text("json");
        self.control(MESSAGE);
        self.text(&call.arguments);
        self.control(CALL);
    }

    /// Writes messages in the model's own tokens.
    fn replay(&mut self, messages: &[OwnMessage<'_>], keep_analysis: bool) {
        for message in messages.iter().filter(|message| keep_analysis || !message.is_analysis) {
            self.control(START);
            self.text("assistant");
            self.tokens.extend_from_slice(message.tokens);
            self.control(if message.end == CALL { CALL } else { END });
        }
    }

    fn tool_result(&mut self, call_id: &str, name: Option<&str>, text: &str) -> Result<(), RenderError> {
        let (call, called) = match name {
            Some(name) if call_id.is_empty() => (name, self.called_names.get(name)),
            _ => (call_id, self.called.get(call_id)),
        };
        let name = *called.ok_or_else(|| RenderError::OrphanToolResult { call: call.to_string() })?;
        let author = format!("functions.{} to=assistant", self.names.model_name(name));
        self.plain(&author, "commentary", text);
        Ok(())
    }
}

/// One message of the model's own tokens, between `<|start|>assistant` and the token that ends it.
struct OwnMessage<'a> {
    tokens: &'a [u32],
    end: u32,
    is_analysis: bool,
}

/// The messages in what the model wrote after `<|start|>assistant`, or `None` where they are not well formed: then
/// they must not be shown to it again.
fn own_messages(mut tokens: &[u32]) -> Option<Vec<OwnMessage<'_>>> {
    let prefix = [&[START][..], &Tokenizer::shared().encode("assistant")].concat();
    let mut messages = Vec::new();
    while !tokens.is_empty() {
        if !messages.is_empty() {
            tokens = tokens.strip_prefix(&prefix[..])?;
        }
        let len = tokens.iter().position(|token| [END, CALL, RETURN].contains(token))?;
        messages.push(own_message(&tokens[..len], tokens[len])?);
        tokens = &tokens[len + 1..];
    }
    (!messages.is_empty()).then_some(messages)
}

/// The message with these tokens, if its header is well formed and its content is text.
fn own_message(tokens: &[u32], end: u32) -> Option<OwnMessage<'_>> {
    let body = tokens.iter().position(|&token| token == MESSAGE)?;
    if tokens[body + 1..].iter().any(|&token| is_special(token)) {
        return None;
    }
    let mut reader = HeaderReader::new(Opening::Prompted);
    for &token in &tokens[..body] {
        match token {
            CHANNEL => reader.channel(),
            CONSTRAIN => reader.content_type(),
            _ if is_special(token) => return None,
            _ => reader.text(Tokenizer::shared().token_bytes(token)?),
        };
    }
    let header = reader.finish();
    if header.faulty || header.channel.is_none() || (end == CALL) != header.recipient.is_some() {
        return None;
    }
    let is_analysis = header.channel.as_deref() == Some("analysis") && header.recipient.is_none();
    Some(OwnMessage { tokens, end, is_analysis })
}

/// The tools as a TypeScript namespace.
fn tools_section(tools: &[Tool], names: &ToolNames) -> String {
    let mut text = String::from("# Tools\n\n## functions\n\nnamespace functions {\n\n");
    for tool in tools {
        text += &schema::comment("", &tool.description);
        text += &format!("type {} = {};\n\n", names.model_name(&tool.name), schema::function_type(&tool.parameters));
    }
    text + "} // namespace functions"
}

/// Whether `text` has the form YYYY-MM-DD.
fn is_date(text: &str) -> bool {
    let digit_or_dash =
        |(at, byte): (usize, u8)| if [4, 7].contains(&at) { byte == b'-' } else { byte.is_ascii_digit() };
    text.len() == 10 && text.bytes().enumerate().all(digit_or_dash)
}
