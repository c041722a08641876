//! Conversation to tokens and back.
//!
//! gpt-oss speaks *harmony*: every message has a header (author, recipient, channel, content type) framed by
//! control tokens. [`render`] turns a [`Conversation`] into the token ids of a completion prompt, and [`Parser`]
//! turns the ids that the model writes back into reasoning, visible text and tool calls, one token at a time.
//!
//! Two rules hold throughout. Text never becomes a control token: what a user types is encoded as ordinary text even
//! where it spells `<|end|>`. And nothing that a model writes is an error: the parser recovers, and counts how often.
//!
//! ```
//! use tandem_harmony::{Conversation, Event, Message, Parser, Tokenizer, render};
//!
//! let conversation = Conversation {
//!     messages: vec![Message::User { text: "What is 2 + 2?".into() }],
//!     date: "2025-06-28".into(),
//!     ..Conversation::default()
//! };
//! let prompt = render(&conversation)?;
//! assert!(Tokenizer::shared().decode(&prompt.tokens).ends_with("What is 2 + 2?<|end|><|start|>assistant"));
//!
//! let mut parser = Parser::new(&prompt.tool_names);
//! let reply = Tokenizer::shared().encode_with_special("<|channel|>final<|message|>4<|return|>");
//! let events: Vec<Event> = reply.iter().flat_map(|&token| parser.push(token)).collect();
//! assert_eq!(events, [Event::Content("4".into())]);
//! # Ok::<(), tandem_harmony::RenderError>(())
//! ```

mod bpe;
mod conversation;
mod detokenize;
mod header;
mod parser;
mod render;
mod schema;
pub mod special;
mod stop;
mod tokenizer;
mod tool_names;

pub use conversation::{Conversation, Effort, Message, RecipientPosition, Tool, ToolCall};
pub use detokenize::TextDecoder;
pub use parser::{Channel, End, Event, Parser, Summary};
pub use render::{RenderError, Rendered, render};
pub use special::STOP_TOKENS;
pub use stop::{StopOutput, StopStrings};
pub use tokenizer::Tokenizer;
pub use tool_names::ToolNames;
