//! What a worker process runs, and the thread that runs it.

use std::net::IpAddr;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use tandem_step::{Capacity, StepPlan, StepResult};
use tokio::sync::mpsc::Sender;

use crate::proto::report::Body;
use crate::proto::{self, Report};
use crate::wire;

/// Most jobs that wait for the rank: a load, a connection or the plans of a pipeline.
const JOBS_MAX: usize = 8;

/// One rank of a model. Everything is called on one thread: `load`, then `connect`, then `run` until the end.
pub trait Rank {
    /// Loads what is this rank's. Calls `progress(read, total)`, in bytes, as often as it likes.
    fn load(&mut self, order: &RankOrder, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<RankLoaded, String>;

    /// Reaches the other ranks, whose offers these are in rank order. Says by what; `None` where there are no others.
    fn connect(&mut self, offers: &[Vec<u8>]) -> Result<Option<LinkFacts>, String>;

    /// Carries out one plan. After an error nothing else is asked of this rank.
    fn run(&mut self, plan: &StepPlan) -> Result<StepResult, String>;
}

/// What a rank is to load.
#[derive(Clone, Debug, PartialEq)]
pub struct RankOrder {
    /// Which rank it is, in `0..world`.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
    /// Which group this is.
    pub epoch: u64,
    /// This machine's address as the other ranks reach it.
    pub address: IpAddr,
    /// What all ranks load alike.
    pub all: crate::LoadOrder,
}

/// What a rank says when it has loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RankLoaded {
    /// What the other ranks must know to reach it.
    pub offer: Vec<u8>,
    /// Where it computes, for the log.
    pub device: String,
    /// Whether it rounds activations of prompts to 8 bits, which the group's self-test must know.
    pub eight_bit_prompts: bool,
}

/// How the ranks of a group are connected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinkFacts {
    /// Transport and devices.
    pub description: String,
    /// Time of an exchange of a token's activations, in microseconds, as it was measured.
    pub exchange_us: f64,
    /// Bytes in a second that a rank sends to each other one while it receives as many, as it was measured.
    pub bytes_per_s: f64,
}

/// What the coordinator knows of a worker's machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostFacts {
    /// The machine's name.
    pub name: String,
    /// The worker's process id there.
    pub pid: u32,
    /// Where it computes.
    pub device: String,
    /// Bytes that it may use in all.
    pub memory_bytes: u64,
    /// Why activations cannot travel by RDMA from there; empty where they can.
    pub rdma_trouble: String,
    /// Which GPU of all machines it is; empty for a CPU.
    pub device_id: String,
}

/// What the thread is asked to do.
pub(crate) enum Job {
    Load(RankOrder),
    Connect(Vec<Vec<u8>>),
    Run(StepPlan),
    /// Say goodbye, after all that was asked before.
    Leave(String),
}

/// The thread of one membership. It ends when this is dropped and what it is doing is done.
pub(crate) struct RankThread {
    jobs: SyncSender<(u64, Job)>,
    thread: JoinHandle<Option<String>>,
}

impl RankThread {
    /// Starts it. `make` is called on it, as not every device lets go of the thread it was opened on.
    pub(crate) fn start(
        make: impl FnOnce() -> Box<dyn Rank> + Send + 'static,
        reports: Sender<Report>,
    ) -> std::io::Result<Self> {
        let (jobs, received) = sync_channel(JOBS_MAX);
        let thread =
            std::thread::Builder::new().name("rank".into()).spawn(move || work(make(), &received, &reports))?;
        Ok(Self { jobs, thread })
    }

    /// Hands over a job of an epoch; false if there are too many or the thread has ended.
    pub(crate) fn give(&self, epoch: u64, job: Job) -> bool {
        self.jobs.try_send((epoch, job)).is_ok()
    }

    /// Takes all further work away; the handle ends when the current job does, with the reason if it could not load.
    pub(crate) fn dismiss(self) -> JoinHandle<Option<String>> {
        self.thread
    }
}

/// Gives the reason if it could not load.
fn work(mut rank: Box<dyn Rank>, jobs: &Receiver<(u64, Job)>, reports: &Sender<Report>) -> Option<String> {
    let mut number = 0;
    while let Ok((epoch, job)) = jobs.recv() {
        let is_load = matches!(job, Job::Load(_));
        if let Job::Load(order) = &job {
            number = order.rank;
        }
        let done = catch_unwind(AssertUnwindSafe(|| one(rank.as_mut(), number, epoch, job, reports)));
        // The rank is not used again; where it panicked has been printed.
        let reason = "it panicked, and its log says where".to_owned();
        let body = done.unwrap_or(Body::Failed(proto::Failed { step: 0, reason }));
        let failure = if let Body::Failed(failed) = &body { Some(failed.reason.clone()) } else { None };
        let is_end = failure.is_some() || matches!(body, Body::Leave(_));
        if reports.blocking_send(Report { epoch, body: Some(body) }).is_err() || is_end {
            return failure.filter(|_| is_load);
        }
    }
    None
}

/// Does one job; what is to be said of it.
fn one(rank: &mut dyn Rank, number: usize, epoch: u64, job: Job, reports: &Sender<Report>) -> Body {
    let step = if let Job::Run(plan) = &job { plan.step } else { 0 };
    let done = match job {
        Job::Load(order) => load(rank, epoch, &order, reports),
        Job::Connect(offers) => rank.connect(&offers).map(|link| Body::Connected(LinkFacts::to_wire(link))),
        Job::Run(plan) => rank.run(&plan).map(|result| Body::Result(wire::result_to_wire(brief(number, result)))),
        Job::Leave(reason) => Ok(Body::Leave(proto::Leave { reason })),
    };
    done.unwrap_or_else(|reason| Body::Failed(proto::Failed { step, reason }))
}

fn load(rank: &mut dyn Rank, epoch: u64, order: &RankOrder, reports: &Sender<Report>) -> Result<Body, String> {
    let progress = |read_bytes, total_bytes| {
        let body = Some(Body::Progress(proto::Progress { read_bytes, total_bytes }));
        // Where there is no room, another will follow.
        let _ = reports.try_send(Report { epoch, body });
    };
    let RankLoaded { offer, device, eight_bit_prompts } = rank.load(order, &progress)?;
    Ok(Body::Loaded(proto::Loaded { offer, device, eight_bit_prompts }))
}

/// Only rank 0's log-probabilities are used; of the others the tokens are compared.
fn brief(number: usize, mut result: StepResult) -> StepResult {
    if number > 0 {
        for row in &mut result.rows {
            row.logprobs = None;
            row.scores.clear();
        }
    }
    result
}

impl RankOrder {
    pub(crate) fn to_wire(&self) -> proto::Load {
        let all = &self.all;
        proto::Load {
            rank: self.rank as u32,
            world: self.world as u32,
            experts: all.experts.to_wire(),
            model: Some(all.model.to_wire()),
            fingerprint: all.fingerprint.clone(),
            exact: all.exact,
            dense: all.dense.clone(),
            kv: all.kv.clone(),
            capacity: Some(wire::capacity_to_wire(&all.capacity)),
            link: all.link.clone(),
            address: self.address.to_string(),
            eager: all.eager,
            prefill_activations: all.prefill_activations.clone(),
        }
    }

    pub(crate) fn from_wire(epoch: u64, load: proto::Load) -> Result<Self, crate::WireError> {
        use crate::WireError::Missing;
        let address = load.address.parse().map_err(|_| Missing("this rank's address"))?;
        let capacity: Capacity = wire::capacity_from_wire(&load.capacity.ok_or(Missing("the capacity"))?);
        let all = crate::LoadOrder {
            experts: crate::Experts::from_wire(load.experts)?,
            model: crate::ModelSource::from_wire(load.model)?,
            fingerprint: load.fingerprint,
            exact: load.exact,
            dense: load.dense,
            kv: load.kv,
            capacity,
            link: load.link,
            eager: load.eager,
            prefill_activations: load.prefill_activations,
        };
        Ok(Self { rank: load.rank as usize, world: load.world as usize, epoch, address, all })
    }
}

impl LinkFacts {
    fn to_wire(facts: Option<Self>) -> proto::Connected {
        let Self { description, exchange_us, bytes_per_s } = facts.unwrap_or_default();
        proto::Connected { link: description, exchange_us, bytes_per_s }
    }

    pub(crate) fn from_wire(connected: proto::Connected) -> Option<Self> {
        let proto::Connected { link: description, exchange_us, bytes_per_s } = connected;
        (!description.is_empty()).then_some(Self { description, exchange_us, bytes_per_s })
    }
}

impl HostFacts {
    pub(crate) fn to_wire(&self) -> proto::HostFacts {
        let Self { name, pid, device, memory_bytes, rdma_trouble, device_id } = self.clone();
        proto::HostFacts { name, pid, device, memory_bytes, rdma_trouble, device_id }
    }

    pub(crate) fn from_wire(facts: proto::HostFacts) -> Self {
        let proto::HostFacts { name, pid, device, memory_bytes, rdma_trouble, device_id } = facts;
        Self { name, pid, device, memory_bytes, rdma_trouble, device_id }
    }
}
