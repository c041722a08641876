//! The control plane with seeded faults: whatever happens between workers and coordinator, the engine is given what a run without
//! faults gives or one error, in time, and once there are no more faults a new group serves.
//!
//! `TANDEM_TEST_CLUSTER_SEEDS` is how many seeds each layer is tried with (default 200).

mod cable;
mod chain;
mod meeting;
mod random;
mod relay;

use std::env;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use chain::{plans, without_faults};
use meeting::{HANG, Meeting, impatient, slowness};
use relay::{Fault, Faults};
use tandem_cluster::Deadlines;
use tandem_step::{Worker, WorkerError};
use tokio::runtime::Runtime;

const STEPS: u64 = 16;
/// Plans under way, as the engine has them.
const DEPTH: usize = 2;
/// Seeds tried at a time. They wait most of the time.
const AT_A_TIME: usize = 8;

/// Messages are lost, late, there twice, shorter, in another order, or held up.
#[test]
fn messages() {
    let runtime = runtime();
    survives(|to, trial, worker| {
        let _inside = runtime.enter();
        relay::between(to, trial.faults(worker, &Fault::ALL))
    });
}

/// Connections are cut, silent, slow or crumble, at any byte.
#[test]
fn bytes() {
    survives(|to, trial, worker| {
        cable::between(to, 2 * trial.seed + worker, wait_max(), trial.calm.clone(), trial.over.clone())
    });
}

/// Faults that only take time change nothing, given the time.
#[test]
fn delays_and_pauses_change_nothing() {
    let (runtime, ms) = (runtime(), Duration::from_millis);
    let patient = Deadlines { silence: HANG, handshake: HANG, load: HANG, connect: HANG, ..impatient() };
    for seed in 0..10 {
        let mut trial = Trial::new(seed);
        trial.deadlines = patient;
        let kinds = [Fault::Delay, Fault::Pause];
        let faults = |worker| Faults { one_in: 3, wait_max: ms(20), ..trial.faults(worker, &kinds) };
        let mut meeting = Meeting::new(patient, |to, worker| {
            let _inside = runtime.enter();
            relay::between(to, faults(worker))
        });
        let end = trial.run(meeting.group(HANG).expect("a group").as_mut());
        assert!(end.is_ok(), "seed {seed}: {end:?}");
    }
}

/// Each fault that must not go unnoticed is noticed.
#[test]
fn losses_are_noticed() {
    let runtime = runtime();
    for kind in [Fault::Drop, Fault::Duplicate, Fault::Truncate] {
        let trial = Trial::new(0);
        trial.calm.store(true, Ordering::Release);
        let mut meeting = Meeting::new(trial.deadlines, |to, worker| {
            let _inside = runtime.enter();
            relay::between(to, Faults { one_in: 1, ..trial.faults(worker, &[kind]) })
        });
        let mut group = meeting.group(HANG).expect("a group");
        trial.calm.store(false, Ordering::Release);
        let (mut end, deadline) = (trial.run(group.as_mut()), Instant::now() + HANG);
        // What comes a second time comes later.
        while end.is_ok() {
            assert!(Instant::now() < deadline, "{kind:?} was noticed by nobody");
            thread::sleep(Duration::from_millis(5));
            end = group.check();
        }
    }
}

fn survives(between: impl Fn(SocketAddr, &Trial, u64) -> SocketAddr + Sync) {
    let default = 200 / u64::from(slowness()).pow(2);
    let seeds =
        env::var("TANDEM_TEST_CLUSTER_SEEDS").map_or(default, |count| count.parse().expect("a number of seeds"));
    let next = AtomicU64::new(0);
    let [right, failed, never] = [const { AtomicU64::new(0) }; 3];
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    let count = match Trial::new(seed).take_place(&between) {
                        Some(Ok(())) => &right,
                        Some(Err(_)) => &failed,
                        None => &never,
                    };
                    count.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let [right, failed, never] = [right, failed, never].map(AtomicU64::into_inner);
    println!(
        "{seeds} seeds: {right} right to the end, {failed} ended by an error, {never} that formed no group in time"
    );
    assert_eq!(right + failed + never, seeds);
    // Otherwise the faults are too few or too many to have shown anything.
    assert!(seeds < 100 || right > seeds / 50 && failed > seeds / 50, "{right} right, {failed} failed");
}

/// What one seed decides.
struct Trial {
    seed: u64,
    /// While it is set there are no faults.
    calm: Arc<AtomicBool>,
    /// Set at the end.
    over: Arc<AtomicBool>,
    deadlines: Deadlines,
}

impl Trial {
    fn new(seed: u64) -> Self {
        Self { seed, calm: Arc::default(), over: Arc::default(), deadlines: impatient() }
    }

    fn faults(&self, worker: u64, kinds: &[Fault]) -> Faults {
        // From every other message to one in a hundred.
        let one_in = 2 + self.seed * self.seed % 101;
        Faults {
            seed: 2 * self.seed + worker,
            one_in,
            kinds: kinds.to_vec(),
            wait_max: wait_max(),
            calm: self.calm.clone(),
        }
    }

    /// How the first group ended; none if none was formed. Every second seed leaves its making alone.
    fn take_place(&self, between: &impl Fn(SocketAddr, &Trial, u64) -> SocketAddr) -> Option<Result<(), WorkerError>> {
        let is_made_in_peace = self.seed % 2 == 1;
        self.calm.store(is_made_in_peace, Ordering::Release);
        let mut meeting = Meeting::new(self.deadlines, |to, worker| between(to, self, worker));
        let group = meeting.group(if is_made_in_peace { HANG } else { 4 * self.deadlines.load });
        self.calm.store(false, Ordering::Release);
        let end = group.map(|mut group| self.run(group.as_mut()));
        if let Some(Err(error)) = &end {
            self.assert_known(error);
        }
        self.calm.store(true, Ordering::Release);
        self.serves_at_last(&mut meeting);
        end
    }

    /// Runs all steps on a group that is as new. All results before the end are right.
    fn run(&self, group: &mut dyn Worker) -> Result<(), WorkerError> {
        let plans = plans(self.seed, STEPS);
        let mut under_way = plans.iter().cloned().peekable();
        for (step, rows) in without_faults(&plans).into_iter().enumerate() {
            while let Some(plan) = under_way.next_if(|plan| (plan.step as usize) < step + DEPTH) {
                group.submit(plan)?;
            }
            let result = group.next(self.deadlines.silence * 2)?;
            assert_eq!((result.step, result.rows), (step as u64, rows), "seed {}", self.seed);
        }
        group.check()
    }

    /// Without further faults some group, though perhaps not one that is there already, serves all.
    fn serves_at_last(&self, meeting: &mut Meeting) {
        let deadline = Instant::now() + HANG;
        let mut last = None;
        while Instant::now() < deadline {
            let Some(mut group) = meeting.group(deadline - Instant::now()) else { break };
            match self.run(group.as_mut()) {
                Ok(()) => return,
                Err(error) => last = Some(error),
            }
        }
        panic!("seed {}: it does not heal; last: {last:?}", self.seed);
    }

    /// An error says what happened to whom.
    fn assert_known(&self, error: &WorkerError) {
        let said = error.to_string();
        let names_somebody = said.contains("rank 0 (") || said.contains("rank 1 (");
        assert!(names_somebody || matches!(error, WorkerError::Timeout { .. }), "seed {}: {said}", self.seed);
    }
}

impl Drop for Trial {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Release);
    }
}

/// Now below the deadline of silence, now above it.
fn wait_max() -> Duration {
    impatient().silence * 3 / 2
}

fn runtime() -> Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime")
}
