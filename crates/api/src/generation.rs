//! The choices of one request, on their way through the engine.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tandem_engine::{FinishReason, Request, RequestId, SubmitError, Update, UpdateSink};
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep, sleep_until};

use crate::error::ApiError;
use crate::metrics::Meter;
use crate::state::{ApiState, Served, is_true};

/// Pause before the queue is tried again for the later choices of a request.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// Hands a request's choices to the engine, a few at a time, and their updates to the edge.
///
/// Whatever happens to the client, dropping this aborts what still runs.
pub(crate) struct Generation {
    state: ApiState,
    served: Arc<Served>,
    arrived: std::time::Instant,
    deadline: Instant,
    /// Makes a choice's request when its turn comes: prompts are long.
    request: Box<dyn Fn(usize) -> Request + Send + Sync>,
    /// Choices not yet submitted.
    pending: Range<usize>,
    running: HashMap<usize, Running>,
    sender: mpsc::Sender<(usize, Update)>,
    updates: mpsc::Receiver<(usize, Update)>,
    /// Told when an update found no room.
    overflow: Arc<Notify>,
    ending: watch::Receiver<bool>,
}

struct Running {
    id: RequestId,
    /// Shared with the meter: the edge ended the choice on purpose.
    stopped: Arc<AtomicBool>,
}

impl Generation {
    /// Submits the first of so many choices, whose requests `request` makes. Where the queue is full, so is the answer.
    pub(crate) fn start(
        state: &ApiState,
        served: &Arc<Served>,
        arrived: std::time::Instant,
        choices: usize,
        request: impl Fn(usize) -> Request + Send + Sync + 'static,
    ) -> Result<Self, ApiError> {
        let settings = state.settings();
        let at_once = settings.choices_at_once.clamp(1, choices.max(1));
        let (sender, updates) = mpsc::channel(settings.pending_updates_max.max(1).saturating_mul(at_once));
        let mut generation = Self {
            state: state.clone(),
            served: served.clone(),
            arrived,
            deadline: deadline(arrived, settings.request_timeout),
            request: Box::new(request),
            pending: 0..choices,
            running: HashMap::new(),
            sender,
            updates,
            overflow: Arc::new(Notify::new()),
            ending: state.ending(),
        };
        match generation.submit_some() {
            Err(SubmitError::QueueFull { .. }) if !generation.running.is_empty() => Ok(generation),
            Err(error) => Err(error.into()),
            Ok(()) => Ok(generation),
        }
    }

    /// Waits for the next update and the choice it belongs to; `None` when all choices have finished. After an error
    /// everything is aborted.
    pub(crate) async fn next(&mut self) -> Result<Option<(usize, Update)>, ApiError> {
        let event = self.next_or_error().await;
        if event.is_err() {
            self.abort_all();
        }
        event
    }

    /// Ends a choice on the edge's decision, as at a stop string. No more of its updates are delivered.
    pub(crate) fn stop(&mut self, index: usize) {
        if let Some(running) = self.running.remove(&index) {
            running.stopped.store(true, Ordering::Relaxed);
            self.served.engine.abort(running.id);
        }
    }

    async fn next_or_error(&mut self) -> Result<Option<(usize, Update)>, ApiError> {
        loop {
            self.keep_submitting().await?;
            if self.running.is_empty() {
                return Ok(None);
            }
            let (index, update) = tokio::select! {
                biased;
                () = self.overflow.notified() => return Err(ApiError::slow_reader()),
                () = is_true(&mut self.ending) => return Err(ApiError::shutting_down()),
                () = sleep_until(self.deadline) => {
                    return Err(ApiError::time_limit(self.state.settings().request_timeout.as_secs()));
                }
                Some(update) = self.updates.recv() => update,
            };
            if !self.running.contains_key(&index) {
                continue; // stopped in the meantime
            }
            if let Update::Finished(finished) = &update {
                self.running.remove(&index);
                match &finished.reason {
                    FinishReason::Stop(_) | FinishReason::Length => {}
                    FinishReason::Aborted => return Err(ApiError::engine_failed("it was aborted")),
                    FinishReason::Failed(reason) => return Err(ApiError::engine_failed(reason)),
                }
            }
            return Ok(Some((index, update)));
        }
    }

    /// Submits what may run; waits only where nothing runs and the queue has no room.
    async fn keep_submitting(&mut self) -> Result<(), ApiError> {
        loop {
            match self.submit_some() {
                Ok(()) => return Ok(()),
                Err(SubmitError::QueueFull { .. }) if !self.running.is_empty() => return Ok(()),
                Err(SubmitError::QueueFull { .. }) if *self.ending.borrow() => return Err(ApiError::shutting_down()),
                Err(SubmitError::QueueFull { .. }) if Instant::now() < self.deadline => sleep(RETRY_PAUSE).await,
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn submit_some(&mut self) -> Result<(), SubmitError> {
        while self.running.len() < self.state.settings().choices_at_once.max(1) {
            let index = self.pending.start;
            if self.pending.is_empty() {
                break;
            }
            let stopped = Arc::new(AtomicBool::new(false));
            let id = self.served.engine.submit((self.request)(index), self.sink(index, &stopped))?;
            self.running.insert(index, Running { id, stopped });
            self.pending.start += 1;
        }
        Ok(())
    }

    /// Passes a choice's updates on. It runs on the engine's thread and never waits: if the client is so far behind
    /// that there is no room, the request ends.
    fn sink(&self, index: usize, stopped: &Arc<AtomicBool>) -> UpdateSink {
        let mut meter = Meter::new(self.state.metrics().clone(), self.arrived, stopped.clone());
        let (sender, overflow) = (self.sender.clone(), self.overflow.clone());
        Box::new(move |update| {
            meter.observe(&update);
            match sender.try_send((index, update)) {
                Ok(()) => true,
                Err(mpsc::error::TrySendError::Closed(_)) => false,
                Err(mpsc::error::TrySendError::Full(_)) => {
                    overflow.notify_one();
                    false
                }
            }
        })
    }

    fn abort_all(&mut self) {
        self.pending = 0..0;
        for (_, running) in self.running.drain() {
            self.served.engine.abort(running.id);
        }
    }
}

fn deadline(arrived: std::time::Instant, limit: Duration) -> Instant {
    const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);
    Instant::from_std(arrived) + limit.min(FOREVER)
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.abort_all();
    }
}
