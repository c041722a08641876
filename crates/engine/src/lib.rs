//! Scheduler, block allocator, prefix cache and request ledger.
//!
//! Synchronous throughout: no async, no I/O. [`Engine`] owns one thread that turns requests into plans for a
//! [`tandem_step::Worker`] and results into updates.

mod request;
mod stats;

pub use request::{
    FinishReason, Finished, Request, RequestId, RequestTimings, SubmitError, Update, UpdateSink, Usage,
};
pub use stats::EngineStats;
