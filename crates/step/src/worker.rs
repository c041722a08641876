use std::time::Duration;

use crate::{StepPlan, StepResult};

/// Whoever runs plans: a thread of this process, a child process, or a set of nodes in lock-step.
pub trait Worker: Send {
    /// Hands over the next plan and returns without waiting for its result. Plans are run in the order given.
    fn submit(&mut self, plan: StepPlan) -> Result<(), WorkerError>;

    /// Waits for the result of the oldest plan that has not been answered yet.
    fn next(&mut self, timeout: Duration) -> Result<StepResult, WorkerError>;
}

/// Why a worker gave no result. After any of these its state is lost: every request it was running has failed.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The worker is gone.
    #[error("the worker stopped: {0}")]
    Gone(String),
    /// No answer in time.
    #[error("the worker gave no result of step {step} within {waited:?}")]
    Timeout {
        /// The step that was waited for.
        step: u64,
        /// How long.
        waited: Duration,
    },
    /// The step itself failed.
    #[error("step {step} failed: {reason}")]
    Failed {
        /// The step.
        step: u64,
        /// What went wrong.
        reason: String,
    },
}
