//! Scheduler, block allocator, prefix cache and request ledger.
//!
//! Synchronous throughout: no async, no I/O. [`Engine`] owns one thread that turns requests into plans for a
//! [`tandem_step::Worker`] and results into updates; [`Scheduler`] is what decides, without thread or clock.
//!
//! A token costs a block's share in each of two pools: the full-attention layers keep every position, the sliding layers
//! only a window. The prefix cache keeps blocks of both for later prompts until others need the room: all of the full
//! pool's, and of the sliding pool's the windows where a later prompt is likely to go on.

mod admission;
mod cache;
mod driver;
mod engine;
mod pace;
mod pass;
mod planning;
mod pool;
mod publish;
mod record;
mod request;
mod results;
mod scheduler;
mod settings;
mod stats;
mod store;

pub use engine::Engine;
pub use request::{FinishReason, Finished, Request, RequestId, RequestTimings, SubmitError, Update, UpdateSink, Usage};
pub use results::ResultError;
pub use scheduler::Scheduler;
pub use settings::{EngineSettings, StartError};
pub use stats::EngineStats;
