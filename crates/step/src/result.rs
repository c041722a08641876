use serde::{Deserialize, Serialize};

/// What a step gave: one entry per row of its plan, in the same order, and then, where a pass ended with the plan's slice,
/// one per row of that.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepResult {
    /// Epoch of the plan.
    pub epoch: u64,
    /// Step of the plan.
    pub step: u64,
    /// One entry per row, then those of the pass that ended.
    pub rows: Vec<RowResult>,
    /// How long the step took.
    pub timings: StepTimings,
}

/// What one row gave.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RowResult {
    /// The row's slot.
    pub slot: u32,
    /// The token chosen, where the row asked for one.
    pub token: Option<u32>,
    /// Its log-probabilities, where the request's sampling asks for them.
    pub logprobs: Option<TokenLogprobs>,
    /// One entry per target, where the row asked for scores.
    pub scores: Vec<TokenLogprobs>,
    /// Why the request cannot go on, such as a constraint that proved too complex. Its token means nothing then, but is
    /// there: a row that continues from it may be under way.
    pub error: Option<String>,
}

impl RowResult {
    /// A result without token or scores.
    pub fn empty(slot: u32) -> Self {
        Self { slot, token: None, logprobs: None, scores: Vec::new(), error: None }
    }
}

/// Log-probabilities at one position, natural logarithm.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TokenLogprobs {
    /// The token chosen or asked for.
    pub token: u32,
    /// Its log-probability.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first (lowest id on a tie).
    pub top: Vec<(u32, f32)>,
}

/// Where a step's time went, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StepTimings {
    /// The slice, device included.
    pub slice_us: u64,
    /// Forward pass of the rows. A device that computes by itself may still be at it.
    pub forward_us: u64,
    /// Choosing tokens and computing log-probabilities.
    pub sample_us: u64,
}
