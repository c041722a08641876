use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tandem_step::{Capacity, Worker, WorkerSource};

use crate::driver::Driver;
use crate::{EngineSettings, EngineStats, Request, RequestId, Scheduler, StartError, SubmitError, UpdateSink};

/// How long [`Engine::shutdown`] waits beyond its deadline for the thread to say its last words.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(1);

/// A handle to a running engine: one thread that drives one worker. Clones are handles to the same engine; when the last
/// one is dropped the engine stops.
#[derive(Clone)]
pub struct Engine {
    handle: Arc<Handle>,
}

struct Handle {
    shared: Arc<Shared>,
    settings: EngineSettings,
}

/// What handles and the engine's thread have in common.
pub(crate) struct Shared {
    state: Mutex<State>,
    /// Told of new commands and of the wish to stop.
    pub(crate) wake: Condvar,
    /// Told when the thread is done.
    pub(crate) done: Condvar,
}

pub(crate) struct State {
    pub(crate) condition: Condition,
    /// Of the worker at hand.
    pub(crate) capacity: Capacity,
    pub(crate) commands: VecDeque<Command>,
    /// Submissions among `commands`.
    pub(crate) submitted: usize,
    pub(crate) stats: EngineStats,
    pub(crate) next_id: u64,
    pub(crate) is_done: bool,
}

/// Whether requests are taken and, if not, why.
pub(crate) enum Condition {
    Running,
    /// Open requests may finish until then; none is accepted.
    Stopping {
        deadline: Instant,
    },
    /// The worker was lost and the next is being waited for; no request is open.
    Recovering {
        reason: String,
    },
    /// The thread has ended or is about to.
    Down {
        reason: String,
    },
}

/// What a handle asks of the thread.
pub(crate) enum Command {
    Submit { id: RequestId, request: Request, sink: UpdateSink, at: Instant },
    Abort(RequestId),
}

impl Engine {
    /// Starts the engine's thread. Fails if the settings do not fit the capacity; see [`EngineSettings::check`].
    pub fn start(worker: Box<dyn Worker>, capacity: Capacity, settings: EngineSettings) -> Result<Self, StartError> {
        Self::start_with(worker, None, capacity, settings)
    }

    /// The same, but when the worker is lost the engine goes on with the next from `source`. Until then requests are
    /// refused; those that were open have failed.
    pub fn start_with(
        worker: Box<dyn Worker>,
        source: Option<Box<dyn WorkerSource>>,
        capacity: Capacity,
        settings: EngineSettings,
    ) -> Result<Self, StartError> {
        let scheduler = Scheduler::new(capacity, settings.clone())?;
        let shared = Arc::new(Shared::new(capacity));
        let driver = Driver::new(shared.clone(), worker, source, scheduler, &settings);
        let thread = std::thread::Builder::new().name("engine".to_owned());
        thread.spawn(move || driver.run()).map_err(StartError::Thread)?;
        Ok(Self { handle: Arc::new(Handle { shared, settings }) })
    }

    /// Queues a request; what becomes of it goes to `sink`, ending with exactly one `Finished`. Does not block.
    pub fn submit(&self, request: Request, sink: UpdateSink) -> Result<RequestId, SubmitError> {
        let mut state = self.handle.shared.lock();
        request.check(&state.capacity)?;
        if let Some(reason) = state.condition.trouble() {
            return Err(SubmitError::NotRunning(reason));
        }
        let waiting = state.stats.waiting + state.submitted;
        let free_slots = (state.capacity.max_streams as usize).saturating_sub(state.stats.running);
        if waiting >= self.handle.settings.max_queue + free_slots {
            return Err(SubmitError::QueueFull { waiting });
        }
        let id = RequestId(state.next_id);
        state.next_id += 1;
        state.submitted += 1;
        state.commands.push_back(Command::Submit { id, request, sink, at: Instant::now() });
        self.handle.shared.wake.notify_one();
        Ok(id)
    }

    /// Ends a request, if it is still open: it takes part in no step planned after the one being run.
    pub fn abort(&self, id: RequestId) {
        let mut state = self.handle.shared.lock();
        if !matches!(state.condition, Condition::Recovering { .. } | Condition::Down { .. }) {
            state.commands.push_back(Command::Abort(id));
            self.handle.shared.wake.notify_one();
        }
    }

    /// What the engine is doing, as of the last step; requests submitted since count as waiting.
    pub fn stats(&self) -> EngineStats {
        let state = self.handle.shared.lock();
        EngineStats { waiting: state.stats.waiting + state.submitted, ..state.stats }
    }

    /// What the worker offers. Where one is replaced by another the pools may change in size, and nothing else.
    pub fn capacity(&self) -> Capacity {
        self.handle.shared.lock().capacity
    }

    /// Whether it accepts requests (unless its queue is full).
    pub fn is_healthy(&self) -> bool {
        self.trouble().is_none()
    }

    /// Why it accepts no requests: the worker was lost, or it was told to stop.
    pub fn trouble(&self) -> Option<String> {
        self.handle.shared.lock().condition.trouble()
    }

    /// Why it will accept none any more. Trouble that may pass is not it: see [`Self::is_recovering`].
    pub fn ended(&self) -> Option<String> {
        let state = self.handle.shared.lock();
        match state.condition {
            Condition::Recovering { .. } => None,
            _ => state.condition.trouble(),
        }
    }

    /// Whether the worker was lost and the next is being waited for: trouble that may pass.
    pub fn is_recovering(&self) -> bool {
        matches!(self.handle.shared.lock().condition, Condition::Recovering { .. })
    }

    /// Stops the engine: refuses new requests, lets open ones finish until `timeout` has passed, and fails the rest.
    ///
    /// Returns whether the thread has ended. If not, it is waiting for a step of the worker, and will fail the rest after
    /// that step or its timeout. Must not be called from an update sink.
    pub fn shutdown(&self, timeout: Duration) -> bool {
        let shared = &self.handle.shared;
        shared.stop_by(Instant::now() + timeout);
        let state = shared.lock();
        let waited = shared.done.wait_timeout_while(state, timeout + SHUTDOWN_GRACE, |state| !state.is_done);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_done
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.shared.stop_by(Instant::now());
    }
}

impl Shared {
    fn new(capacity: Capacity) -> Self {
        let state = State {
            condition: Condition::Running,
            capacity,
            commands: VecDeque::new(),
            submitted: 0,
            stats: EngineStats::default(),
            next_id: 0,
            is_done: false,
        };
        Self { state: Mutex::new(state), wake: Condvar::new(), done: Condvar::new() }
    }

    /// The state is a set of plain values that every critical section leaves consistent, so poison means nothing.
    pub(crate) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the thread to stop, at the earliest deadline anybody named.
    fn stop_by(&self, deadline: Instant) {
        let mut state = self.lock();
        let deadline = match state.condition {
            Condition::Running | Condition::Recovering { .. } => deadline,
            Condition::Stopping { deadline: earlier } => deadline.min(earlier),
            Condition::Down { .. } => return,
        };
        state.condition = Condition::Stopping { deadline };
        self.wake.notify_one();
    }
}

impl Condition {
    fn trouble(&self) -> Option<String> {
        match self {
            Condition::Running => None,
            Condition::Stopping { .. } => Some("it is shutting down".to_owned()),
            Condition::Recovering { reason } | Condition::Down { reason } => Some(reason.clone()),
        }
    }
}
