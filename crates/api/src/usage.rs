//! Token counts as clients see them.

use serde_json::{Value, json};

/// Token counts of one request, over all its choices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    /// Prompt tokens; those of a prompt with several choices count once.
    pub prompt: u32,
    /// Prompt tokens that came from the prefix cache.
    pub cached: u32,
    /// Tokens generated.
    pub generated: u32,
    /// Tokens generated that are reasoning.
    pub reasoning: u32,
}

impl Tally {
    /// The `usage` object of chat completions and completions.
    pub(crate) fn to_json(self) -> Value {
        json!({
            "prompt_tokens": self.prompt,
            "completion_tokens": self.generated,
            "total_tokens": u64::from(self.prompt) + u64::from(self.generated),
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        })
    }
}
