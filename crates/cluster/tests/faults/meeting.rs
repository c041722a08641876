//! A coordinator and two workers in one process, over real sockets, with something between them.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use tandem_cluster::{
    Address, AttendError, Deadlines, Experts, HostFacts, JoinAt, LoadOrder, Local, ModelSource, Plan, Rank, Remote,
    Supervisor, Token, attend,
};
use tandem_step::{Capacity, Worker, WorkerSource};
use tempfile::TempDir;

use crate::chain::Chain;

const BUILD: &str = "this build";
/// What has not happened by then never will.
pub const HANG: Duration = Duration::from_secs(120);

/// How much longer everything takes under emulation.
pub fn slowness() -> u32 {
    if std::env::var_os("TEST_EMULATED").is_some() { 10 } else { 1 }
}

/// Longer than anything takes that works, shorter than anybody's patience with thousands of seeds.
pub fn impatient() -> Deadlines {
    let ms = |count| slowness() * Duration::from_millis(count);
    Deadlines { ping: ms(20), silence: ms(300), handshake: ms(500), load: ms(500), connect: ms(500), drain: ms(100) }
}

pub struct Meeting {
    supervisor: Option<Supervisor>,
    workers: Vec<JoinHandle<()>>,
    /// Once set, workers do not dial again.
    stop: Arc<AtomicBool>,
    _folder: TempDir,
}

impl Meeting {
    /// Workers dial what `between` gives for the coordinator's address and their number.
    pub fn new(deadlines: Deadlines, between: impl Fn(SocketAddr, u64) -> SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let token = Token::random().expect("a token");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let control = UnixListener::bind(folder.path().join("control")).expect("a socket");
        let supervisor = Supervisor::start(Plan {
            build: BUILD.into(),
            deadlines,
            degrade_after: None,
            local: Local {
                count: 0,
                listener: control,
                token: Token::random().expect("a token"),
                command: Box::new(|_| Command::new("false")),
            },
            remote: Some(Remote { count: 2, listener, token: token.clone(), tls: None }),
            order: Box::new(|_| Ok(order())),
            progress: Box::new(|_, _, _| {}),
            prove: Box::new(|_, _| Ok(())),
            formed: Box::new(|_| {}),
        })
        .expect("a supervisor");
        let (to, stop) = (supervisor.address().expect("an address"), Arc::new(AtomicBool::new(false)));
        let worker = |number| {
            let (at, stop) = (join_at(between(to, number), &token, deadlines), stop.clone());
            thread::spawn(move || again_and_again(&at, &stop))
        };
        let workers = (0..2).map(worker).collect();
        Self { supervisor: Some(supervisor), workers, stop, _folder: folder }
    }

    /// The next group, if there is one in time.
    pub fn group(&mut self, patience: Duration) -> Option<Box<dyn Worker>> {
        self.supervisor.as_mut()?.next(patience).expect("workers of others are waited for, whatever happens")
    }
}

impl Drop for Meeting {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        drop(self.supervisor.take());
        let deadline = Instant::now() + HANG;
        for worker in self.workers.drain(..) {
            while !worker.is_finished() && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
            // One panic is enough.
            assert!(thread::panicking() || worker.is_finished(), "a worker hangs");
            assert!(thread::panicking() || worker.join().is_ok(), "a worker gave up");
        }
    }
}

/// A worker dials whenever its connection is lost, as those of other machines do, but without their pauses. Nothing that
/// happens on the way is a reason to end.
fn again_and_again(at: &JoinAt, stop: &AtomicBool) {
    while !stop.load(Ordering::Acquire) {
        match attend(at, || Box::new(Chain::default()) as Box<dyn Rank>) {
            Ok(()) | Err(AttendError::Lost { .. }) => thread::sleep(Duration::from_millis(5)),
            Err(error) => panic!("a worker gave up: {error}"),
        }
    }
}

fn join_at(address: SocketAddr, token: &Token, deadlines: Deadlines) -> JoinAt {
    JoinAt {
        address: Address::Tcp(address.to_string()),
        token: token.clone(),
        trust: None,
        build: BUILD.into(),
        host: HostFacts { name: "here".into(), ..HostFacts::default() },
        deadlines,
        redial: false,
    }
}

fn order() -> LoadOrder {
    LoadOrder {
        experts: Experts::Slice,
        model: ModelSource::Demo,
        fingerprint: "0123".into(),
        exact: true,
        dense: "bf16".into(),
        kv: "f32".into(),
        capacity: Capacity { block_tokens: 16, vocab: 200_000, ..Capacity::default() },
        link: "tcp".into(),
        eager: true,
        prefill_activations: "mxfp8".into(),
    }
}
