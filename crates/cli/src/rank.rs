//! One rank of a model, in a worker process.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tandem_backend::Backend;
use tandem_backend::cpu::CpuBackend;
use tandem_backend_cuda::CudaBackend;
use tandem_cluster::{Experts, LinkFacts, ModelSource, Rank, RankLoaded, RankOrder};
use tandem_link::{Endpoint, RdmaChoice, Settings as LinkSettings, TransportKind};
use tandem_model::{Exchange, ExpertSplit, Formats, Model, Runner, ShardPlan};
use tandem_step::{StepPlan, StepResult};
use tracing::info;

use crate::fingerprint::fingerprint;
use crate::load::{self, Numbers, Place, Source};
use crate::settings::{Dense, Kv, ModelArgs, SyntheticShape, WorkerArgs};
use crate::worker::machine_args;

/// How often the coordinator is told how far loading is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);
/// How long a rank waits for the others to connect, and for their part of an exchange. Requests must fail within 5 s of a
/// failure; a busy machine must not look like one.
const CONNECT_PATIENCE: Duration = Duration::from_secs(20);
const EXCHANGE_PATIENCE: Duration = Duration::from_millis(3500);

type Run = Box<dyn FnMut(&StepPlan) -> Result<StepResult, String>>;
type Connect = Box<dyn FnOnce(Option<Box<dyn Exchange>>) -> Result<Run>>;

/// A model's shard on this machine's device.
pub struct ModelRank {
    args: WorkerArgs,
    place: Option<(usize, usize)>,
    endpoint: Option<Endpoint>,
    connect: Option<Connect>,
    run: Option<Run>,
}

impl ModelRank {
    /// Nothing loaded yet.
    pub fn new(args: WorkerArgs) -> Self {
        Self { args, place: None, endpoint: None, connect: None, run: None }
    }

    fn load(&mut self, order: &RankOrder, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<RankLoaded> {
        let args = model_args(&self.args, order)?;
        let source = Source::open(&args)?;
        let found = fingerprint(source.store.as_ref())?;
        ensure!(
            found == order.all.fingerprint,
            "the model {}differs from the coordinator's: its fingerprint is {found}, not {}",
            args.model.as_ref().map_or(String::new(), |folder| format!("in {} ", folder.display())),
            order.all.fingerprint
        );
        let (world, vocabulary) = (order.world, load::read_vocabulary(source.store.config()));
        let (connect, loaded) = load_shard(&args, &source, order, progress)?;
        // Ranks wait for each other's masks no longer than for an exchange.
        if world > 1 && vocabulary.join().is_err() {
            bail!("reading the tokenizer's vocabulary failed");
        }
        self.place = Some((order.rank, world));
        self.connect = Some(connect);
        let offer = if world > 1 { self.open_endpoint(order)? } else { Vec::new() };
        Ok(RankLoaded { offer, ..loaded })
    }

    fn open_endpoint(&mut self, order: &RankOrder) -> Result<Vec<u8>> {
        let settings = link_settings(order.epoch);
        let endpoint = match order.all.link.parse::<TransportKind>()? {
            TransportKind::Shm => Endpoint::shm(&settings)?,
            TransportKind::Tcp => Endpoint::tcp(&settings, order.address)?,
            TransportKind::Rdma => Endpoint::rdma(&settings, &RdmaChoice::default())?,
        };
        let offer = endpoint.offer();
        self.endpoint = Some(endpoint);
        Ok(offer)
    }

    fn connect(&mut self, offers: &[Vec<u8>]) -> Result<Option<LinkFacts>> {
        let Some((connect, (rank, world))) = self.connect.take().zip(self.place) else {
            bail!("nothing is loaded that could be connected");
        };
        let Some(endpoint) = self.endpoint.take() else {
            self.run = Some(connect(None)?);
            return Ok(None);
        };
        let mut link = endpoint.connect(rank, world, offers, CONNECT_PATIENCE).context("reaching the other ranks")?;
        let speed = link.measure().context("measuring the link to the other ranks")?;
        let description = link.describe();
        self.run = Some(connect(Some(Box::new(link)))?);
        info!("exchange: {description}");
        let exchange_us = speed.exchange.as_secs_f64() * 1e6;
        Ok(Some(LinkFacts { description, exchange_us, bytes_per_s: speed.bytes_per_s }))
    }
}

impl Rank for ModelRank {
    fn load(&mut self, order: &RankOrder, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<RankLoaded, String> {
        ModelRank::load(self, order, progress).map_err(|error| format!("{error:#}"))
    }

    fn connect(&mut self, offers: &[Vec<u8>]) -> Result<Option<LinkFacts>, String> {
        ModelRank::connect(self, offers).map_err(|error| format!("{error:#}"))
    }

    fn run(&mut self, plan: &StepPlan) -> Result<StepResult, String> {
        match &mut self.run {
            Some(run) => run(plan),
            None => Err("a plan came before the ranks were connected".into()),
        }
    }
}

/// Why activations cannot travel by RDMA from this machine, if they cannot.
pub fn rdma_trouble() -> Option<String> {
    Endpoint::rdma(&link_settings(0), &RdmaChoice::default()).err().map(|error| error.to_string())
}

fn link_settings(epoch: u64) -> LinkSettings {
    LinkSettings { epoch, deadline: EXCHANGE_PATIENCE, ..LinkSettings::default() }
}

/// The settings of one that loads this model alone: the coordinator's where all must agree, this machine's elsewhere.
pub fn model_args(worker: &WorkerArgs, order: &RankOrder) -> Result<ModelArgs> {
    let all = &order.all;
    let (mut model, mut synthetic) = (worker.model.clone(), None);
    match &all.model {
        ModelSource::Path(path) => model = Some(model.unwrap_or_else(|| path.clone())),
        ModelSource::Synthetic(shape) => synthetic = Some(named::<SyntheticShape>(shape)?),
        ModelSource::Demo => {}
    }
    if !matches!(all.model, ModelSource::Path(_)) && model.is_some() {
        bail!("--model: the coordinator does not serve a checkpoint folder");
    }
    Ok(ModelArgs {
        model,
        synthetic,
        dense: Some(named::<Dense>(&all.dense)?),
        kv: if all.exact { None } else { Some(named::<Kv>(&all.kv)?) },
        exact: all.exact,
        context: Some(all.capacity.context),
        max_streams: all.capacity.max_streams,
        eager: all.eager,
        prefill_activations: named(&all.prefill_activations)?,
        ..machine_args(worker)
    })
}

fn named<T: clap::ValueEnum>(name: &str) -> Result<T> {
    T::from_str(name, false).map_err(anyhow::Error::msg)
}

fn load_shard(
    args: &ModelArgs,
    source: &Source,
    order: &RankOrder,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<(Connect, RankLoaded)> {
    let numbers = Numbers::of(args)?;
    let shard = Shard { source, order, progress, formats: numbers.formats() };
    match Place::choose(args)? {
        Place::Cpu => shard.load(CpuBackend::new(load::cpu_options(args, numbers.precision)?)?),
        Place::Cuda => shard.load(CudaBackend::new(load::cuda_options(args))?),
    }
}

struct Shard<'a> {
    source: &'a Source,
    order: &'a RankOrder,
    progress: &'a (dyn Fn(u64, u64) + Sync),
    formats: Formats,
}

impl Shard<'_> {
    fn load<B: Backend + 'static>(&self, backend: B) -> Result<(Connect, RankLoaded)> {
        info!("device: {}", backend.describe());
        let experts = match self.order.all.experts {
            Experts::Slice => ExpertSplit::Slice,
            Experts::Whole => ExpertSplit::Whole,
        };
        let plan = ShardPlan { rank: self.order.rank, world: self.order.world, experts };
        let store = self.source.store.as_ref();
        // A rank reads its part of the store.
        let total = plan.shard(store.config())?.bytes_read(store.config());
        let progress = |read, _| (self.progress)(read, total);
        let model = load::counted(store, PROGRESS_INTERVAL, &progress, |store| {
            Model::load(backend, store, self.formats, self.order.all.capacity, plan)
        })?;
        let loaded = RankLoaded {
            device: model.describe(),
            eight_bit_prompts: model.eight_bit_prompts(),
            ..RankLoaded::default()
        };
        Ok((Box::new(move |exchange| start(model, exchange)), loaded))
    }
}

fn start<B: Backend + 'static>(model: Model<B>, exchange: Option<Box<dyn Exchange>>) -> Result<Run> {
    let mut model = match exchange {
        Some(exchange) => model.with_exchange(exchange)?,
        None => model,
    };
    // All ranks at the same time, as each waits for the others in every step; what they set up follows from the order alone.
    model.prepare(|_, _| ())?;
    let mut runner = Runner::new(model).with_masker(Box::new(load::masks()?));
    Ok(Box::new(move |plan| runner.run(plan).map_err(|error| error.to_string())))
}
