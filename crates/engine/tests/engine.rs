//! The engine's thread, with a worker on another one: delivery, failure and the end.

mod simulation;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use simulation::{HashWorker, Random, expected, request, roomy, settings};
use tandem_engine::{Engine, EngineSettings, FinishReason, Finished, Request, SubmitError, Update, UpdateSink};
use tandem_step::{Capacity, StepPlan, StepResult, Worker, WorkerError, WorkerSource};

/// Ample for everything here, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// The checking worker on a thread of its own.
struct Threaded {
    plans: Sender<StepPlan>,
    results: Receiver<StepResult>,
    next_step: u64,
    capacity: Capacity,
    /// Raised when another is to take its place.
    relieved: Arc<AtomicBool>,
}

impl Threaded {
    /// `before` runs before every step, and may take its time; the worker dies once it returns `false`.
    fn start(before: impl FnMut(&StepPlan) -> bool + Send + 'static) -> Box<Self> {
        Self::start_epoch(0, before)
    }

    fn start_epoch(epoch: u64, before: impl FnMut(&StepPlan) -> bool + Send + 'static) -> Box<Self> {
        Self::start_with(epoch, roomy(), before)
    }

    fn start_with(
        epoch: u64,
        capacity: Capacity,
        mut before: impl FnMut(&StepPlan) -> bool + Send + 'static,
    ) -> Box<Self> {
        let (plans, received) = channel::<StepPlan>();
        let (send, results) = channel();
        std::thread::spawn(move || {
            let mut worker = HashWorker::new(capacity, 8).of_epoch(epoch);
            while let Some(plan) = received.recv().ok().filter(&mut before) {
                let result = worker.run(plan);
                worker.returned();
                if send.send(result).is_err() {
                    return;
                }
            }
        });
        Box::new(Self { plans, results, next_step: 0, capacity, relieved: Arc::default() })
    }
}

impl Worker for Threaded {
    fn submit(&mut self, plan: StepPlan) -> Result<(), WorkerError> {
        self.plans.send(plan).map_err(|_| WorkerError::Gone("its thread has ended".to_owned()))
    }

    fn next(&mut self, timeout: Duration) -> Result<StepResult, WorkerError> {
        let step = self.next_step;
        self.next_step += 1;
        self.results.recv_timeout(timeout).map_err(|error| match error {
            RecvTimeoutError::Timeout => WorkerError::Timeout { step, waited: timeout },
            RecvTimeoutError::Disconnected => WorkerError::Gone("its thread has ended".to_owned()),
        })
    }

    fn is_to_be_replaced(&self) -> bool {
        self.relieved.load(Ordering::Relaxed)
    }

    fn capacity(&self) -> Option<Capacity> {
        Some(self.capacity)
    }
}

fn sink() -> (UpdateSink, Receiver<Update>) {
    let (send, updates) = channel();
    (Box::new(move |update| send.send(update).is_ok()), updates)
}

/// Collects updates up to the end, and checks that the sink is dropped after it.
fn collect(updates: &Receiver<Update>) -> (Vec<u32>, Finished) {
    let mut tokens = Vec::new();
    loop {
        match updates.recv_timeout(PATIENCE).expect("the request ends") {
            Update::Token { token, .. } => tokens.push(token),
            Update::Finished(finished) => {
                assert_eq!(updates.recv_timeout(PATIENCE), Err(RecvTimeoutError::Disconnected));
                return (tokens, finished);
            }
            Update::Started { .. } | Update::PromptScores(_) => {}
        }
    }
}

fn prompt(seed: u64, length: u32) -> Vec<u32> {
    Random(seed).tokens(length, 1000)
}

fn endless(seed: u64) -> Request {
    request(prompt(seed, 10), 1000)
}

fn slow(_: &StepPlan) -> bool {
    std::thread::sleep(Duration::from_millis(5));
    true
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

#[test]
fn many_clients_at_once_get_what_each_would_get_alone() {
    for depth in [1, 2] {
        let engine = Engine::start(Threaded::start(|_| true), roomy(), settings(8, depth)).unwrap();
        std::thread::scope(|scope| {
            for client in 0..6 {
                let engine = engine.clone();
                scope.spawn(move || {
                    for turn in 0..5 {
                        let wanted = request(prompt(client % 3, 20 + turn), 10);
                        let (sink, updates) = sink();
                        engine.submit(wanted.clone(), sink).unwrap();
                        let (tokens, finished) = collect(&updates);
                        assert_eq!((tokens, finished.reason), (expected(&wanted, &roomy()).0, FinishReason::Length));
                    }
                });
            }
        });
        wait_until("the counts settle", || engine.stats().running == 0);
        let stats = engine.stats();
        assert_eq!((stats.waiting, stats.generated_tokens), (0, 6 * 5 * 10));
        assert!(stats.prefix_hits > 0 && stats.steps > 0);
        assert!(engine.shutdown(PATIENCE));
    }
}

#[test]
fn an_abort_takes_effect_within_a_step() {
    let (permit, permits) = channel::<()>();
    let (tell, told) = channel();
    let gate = move |plan: &StepPlan| tell.send(plan.rows.len()).is_ok() && permits.recv_timeout(PATIENCE).is_ok();
    let engine = Engine::start(Threaded::start(gate), roomy(), settings(8, 1)).unwrap();
    let (first_sink, first) = sink();
    let (second_sink, second) = sink();
    let id = engine.submit(endless(1), first_sink).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(1));
    engine.submit(endless(2), second_sink).unwrap();
    // Let steps pass until both are running, then abort one while a step is under way.
    let mut rows = 1;
    while rows < 2 {
        permit.send(()).unwrap();
        rows = told.recv_timeout(PATIENCE).unwrap();
    }
    engine.abort(id);
    permit.send(()).unwrap();
    assert_eq!(told.recv_timeout(PATIENCE), Ok(1), "the next step goes without it");
    assert_eq!(collect(&first).1.reason, FinishReason::Aborted);
    drop(second);
    drop(permit);
}

#[test]
fn a_sink_nobody_listens_to_aborts_its_request() {
    let engine = Engine::start(Threaded::start(slow), roomy(), settings(8, 2)).unwrap();
    let (left_sink, left) = sink();
    let (other_sink, other) = sink();
    engine.submit(endless(1), left_sink).unwrap();
    let wanted = request(prompt(2, 30), 20);
    engine.submit(wanted.clone(), other_sink).unwrap();
    assert!(matches!(left.recv_timeout(PATIENCE), Ok(Update::Started { .. })));
    drop(left);
    assert_eq!(collect(&other).0, expected(&wanted, &roomy()).0);
    wait_until("it is gone", || engine.stats().running == 0);
    assert!(engine.stats().generated_tokens < 60);
}

#[test]
fn when_the_worker_is_lost_every_request_fails_once_and_no_other_is_taken() {
    for depth in [1, 2] {
        let settings = EngineSettings { max_queue: 20, ..settings(8, depth) };
        let worker = Threaded::start(|plan| plan.step < 5);
        let engine = Engine::start(worker, roomy(), settings).unwrap();
        let requests: Vec<_> = (0..20)
            .filter_map(|seed| {
                let (sink, updates) = sink();
                engine.submit(endless(seed), sink).ok().map(|_| updates)
            })
            .collect();
        for updates in &requests {
            let reason = collect(updates).1.reason;
            assert_eq!(reason, FinishReason::Failed("the worker stopped: its thread has ended".to_owned()));
        }
        assert!(!engine.is_healthy());
        assert_eq!(engine.trouble().unwrap(), "the worker stopped: its thread has ended");
        assert!(matches!(engine.submit(endless(1), sink().0), Err(SubmitError::NotRunning(_))));
        assert_eq!((engine.stats().running, engine.stats().waiting), (0, 0));
        assert!(engine.shutdown(PATIENCE));
    }
}

#[test]
fn a_worker_that_hangs_is_given_up_after_the_step_timeout() {
    let settings = EngineSettings { step_timeout: Duration::from_millis(100), ..settings(8, 2) };
    let (release, hang) = channel::<()>();
    let worker = Threaded::start(move |plan| plan.step < 3 || hang.recv_timeout(PATIENCE).is_ok());
    let engine = Engine::start(worker, roomy(), settings).unwrap();
    let (sink, updates) = sink();
    engine.submit(endless(1), sink).unwrap();
    let reason = collect(&updates).1.reason;
    assert_eq!(reason, FinishReason::Failed("the worker gave no result of step 3 within 100ms".to_owned()));
    assert!(!engine.is_healthy());
    drop(release);
}

#[test]
fn shutdown_lets_open_requests_finish_and_refuses_new_ones() {
    let engine = Engine::start(Threaded::start(slow), roomy(), settings(8, 2)).unwrap();
    let wanted = request(prompt(1, 30), 20);
    let (open_sink, updates) = sink();
    engine.submit(wanted.clone(), open_sink).unwrap();
    let stopping = engine.clone();
    let stopper = std::thread::spawn(move || stopping.shutdown(PATIENCE));
    wait_until("it is stopping", || !engine.is_healthy());
    let refused = engine.submit(endless(2), sink().0);
    assert_eq!(refused, Err(SubmitError::NotRunning("it is shutting down".to_owned())));
    let (tokens, finished) = collect(&updates);
    assert_eq!((tokens, finished.reason), (expected(&wanted, &roomy()).0, FinishReason::Length));
    assert!(stopper.join().unwrap());
    assert_eq!(engine.trouble().unwrap(), "it is shut down");
}

#[test]
fn shutdown_fails_what_is_open_at_its_deadline() {
    let engine = Engine::start(Threaded::start(slow), roomy(), settings(8, 2)).unwrap();
    let open: Vec<_> = (0..12)
        .map(|seed| {
            let (sink, updates) = sink();
            engine.submit(endless(seed), sink).unwrap();
            updates
        })
        .collect();
    let start = Instant::now();
    assert!(engine.shutdown(Duration::from_millis(100)));
    assert!(start.elapsed() < PATIENCE);
    for updates in &open {
        assert_eq!(collect(updates).1.reason, FinishReason::Failed("it is shut down".to_owned()));
    }
}

#[test]
fn the_last_handle_dropped_stops_the_engine() {
    let engine = Engine::start(Threaded::start(slow), roomy(), settings(8, 2)).unwrap();
    let (sink, updates) = sink();
    engine.submit(endless(1), sink).unwrap();
    assert!(matches!(updates.recv_timeout(PATIENCE), Ok(Update::Started { .. })));
    drop(engine.clone());
    assert!(matches!(updates.recv_timeout(PATIENCE), Ok(Update::Token { .. })));
    drop(engine);
    assert!(matches!(collect(&updates).1.reason, FinishReason::Failed(_)));
}

#[test]
fn a_sink_that_panics_leaves_no_request_without_an_end() {
    let engine = Engine::start(Threaded::start(slow), roomy(), settings(8, 2)).unwrap();
    let (sink, updates) = sink();
    engine.submit(endless(1), sink).unwrap();
    engine.submit(endless(2), Box::new(|_| panic!("a sink that panics, on purpose"))).unwrap();
    assert_eq!(collect(&updates).1.reason, FinishReason::Failed("its thread panicked".to_owned()));
    assert!(!engine.is_healthy());
}

/// Workers from a test, which may let the engine wait for them.
struct Handed(Receiver<Box<dyn Worker>>);

impl WorkerSource for Handed {
    fn next(&mut self, timeout: Duration) -> Result<Option<Box<dyn Worker>>, WorkerError> {
        match self.0.recv_timeout(timeout) {
            Ok(worker) => Ok(Some(worker)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(WorkerError::Gone("there are no more".to_owned())),
        }
    }
}

fn handing(depth: u32) -> (Engine, Sender<Box<dyn Worker>>) {
    let (hand, handed) = channel();
    let first = Threaded::start(|plan| plan.step < 5);
    let engine = Engine::start_with(first, Some(Box::new(Handed(handed))), roomy(), settings(8, depth)).unwrap();
    (engine, hand)
}

#[test]
fn a_lost_worker_is_replaced_and_nothing_of_it_is_left() {
    for depth in [1, 2] {
        let (engine, hand) = handing(depth);
        for epoch in 1..4 {
            let open: Vec<_> = (0..6)
                .map(|seed| {
                    let (sink, updates) = sink();
                    engine.submit(endless(seed), sink).unwrap();
                    updates
                })
                .collect();
            for updates in &open {
                let reason = collect(updates).1.reason;
                assert_eq!(reason, FinishReason::Failed("the worker stopped: its thread has ended".to_owned()));
            }
            wait_until("it recovers", || engine.is_recovering());
            assert!(matches!(engine.submit(endless(1), sink().0), Err(SubmitError::NotRunning(_))));
            hand.send(Threaded::start_epoch(epoch, |plan| plan.step < 30)).unwrap();
            wait_until("it serves again", || engine.is_healthy());
            let wanted = request(prompt(7, 20), 5);
            let (sink, updates) = sink();
            engine.submit(wanted.clone(), sink).unwrap();
            let (tokens, finished) = collect(&updates);
            assert_eq!((tokens, finished.reason), (expected(&wanted, &roomy()).0, FinishReason::Length));
            assert_eq!(finished.usage.cached_tokens, 0, "the lost worker's blocks are forgotten");
        }
        assert!(engine.shutdown(PATIENCE));
    }
}

/// An engine whose first worker never dies; the flag that has it replaced, and where its successors are handed in.
fn relieving(settings: EngineSettings) -> (Engine, Arc<AtomicBool>, Sender<Box<dyn Worker>>) {
    let (hand, handed) = channel();
    let first = Threaded::start(slow);
    let relieved = first.relieved.clone();
    let engine = Engine::start_with(first, Some(Box::new(Handed(handed))), roomy(), settings).unwrap();
    (engine, relieved, hand)
}

/// Half the blocks of the first worker.
fn narrow() -> Capacity {
    let roomy = roomy();
    Capacity { full_blocks: roomy.full_blocks / 2, sliding_blocks: roomy.sliding_blocks / 2, ..roomy }
}

#[test]
fn a_worker_is_replaced_under_way_and_no_request_notices() {
    for depth in [1, 2] {
        let (engine, relieved, hand) = relieving(settings(8, depth));
        // More than there are slots: some have not begun.
        let open: Vec<_> = (0..12)
            .map(|seed| {
                let wanted = request(prompt(seed, 20), 40);
                let (sink, updates) = sink();
                engine.submit(wanted.clone(), sink).unwrap();
                (wanted, updates)
            })
            .collect();
        wait_until("some tokens are there", || engine.stats().generated_tokens > 20);
        relieved.store(true, Ordering::Relaxed);
        wait_until("the first worker is let go", || engine.stats().running == 0);
        assert!(engine.is_healthy() && engine.stats().waiting > 0);
        let (late, late_updates) = (request(prompt(77, 20), 5), sink());
        engine.submit(late.clone(), late_updates.0).unwrap();
        let (dropped_sink, dropped) = sink();
        let gone = engine.submit(endless(99), dropped_sink).unwrap();
        engine.abort(gone);
        assert_eq!(collect(&dropped).1.reason, FinishReason::Aborted, "also while nobody computes");
        hand.send(Threaded::start_with(1, narrow(), |_| true)).unwrap();
        for (wanted, updates) in open.iter().chain([&(late, late_updates.1)]) {
            let (tokens, finished) = collect(updates);
            assert_eq!((tokens, finished.reason), (expected(wanted, &roomy()).0, FinishReason::Length));
        }
        assert_eq!(engine.capacity(), narrow());
        assert_eq!(engine.stats().preemptions, 0, "nobody lacked blocks");
    }
}

#[test]
fn an_idle_worker_is_replaced_too() {
    let (engine, relieved, hand) = relieving(settings(8, 1));
    relieved.store(true, Ordering::Relaxed);
    hand.send(Threaded::start_with(1, narrow(), |_| true)).unwrap();
    wait_until("the next one has come", || engine.capacity() == narrow());
    let wanted = request(prompt(7, 20), 5);
    let (sink, updates) = sink();
    engine.submit(wanted.clone(), sink).unwrap();
    assert_eq!(collect(&updates).0, expected(&wanted, &roomy()).0);
}

#[test]
fn requests_wait_only_so_long_for_a_successor() {
    let (engine, relieved, hand) =
        relieving(EngineSettings { handover_timeout: Duration::from_millis(300), ..settings(8, 1) });
    let (sink, updates) = sink();
    engine.submit(endless(1), sink).unwrap();
    relieved.store(true, Ordering::Relaxed);
    let FinishReason::Failed(reason) = collect(&updates).1.reason else { panic!() };
    assert!(reason.contains("300ms"), "{reason}");
    wait_until("it recovers", || engine.is_recovering());
    hand.send(Threaded::start_epoch(2, |_| true)).unwrap();
    wait_until("it serves again", || engine.is_healthy());
}

#[test]
fn a_successor_that_promises_something_else_is_refused() {
    let (engine, relieved, hand) = relieving(settings(8, 1));
    relieved.store(true, Ordering::Relaxed);
    let shorter = Capacity { context: roomy().context / 2, ..roomy() };
    hand.send(Threaded::start_with(1, shorter, |_| true)).unwrap();
    wait_until("it ends", || engine.ended().is_some_and(|reason| reason.contains("was promised")));
}

#[test]
fn while_a_worker_is_awaited_the_engine_can_be_stopped() {
    let (engine, _hand) = handing(1);
    let (sink, updates) = sink();
    engine.submit(endless(1), sink).unwrap();
    collect(&updates);
    wait_until("it recovers", || engine.is_recovering());
    assert!(engine.shutdown(PATIENCE));
    assert_eq!(engine.trouble().unwrap(), "it is shut down");
}

#[test]
fn without_another_worker_the_engine_ends() {
    let (engine, hand) = handing(1);
    drop(hand);
    let (sink, updates) = sink();
    engine.submit(endless(1), sink).unwrap();
    collect(&updates);
    wait_until("it ends", || engine.trouble().is_some_and(|trouble| trouble.contains("there are no more")));
    assert!(!engine.is_recovering());
}
