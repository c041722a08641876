use std::sync::Arc;

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

/// Says which tokens a constrained request may choose next. Every rank of a worker has one of its own, and all come to
/// the same masks: nothing decides them but the constraint and the tokens.
///
/// A worker calls [`push`](Self::push) as soon as it knows a token and [`mask`](Self::mask) as late as it can, when it
/// is about to sample the next: between the two the mask is computed while the device works.
pub trait Masker: Send {
    /// A request takes a slot. `output`: what it has generated before, if it was preempted.
    fn begin(&mut self, slot: u32, constraint: &Constraint, output: &[u32]);

    /// The slot's next token. Returns without waiting for the mask that follows from it.
    fn push(&mut self, slot: u32, token: u32);

    /// Which tokens may come next, one bit per token id, 32 to a word, lowest bit first; at least one is set, and ids
    /// beyond the end are not allowed. Waits for it. An error is the request's end.
    fn mask(&mut self, slot: u32) -> Result<Arc<[u32]>, String>;

    /// The slot's request is over or preempted.
    fn end(&mut self, slot: u32);
}
