use serde::{Deserialize, Serialize};

/// How the next token of one request is chosen. Values are validated at the edge; a worker may rely on the ranges.
///
/// The random draw for the token at position `p` depends on `seed` and `p` alone, never on the batch or on earlier
/// draws: a request preempted and resumed, or run beside strangers, draws the same numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// 0 chooses the most likely token (lowest id on a tie); otherwise logits are divided by it. At least 0.
    pub temperature: f32,
    /// Keep the smallest set of tokens whose probability reaches this. In (0, 1]; 1 keeps all.
    pub top_p: f32,
    /// Keep this many of the likeliest tokens; 0 keeps all.
    pub top_k: u32,
    /// Drop tokens less likely than this fraction of the likeliest. In [0, 1]; 0 keeps all.
    pub min_p: f32,
    /// Seed of the random draws.
    pub seed: u64,
    /// Subtracted once from the logit of every token generated so far. In [-2, 2].
    pub presence_penalty: f32,
    /// Subtracted for each time a token was generated so far. In [-2, 2].
    pub frequency_penalty: f32,
    /// Logits of tokens in prompt or output are divided by it where positive, multiplied where negative. 1 is off.
    pub repetition_penalty: f32,
    /// Added to the logits of these token ids.
    pub logit_bias: Vec<(u32, f32)>,
    /// Token ids that may not be chosen while fewer than `suppress_until` tokens have been generated.
    pub suppress: Vec<u32>,
    /// See `suppress`; `u32::MAX` suppresses always.
    pub suppress_until: u32,
    /// Report the chosen token's log-probability and this many of the likeliest alternatives. Log-probabilities are
    /// those of the model itself, before temperature, penalties and truncation.
    pub logprobs: Option<u8>,
}

impl Default for Sampling {
    /// Plain sampling from the model's own distribution, seed 0.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_p: 1.0,
            top_k: 0,
            min_p: 0.0,
            seed: 0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            suppress: Vec::new(),
            suppress_until: 0,
            logprobs: None,
        }
    }
}

impl Sampling {
    /// Whether the worker must know which tokens came before.
    pub fn needs_history(&self) -> bool {
        self.presence_penalty != 0.0 || self.frequency_penalty != 0.0 || self.repetition_penalty != 1.0
    }
}
