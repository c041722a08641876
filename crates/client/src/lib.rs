//! The Rust SDK of Tandem: conversations, completions and tokens from a server started with
//! `tandem serve --grpc-port PORT`.
//!
//! ```no_run
#![doc = include_str!("../examples/chat.rs")]
//! ```
//!
//! **Streams.** `stream` instead of `send` gives events as they happen. Dropping a stream, or the future of a call,
//! cancels the request on the server.
//!
//! ```no_run
#![doc = include_str!("../examples/stream.rs")]
//! ```
//!
//! **Tools.**
//!
//! ```no_run
#![doc = include_str!("../examples/tools.rs")]
//! ```
//!
//! **Tokens**, with log-probabilities.
//!
//! ```no_run
#![doc = include_str!("../examples/tokens.rs")]
//! ```
//!
//! **Deadlines.** [`ClientBuilder::timeout`] and the `timeout` of each request limit a call with all its attempts; the
//! server knows of them and stops computing. Without one a call may take as long as the server lets it.
//!
//! **Retries.** A request changes nothing on the server, so a call that could not be sent, or that the server had no room
//! for, is tried again after a growing pause ([`Retry`]). A stream that has begun is not: what it said cannot be taken
//! back.

#![forbid(unsafe_code)]

/// What the README says.
#[cfg(doctest)]
#[doc = include_str!("../../../README.md")]
struct Readme;

mod builder;
mod chat;
mod client;
mod complete;
mod error;
mod generate;
mod retry;
mod sampling;
mod stream;

pub use builder::ClientBuilder;
pub use chat::{Chat, ChatEvent, ChatStream};
pub use client::Client;
pub use complete::{Complete, CompleteEvent, CompleteStream};
pub use error::Error;
pub use generate::{Generate, GenerateEvent, GenerateStream};
pub use retry::Retry;
pub use stream::EventStream;
pub use tandem_proto::v1 as proto;
pub use tandem_proto::v1::{
    Alternative, ChatReply, ClusterStatusReply, CompleteReply, Effort, Finish, Finished, HealthReply, Message, Model,
    Role, Started, TokenLogprob, TokenizeReply, Tool, ToolCall, Usage,
};
