//! The coordinator's side: one group of workers after another.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use tandem_step::{Worker, WorkerError, WorkerSource};
use tokio::net::{TcpListener, UnixListener};
use tokio::runtime::Runtime;

use crate::group_worker::GroupWorker;
use crate::listening::{Acceptors, Door};
use crate::member::{Lobby, SharedLobby, Terms};
use crate::shift::Shift;
use crate::{Plan, Ready, Token};

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

/// What the supervisor's thread hands out.
pub(crate) type Formed = Result<(GroupWorker, Ready), SupervisorError>;

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
    let door = |token: &Token, tls: Option<Acceptors>, is_local| Door {
        terms: terms.clone(),
        token: token.clone(),
        lobby: lobby.clone(),
        doorkeeper: Arc::default(),
        is_local,
        tls,
    };
    plan.local.listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(plan.local.listener.try_clone()?)?;
    runtime.spawn(door(&plan.local.token, None, true).open_unix(listener));
    if let Some(remote) = &plan.remote {
        remote.listener.set_nonblocking(true)?;
        let listener = TcpListener::from_std(remote.listener.try_clone()?)?;
        runtime.spawn(door(&remote.token, remote.tls.clone(), false).open_tcp(listener));
    }
    Ok(())
}
