//! Supervisor and workers in one process, over real sockets, with ranks that compute nothing.

use std::collections::HashSet;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tandem_cluster::{
    Acceptors, Address, AttendError, Deadlines, Experts, HostFacts, JoinAt, LinkFacts, LoadOrder, Local, ModelSource,
    Plan, Prove, Rank, RankLoaded, RankOrder, Remote, Supervisor, SupervisorError, Token, Trust, Unproven, attend,
};
use tandem_step::{
    Capacity, Input, Row, RowResult, StepPlan, StepResult, StepTimings, Worker, WorkerError, WorkerSource,
};
use tempfile::TempDir;
use tokio_rustls::TlsAcceptor;

/// Ample for everything here, also on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);
const BUILD: &str = "this build";

/// Deadlines that a busy machine keeps.
fn deadlines() -> Deadlines {
    Deadlines { silence: Duration::from_secs(10), handshake: Duration::from_secs(2), ..Deadlines::default() }
}

fn a_wire() -> LinkFacts {
    LinkFacts { description: "a wire".into(), exchange_us: 12.5, bytes_per_s: 2e9 }
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
        eager: true,
        prefill_activations: "mxfp8".into(),
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
            _ => {
                let (offer, device) = (vec![got.rank as u8; 3], format!("device {}", got.rank));
                Ok(RankLoaded { offer, device, eight_bit_prompts: got.rank == 1 })
            }
        }
    }

    fn connect(&mut self, offers: &[Vec<u8>]) -> Result<Option<LinkFacts>, String> {
        self.offers.lock().unwrap().insert(offers.to_vec());
        Ok(Some(a_wire()))
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
        Self::with(None, Box::new(|_, _| Ok(())))
    }

    fn with(tls: Option<Acceptors>, prove: Prove) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        let token = Token::open_or_create(&token_file).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let control = UnixListener::bind(folder.path().join("control")).unwrap();
        let command = Box::new(|_| Command::new("false"));
        let supervisor = Supervisor::start(Plan {
            build: BUILD.into(),
            deadlines: deadlines(),
            degrade_after: None,
            local: Local { count: 0, listener: control, token: Token::random().unwrap(), command },
            remote: Some(Remote { count: 2, listener, token, tls }),
            order: Box::new(|hosts| {
                assert_eq!(hosts.iter().map(|host| host.memory_bytes).collect::<Vec<_>>(), [1 << 40; 2]);
                Ok(order())
            }),
            progress: Box::new(|rank, read, total| assert!(rank < 2 && read < 100 && total == 100)),
            prove,
            formed: Box::new(|ready| assert_eq!((ready.ranks.len(), ready.missing), (2, 0))),
        });
        let supervisor = supervisor.unwrap();
        let address = supervisor.address().unwrap();
        Self { supervisor, address, token_file, offers: Arc::default(), _folder: folder }
    }

    fn join_at(&self) -> JoinAt {
        JoinAt {
            address: Address::Tcp(self.address.to_string()),
            token: Token::read(&self.token_file).unwrap(),
            trust: None,
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
fn what_the_ranks_measured_on_their_link_is_told() {
    let mut meeting = Meeting::new();
    let _workers = [meeting.worker(Fault::None), meeting.worker(Fault::None)];
    let (_group, ready) = meeting.supervisor.first().expect("a group");
    assert_eq!(ready.link, Some(a_wire()));
    assert_eq!(ready.ranks.len(), 2);
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

fn host(device_id: &str) -> HostFacts {
    let device = if device_id.is_empty() { "CPU, 2 threads" } else { "GPU 0" };
    HostFacts {
        name: "here".into(),
        memory_bytes: 1 << 40,
        device: device.into(),
        device_id: device_id.into(),
        ..HostFacts::default()
    }
}

#[test]
fn two_ranks_on_one_gpu_are_refused() {
    for (second, named) in [("a", "two ranks cannot share one"), ("", "would not give the same")] {
        let mut meeting = Meeting::new();
        let join = |device_id| JoinAt { host: host(device_id), ..meeting.join_at() };
        let workers = [meeting.worker_at(join("a"), Fault::None), meeting.worker_at(join(second), Fault::None)];
        // Whoever came first stays.
        let deadline = Instant::now() + PATIENCE;
        while workers.iter().all(|worker| !worker.is_finished()) {
            assert!(Instant::now() < deadline, "nobody is refused");
            std::thread::sleep(Duration::from_millis(10));
        }
        let (mut gone, stays): (Vec<_>, Vec<_>) = workers.into_iter().partition(JoinHandle::is_finished);
        assert_eq!((gone.len(), stays.len()), (1, 1));
        let error = gone.remove(0).join().unwrap().unwrap_err();
        assert!(matches!(&error, AttendError::Refused { reason, .. } if reason.contains(named)), "{error}");
        if !second.is_empty() {
            drop(meeting.worker_at(join("b"), Fault::None));
            meeting.next();
        }
    }
}

#[test]
fn a_group_proves_itself_before_it_is_handed_out() {
    let proves: Prove = Box::new(|group, got| {
        assert_eq!(got, &order());
        assert!(group.eight_bit_prompts(), "rank 1 has them");
        group.submit(plan(0)).unwrap();
        assert_eq!(group.next(PATIENCE).unwrap().rows[0].token, Some(0));
        Ok(())
    });
    let mut group = Meeting::with(None, proves);
    let mut proved = group.group(Fault::None);
    proved.submit(plan(0)).unwrap();
    assert_eq!(proved.next(PATIENCE).unwrap().step, 0);

    let wrong: Prove = Box::new(|_, _| Err(Unproven::Wrong("it talks nonsense".into())));
    let mut meeting = Meeting::with(None, wrong);
    drop((meeting.worker(Fault::None), meeting.worker(Fault::None)));
    let error = meeting.supervisor.first().err().expect("nobody is served by it");
    assert!(matches!(&error, SupervisorError::First(reason) if reason == "it talks nonsense"), "{error}");

    // A rank that is lost meanwhile proves nothing either way: the next group may.
    let mut tries = 0;
    let lost: Prove = Box::new(move |_, _| {
        tries += 1;
        if tries == 1 { Err(Unproven::Lost("rank 1 was lost".into())) } else { Ok(()) }
    });
    let mut meeting = Meeting::with(None, lost);
    let first = [meeting.worker(Fault::None), meeting.worker(Fault::None)];
    // They are let go, and would dial again.
    for worker in first {
        drop(worker.join().unwrap());
    }
    meeting.group(Fault::None);
}

/// A certificate for a name, in a file, and what serves with it.
fn certificate(folder: &TempDir, name: &str) -> (PathBuf, Acceptors) {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed([name.to_owned()]).unwrap();
    let file = folder.path().join(format!("{name}.pem"));
    std::fs::write(&file, cert.pem()).unwrap();
    let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let mut config = config.with_no_client_auth().with_single_cert(vec![cert.der().clone()], key).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    (file, Arc::new(move || acceptor.clone()))
}

#[test]
fn over_tls_only_those_meet_who_trust_the_coordinator() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, acceptors) = certificate(&folder, "127.0.0.1");
    let (others, _) = certificate(&folder, "127.0.0.2");
    let mut meeting = Meeting::with(Some(acceptors), Box::new(|_, _| Ok(())));
    let trusting = |file: &PathBuf| JoinAt { trust: Some(Trust::open(file).unwrap()), ..meeting.join_at() };
    let end = |at| meeting.worker_at(at, Fault::None).join().unwrap().unwrap_err();
    let stranger = end(trusting(&others));
    assert!(matches!(&stranger, AttendError::Lost { reason, .. } if reason.contains("certificate")), "{stranger}");
    let plain = end(meeting.join_at());
    assert!(matches!(&plain, AttendError::Lost { reason, .. } if reason.contains("does it speak TLS?")), "{plain}");
    let at = trusting(&ours);
    drop((meeting.worker_at(at.clone(), Fault::None), meeting.worker_at(at.clone(), Fault::None)));
    let mut group = meeting.next();
    group.submit(plan(0)).unwrap();
    assert_eq!(group.next(PATIENCE).unwrap().step, 0);
    // Who wants TLS does not talk to somebody without it.
    let plain = Meeting::new();
    let at = JoinAt { trust: at.trust, ..plain.join_at() };
    let error = plain.worker_at(at, Fault::None).join().unwrap().unwrap_err();
    assert!(matches!(error, AttendError::Lost { .. }), "{error}");
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
        degrade_after: None,
        order: Box::new(|_| Ok(order())),
        progress: Box::new(|_, _, _| {}),
        prove: Box::new(|_, _| Ok(())),
        formed: Box::new(|_| ()),
    })
    .unwrap();
    let error = supervisor.first().err().expect("no group");
    let SupervisorError::First(reason) = error else { panic!("{error}") };
    assert!(reason.contains("exit status: 7") && reason.contains("the device of 0 is gone"), "{reason}");
}
