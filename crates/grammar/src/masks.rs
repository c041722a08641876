//! The masks of all slots of a worker, computed beside the model's work.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use tandem_step::{Constraint, Masker};

use crate::mask::Mask;
use crate::rules::Rules;
use crate::walk::Walk;

/// A mask that takes longer has something wrong with it.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Follows constrained slots on threads of its own: the next mask is computed from the moment a token is known, while
/// the model already works on what follows it.
pub struct Masks {
    slots: HashMap<u32, Slot>,
    /// Tells stays in the same slot apart.
    next_stay: u64,
    jobs: Sender<Job>,
    done: Receiver<Done>,
}

struct Slot {
    stay: u64,
    /// `None` while a thread has it.
    lane: Option<Lane>,
}

/// A walk and its next mask; or why there is none.
type Lane = Result<(Walk, Mask), String>;

struct Job {
    slot: u32,
    stay: u64,
    task: Task,
}

enum Task {
    /// Compile and catch up.
    Begin { constraint: Constraint, output: Vec<u32> },
    /// Take one more token.
    Push { walk: Box<Walk>, token: u32 },
}

struct Done {
    slot: u32,
    stay: u64,
    lane: Lane,
}

impl Masks {
    /// Starts so many threads, at least one. They end when this is dropped.
    pub fn start(threads: usize) -> std::io::Result<Self> {
        let (jobs, taken) = channel();
        let (give, done) = channel();
        let taken = Arc::new(Mutex::new(taken));
        for index in 0..threads.max(1) {
            let (taken, give) = (taken.clone(), give.clone());
            Builder::new().name(format!("masks-{index}")).spawn(move || serve(&taken, &give))?;
        }
        Ok(Self { slots: HashMap::new(), next_stay: 0, jobs, done })
    }

    fn send(&mut self, slot: u32, task: Task) {
        let Some(Slot { stay, .. }) = self.slots.get(&slot) else { return };
        if self.jobs.send(Job { slot, stay: *stay, task }).is_err() {
            self.put_back(Done { slot, stay: *stay, lane: Err("the threads that compute masks are gone".into()) });
        }
    }

    fn put_back(&mut self, done: Done) {
        if let Some(slot) = self.slots.get_mut(&done.slot).filter(|slot| slot.stay == done.stay) {
            slot.lane = Some(done.lane);
        }
    }

    /// Waits until a slot's lane is here.
    fn await_lane(&mut self, slot: u32) -> Result<(), String> {
        let deadline = Instant::now() + WAIT_MAX;
        while self.slots.get(&slot).is_some_and(|slot| slot.lane.is_none()) {
            match self.done.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(done) => self.put_back(done),
                Err(RecvTimeoutError::Timeout) => return Err(format!("no mask came within {WAIT_MAX:?}")),
                Err(RecvTimeoutError::Disconnected) => return Err("the threads that compute masks are gone".into()),
            }
        }
        Ok(())
    }
}

impl Masker for Masks {
    fn begin(&mut self, slot: u32, constraint: &Constraint, output: &[u32]) {
        let stay = self.next_stay;
        self.next_stay += 1;
        self.slots.insert(slot, Slot { stay, lane: None });
        self.send(slot, Task::Begin { constraint: constraint.clone(), output: output.to_vec() });
    }

    fn push(&mut self, slot: u32, token: u32) {
        if let Err(reason) = self.await_lane(slot) {
            tracing::warn!(slot, reason, "following a constraint");
            self.slots.entry(slot).and_modify(|slot| slot.lane = Some(Err(reason)));
        }
        let Some(entry) = self.slots.get_mut(&slot) else { return };
        match entry.lane.take() {
            Some(Ok((walk, _))) => self.send(slot, Task::Push { walk: Box::new(walk), token }),
            failed => entry.lane = failed,
        }
    }

    fn mask(&mut self, slot: u32) -> Result<Arc<[u32]>, String> {
        self.await_lane(slot)?;
        match self.slots.get(&slot).and_then(|slot| slot.lane.as_ref()) {
            Some(Ok((_, mask))) => Ok(mask.clone()),
            Some(Err(reason)) => Err(reason.clone()),
            None => Err("the slot has no constraint".into()),
        }
    }

    fn end(&mut self, slot: u32) {
        self.slots.remove(&slot);
    }
}

/// Until there can be no more jobs, or nobody wants their results.
fn serve(jobs: &Mutex<Receiver<Job>>, done: &Sender<Done>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { slot, stay, task }) = job else { return };
        let lane = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(task)));
        let lane = lane.unwrap_or_else(|_| Err("computing a mask panicked".into()));
        if done.send(Done { slot, stay, lane }).is_err() {
            return;
        }
    }
}

fn work(task: Task) -> Lane {
    let mut walk = match task {
        Task::Begin { constraint, output } => {
            let rules = Rules::of(&constraint).map_err(|error| error.to_string())?;
            let mut walk = Walk::new(&rules).map_err(|error| error.to_string())?;
            output.iter().try_for_each(|&token| walk.push(token))?;
            walk
        }
        Task::Push { mut walk, token } => {
            walk.push(token)?;
            *walk
        }
    };
    let mask = walk.mask()?;
    Ok((walk, mask))
}
