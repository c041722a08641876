//! What a client says: the conversation, free of any wire format.

use serde_json::Value;

/// Everything that decides the prompt.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// The messages in order. A leading system or developer text becomes the instructions.
    pub messages: Vec<Message>,
    /// The functions that the model may call.
    pub tools: Vec<Tool>,
    /// How long the model should think.
    pub effort: Effort,
    /// The date in the system message, `YYYY-MM-DD`. It sits at the head of the prompt: pin it per conversation, or
    /// midnight empties the prefix cache.
    pub date: String,
    /// Keep the reasoning of earlier turns, which is dropped otherwise.
    pub keep_analysis: bool,
    /// Where the recipient of a tool call stands in the headers of earlier calls.
    pub recipient: RecipientPosition,
}

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// A system prompt.
    System {
        /// The text.
        text: String,
    },
    /// A developer prompt; harmony makes no difference to a system prompt.
    Developer {
        /// The text.
        text: String,
    },
    /// What the user says.
    User {
        /// The text.
        text: String,
    },
    /// What the model said: reasoning, then visible text, then calls.
    Assistant {
        /// The text of the analysis channel.
        reasoning: Option<String>,
        /// The visible text: the final answer, or a preamble where calls follow.
        content: Option<String>,
        /// The calls, in order.
        tool_calls: Vec<ToolCall>,
        /// The model's own tokens for this message, from after `<|start|>assistant` through the stop token, where
        /// they are known. Replayed in place of the fields above when well formed, so that the prompt cache hits.
        tokens: Option<Vec<u32>>,
    },
    /// What a tool answered.
    ToolResult {
        /// The id of the [`ToolCall`] answered. Empty where the client knows no ids: then `name` decides.
        call_id: String,
        /// The tool's name, needed only where `call_id` is empty.
        name: Option<String>,
        /// The output.
        text: String,
    },
}

/// A function that the model may call.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// The name, as the client writes it.
    pub name: String,
    /// What it does; may be empty.
    pub description: String,
    /// The JSON schema of its arguments; `Null` for none.
    pub parameters: Value,
}

/// A call of a function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ToolCall {
    /// What the [`Message::ToolResult`] refers to.
    pub id: String,
    /// The tool's name, as the client writes it.
    pub name: String,
    /// The arguments as the model wrote them: JSON, as a rule.
    pub arguments: String,
}

/// How long the model should think before it answers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effort {
    /// `Reasoning: low`.
    Low,
    /// `Reasoning: medium`, the default.
    #[default]
    Medium,
    /// `Reasoning: high`.
    High,
}

impl Effort {
    /// The word in the system message.
    pub fn as_str(self) -> &'static str {
        match self {
            Effort::Low => "low",
            Effort::Medium => "medium",
            Effort::High => "high",
        }
    }
}

/// Where the header of an earlier call names its recipient.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum RecipientPosition {
    /// `assistant<|channel|>commentary to=functions.f`: what the model itself writes, so that the prompt cache hits.
    #[default]
    Channel,
    /// `assistant to=functions.f<|channel|>commentary`: what openai-harmony renders.
    Role,
}
