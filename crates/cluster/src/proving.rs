use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tandem_step::{StepPlan, StepResult, Worker, WorkerError};

/// How often it is looked whether to end.
const LOOK: Duration = Duration::from_millis(200);

/// A group while it proves itself: steps may take long, and the end of the server must not wait for them.
pub(crate) struct Proving<'a, W> {
    pub(crate) worker: &'a mut W,
    pub(crate) stop: &'a AtomicBool,
}

impl<W: Worker> Worker for Proving<'_, W> {
    fn submit(&mut self, plan: StepPlan) -> Result<(), WorkerError> {
        self.worker.submit(plan)
    }

    fn next(&mut self, timeout: Duration) -> Result<StepResult, WorkerError> {
        let deadline = Instant::now() + timeout;
        loop {
            if self.stop.load(Ordering::Acquire) {
                return Err(WorkerError::Gone("the server ends".into()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.worker.next(left.min(LOOK)) {
                Err(WorkerError::Timeout { .. }) if left > LOOK => {}
                // It is the whole wait that counts.
                Err(WorkerError::Timeout { step, .. }) => return Err(WorkerError::Timeout { step, waited: timeout }),
                answer => return answer,
            }
        }
    }

    fn eight_bit_prompts(&self) -> bool {
        self.worker.eight_bit_prompts()
    }
}
