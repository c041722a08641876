//! Supervisor and workers in one process, over real sockets, with ranks that compute nothing.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use tandem_cluster::{
    Address, AttendError, Deadlines, Experts, HostFacts, JoinAt, LoadOrder, Local, ModelSource, Plan, Rank, RankLoaded,
    RankOrder, Remote, Supervisor, SupervisorError, Token, attend,
};
use tandem_step::{
    Capacity, Input, Row, RowResult, StepPlan, StepResult, StepTimings, Worker, WorkerError, WorkerSource,
};
use tempfile::TempDir;

/// Ample for everything here, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const BUILD: &str = "this build";

/// Deadlines that a busy machine keeps.
fn deadlines() -> Deadlines {
    Deadlines { silence: Duration::from_secs(10), handshake: Duration::from_secs(2), ..Deadlines::default() }
}

fn order() -> LoadOrder {
    LoadOrder {
        experts: Experts::Whole,
        model: ModelSource::Path("/a/model".into()),
        fingerprint: "0123".into(),
        exact: true,
        dense: "bf16".into(),
        kv: "f32".into(),
        capacity: Capacity { block_tokens: 16, vocab: 1000, ..Capacity::default() },
        link: "tcp".into(),
    }
}

/// What rank 1 does otherwise than it should.
#[derive(Clone, Copy, PartialEq)]
enum Fault {
    None,
    FailsToLoad,
    FailsAt(u64),
    LiesAt(u64),
    PanicsAt(u64),
    AnswersTwice,
}

/// Tokens that follow from the step, and log-probabilities of its own.
struct Script {
    fault: Fault,
    rank: usize,
    offers: Arc<Mutex<HashSet<Vec<Vec<u8>>>>>,
}

impl Rank for Script {
    fn load(&mut self, got: &RankOrder, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<RankLoaded, String> {
        assert_eq!((&got.all, got.world), (&order(), 2));
        assert_eq!(got.address, Ipv4Addr::LOCALHOST);
        (0..100).for_each(|read| progress(read, 100));
        self.rank = got.rank;
        if self.rank != 1 {
            self.fault = Fault::None;
        }
        match self.fault {
            Fault::FailsToLoad => Err("there is no such model here".into()),
            _ => Ok(RankLoaded { offer: vec![got.rank as u8; 3], device: format!("device {}", got.rank) }),
        }
    }

    fn connect(&mut self, offers: &[Vec<u8>]) -> Result<String, String> {
        self.offers.lock().unwrap().insert(offers.to_vec());
        Ok("a wire".into())
    }

    fn run(&mut self, plan: &StepPlan) -> Result<StepResult, String> {
        let mut token = plan.step as u32 * 7 % 1000;
        match self.fault {
            Fault::FailsAt(step) if plan.step == step => return Err("the device caught fire".into()),
            Fault::PanicsAt(step) if plan.step == step => panic!("a rank that panics, on purpose"),
            Fault::LiesAt(step) if plan.step == step => token += 1,
            _ => {}
        }
        let row = |row: &Row| RowResult {
            token: Some(token),
            logprobs: Some(tandem_step::TokenLogprobs { token, logprob: -(self.rank as f32) - 1.0, top: vec![] }),
            ..RowResult::empty(row.slot)
        };
        let mut rows: Vec<RowResult> = plan.rows.iter().map(row).collect();
        if self.fault == Fault::AnswersTwice {
            rows.extend(rows.clone());
        }
        Ok(StepResult { epoch: plan.epoch, step: plan.step, rows, timings: StepTimings::default() })
    }
}

/// A coordinator without workers of its own.
struct Meeting {
    supervisor: Supervisor,
    address: SocketAddr,
    token_file: PathBuf,
    offers: Arc<Mutex<HashSet<Vec<Vec<u8>>>>>,
    _folder: TempDir,
}

impl Meeting {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        let token = Token::open_or_create(&token_file).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let control = UnixListener::bind(folder.path().join("control")).unwrap();
        let command = Box::new(|_| Command::new("false"));
        let supervisor = Supervisor::start(Plan {
            build: BUILD.into(),
            deadlines: deadlines(),
            local: Local { count: 0, listener: control, token: Token::random().unwrap(), command },
            remote: Some(Remote { count: 2, listener, token }),
            order: Box::new(|hosts| {
                assert_eq!(hosts.iter().map(|host| host.memory_bytes).collect::<Vec<_>>(), [1 << 40; 2]);
                Ok(order())
            }),
            progress: Box::new(|rank, read, total| assert!(rank < 2 && read < 100 && total == 100)),
        });
        let supervisor = supervisor.unwrap();
        let address = supervisor.address().unwrap();
        Self { supervisor, address, token_file, offers: Arc::default(), _folder: folder }
    }

    fn join_at(&self) -> JoinAt {
        JoinAt {
            address: Address::Tcp(self.address.to_string()),
            token: Token::read(&self.token_file).unwrap(),
            build: BUILD.into(),
            host: HostFacts { name: "here".into(), memory_bytes: 1 << 40, ..HostFacts::default() },
            deadlines: deadlines(),
            redial: false,
        }
    }

    fn worker(&self, fault: Fault) -> JoinHandle<Result<(), AttendError>> {
        self.worker_at(self.join_at(), fault)
    }

    fn worker_at(&self, at: JoinAt, fault: Fault) -> JoinHandle<Result<(), AttendError>> {
        let offers = self.offers.clone();
        std::thread::spawn(move || {
            attend(&at, move || Box::new(Script { fault, rank: 0, offers: offers.clone() }) as Box<dyn Rank>)
        })
    }

    /// Two workers, rank 1 with a fault, and the group they are. Their threads end with it.
    fn group(&mut self, fault: Fault) -> Box<dyn Worker> {
        drop((self.worker(fault), self.worker(fault)));
        self.next()
    }

    fn next(&mut self) -> Box<dyn Worker> {
        self.supervisor.next(PATIENCE).unwrap().expect("a group")
    }
}

fn plan(step: u64) -> StepPlan {
    let row = |slot| Row { slot, input: Input::Sampled, position: 3, blocks: Vec::new(), sample: true, score: None };
    StepPlan { epoch: 41, step, rows: vec![row(0), row(5)], ..StepPlan::default() }
}

fn tokens(result: &StepResult) -> Vec<(u32, Option<u32>)> {
    result.rows.iter().map(|row| (row.slot, row.token)).collect()
}

#[test]
fn a_group_steps_together_and_rank_0_answers() {
    let mut meeting = Meeting::new();
    let mut group = meeting.group(Fault::None);
    for step in (0..20).step_by(2) {
        group.submit(plan(step)).unwrap();
        group.submit(plan(step + 1)).unwrap();
        for step in [step, step + 1] {
            let result = group.next(PATIENCE).unwrap();
            let token = Some(step as u32 * 7);
            assert_eq!((result.epoch, result.step, tokens(&result)), (41, step, vec![(0, token), (5, token)]));
            assert_eq!(result.rows[0].logprobs.as_ref().unwrap().logprob, -1.0);
        }
    }
    group.check().unwrap();
    assert!(matches!(group.next(Duration::from_millis(50)), Err(WorkerError::Timeout { .. })));
    let offers: Vec<Vec<Vec<u8>>> = meeting.offers.lock().unwrap().iter().cloned().collect();
    assert_eq!(offers, [[vec![0; 3], vec![1; 3]]], "both were told the same, in rank order");
}

#[test]
fn too_many_plans_at_a_time_are_refused() {
    let mut meeting = Meeting::new();
    let mut group = meeting.group(Fault::None);
    let refused = (0..10).find_map(|step| group.submit(plan(step)).err());
    assert!(matches!(refused, Some(WorkerError::Failed { step: 4, .. })), "{refused:?}");
}

#[test]
fn what_goes_wrong_on_one_rank_is_never_a_result() {
    for (fault, named) in [
        (Fault::LiesAt(3), "differ: tokens Some(21) and Some(22)"),
        (Fault::AnswersTwice, "differ: 2 and 4 rows"),
        (Fault::FailsAt(3), "the device caught fire"),
        (Fault::PanicsAt(3), "panicked"),
    ] {
        let mut meeting = Meeting::new();
        let mut group = meeting.group(fault);
        let mut outcome = Ok(());
        for step in 0..4 {
            outcome = group.submit(plan(step)).and_then(|()| group.next(PATIENCE)).map(|result| {
                assert_eq!(result.rows[0].token, Some(step as u32 * 7));
            });
            if outcome.is_err() {
                break;
            }
        }
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains(named) && error.contains("rank 1"), "{error}");
        drop(group);
        // The next group is whole again, and its plans begin anew.
        let mut group = meeting.group(Fault::None);
        group.submit(plan(0)).unwrap();
        assert_eq!(group.next(PATIENCE).unwrap().step, 0);
    }
}

#[test]
fn a_rank_that_cannot_load_ends_and_says_why() {
    let mut meeting = Meeting::new();
    let workers = [meeting.worker(Fault::FailsToLoad), meeting.worker(Fault::FailsToLoad)];
    let said = workers.map(|worker| worker.join().unwrap().err().map_or(String::new(), |error| error.to_string()));
    // The other is let go, as its group did not come to be.
    assert_eq!(said.iter().filter(|said| *said == "there is no such model here").count(), 1, "{said:?}");
    meeting.group(Fault::None);
}

#[test]
fn who_does_not_belong_is_told_so_and_disturbs_nobody() {
    let mut meeting = Meeting::new();
    let other_build = meeting.worker_at(JoinAt { build: "another".into(), ..meeting.join_at() }, Fault::None);
    let error = other_build.join().unwrap().unwrap_err();
    assert!(matches!(&error, AttendError::Refused { reason, .. } if reason.contains("another build")), "{error}");
    let other_token = JoinAt { token: Token::random().unwrap(), ..meeting.join_at() };
    let error = meeting.worker_at(other_token, Fault::None).join().unwrap().unwrap_err();
    assert!(matches!(error, AttendError::Impostor(_)), "{error}");
    let mut group = meeting.group(Fault::None);
    // A group has two; two more are kept for the next, and one is sent away.
    let (third, fourth, fifth) =
        (meeting.worker(Fault::None), meeting.worker(Fault::None), meeting.worker(Fault::None));
    group.submit(plan(0)).unwrap();
    assert_eq!(group.next(PATIENCE).unwrap().step, 0);
    drop(group);
    let mut group = meeting.next();
    group.submit(plan(0)).unwrap();
    assert_eq!(group.next(PATIENCE).unwrap().step, 0);
    drop((group, meeting));
    let sent_away = [third, fourth, fifth].map(|worker| worker.join().unwrap());
    let crowded = |end: &Result<(), AttendError>| matches!(end, Err(error) if error.to_string().contains("no further"));
    assert_eq!(sent_away.iter().filter(|end| crowded(end)).count(), 1, "{sent_away:?}");
}

#[test]
fn children_that_end_at_once_are_an_error_with_their_last_words() {
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("control")).unwrap();
    let command = Box::new(|index: usize| {
        let mut command = Command::new("sh");
        command.args(["-c", &format!("echo the device of {index} is gone >&2; exit 7")]);
        command
    });
    let mut supervisor = Supervisor::start(Plan {
        build: BUILD.into(),
        deadlines: deadlines(),
        local: Local { count: 1, listener, token: Token::random().unwrap(), command },
        remote: None,
        order: Box::new(|_| Ok(order())),
        progress: Box::new(|_, _, _| {}),
    })
    .unwrap();
    let error = supervisor.first().err().expect("no group");
    let SupervisorError::First(reason) = error else { panic!("{error}") };
    assert!(reason.contains("exit status: 7") && reason.contains("the device of 0 is gone"), "{reason}");
}
