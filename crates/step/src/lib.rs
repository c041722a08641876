//! [`StepPlan`] and [`StepResult`]: the only boundary between the engine and the workers that run the model.
//!
//! The engine sends one plan per step and gets one result back; whether the worker is a thread of this process or
//! another machine does not change what is said here. A plan carries *deltas*: requests that start or end, tokens that
//! are new, blocks that were newly assigned. A worker keeps everything else from step to step, so plans must be applied
//! in order, each exactly once.
//!
//! Nothing here knows about text, and nothing here knows about tensors.

mod capacity;
mod constraint;
mod plan;
mod result;
mod sampling;
mod worker;

pub use capacity::Capacity;
pub use constraint::{Ahead, Constraint, Masker};
pub use plan::{BlockAssignment, BlockCopy, Input, Pool, Row, Score, Slice, Start, StepPlan};
pub use result::{RowResult, StepResult, StepTimings, TokenLogprobs};
pub use sampling::Sampling;
pub use worker::{Worker, WorkerError, WorkerSource};
