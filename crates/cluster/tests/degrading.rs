//! One node that serves alone while the other is missing. Both are processes: this test program itself, started again as
//! a worker.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tandem_cluster::{
    Deadlines, Experts, HostFacts, JoinAt, LinkFacts, LoadOrder, Local, ModelSource, Plan, Rank, RankLoaded, RankOrder,
    Remote, Supervisor, Token, attend,
};
use tandem_step::{Capacity, Input, Row, RowResult, StepPlan, StepResult, StepTimings, Worker, WorkerSource};
use tempfile::TempDir;

/// Ample for everything here, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// Where a process started by a test joins, and with which token; unset in the tests themselves.
const JOIN: &str = "TEST_WORKER_JOINS";
const TOKEN: &str = "TEST_WORKER_TOKEN";

/// Its tokens are the number of ranks.
struct Counting(u32);

impl Rank for Counting {
    fn load(&mut self, order: &RankOrder, _: &(dyn Fn(u64, u64) + Sync)) -> Result<RankLoaded, String> {
        self.0 = order.world as u32;
        Ok(RankLoaded::default())
    }

    fn connect(&mut self, _: &[Vec<u8>]) -> Result<Option<LinkFacts>, String> {
        Ok(None)
    }

    fn run(&mut self, plan: &StepPlan) -> Result<StepResult, String> {
        let rows =
            plan.rows.iter().map(|row| RowResult { token: Some(self.0), ..RowResult::empty(row.slot) }).collect();
        Ok(StepResult { epoch: plan.epoch, step: plan.step, rows, timings: StepTimings::default() })
    }
}

/// Not a test of its own: what the worker processes of the tests do.
#[test]
fn be_a_worker_where_a_test_asks_for_one() {
    let Some(join) = std::env::var_os(JOIN) else { return };
    let token = std::env::var_os(TOKEN).expect("a token file");
    let at = JoinAt {
        address: join.to_str().expect("an address").parse().expect("an address"),
        token: Token::read(Path::new(&token)).expect("a token"),
        trust: None,
        build: "build".into(),
        host: HostFacts { name: "here".into(), pid: std::process::id(), ..HostFacts::default() },
        deadlines: deadlines(),
        redial: true,
    };
    attend(&at, || Box::new(Counting(0))).expect("a membership");
}

fn worker(join: &str, token: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "be_a_worker_where_a_test_asks_for_one"]).env(JOIN, join).env(TOKEN, token);
    command
}

/// A process of another machine; killed when dropped.
struct Other(Child);

impl Drop for Other {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn deadlines() -> Deadlines {
    Deadlines { silence: Duration::from_secs(30), handshake: Duration::from_secs(20), ..Deadlines::default() }
}

/// A coordinator with a worker of its own, and a seat for another.
struct Pair {
    supervisor: Supervisor,
    address: SocketAddr,
    folder: TempDir,
    /// Of each group handed out: ranks, and nodes missing.
    formed: Arc<Mutex<Vec<(usize, usize)>>>,
}

impl Pair {
    /// `fits`: whether one node could hold all.
    fn new(degrade_after: Duration, fits: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        let token = Token::open_or_create(&token_file).unwrap();
        let socket = folder.path().join("control");
        let join = format!("unix:{}", socket.display());
        let formed = Arc::<Mutex<Vec<(usize, usize)>>>::default();
        let seen = formed.clone();
        let supervisor = Supervisor::start(Plan {
            build: "build".into(),
            deadlines: deadlines(),
            local: Local {
                count: 1,
                listener: UnixListener::bind(&socket).unwrap(),
                token: token.clone(),
                command: Box::new(move |_| worker(&join, &token_file)),
            },
            remote: Some(Remote {
                count: 1,
                listener: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
                token,
                tls: None,
            }),
            degrade_after: Some(degrade_after),
            order: Box::new(move |hosts| match hosts.len() {
                1 if !fits => Err("it would need 200 GB".into()),
                count => Ok(order(count as u32)),
            }),
            progress: Box::new(|_, _, _| {}),
            prove: Box::new(|_, _| Ok(())),
            formed: Box::new(move |ready| seen.lock().unwrap().push((ready.ranks.len(), ready.missing))),
        });
        let supervisor = supervisor.unwrap();
        let address = supervisor.address().unwrap();
        Self { supervisor, address, folder, formed }
    }

    fn other(&self) -> Other {
        Other(worker(&self.address.to_string(), &self.folder.path().join("token")).spawn().unwrap())
    }

    fn next(&mut self) -> Box<dyn Worker> {
        self.supervisor.next(PATIENCE).unwrap().expect("a group")
    }
}

/// Pools that grow with the nodes.
fn order(nodes: u32) -> LoadOrder {
    LoadOrder {
        experts: Experts::Slice,
        model: ModelSource::Demo,
        fingerprint: String::new(),
        exact: true,
        dense: String::new(),
        kv: String::new(),
        capacity: Capacity { full_blocks: 100 * nodes, ..Capacity::default() },
        link: String::new(),
        eager: false,
        prefill_activations: String::new(),
    }
}

/// How many ranks answer the first step.
fn ranks(group: &mut Box<dyn Worker>) -> u32 {
    let row = Row { slot: 0, input: Input::Sampled, position: 1, blocks: Vec::new(), sample: true, score: None };
    group.submit(StepPlan { rows: vec![row], ..StepPlan::default() }).unwrap();
    group.next(PATIENCE).unwrap().rows[0].token.unwrap()
}

fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_node_serves_alone_until_the_other_is_there_and_again_when_it_is_lost() {
    let mut pair = Pair::new(Duration::from_millis(500), true);
    let mut alone = pair.next();
    assert_eq!((ranks(&mut alone), alone.capacity().unwrap().full_blocks), (1, 100));
    assert!(!alone.is_to_be_replaced());
    let other = pair.other();
    wait_until("it makes room for both", || alone.is_to_be_replaced());
    alone.check().expect("nothing is wrong with it");
    drop(alone);
    let mut both = pair.next();
    assert_eq!((ranks(&mut both), both.capacity().unwrap().full_blocks), (2, 200));
    drop(other);
    wait_until("the loss is noticed", || both.check().is_err());
    drop(both);
    let mut alone = pair.next();
    assert_eq!(ranks(&mut alone), 1);
    assert_eq!(*pair.formed.lock().unwrap(), [(1, 1), (2, 0), (1, 1)]);
}

#[test]
fn where_the_model_does_not_fit_one_node_the_other_is_waited_for() {
    let mut pair = Pair::new(Duration::ZERO, false);
    assert!(pair.supervisor.next(Duration::from_secs(2)).unwrap().is_none());
    let _other = pair.other();
    assert_eq!(ranks(&mut pair.next()), 2);
}
