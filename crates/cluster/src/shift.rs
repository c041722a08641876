//! The supervisor's thread: forms a group, hands it out, and watches over it until the next is due.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::assembly::{Assembled, Assembly, POLL};
use crate::group::{Forming, Progress};
use crate::group_worker::GroupWorker;
use crate::hitch::Hitch;
use crate::member::SharedLobby;
use crate::proving::Proving;
use crate::supervisor::Formed;
use crate::{Children, Deadlines, Decide, Plan, Prove, Ready, SupervisorError, Unproven};

/// Failures of this machine's own workers after which no further group is formed, and within which time.
const FAILURES_MAX: usize = 5;
const FAILURES_WITHIN: Duration = Duration::from_secs(600);
/// Pause before a group is formed after failures: so long after the first, four times as long after each further.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// How long the connections may take to end.
const RUNTIME_END: Duration = Duration::from_secs(1);

/// What the thread works with.
pub(crate) struct Shift {
    deadlines: Deadlines,
    /// Whether workers of other machines take part.
    has_others: bool,
    order: Decide,
    progress: Box<dyn Fn(usize, u64, u64) + Send + Sync>,
    prove: Prove,
    formed: Box<dyn FnMut(&Ready) + Send>,
    runtime: Runtime,
    assembly: Assembly,
    stop: Arc<AtomicBool>,
    epoch: u64,
    failures: VecDeque<Instant>,
}

/// What is watched of a group that was handed out.
struct Watched {
    over: watch::Receiver<bool>,
    relieved: Arc<AtomicBool>,
    is_alone: bool,
}

impl Shift {
    /// The plan's listeners are open by now.
    pub(crate) fn new(plan: Plan, runtime: Runtime, lobby: SharedLobby, stop: Arc<AtomicBool>) -> Self {
        let Plan { deadlines, local, remote, degrade_after, order, progress, prove, formed, build: _ } = plan;
        let children = Children::new(local.count, local.command);
        let others = remote.as_ref().map_or(0, |remote| remote.count);
        let assembly = Assembly::new(children, lobby, local.count, others, degrade_after);
        let (has_others, epoch, failures) = (remote.is_some(), 0, VecDeque::new());
        Self { deadlines, has_others, order, progress, prove, formed, runtime, assembly, stop, epoch, failures }
    }

    pub(crate) fn run(mut self, groups: &SyncSender<Formed>) {
        if let Err(error) = self.serve(groups) {
            // Nobody is there to hear it when it ends anyway.
            let _ = groups.send(Err(error));
        }
        self.assembly.children.end(self.deadlines.drain);
        self.runtime.shutdown_timeout(RUNTIME_END);
    }

    /// Until told to stop, or until it makes no sense to go on.
    fn serve(&mut self, groups: &SyncSender<Formed>) -> Result<(), SupervisorError> {
        loop {
            self.epoch += 1;
            let hitch = match self.group() {
                Ok((worker, ready)) => {
                    self.assembly.note_formed(ready.missing > 0);
                    (self.formed)(&ready);
                    let watched =
                        Watched { over: worker.over(), relieved: worker.relieved(), is_alone: ready.missing > 0 };
                    if groups.send(Ok((worker, ready))).is_err() {
                        return Ok(());
                    }
                    self.watch(&watched)
                }
                Err(hitch) => hitch,
            };
            match hitch {
                Hitch::Stopped => return Ok(()),
                Hitch::Relieved => info!("epoch {} is over: all nodes are there", self.epoch),
                Hitch::Theirs(reason) => warn!("no group in epoch {}: {reason}", self.epoch),
                Hitch::Ours { reason, is_refusal } => {
                    if self.epoch == 1 && is_refusal {
                        return Err(SupervisorError::First(reason));
                    }
                    warn!("epoch {} is over: {reason}", self.epoch);
                    self.note_failure(&reason)?;
                }
            }
            self.assembly.children.kill();
            self.pause();
        }
    }

    /// Starts our own workers, waits for the others, and has all of them load and prove themselves.
    fn group(&mut self) -> Result<(GroupWorker, Ready), Hitch> {
        let assembled = self.assembly.assemble(&self.runtime, &self.stop, &mut self.order)?;
        let formed = self.form(assembled);
        // Why a process ended says more than that its connection did.
        match (formed, self.assembly.children.check()) {
            (Err(Hitch::Ours { is_refusal: false, .. }), Err(ended)) => {
                Err(Hitch::Ours { reason: ended.to_string(), is_refusal: false })
            }
            (formed, _) => formed,
        }
    }

    fn form(&mut self, assembled: Assembled) -> Result<(GroupWorker, Ready), Hitch> {
        let Assembled { members, order, missing } = assembled;
        let progress: Progress<'_> = self.progress.as_ref();
        let forming = Forming { epoch: self.epoch, deadlines: self.deadlines, progress };
        let stop = self.stop.clone();
        let (mut worker, ready) = self.runtime.block_on(async {
            tokio::select! {
                formed = forming.form(members, &order) => formed.map_err(Hitch::from),
                () = raised(&stop) => Err(Hitch::Stopped),
            }
        })?;
        let proved = (self.prove)(&mut Proving { worker: &mut worker, stop: &self.stop }, &order);
        match proved {
            Ok(()) => Ok((worker, Ready { missing, ..ready })),
            Err(_) if self.stop.load(Ordering::Acquire) => Err(Hitch::Stopped),
            Err(Unproven::Lost(reason)) => Err(self.lost(missing > 0, reason)),
            Err(Unproven::Wrong(reason)) => Err(Hitch::Ours { reason, is_refusal: true }),
        }
    }

    /// Waits for a group's end.
    fn watch(&mut self, group: &Watched) -> Hitch {
        loop {
            if self.stop.load(Ordering::Acquire) {
                return Hitch::Stopped;
            }
            // Seen before the processes are looked at: a process closes its connection before it can be seen to have ended.
            let is_over = *group.over.borrow();
            std::thread::sleep(POLL);
            let ended = self.assembly.children.check();
            // A group that was let go in order lets its processes end.
            if group.relieved.load(Ordering::Acquire) && *group.over.borrow() {
                return Hitch::Relieved;
            }
            if let Err(ended) = ended {
                return Hitch::Ours { reason: ended.to_string(), is_refusal: false };
            }
            if is_over {
                return self.lost(group.is_alone, "the group was lost".into());
            }
            if group.is_alone && self.assembly.is_whole_again() {
                group.relieved.store(true, Ordering::Release);
            }
        }
    }

    /// Of a group's end without the end of a process of ours.
    fn lost(&self, is_alone: bool, reason: String) -> Hitch {
        match self.has_others && !is_alone {
            true => Hitch::Theirs(reason),
            false => Hitch::Ours { reason, is_refusal: false },
        }
    }

    fn note_failure(&mut self, reason: &str) -> Result<(), SupervisorError> {
        let now = Instant::now();
        self.failures.push_back(now);
        self.failures.retain(|failure| now.saturating_duration_since(*failure) < FAILURES_WITHIN);
        let times = self.failures.len();
        if times > FAILURES_MAX {
            return Err(SupervisorError::TooOften { times, within: FAILURES_WITHIN, last: reason.to_owned() });
        }
        Ok(())
    }

    fn pause(&self) {
        let times = self.failures.len().saturating_sub(1) as u32;
        let backoff = BACKOFF_FIRST.saturating_mul(4u32.saturating_pow(times)).min(BACKOFF_LAST);
        let until = Instant::now() + backoff;
        while Instant::now() < until && !self.stop.load(Ordering::Acquire) {
            std::thread::sleep(POLL);
        }
    }
}

/// Waits until the flag is up.
async fn raised(flag: &AtomicBool) {
    while !flag.load(Ordering::Acquire) {
        tokio::time::sleep(POLL).await;
    }
}
