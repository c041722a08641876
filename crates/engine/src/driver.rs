use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tandem_step::{Worker, WorkerSource};

use crate::engine::{Command, Condition, Shared};
use crate::{EngineSettings, FinishReason, Finished, RequestId, RequestTimings, Scheduler, Update, UpdateSink, Usage};

/// How often the wish to stop is looked for while the next worker is waited for.
const RECOVERY_INTERVAL: Duration = Duration::from_millis(100);

/// How often an idle worker that can be replaced is asked whether it is still there.
const CHECK_INTERVAL: Duration = Duration::from_millis(250);

/// The engine's thread: takes commands, keeps the worker busy, delivers updates.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    /// `None` only while the next is waited for.
    worker: Option<Box<dyn Worker>>,
    source: Option<Box<dyn WorkerSource>>,
    scheduler: Scheduler,
    sinks: HashMap<RequestId, UpdateSink>,
    step_timeout: Duration,
    handover_timeout: Duration,
}

/// Whether to go on.
enum Flow {
    Serve { until: Option<Instant> },
    Stop,
}

/// How serving with one worker ended in order.
enum End {
    Stopped,
    /// It is to be replaced, and none of its steps is under way.
    Relieved,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        worker: Box<dyn Worker>,
        source: Option<Box<dyn WorkerSource>>,
        scheduler: Scheduler,
        settings: &EngineSettings,
    ) -> Self {
        let (step_timeout, handover_timeout) = (settings.step_timeout, settings.handover_timeout);
        Self { shared, worker: Some(worker), source, scheduler, sinks: HashMap::new(), step_timeout, handover_timeout }
    }

    /// Serves until told to stop or the last worker is lost; then every open request is told, and no other accepted.
    pub(crate) fn run(mut self) {
        let served = catch_unwind(AssertUnwindSafe(|| self.serve_with_each()));
        let failure = match served {
            Ok(Ok(())) => None,
            Ok(Err(reason)) => Some(reason),
            Err(_) => Some("its thread panicked".to_owned()),
        };
        if let Some(failure) = &failure {
            tracing::error!(failure, "the engine stops");
        }
        let reason = failure.unwrap_or_else(|| "it is shut down".to_owned());
        // Even if a sink panics now, those who wait for the end must learn of it.
        let _ = catch_unwind(AssertUnwindSafe(|| self.close(&reason)));
        // Whoever waits for the end may count on the worker's having ended, too.
        let _ = catch_unwind(AssertUnwindSafe(|| drop((self.worker.take(), self.source.take()))));
        self.shared.lock().is_done = true;
        self.shared.done.notify_all();
    }

    /// Serves with one worker after another.
    fn serve_with_each(&mut self) -> Result<(), String> {
        loop {
            let goes_on = match self.serve() {
                Ok(End::Stopped) => return Ok(()),
                Ok(End::Relieved) => self.hand_over()?,
                Err(lost) if self.begin_recovery(&lost) => self.await_worker()?,
                Err(lost) => return Err(lost),
            };
            if !goes_on {
                return Ok(());
            }
        }
    }

    /// Lets the worker go and waits for its successor, to whom the open requests go over; false if the engine is to stop
    /// instead. If that takes too long they fail, as if the worker had been lost.
    fn hand_over(&mut self) -> Result<bool, String> {
        tracing::info!(open = self.scheduler.open(), "the worker is replaced: open requests wait for the next");
        self.scheduler.hand_over();
        self.worker = None;
        let deadline = Instant::now() + self.handover_timeout;
        while Instant::now() < deadline {
            if let Flow::Stop = self.take_commands() {
                return Ok(false);
            }
            let Some(source) = &mut self.source else { break };
            if let Some(next) = source.next(RECOVERY_INTERVAL).map_err(|error| error.to_string())? {
                self.take_on(next)?;
                return Ok(true);
            }
        }
        let waited = format!("the next worker was not there within {:?}", self.handover_timeout);
        if self.begin_recovery(&waited) { self.await_worker() } else { Err(waited) }
    }

    /// Goes on with a worker that is ready.
    fn take_on(&mut self, worker: Box<dyn Worker>) -> Result<(), String> {
        let capacity = worker.capacity();
        if let Some(capacity) = capacity {
            self.scheduler.adopt(capacity).map_err(|error| error.to_string())?;
        }
        self.worker = Some(worker);
        let mut state = self.shared.lock();
        state.capacity = capacity.unwrap_or(state.capacity);
        // It may have been told to stop meanwhile.
        if matches!(state.condition, Condition::Recovering { .. }) {
            state.condition = Condition::Running;
        }
        drop(state);
        tracing::info!("requests are served again");
        Ok(())
    }

    /// Fails what is open; false if there is to be no other worker.
    fn begin_recovery(&mut self, lost: &str) -> bool {
        let is_running = matches!(self.shared.lock().condition, Condition::Running);
        if self.source.is_none() || !is_running {
            return false;
        }
        tracing::error!(lost, "the worker is lost: open requests fail, the next worker is waited for");
        self.fail_open(lost, Condition::Recovering { reason: format!("{lost} (it is being replaced)") });
        self.worker = None;
        true
    }

    /// Waits for the next worker; false if the engine is to stop instead.
    fn await_worker(&mut self) -> Result<bool, String> {
        loop {
            let Some(source) = &mut self.source else { return Ok(false) };
            let next = source.next(RECOVERY_INTERVAL).map_err(|error| error.to_string())?;
            if !matches!(self.shared.lock().condition, Condition::Recovering { .. }) {
                return Ok(false);
            }
            if let Some(next) = next {
                self.take_on(next)?;
                return Ok(true);
            }
        }
    }

    fn serve(&mut self) -> Result<End, String> {
        loop {
            let Flow::Serve { until } = self.take_commands() else { return Ok(End::Stopped) };
            if self.scheduler.steps_in_flight() == 0 {
                self.worker()?.check().map_err(|error| error.to_string())?;
            }
            if !self.is_relieved()? {
                while let Some(plan) = self.scheduler.next_plan(Instant::now()) {
                    self.worker()?.submit(plan).map_err(|error| error.to_string())?;
                }
            } else if self.scheduler.steps_in_flight() == 0 {
                return Ok(End::Relieved);
            }
            self.deliver();
            if self.scheduler.steps_in_flight() > 0 {
                self.await_result(until)?;
            } else if self.scheduler.open() > 0 {
                return Err("no step could be planned although requests are open".to_owned());
            }
        }
    }

    /// Publishes the counts and takes in what handles asked for, waiting for it if there is nothing else to do.
    fn take_commands(&mut self) -> Flow {
        let idle = self.scheduler.open() == 0 && self.scheduler.steps_in_flight() == 0;
        let shared = self.shared.clone();
        let mut state = shared.lock();
        state.stats = self.scheduler.stats();
        if idle {
            let is_quiet = |state: &mut crate::engine::State| {
                state.commands.is_empty() && matches!(state.condition, Condition::Running)
            };
            state = match self.source {
                // Without a deadline: whoever brings work or takes the last handle away wakes it.
                None => shared.wake.wait_while(state, is_quiet).unwrap_or_else(PoisonError::into_inner),
                Some(_) => {
                    let waited = shared.wake.wait_timeout_while(state, CHECK_INTERVAL, is_quiet);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        let until = match state.condition {
            Condition::Running => None,
            Condition::Stopping { deadline } => Some(deadline),
            Condition::Recovering { .. } | Condition::Down { .. } => return Flow::Stop,
        };
        let commands = std::mem::take(&mut state.commands);
        state.submitted = 0;
        // Counted as waiting from now on, so that the queue's bound holds between here and the next snapshot.
        state.stats.waiting += commands.iter().filter(|command| matches!(command, Command::Submit { .. })).count();
        drop(state);
        commands.into_iter().for_each(|command| self.obey(command));
        self.deliver();
        match until {
            Some(deadline) if self.scheduler.open() == 0 || Instant::now() >= deadline => Flow::Stop,
            _ => Flow::Serve { until },
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Abort(id) => self.scheduler.abort(id, Instant::now()),
            Command::Submit { id, request, mut sink, at } => {
                let prompt_tokens = request.prompt.len() as u32;
                match self.scheduler.submit(id, request, at) {
                    Ok(()) => {
                        self.sinks.insert(id, sink);
                    }
                    Err(error) => {
                        sink(failed_unstarted(error.to_string(), prompt_tokens));
                    }
                }
            }
        }
    }

    /// Whether the worker is to be replaced; where nobody could replace it, it never is.
    fn is_relieved(&mut self) -> Result<bool, String> {
        Ok(self.source.is_some() && self.worker()?.is_to_be_replaced())
    }

    fn worker(&mut self) -> Result<&mut dyn Worker, String> {
        match &mut self.worker {
            Some(worker) => Ok(worker.as_mut()),
            None => Err("there is no worker".to_owned()),
        }
    }

    fn await_result(&mut self, until: Option<Instant>) -> Result<(), String> {
        let left = until.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(self.step_timeout, |left| left.min(self.step_timeout));
        let result = match self.worker()?.next(timeout) {
            Ok(result) => result,
            // The time to stop came first; `close` will fail what is open.
            Err(_) if until.is_some_and(|deadline| Instant::now() >= deadline) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        self.scheduler.apply(result, Instant::now()).map_err(|error| error.to_string())?;
        self.deliver();
        Ok(())
    }

    /// Hands updates to their sinks; whoever does not listen any more is aborted. What is handed out is counted before, so
    /// that whoever has an answer finds it in the counts.
    fn deliver(&mut self) {
        loop {
            let updates = self.scheduler.take_updates();
            if updates.is_empty() {
                return;
            }
            self.shared.lock().stats = self.scheduler.stats();
            for (id, update) in updates {
                let is_last = matches!(update, Update::Finished(_));
                let Some(sink) = self.sinks.get_mut(&id) else { continue };
                let is_heard = sink(update);
                if is_last {
                    self.sinks.remove(&id);
                } else if !is_heard {
                    self.scheduler.abort(id, Instant::now());
                }
            }
        }
    }

    fn close(&mut self, reason: &str) {
        self.fail_open(reason, Condition::Down { reason: reason.to_owned() });
    }

    /// Fails what is open and what is still coming in. From now on requests are refused, for `condition`'s reason.
    fn fail_open(&mut self, reason: &str, condition: Condition) {
        let commands = {
            let mut state = self.shared.lock();
            state.condition = condition;
            state.submitted = 0;
            std::mem::take(&mut state.commands)
        };
        self.scheduler.fail_all(reason, Instant::now());
        self.shared.lock().stats = self.scheduler.stats();
        self.deliver();
        for command in commands {
            if let Command::Submit { request, mut sink, .. } = command {
                sink(failed_unstarted(reason.to_owned(), request.prompt.len() as u32));
            }
        }
    }
}

/// The only update of a request that never reached the scheduler.
fn failed_unstarted(reason: String, prompt_tokens: u32) -> Update {
    let usage = Usage { prompt_tokens, ..Usage::default() };
    Update::Finished(Finished { reason: FinishReason::Failed(reason), usage, timings: RequestTimings::default() })
}
