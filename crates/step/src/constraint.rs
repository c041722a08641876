use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// What a request's output must look like. Opaque between the edge that wrote it and the [`Masker`] that reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "String", into = "String")]
pub struct Constraint(Arc<str>);

impl Constraint {
    /// Wraps what the edge wrote.
    pub fn new(spec: String) -> Self {
        Self(spec.into())
    }

    /// What the edge wrote.
    pub fn spec(&self) -> &str {
        &self.0
    }
}

impl From<String> for Constraint {
    fn from(spec: String) -> Self {
        Self::new(spec)
    }
}

impl From<Constraint> for String {
    fn from(constraint: Constraint) -> Self {
        constraint.0.to_string()
    }
}

/// Whether the mask that follows a token is computed as soon as the token is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ahead {
    /// Only when it is needed.
    Never,
    /// If it probably will be: where it is narrow, or where the latest token asked about at a place that was not narrow was
    /// refused.
    IfLikely,
    /// In any case.
    Always,
}

/// Says which tokens a constrained request may choose next. Every rank of a worker has one of its own, and all come to
/// the same answers: nothing decides them but the constraint and the tokens.
///
/// Whether one token may come next ([`allows`](Self::allows)) is known in microseconds; a [`mask`](Self::mask), which says
/// it of all, takes a hundred times as long where many may, as inside a string, and ten times elsewhere. So a mask is
/// computed where few may follow ([`is_narrow`](Self::is_narrow)) and where a token was refused: when that is known, or
/// ahead, from the moment a token was chosen while a device works on what follows it.
///
/// An error is the request's end.
pub trait Masker: Send {
    /// A request takes a slot. `output`: what it has generated before, if it was preempted. Returns at once.
    fn begin(&mut self, slot: u32, constraint: &Constraint, output: &[u32]);

    /// The slot's next token. Where a mask may be computed ahead this returns at once.
    fn push(&mut self, slot: u32, token: u32, ahead: Ahead);

    /// Asks for the slot's mask and returns at once.
    fn order(&mut self, slot: u32);

    /// Waits until everything is there that was begun for the slot, so that what follows does not wait.
    fn ready(&mut self, slot: u32, until: Instant) -> Result<(), String>;

    /// Whether only few tokens may come next, as between the strings and numbers of JSON. There a token is drawn under the
    /// mask; elsewhere as if it were free, and under the mask where that one is refused. The answer is part of how a request
    /// is sampled, so it depends on the constraint and the tokens alone.
    fn is_narrow(&mut self, slot: u32) -> Result<bool, String>;

    /// Whether this token may come next: whether its bit is set in the mask.
    fn allows(&mut self, slot: u32, token: u32) -> Result<bool, String>;

    /// The mask, if it was computed. Once all is [`ready`](Self::ready) that is decided by earlier calls, not by time.
    fn mask_at_hand(&mut self, slot: u32) -> Option<Arc<[u32]>>;

    /// Which tokens may come next, one bit per token id, 32 to a word, lowest bit first; at least one is set, and ids
    /// beyond the end are not allowed. Computed here and now unless it was before.
    fn mask(&mut self, slot: u32) -> Result<Arc<[u32]>, String>;

    /// The slot's request is over or preempted.
    fn end(&mut self, slot: u32);
}
