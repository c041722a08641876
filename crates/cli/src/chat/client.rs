//! The OpenAI chat API as the terminal needs it.

use std::io::{BufRead, BufReader};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use crate::remote::Remote;

/// One message of a conversation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// Its text.
    pub content: String,
}

/// What to ask for.
#[derive(Debug, Serialize)]
pub struct ChatRequest<'a> {
    /// The conversation so far.
    pub messages: &'a [Message],
    /// `low`, `medium` or `high`.
    pub reasoning_effort: &'a str,
    /// Sampling temperature.
    pub temperature: f32,
    stream: bool,
    stream_options: StreamOptions,
}

#[derive(Debug, Serialize)]
struct StreamOptions {
    include_usage: bool,
}

impl<'a> ChatRequest<'a> {
    /// A streamed request.
    pub fn new(messages: &'a [Message], reasoning_effort: &'a str, temperature: f32) -> Self {
        let stream_options = StreamOptions { include_usage: true };
        Self { messages, reasoning_effort, temperature, stream: true, stream_options }
    }
}

/// A piece of an answer.
#[derive(Debug)]
pub enum Piece {
    /// The model thinks.
    Reasoning(String),
    /// The model answers.
    Content(String),
    /// It is done: why.
    Finished(String),
    /// Token counts, last of all.
    Usage(Usage),
}

/// Token counts of an answer.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct Usage {
    /// Tokens of the whole conversation before the answer.
    pub prompt_tokens: u64,
    /// Tokens of the answer, reasoning included.
    pub completion_tokens: u64,
}

#[derive(Deserialize)]
struct Chunk {
    #[serde(default)]
    choices: Vec<Choice>,
    usage: Option<Usage>,
    error: Option<ErrorBody>,
}

#[derive(Deserialize)]
struct Choice {
    delta: Delta,
    finish_reason: Option<String>,
}

#[derive(Deserialize)]
struct Delta {
    content: Option<String>,
    reasoning: Option<String>,
}

#[derive(Deserialize)]
struct ErrorBody {
    message: String,
}

#[derive(Deserialize)]
struct Models {
    data: Vec<ModelEntry>,
}

#[derive(Deserialize)]
struct ModelEntry {
    id: String,
}

/// A server that chats.
pub struct Client(Remote);

impl Client {
    /// A client of a server.
    pub fn new(remote: Remote) -> Self {
        Self(remote)
    }

    /// The model it serves first.
    pub fn model(&self) -> Result<String> {
        let models: Models = self.0.get("/v1/models")?;
        models.data.into_iter().next().map(|model| model.id).context("the server serves no model")
    }

    /// Sends the request and hands over the pieces as they come, until `each` returns false, which hangs up.
    pub fn chat(&self, request: &ChatRequest<'_>, mut each: impl FnMut(Piece) -> bool) -> Result<()> {
        let mut response = self.0.post("/v1/chat/completions", &serde_json::to_vec(request)?)?;
        for line in BufReader::new(response.body_mut().as_reader()).lines() {
            let line = line.context("the connection broke off")?;
            let Some(data) = line.strip_prefix("data: ") else { continue };
            if data == "[DONE]" {
                return Ok(());
            }
            let chunk: Chunk = serde_json::from_str(data).with_context(|| format!("unreadable event {data}"))?;
            for piece in pieces(chunk)? {
                if !each(piece) {
                    return Ok(());
                }
            }
        }
        bail!("the answer broke off")
    }
}

fn pieces(chunk: Chunk) -> Result<Vec<Piece>> {
    if let Some(error) = chunk.error {
        bail!("{}", error.message);
    }
    let mut pieces = Vec::new();
    for choice in chunk.choices {
        pieces.extend(choice.delta.reasoning.map(Piece::Reasoning));
        pieces.extend(choice.delta.content.map(Piece::Content));
        pieces.extend(choice.finish_reason.map(Piece::Finished));
    }
    pieces.extend(chunk.usage.map(Piece::Usage));
    Ok(pieces)
}
