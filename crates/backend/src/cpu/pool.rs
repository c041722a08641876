use std::{
    hint,
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long a thread spins for the next piece of work or for the others before it sleeps. Operations of a forward pass
/// follow each other within a few microseconds, so that only an idle server's threads sleep.
const SPIN: Duration = Duration::from_micros(80);

/// After this long it offers its core to others while it spins: on a busy machine the thread waited for may be one of them.
const SPIN_ALONE: Duration = Duration::from_micros(10);

/// A few threads that run one piece of work together, many thousand times a second.
///
/// The calling thread is one of them. Work is handed over by a counter the others spin on; a barrier inside the work
/// costs well under a microsecond while every thread has a core. A thread that waits longer than [`SPIN`] sleeps.
pub(crate) struct Pool {
    team: Arc<Team>,
    workers: Vec<JoinHandle<()>>,
    running: Mutex<()>,
}

/// A thread's place in the pool during one piece of work.
pub(crate) struct Worker<'a> {
    /// Which of the threads: 0 is the caller.
    pub(crate) index: usize,
    team: &'a Team,
}

struct Team {
    size: usize,
    start: Gate,
    barrier: Barrier,
    stop: AtomicBool,
    /// The work in progress; written before `start` opens, read after.
    job: Mutex<Option<Job>>,
}

#[derive(Clone, Copy)]
struct Job(*const (dyn Fn(&Worker<'_>) + Sync));
// SAFETY: points at a Sync closure that outlives the run: `Pool::run` returns only after every worker is through.
unsafe impl Send for Job {}

impl Pool {
    /// A pool of `threads` (at least one), the caller's included.
    pub(crate) fn new(threads: usize) -> std::io::Result<Self> {
        let team = Arc::new(Team {
            size: threads.max(1),
            start: Gate::default(),
            barrier: Barrier::default(),
            stop: AtomicBool::new(false),
            job: Mutex::new(None),
        });
        let mut pool = Self { team, workers: Vec::new(), running: Mutex::new(()) };
        for index in 1..pool.team.size {
            let team = Arc::clone(&pool.team);
            let worker = thread::Builder::new().name(format!("cpu-{index}")).spawn(move || team.work(index))?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    /// Threads, the caller's included.
    pub(crate) fn threads(&self) -> usize {
        self.team.size
    }

    /// Runs `work` once on every thread and returns when all are through.
    pub(crate) fn run(&self, work: &(dyn Fn(&Worker<'_>) + Sync)) {
        let _one_at_a_time = lock(&self.running);
        let caller = Worker { index: 0, team: &self.team };
        if self.team.size == 1 {
            return work(&caller);
        }
        // SAFETY: only the lifetime is changed; the pointer is dropped before `run` returns.
        let job = unsafe { std::mem::transmute::<&(dyn Fn(&Worker<'_>) + Sync), Job>(work) };
        *lock(&self.team.job) = Some(job);
        self.team.start.open();
        let guard = AbortOnPanic;
        work(&caller);
        std::mem::forget(guard);
        caller.barrier();
        *lock(&self.team.job) = None;
    }

    /// Runs `work(item)` for every item below `items`, each on whichever thread is free.
    pub(crate) fn for_each(&self, items: usize, work: &(dyn Fn(usize) + Sync)) {
        if items == 1 || self.team.size == 1 {
            return (0..items).for_each(work);
        }
        let claims = Claims::default();
        self.run(&|_| {
            while let Some(item) = claims.next(items) {
                work(item);
            }
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.team.stop.store(true, Ordering::SeqCst);
        self.team.start.open();
        for worker in self.workers.drain(..) {
            // A worker that panicked has aborted the process.
            let _ = worker.join();
        }
    }
}

impl Worker<'_> {
    /// Waits until every thread of the pool is here.
    pub(crate) fn barrier(&self) {
        self.team.barrier.wait(self.team.size);
    }
}

impl Team {
    fn work(&self, index: usize) {
        let mut seen = 0;
        loop {
            seen = self.start.wait_past(seen);
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let Some(Job(job)) = *lock(&self.job) else { continue };
            let worker = Worker { index, team: self };
            let guard = AbortOnPanic;
            // SAFETY: the closure lives until `run` has passed the barrier below.
            unsafe { (*job)(&worker) };
            std::mem::forget(guard);
            worker.barrier();
        }
    }
}

/// A panic in a kernel would leave the other threads waiting for ever.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        std::process::abort();
    }
}

/// Hands out items to whoever asks first.
#[derive(Default)]
pub(crate) struct Claims(AtomicUsize);

impl Claims {
    /// The next item below `items`.
    pub(crate) fn next(&self, items: usize) -> Option<usize> {
        let item = self.0.fetch_add(1, Ordering::Relaxed);
        (item < items).then_some(item)
    }

    /// The next few items below `items`: at first long runs, which read memory in one stream, then ever shorter ones, so
    /// that all threads finish together (guided self-scheduling). At most `most`.
    pub(crate) fn next_run(&self, items: usize, threads: usize, most: usize) -> Option<Range<usize>> {
        let run = |next: usize| ((items - next) / (2 * threads)).clamp(1, most);
        let advance = |next: usize| (next < items).then(|| next + run(next));
        let next = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, advance).ok()?;
        Some(next..next + run(next))
    }
}

#[derive(Default)]
struct Barrier {
    arrived: AtomicUsize,
    gate: Gate,
}

impl Barrier {
    fn wait(&self, size: usize) {
        let seen = self.gate.turns();
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == size {
            self.arrived.store(0, Ordering::Release);
            self.gate.open();
        } else {
            self.gate.wait_past(seen);
        }
    }
}

/// A counter to wait on: spinning first, then asleep.
#[derive(Default)]
struct Gate {
    turns: AtomicU32,
    sleepers: AtomicU32,
    lock: Mutex<()>,
    wake: Condvar,
}

impl Gate {
    fn turns(&self) -> u32 {
        self.turns.load(Ordering::SeqCst)
    }

    /// Lets through everyone waiting. Sequential consistency of the two counters makes sure that either a thread about
    /// to sleep sees the new turn or it is seen here.
    fn open(&self) {
        self.turns.fetch_add(1, Ordering::SeqCst);
        if self.sleepers.load(Ordering::SeqCst) > 0 {
            drop(lock(&self.lock));
            self.wake.notify_all();
        }
    }

    /// Waits until the counter differs from `seen` and returns it.
    fn wait_past(&self, seen: u32) -> u32 {
        let begun = Instant::now();
        loop {
            for _ in 0..64 {
                if self.turns() != seen {
                    return self.turns();
                }
                hint::spin_loop();
            }
            let waited = begun.elapsed();
            if waited > SPIN {
                return self.sleep_past(seen);
            }
            if waited > SPIN_ALONE {
                thread::yield_now();
            }
        }
    }

    fn sleep_past(&self, seen: u32) -> u32 {
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, Ordering::SeqCst);
        while self.turns() == seen {
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::SeqCst);
        self.turns()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_passes_every_barrier() {
        let pool = Pool::new(5).unwrap();
        let (before, wrong) = (AtomicUsize::new(0), AtomicUsize::new(0));
        for round in 1..=200 {
            pool.run(&|worker| {
                before.fetch_add(1, Ordering::SeqCst);
                worker.barrier();
                if before.load(Ordering::SeqCst) != 5 * round {
                    wrong.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        assert_eq!(wrong.into_inner(), 0);
    }

    #[test]
    fn runs_cover_every_item_once() {
        for (items, threads, most) in [(1, 1, 9), (90, 2, 100), (7, 20, 4), (1000, 3, 8)] {
            let claims = Claims::default();
            let mut next = 0;
            while let Some(run) = claims.next_run(items, threads, most) {
                assert!(run.start == next && !run.is_empty() && run.len() <= most);
                next = run.end;
            }
            assert_eq!(next, items);
        }
    }

    #[test]
    fn sleeping_threads_wake() {
        let pool = Pool::new(3).unwrap();
        let count = AtomicUsize::new(0);
        for _ in 0..5 {
            thread::sleep(SPIN * 20);
            pool.for_each(100, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
        }
        assert_eq!(count.into_inner(), 500);
    }
}
