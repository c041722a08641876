use serde::{Deserialize, Serialize};

use crate::{Constraint, Sampling};

/// One step of the model: what every worker does, in this order: `ends`, `starts`, `copies`, `slice`,
/// `rows`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StepPlan {
    /// Raised whenever workers are lost and state is rebuilt; a worker refuses plans of another epoch.
    pub epoch: u64,
    /// Counts up by one within an epoch; begins at 0 where no slot is taken.
    pub step: u64,
    /// Slots whose request is over or preempted; the worker forgets what it knew of them.
    pub ends: Vec<u32>,
    /// Requests that take a slot. The slot is free, or is in `ends` of this same plan.
    pub starts: Vec<Start>,
    /// Block copies to make before any row runs.
    pub copies: Vec<BlockCopy>,
    /// Part of a pass that several steps share.
    pub slice: Option<Slice>,
    /// The tokens to run, at most one row per slot.
    pub rows: Vec<Row>,
}

/// A request takes a slot.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Start {
    /// The slot it takes, in `0..max_streams`.
    pub slot: u32,
    /// How its tokens are chosen.
    pub sampling: Sampling,
    /// Tokens known at the start: all of them where [`Sampling::needs_history`], those generated where only a constraint
    /// needs them, otherwise none.
    pub history: Vec<u32>,
    /// How many tokens had been generated before the start (more than 0 after a preemption). Where `history` is given
    /// these are its last ones.
    pub generated: u32,
    /// What the output must look like, if anything is asked of it.
    pub constraint: Option<Constraint>,
}

/// The two pools of KV blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Pool {
    /// Layers that attend to all earlier positions.
    Full,
    /// Layers that attend to a window.
    Sliding,
}

/// A block of a pool now holds positions `index * block_tokens ..` of a slot's sequence. Replaces what the slot had at
/// that index, if anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockAssignment {
    /// Which pool.
    pub pool: Pool,
    /// Which stretch of the sequence: position divided by `block_tokens`.
    pub index: u32,
    /// The block in the pool.
    pub block: u32,
}

/// Copy a whole block onto another of the same pool: a request continues a prefix that ends inside a shared block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlockCopy {
    /// Which pool.
    pub pool: Pool,
    /// Block read.
    pub from: u32,
    /// Block overwritten.
    pub to: u32,
}

/// What a row feeds to the model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Input {
    /// These tokens, at least one.
    Tokens(Vec<u32>),
    /// The one token that the slot's previous row sampled, which the engine may not know yet.
    Sampled,
}

impl Input {
    /// Number of tokens, at least 1.
    pub fn len(&self) -> usize {
        match self {
            Input::Tokens(tokens) => tokens.len(),
            Input::Sampled => 1,
        }
    }

    /// Whether there is nothing to feed; never true in a valid plan.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Consecutive tokens of one request: a chunk of its prompt, or one token to decode from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The request's slot.
    pub slot: u32,
    /// The tokens.
    pub input: Input,
    /// Position of the first of them.
    pub position: u32,
    /// Blocks newly assigned since the slot's previous row. Together with earlier ones they cover, in the full pool,
    /// positions `0 .. position + len`, and in the sliding pool those from `position + 1 - window` on.
    pub blocks: Vec<BlockAssignment>,
    /// Choose a next token from the logits of the last position.
    pub sample: bool,
    /// Log-probabilities of known tokens, for prompts that want them.
    pub score: Option<Score>,
}

/// Some layers of a forward pass that is divided among steps, so that other requests get tokens in between. One such pass
/// is under way at a time: it begins with a slice that has rows, goes on with slices that have none, and ends when it has
/// been through [`Capacity::layers`](crate::Capacity::layers). The step of its last slice answers its rows.
///
/// While a pass is under way its slots have no other rows, and the rows of all other slots are no more tokens than there
/// are slots: those have room of their own. None of its slots ends, unless all of them do, and then the pass is over.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Slice {
    /// The rows of the pass that begins, at most one per slot; empty where the pass goes on.
    pub rows: Vec<Row>,
    /// So many layers, at least 1, and no more than are left.
    pub layers: u32,
}

/// Ask for the log-probabilities of tokens that are known: `targets[i]` as the successor of the row's token `i`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Score {
    /// At most as many as the row has tokens; they belong to its first positions.
    pub targets: Vec<u32>,
    /// How many of the likeliest alternatives to report at each position.
    pub top: u8,
}
