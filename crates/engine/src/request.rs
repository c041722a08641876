use std::time::Duration;

use tandem_step::{Capacity, Constraint, Sampling, TokenLogprobs};

/// Names a submitted request within one engine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RequestId(pub u64);

/// A request for tokens: what the edge hands to the engine.
#[derive(Clone, Debug)]
pub struct Request {
    /// Prompt token ids, at least one, each below the vocabulary size.
    pub prompt: Vec<u32>,
    /// Most tokens to generate. 0 generates none, which makes sense only with `prompt_logprobs`.
    pub max_tokens: u32,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Token ids that end generation. The stop token is delivered like any other, and counted.
    pub stop_tokens: Vec<u32>,
    /// Score the prompt: report the log-probability of every prompt token but the first, with this many alternatives.
    /// Such a request reads nothing from the prefix cache.
    pub prompt_logprobs: Option<u8>,
    /// What the output must look like. It wins over [`Sampling::suppress`] where the two leave no token.
    pub constraint: Option<Constraint>,
}

impl Request {
    /// Checks what can be checked before any work: the prompt's length and tokens.
    pub fn check(&self, capacity: &Capacity) -> Result<(), SubmitError> {
        if self.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        if self.prompt.len() >= capacity.context as usize {
            return Err(SubmitError::PromptTooLong { prompt: self.prompt.len(), context: capacity.context });
        }
        match self.prompt.iter().find(|token| **token >= capacity.vocab) {
            Some(&token) => Err(SubmitError::UnknownToken { token, vocab: capacity.vocab }),
            None => Ok(()),
        }
    }
}

/// What the engine tells about a request, in this order: `Started`, any `PromptScores`, any `Token`, one `Finished`.
#[derive(Clone, Debug, PartialEq)]
pub enum Update {
    /// It left the queue and its first tokens are being computed.
    Started {
        /// Prompt tokens whose keys and values came from the prefix cache.
        cached_tokens: u32,
    },
    /// Log-probabilities of the next prompt tokens, in order; the first entry of all belongs to the second token.
    PromptScores(Vec<TokenLogprobs>),
    /// One more generated token.
    Token {
        /// The token.
        token: u32,
        /// Its log-probabilities, if asked for.
        logprobs: Option<TokenLogprobs>,
    },
    /// It is over; nothing follows. Delivered exactly once for every accepted request.
    Finished(Finished),
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finished {
    /// Why.
    pub reason: FinishReason,
    /// What it used.
    pub usage: Usage,
    /// Where its time went.
    pub timings: RequestTimings,
}

/// Why a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// A stop token was generated: this one.
    Stop(u32),
    /// `max_tokens` were generated, or the context is full.
    Length,
    /// [`crate::Engine::abort`] was called, or its sink reported that nobody listens.
    Aborted,
    /// The model failed, the request's constraint did, or the engine is shutting down.
    Failed(String),
}

/// Token counts of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: u32,
    /// Those of them that came from the prefix cache.
    pub cached_tokens: u32,
    /// Tokens generated.
    pub generated_tokens: u32,
}

/// Durations of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RequestTimings {
    /// Waiting in the queue.
    pub queue: Duration,
    /// From leaving the queue to the first generated token.
    pub prefill: Duration,
    /// From the first generated token to the last.
    pub decode: Duration,
}

/// Takes the updates of one request, on the engine's thread: it must not block. Returns whether anybody still listens;
/// `false` aborts the request.
pub type UpdateSink = Box<dyn FnMut(Update) -> bool + Send>;

/// Why a request was not accepted. No update is delivered for it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// As many requests wait as the settings allow.
    #[error("the queue is full: {waiting} requests are waiting")]
    QueueFull {
        /// Requests waiting.
        waiting: usize,
    },
    /// The prompt leaves no room for even one token.
    #[error("the prompt has {prompt} tokens, and the context holds {context} with at least one generated")]
    PromptTooLong {
        /// Prompt tokens.
        prompt: usize,
        /// Positions a request may occupy.
        context: u32,
    },
    /// The prompt is empty.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A token id lies outside the vocabulary.
    #[error("token id {token} is not in the vocabulary of {vocab}")]
    UnknownToken {
        /// The id.
        token: u32,
        /// Size of the vocabulary.
        vocab: u32,
    },
    /// The engine is stopping or its worker is gone.
    #[error("the engine is not running: {0}")]
    NotRunning(String),
}
