use std::time::Duration;

use crate::{Capacity, StepPlan, StepResult};

/// Whoever runs plans: a thread of this process, a child process, or a set of nodes in lock-step.
pub trait Worker: Send {
    /// Hands over the next plan and returns without waiting for its result. Plans are run in the order given.
    fn submit(&mut self, plan: StepPlan) -> Result<(), WorkerError>;

    /// Waits for the result of the oldest plan that has not been answered yet.
    fn next(&mut self, timeout: Duration) -> Result<StepResult, WorkerError>;

    /// Whether it is still there, as far as is known without asking; for times when there is nothing to run.
    fn check(&mut self) -> Result<(), WorkerError> {
        Ok(())
    }

    /// Whether a better one could take its place: whoever drives it lets the steps under way return, then drops it and asks
    /// for the next. Nothing is wrong with this one meanwhile.
    fn is_to_be_replaced(&self) -> bool {
        false
    }

    /// Whether prompts are computed with activations rounded to 8 bits, as far from others as that makes them.
    fn eight_bit_prompts(&self) -> bool {
        false
    }

    /// What it offers, where that may differ from what its predecessor did. Only the pools' sizes may.
    fn capacity(&self) -> Option<Capacity> {
        None
    }
}

/// Where the next worker comes from when one is lost. The lost one is dropped before the next is asked for.
pub trait WorkerSource: Send {
    /// Waits at most `timeout` for a worker that is ready; `None` if there is none yet. An error says why there will be
    /// none any more.
    fn next(&mut self, timeout: Duration) -> Result<Option<Box<dyn Worker>>, WorkerError>;
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
