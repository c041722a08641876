//! The masks of all slots of a worker, computed on demand, or beside the model's work where they are needed often.

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::Builder;
use std::time::{Duration, Instant};

use tandem_step::{Ahead, Constraint, Masker};

use crate::mask::{self, Mask};
use crate::rules::Rules;
use crate::walk::Walk;

/// Longest wait of those who did not wait until all was ready: what takes longer has something wrong with it.
const WAIT_MAX: Duration = Duration::from_secs(30);

/// Follows constrained slots, and has threads of its own for what takes long: compiling, catching up with what a request
/// wrote before, and masks that somebody will want.
///
/// Where few tokens may follow a mask is cheap, and needed. Inside a string it is dear, and most tokens that a model draws
/// are allowed: there one is computed ahead only for a request whose latest draw at such a place was in vain. That is decided
/// by calls alone, never by time, so that all ranks spend the same on a grammar and come to its limits together.
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
    /// Whether the latest token asked about at a place that was not narrow was refused.
    refused: bool,
}

/// Where a request stands; or why it cannot go on.
type Lane = Result<Place, String>;

struct Place {
    walk: Walk,
    /// Whether few tokens may follow, once that was asked.
    narrow: Option<bool>,
    /// The next mask, once it was computed.
    mask: Option<Mask>,
}

struct Job {
    slot: u32,
    stay: u64,
    task: Task,
}

enum Task {
    /// Compile and catch up, then compute the mask if it is narrow.
    Begin {
        constraint: Constraint,
        output: Vec<u32>,
    },
    /// Take one more token, then compute the mask if it is narrow, or in any case.
    Push {
        place: Box<Place>,
        token: u32,
        in_any_case: bool,
    },
    Mask {
        place: Box<Place>,
    },
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
            self.put_back(Done { slot, stay: *stay, lane: Err(GONE.into()) });
        }
    }

    fn put_back(&mut self, done: Done) {
        if let Some(slot) = self.slots.get_mut(&done.slot).filter(|slot| slot.stay == done.stay) {
            slot.lane = Some(done.lane);
        }
    }

    /// Waits until a slot's lane is here.
    fn await_lane(&mut self, slot: u32, until: Instant) -> Result<(), String> {
        let began = Instant::now();
        while self.slots.get(&slot).is_some_and(|slot| slot.lane.is_none()) {
            match self.done.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(done) => self.put_back(done),
                Err(RecvTimeoutError::Timeout) => {
                    return Err(format!("following the constraint took longer than {:?}", until - began));
                }
                Err(RecvTimeoutError::Disconnected) => return Err(GONE.into()),
            }
        }
        Ok(())
    }

    /// A slot where it stands, waited for.
    fn slot(&mut self, slot: u32) -> Result<&mut Slot, String> {
        self.await_lane(slot, Instant::now() + WAIT_MAX)?;
        self.slots.get_mut(&slot).ok_or_else(|| "the slot has no constraint".into())
    }
}

const GONE: &str = "the threads that follow constraints are gone";

impl Masker for Masks {
    fn begin(&mut self, slot: u32, constraint: &Constraint, output: &[u32]) {
        let stay = self.next_stay;
        self.next_stay += 1;
        self.slots.insert(slot, Slot { stay, lane: None, refused: false });
        self.send(slot, Task::Begin { constraint: constraint.clone(), output: output.to_vec() });
    }

    fn push(&mut self, slot: u32, token: u32, ahead: Ahead) {
        let entry = match self.slot(slot) {
            Ok(entry) => entry,
            Err(reason) => {
                tracing::warn!(slot, reason, "following a constraint");
                self.slots.entry(slot).and_modify(|slot| slot.lane = Some(Err(reason)));
                return;
            }
        };
        let in_any_case = entry.refused || ahead == Ahead::Always;
        match entry.lane.take() {
            Some(Ok(place)) if ahead != Ahead::Never => {
                self.send(slot, Task::Push { place: Box::new(place), token, in_any_case })
            }
            Some(Ok(place)) => entry.lane = Some(guarded(|| place.after(token))),
            failed => entry.lane = failed,
        }
    }

    fn order(&mut self, slot: u32) {
        let Some(entry) = self.slots.get_mut(&slot) else { return };
        match entry.lane.take() {
            Some(Ok(place)) if place.mask.is_none() => self.send(slot, Task::Mask { place: Box::new(place) }),
            other => entry.lane = other,
        }
    }

    fn ready(&mut self, slot: u32, until: Instant) -> Result<(), String> {
        self.await_lane(slot, until)?;
        match self.slots.get(&slot).and_then(|slot| slot.lane.as_ref()) {
            Some(Err(reason)) => Err(reason.clone()),
            _ => Ok(()),
        }
    }

    fn is_narrow(&mut self, slot: u32) -> Result<bool, String> {
        self.slot(slot)?.with_place(Place::is_narrow)
    }

    fn allows(&mut self, slot: u32, token: u32) -> Result<bool, String> {
        let entry = self.slot(slot)?;
        let allows = entry.with_place(|place| place.allows(token))?;
        if !entry.with_place(Place::is_narrow)? {
            entry.refused = !allows;
        }
        Ok(allows)
    }

    fn mask_at_hand(&mut self, slot: u32) -> Option<Arc<[u32]>> {
        self.slot(slot).ok()?.with_place(|place| Ok(place.mask.clone())).ok()?
    }

    fn mask(&mut self, slot: u32) -> Result<Arc<[u32]>, String> {
        self.slot(slot)?.with_place(Place::mask)
    }

    fn end(&mut self, slot: u32) {
        self.slots.remove(&slot);
    }
}

impl Slot {
    /// Does something with a lane that is here; what fails there ends the lane.
    fn with_place<T>(&mut self, what: impl FnOnce(&mut Place) -> Result<T, String>) -> Result<T, String> {
        match self.lane.as_mut() {
            Some(Ok(place)) => {
                let result = guarded(|| what(place));
                if let Err(reason) = &result {
                    self.lane = Some(Err(reason.clone()));
                }
                result
            }
            Some(Err(reason)) => Err(reason.clone()),
            None => Err("the constraint is still being followed".into()),
        }
    }
}

impl Place {
    /// The beginning, and so many tokens on.
    fn begin(constraint: &Constraint, output: &[u32]) -> Lane {
        let rules = Rules::of(constraint).map_err(|error| error.to_string())?;
        let mut walk = Walk::new(&rules).map_err(|error| error.to_string())?;
        output.iter().try_for_each(|&token| walk.push(token))?;
        Ok(Self { walk, narrow: None, mask: None })
    }

    fn after(mut self, token: u32) -> Lane {
        self.walk.push(token)?;
        Ok(Self { narrow: None, mask: None, ..self })
    }

    fn is_narrow(&mut self) -> Result<bool, String> {
        if let Some(narrow) = self.narrow {
            return Ok(narrow);
        }
        let narrow = !self.allows(*mask::LETTER)?;
        self.narrow = Some(narrow);
        Ok(narrow)
    }

    fn allows(&mut self, token: u32) -> Result<bool, String> {
        match &self.mask {
            Some(mask) => Ok(mask::contains(mask, token)),
            None => self.walk.allows(token),
        }
    }

    fn mask(&mut self) -> Result<Mask, String> {
        if self.mask.is_none() {
            self.mask = Some(self.walk.mask()?);
        }
        self.mask.clone().ok_or_else(|| "no mask was computed".into())
    }
}

/// Until there can be no more jobs, or nobody wants their results.
fn serve(jobs: &Mutex<Receiver<Job>>, done: &Sender<Done>) {
    loop {
        let job = jobs.lock().unwrap_or_else(PoisonError::into_inner).recv();
        let Ok(Job { slot, stay, task }) = job else { return };
        let lane = guarded(|| work(task));
        if done.send(Done { slot, stay, lane }).is_err() {
            return;
        }
    }
}

fn work(task: Task) -> Lane {
    let (mut place, in_any_case) = match task {
        Task::Begin { constraint, output } => (Place::begin(&constraint, &output)?, false),
        Task::Push { place, token, in_any_case } => (place.after(token)?, in_any_case),
        Task::Mask { place } => (*place, true),
    };
    if in_any_case || place.is_narrow()? {
        place.mask()?;
    }
    Ok(place)
}

/// A panic is an error of the one request.
fn guarded<T>(what: impl FnOnce() -> Result<T, String>) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(what)).unwrap_or_else(|_| Err("following the constraint panicked".into()))
}
