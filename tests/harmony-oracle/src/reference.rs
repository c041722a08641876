//! The library, fed with our conversations.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::OnceLock;

use base64::prelude::{Engine as _, BASE64_STANDARD};
use openai_harmony::chat::{
    Author, DeveloperContent, Message as TheirMessage, ReasoningEffort, Role, SystemContent, ToolDescription,
};
use openai_harmony::{load_harmony_encoding, HarmonyEncoding, HarmonyEncodingName};
use tandem_harmony::{special, Conversation, Effort, Message, Tokenizer, Tool, ToolCall};

/// The library's encoding. It reads the vocabulary from `folder`, where ours is written first; it checks the SHA-256.
pub fn encoding(folder: &str) -> &'static HarmonyEncoding {
    static ENCODING: OnceLock<HarmonyEncoding> = OnceLock::new();
    ENCODING.get_or_init(|| {
        write_vocabulary(&Path::new(folder).join("o200k_base.tiktoken"));
        std::env::set_var("TIKTOKEN_ENCODINGS_BASE", folder);
        load_harmony_encoding(HarmonyEncodingName::HarmonyGptOss).expect("the library accepts our vocabulary")
    })
}

/// Writes a line of base64 and rank for each token that is text.
fn write_vocabulary(path: &Path) {
    let mut lines = String::new();
    for id in 0..special::FIRST_SPECIAL {
        let bytes = Tokenizer::shared().token_bytes(id).expect("an id of the vocabulary");
        writeln!(lines, "{} {id}", BASE64_STANDARD.encode(bytes)).expect("writing to a string");
    }
    std::fs::write(path, lines).expect("a writable folder");
}

/// The prompt as the library renders it, told to drop nothing: what to drop is decided here.
pub fn prompt(encoding: &HarmonyEncoding, conversation: &Conversation) -> Vec<u32> {
    let messages = messages(conversation);
    encoding.render_conversation_for_completion(&messages, Role::Assistant, None).expect("the library renders it")
}

/// The conversation in the library's types, by the same rules as ours.
pub fn messages(conversation: &Conversation) -> Vec<TheirMessage> {
    let mut theirs = vec![TheirMessage::from_role_and_content(Role::System, system(conversation))];
    let (instructions, turns) = match conversation.messages.split_first() {
        Some((Message::System { text } | Message::Developer { text }, rest)) => (Some(text), rest),
        _ => (None, &conversation.messages[..]),
    };
    if instructions.is_some() || !conversation.tools.is_empty() {
        theirs.push(TheirMessage::from_role_and_content(Role::Developer, developer(instructions, &conversation.tools)));
    }
    let current_turn = if conversation.keep_analysis { 0 } else { current_turn(turns) };
    for (index, message) in turns.iter().enumerate() {
        match message {
            Message::System { text } | Message::Developer { text } => {
                theirs.push(TheirMessage::from_role_and_content(Role::Developer, developer(Some(text), &[])));
            }
            Message::User { text } => theirs.push(TheirMessage::from_role_and_content(Role::User, text.as_str())),
            Message::Assistant { reasoning, content, tool_calls, .. } => {
                let reasoning = reasoning.as_deref().filter(|_| index >= current_turn);
                theirs.extend(assistant(reasoning, content.as_deref(), tool_calls));
            }
            Message::ToolResult { call_id, text, .. } => theirs.push(tool_result(turns, call_id, text)),
        }
    }
    theirs
}

/// The index after the last user message or answer.
fn current_turn(turns: &[Message]) -> usize {
    let ends = |message: &Message| match message {
        Message::User { .. } => true,
        Message::Assistant { tool_calls, content, .. } => tool_calls.is_empty() && content.is_some(),
        _ => false,
    };
    turns.iter().rposition(ends).map_or(0, |at| at + 1)
}

fn system(conversation: &Conversation) -> SystemContent {
    let effort = match conversation.effort {
        Effort::Low => ReasoningEffort::Low,
        Effort::Medium => ReasoningEffort::Medium,
        Effort::High => ReasoningEffort::High,
    };
    SystemContent::new().with_reasoning_effort(effort).with_conversation_start_date(&conversation.date)
}

fn developer(instructions: Option<&String>, tools: &[Tool]) -> DeveloperContent {
    let mut content = DeveloperContent::new();
    if let Some(instructions) = instructions {
        content = content.with_instructions(instructions);
    }
    if !tools.is_empty() {
        content = content.with_function_tools(tools.iter().map(tool).collect());
    }
    content
}

fn tool(tool: &Tool) -> ToolDescription {
    let parameters = Some(tool.parameters.clone()).filter(|parameters| !parameters.is_null());
    ToolDescription::new(&tool.name, &tool.description, parameters)
}

fn assistant(reasoning: Option<&str>, content: Option<&str>, calls: &[ToolCall]) -> Vec<TheirMessage> {
    let message =
        |text: &str, channel: &str| TheirMessage::from_role_and_content(Role::Assistant, text).with_channel(channel);
    let call = |call: &ToolCall| {
        let recipient = format!("functions.{}", call.name);
        message(&call.arguments, "commentary").with_recipient(recipient).with_content_type("<|constrain|>json")
    };
    let visible = if calls.is_empty() { "final" } else { "commentary" };
    let reasoning = reasoning.map(|text| message(text, "analysis"));
    let content = content.map(|text| message(text, visible));
    reasoning.into_iter().chain(content).chain(calls.iter().map(call)).collect()
}

fn tool_result(turns: &[Message], call_id: &str, text: &str) -> TheirMessage {
    let calls = turns.iter().flat_map(|message| match message {
        Message::Assistant { tool_calls, .. } => &tool_calls[..],
        _ => &[],
    });
    let call = calls.into_iter().find(|call| call.id == call_id).expect("generated results answer calls");
    TheirMessage::from_author_and_content(Author::new(Role::Tool, format!("functions.{}", call.name)), text)
        .with_channel("commentary")
        .with_recipient("assistant")
}
