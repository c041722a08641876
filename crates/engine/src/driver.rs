use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use tandem_step::Worker;

use crate::engine::{Command, Condition, Shared};
use crate::{FinishReason, Finished, RequestId, RequestTimings, Scheduler, Update, UpdateSink, Usage};

/// The engine's thread: takes commands, keeps the worker busy, delivers updates.
pub(crate) struct Driver {
    shared: Arc<Shared>,
    worker: Box<dyn Worker>,
    scheduler: Scheduler,
    sinks: HashMap<RequestId, UpdateSink>,
    step_timeout: Duration,
}

/// Whether to go on.
enum Flow {
    Serve { until: Option<Instant> },
    Stop,
}

impl Driver {
    pub(crate) fn new(
        shared: Arc<Shared>,
        worker: Box<dyn Worker>,
        scheduler: Scheduler,
        step_timeout: Duration,
    ) -> Self {
        Self { shared, worker, scheduler, sinks: HashMap::new(), step_timeout }
    }

    /// Serves until told to stop or the worker is lost; then every open request is told, and no other accepted.
    pub(crate) fn run(mut self) {
        let served = catch_unwind(AssertUnwindSafe(|| self.serve()));
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
        self.shared.lock().is_done = true;
        self.shared.done.notify_all();
    }

    fn serve(&mut self) -> Result<(), String> {
        loop {
            let Flow::Serve { until } = self.take_commands() else { return Ok(()) };
            while let Some(plan) = self.scheduler.next_plan(Instant::now()) {
                self.worker.submit(plan).map_err(|error| error.to_string())?;
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
            // Without a deadline: whoever brings work or takes the last handle away wakes it.
            let is_quiet = |state: &mut crate::engine::State| {
                state.commands.is_empty() && matches!(state.condition, Condition::Running)
            };
            state = shared.wake.wait_while(state, is_quiet).unwrap_or_else(PoisonError::into_inner);
        }
        let until = match state.condition {
            Condition::Running => None,
            Condition::Stopping { deadline } => Some(deadline),
            Condition::Down { .. } => return Flow::Stop,
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

    fn await_result(&mut self, until: Option<Instant>) -> Result<(), String> {
        let left = until.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let timeout = left.map_or(self.step_timeout, |left| left.min(self.step_timeout));
        let result = match self.worker.next(timeout) {
            Ok(result) => result,
            // The time to stop came first; `close` will fail what is open.
            Err(_) if until.is_some_and(|deadline| Instant::now() >= deadline) => return Ok(()),
            Err(error) => return Err(error.to_string()),
        };
        self.scheduler.apply(result, Instant::now()).map_err(|error| error.to_string())?;
        self.deliver();
        Ok(())
    }

    /// Hands updates to their sinks; whoever does not listen any more is aborted.
    fn deliver(&mut self) {
        loop {
            let updates = self.scheduler.take_updates();
            if updates.is_empty() {
                return;
            }
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

    /// Fails what is open and what is still coming in.
    fn close(&mut self, reason: &str) {
        let commands = {
            let mut state = self.shared.lock();
            state.condition = Condition::Down { reason: reason.to_owned() };
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
