//! A worker that is a thread of this process.

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use tandem_backend::Backend;
use tandem_step::{StepPlan, StepResult, Worker, WorkerError};

use crate::forward::ModelError;
use crate::runner::Runner;

/// Most plans under way at once; the engine's pipeline depth stays below it.
const PLANS_MAX: usize = 4;

/// Runs a [`Runner`] on a thread of its own, which ends when this is dropped.
pub struct LocalWorker {
    /// `None` only while dropping.
    plans: Option<SyncSender<StepPlan>>,
    results: Receiver<Result<StepResult, WorkerError>>,
    thread: Option<JoinHandle<()>>,
    /// Step of the oldest plan without a result, for messages.
    awaited: u64,
    eight_bit_prompts: bool,
}

impl LocalWorker {
    /// Starts the thread.
    pub fn start<B: Backend + 'static>(runner: Runner<B>) -> std::io::Result<Self>
    where
        Runner<B>: Send,
    {
        let eight_bit_prompts = runner.eight_bit_prompts();
        let (plans, plans_in) = sync_channel(PLANS_MAX);
        let (results_out, results) = sync_channel(PLANS_MAX);
        let thread = Builder::new().name("worker".into()).spawn(move || serve(runner, &plans_in, &results_out))?;
        Ok(Self { plans: Some(plans), results, thread: Some(thread), awaited: 0, eight_bit_prompts })
    }
}

/// Until the plans end or one fails.
fn serve<B: Backend>(
    mut runner: Runner<B>,
    plans: &Receiver<StepPlan>,
    results: &SyncSender<Result<StepResult, WorkerError>>,
) {
    while let Ok(plan) = plans.recv() {
        let result = runner
            .run(&plan)
            .map_err(|error: ModelError| WorkerError::Failed { step: plan.step, reason: error.to_string() });
        let failed = result.is_err();
        if results.send(result).is_err() || failed {
            return;
        }
    }
}

impl Worker for LocalWorker {
    fn submit(&mut self, plan: StepPlan) -> Result<(), WorkerError> {
        let plans = self.plans.as_ref().ok_or_else(|| gone("it was shut down"))?;
        plans.send(plan).map_err(|_| gone("its thread ended"))
    }

    fn next(&mut self, timeout: Duration) -> Result<StepResult, WorkerError> {
        match self.results.recv_timeout(timeout) {
            Ok(Ok(result)) => {
                self.awaited = result.step + 1;
                Ok(result)
            }
            Ok(Err(error)) => Err(error),
            Err(RecvTimeoutError::Timeout) => Err(WorkerError::Timeout { step: self.awaited, waited: timeout }),
            Err(RecvTimeoutError::Disconnected) => Err(gone("its thread ended")),
        }
    }

    fn eight_bit_prompts(&self) -> bool {
        self.eight_bit_prompts
    }
}

impl Drop for LocalWorker {
    fn drop(&mut self) {
        self.plans = None;
        if let Some(thread) = self.thread.take() {
            // A panic of the thread has been reported as `Gone` already.
            let _ = thread.join();
        }
    }
}

fn gone(why: &str) -> WorkerError {
    WorkerError::Gone(why.into())
}
