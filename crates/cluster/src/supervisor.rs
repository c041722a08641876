//! The coordinator's side: one group of workers after another.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tandem_step::{Worker, WorkerError, WorkerSource};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::children::ChildCommand;
use crate::group::{Forming, Progress};
use crate::group_worker::GroupWorker;
use crate::listening::Door;
use crate::member::{Lobby, Member, SharedLobby, Terms};
use crate::{Children, Deadlines, GroupError, HostFacts, LoadOrder, Ready, Token};

/// How often waits look whether they should end.
const POLL: Duration = Duration::from_millis(50);
/// How often it is said who is waited for.
const WAITING_INTERVAL: Duration = Duration::from_secs(30);
/// Failures of this machine's own workers after which no further group is formed, and within which time.
const FAILURES_MAX: usize = 5;
const FAILURES_WITHIN: Duration = Duration::from_secs(600);
/// Pause before a group is formed after failures: so long after the first, four times as long after each further.
const BACKOFF_FIRST: Duration = Duration::from_millis(100);
const BACKOFF_LAST: Duration = Duration::from_secs(30);
/// How long the connections may take to end.
const RUNTIME_END: Duration = Duration::from_secs(1);

/// Says what to load, given the machines in rank order.
pub type Decide = Box<dyn FnMut(&[HostFacts]) -> Result<LoadOrder, String> + Send>;

/// Who is to make up the groups, and how.
pub struct Plan {
    /// Hash of the sources of this program; workers of another are refused.
    pub build: String,
    /// How long things may take.
    pub deadlines: Deadlines,
    /// Workers of this machine.
    pub local: Local,
    /// Workers of others, if any.
    pub remote: Option<Remote>,
    /// Says what to load, given the machines in rank order.
    pub order: Decide,
    /// Is told how far a rank's loading is: rank, bytes read, bytes in all.
    pub progress: Box<dyn Fn(usize, u64, u64) + Send + Sync>,
}

/// Workers that are children of this process; they have the first ranks.
pub struct Local {
    /// How many.
    pub count: usize,
    /// Where they connect, in a folder that only this user can enter.
    pub listener: std::os::unix::net::UnixListener,
    /// What they and we know.
    pub token: Token,
    /// Starts one.
    pub command: ChildCommand,
}

/// Workers that are not.
pub struct Remote {
    /// How many.
    pub count: usize,
    /// Where they connect.
    pub listener: std::net::TcpListener,
    /// What they and we know.
    pub token: Token,
}

/// Why there is no group, nor will there be.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    /// The operating system.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        source: std::io::Error,
    },
    /// The first group failed, for a reason that would be there again.
    #[error("{0}")]
    First(String),
    /// Workers of this machine failed again and again.
    #[error("workers failed {times} times within {within:?}, last: {last}")]
    TooOften {
        /// How often.
        times: usize,
        /// Within which time.
        within: Duration,
        /// The last reason.
        last: String,
    },
    /// Its thread is gone.
    #[error("the supervisor of the workers has ended")]
    Ended,
}

type Formed = Result<(GroupWorker, Ready), SupervisorError>;

/// Forms groups, one whenever the last is lost, on a thread of its own; all workers of this machine end when this is
/// dropped.
pub struct Supervisor {
    groups: Receiver<Formed>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Where others connect.
    address: Option<SocketAddr>,
}

impl Supervisor {
    /// Starts the workers of this machine and listens for others.
    pub fn start(plan: Plan) -> Result<Self, SupervisorError> {
        let failed = |doing| move |source| SupervisorError::System { doing, source };
        let remote = plan.remote.as_ref();
        let address = remote.map(|remote| remote.listener.local_addr()).transpose();
        let address = address.map_err(failed("reading the address that is listened on"))?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("cluster")
            .enable_all()
            .build()
            .map_err(failed("starting the control plane"))?;
        let lobby = Arc::new(Lobby::new(plan.local.count, remote.map_or(0, |remote| remote.count)));
        open_doors(&runtime, &plan, &lobby).map_err(failed("listening for workers"))?;
        let (send, groups) = sync_channel(1);
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = stop.clone();
        let work = move || Shift::new(plan, runtime, lobby, stopping).run(&send);
        let thread = std::thread::Builder::new().name("supervisor".into()).spawn(work);
        let thread = Some(thread.map_err(failed("starting the supervisor's thread"))?);
        Ok(Self { groups, stop, thread, address })
    }

    /// Where workers of other machines connect.
    pub fn address(&self) -> Option<SocketAddr> {
        self.address
    }

    /// Waits for the first group, which may be as long as until somebody starts the other node.
    pub fn first(&mut self) -> Result<(Box<dyn Worker>, Ready), SupervisorError> {
        let (worker, ready) = self.groups.recv().map_err(|_| SupervisorError::Ended)??;
        Ok((Box::new(worker), ready))
    }
}

impl WorkerSource for Supervisor {
    fn next(&mut self, timeout: Duration) -> Result<Option<Box<dyn Worker>>, WorkerError> {
        match self.groups.recv_timeout(timeout) {
            Ok(Ok((worker, _))) => Ok(Some(Box::new(worker))),
            Ok(Err(error)) => Err(WorkerError::Gone(error.to_string())),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(WorkerError::Gone(SupervisorError::Ended.to_string())),
        }
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

fn open_doors(runtime: &Runtime, plan: &Plan, lobby: &SharedLobby) -> std::io::Result<()> {
    let _inside = runtime.enter();
    let terms = Arc::new(Terms { build: plan.build.clone(), deadlines: plan.deadlines });
    let door = |token: &Token, is_local| Door {
        terms: terms.clone(),
        token: token.clone(),
        lobby: lobby.clone(),
        doorkeeper: Arc::default(),
        is_local,
    };
    plan.local.listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(plan.local.listener.try_clone()?)?;
    runtime.spawn(door(&plan.local.token, true).open_unix(listener));
    if let Some(remote) = &plan.remote {
        remote.listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(remote.listener.try_clone()?)?;
        runtime.spawn(door(&remote.token, false).open_tcp(listener));
    }
    Ok(())
}

/// The thread's own.
struct Shift {
    plan: Plan,
    runtime: Runtime,
    lobby: SharedLobby,
    children: Children,
    stop: Arc<AtomicBool>,
    epoch: u64,
    failures: VecDeque<Instant>,
}

/// Why a group was not formed.
enum Hitch {
    /// It is time to end.
    Stopped,
    /// A worker of this machine, which might fail again in the same way.
    Ours { reason: String, is_refusal: bool },
    /// Another's: it will come back.
    Theirs(String),
}

impl Shift {
    fn new(mut plan: Plan, runtime: Runtime, lobby: SharedLobby, stop: Arc<AtomicBool>) -> Self {
        // The listeners have been duplicated; what is needed of the plan stays.
        let none: ChildCommand = Box::new(|_| std::process::Command::new(""));
        let command = std::mem::replace(&mut plan.local.command, none);
        let children = Children::new(plan.local.count, command);
        Self { plan, runtime, lobby, children, stop, epoch: 0, failures: VecDeque::new() }
    }

    fn run(mut self, groups: &SyncSender<Formed>) {
        if let Err(error) = self.serve(groups) {
            // Nobody is there to hear it when it ends anyway.
            let _ = groups.send(Err(error));
        }
        self.children.end(self.plan.deadlines.drain);
        self.runtime.shutdown_timeout(RUNTIME_END);
    }

    /// Until told to stop, or until it makes no sense to go on.
    fn serve(&mut self, groups: &SyncSender<Formed>) -> Result<(), SupervisorError> {
        loop {
            self.epoch += 1;
            let reason = match self.group() {
                Ok((worker, ready)) => {
                    let over = worker.over();
                    if groups.send(Ok((worker, ready))).is_err() {
                        return Ok(());
                    }
                    let Some(reason) = self.watch(&over) else { return Ok(()) };
                    reason
                }
                Err(hitch) => hitch,
            };
            match reason {
                Hitch::Stopped => return Ok(()),
                Hitch::Theirs(reason) => warn!("no group in epoch {}: {reason}", self.epoch),
                Hitch::Ours { reason, is_refusal } => {
                    if self.epoch == 1 && is_refusal {
                        return Err(SupervisorError::First(reason));
                    }
                    warn!("epoch {} is over: {reason}", self.epoch);
                    self.note_failure(&reason)?;
                }
            }
            self.children.kill();
            self.pause();
        }
    }

    /// Starts our own workers, waits for the others, and lets all of them load.
    fn group(&mut self) -> Result<(GroupWorker, Ready), Hitch> {
        let ours = |reason: String| Hitch::Ours { reason, is_refusal: true };
        self.children.start().map_err(|error| ours(error.to_string()))?;
        let members = self.gather()?;
        let hosts: Vec<HostFacts> = members.iter().map(|member| member.host.clone()).collect();
        let order = (self.plan.order)(&hosts).map_err(ours)?;
        let progress: Progress<'_> = self.plan.progress.as_ref();
        let forming = Forming { epoch: self.epoch, deadlines: self.plan.deadlines, progress };
        let stop = self.stop.clone();
        let formed = self.runtime.block_on(async {
            tokio::select! {
                formed = forming.form(members, &order) => formed.map_err(Hitch::from),
                () = raised(&stop) => Err(Hitch::Stopped),
            }
        });
        // Why a process ended says more than that its connection did.
        match (&formed, self.children.check()) {
            (Err(Hitch::Ours { is_refusal: false, .. }), Err(ended)) => {
                Err(Hitch::Ours { reason: ended.to_string(), is_refusal: false })
            }
            _ => formed,
        }
    }

    /// Waits until as many have joined as a group has ranks.
    fn gather(&mut self) -> Result<Vec<Member>, Hitch> {
        let others = self.plan.remote.as_ref().map_or(0, |remote| remote.count);
        let (mut local, mut remote): (Vec<Option<Member>>, Vec<Member>) = (Vec::new(), Vec::new());
        local.resize_with(self.plan.local.count, || None);
        let mut next_word = Instant::now();
        loop {
            if self.stop.load(Ordering::Acquire) {
                return Err(Hitch::Stopped);
            }
            let ended = |error: crate::ChildrenError| Hitch::Ours { reason: error.to_string(), is_refusal: true };
            self.children.check().map_err(ended)?;
            while let Some(member) = self.lobby.take(|member| member.is_local) {
                // A process of an earlier epoch has no place any more.
                if let Some(index) = self.children.index_of(member.host.pid) {
                    local[index] = Some(member);
                }
            }
            remote.retain(Member::is_there);
            while remote.len() < others
                && let Some(member) = self.lobby.take(|member| !member.is_local)
            {
                info!("{} has joined: {}", member.name(), member.host.device);
                remote.push(member);
            }
            if local.iter().all(Option::is_some) && remote.len() == others {
                return Ok(local.into_iter().flatten().chain(remote).collect());
            }
            if remote.len() < others && next_word <= Instant::now() {
                info!("waiting for {} more worker(s) to join", others - remote.len());
                next_word = Instant::now() + WAITING_INTERVAL;
            }
            self.runtime.block_on(async {
                // Whether somebody came or not, the loop looks.
                let _ = timeout(POLL, self.lobby.arrived.notified()).await;
            });
        }
    }

    /// Waits for a group's end; `None` when it is time to stop.
    fn watch(&mut self, over: &watch::Receiver<bool>) -> Option<Hitch> {
        loop {
            if self.stop.load(Ordering::Acquire) {
                return None;
            }
            // Seen before the processes are looked at: a process closes its connection before it can be seen to have ended.
            let is_over = *over.borrow();
            std::thread::sleep(POLL);
            if let Err(ended) = self.children.check() {
                return Some(Hitch::Ours { reason: ended.to_string(), is_refusal: false });
            }
            if is_over {
                return Some(self.whose_fault());
            }
        }
    }

    /// Of a group's end without the end of a process of ours.
    fn whose_fault(&self) -> Hitch {
        let reason = "the group was lost".to_owned();
        match self.plan.remote {
            Some(_) => Hitch::Theirs(reason),
            None => Hitch::Ours { reason, is_refusal: false },
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

impl From<GroupError> for Hitch {
    fn from(error: GroupError) -> Self {
        match error.is_local {
            true => Self::Ours { is_refusal: error.is_refusal, reason: error.to_string() },
            false => Self::Theirs(error.to_string()),
        }
    }
}

/// Waits until the flag is up.
async fn raised(flag: &AtomicBool) {
    while !flag.load(Ordering::Acquire) {
        tokio::time::sleep(POLL).await;
    }
}
