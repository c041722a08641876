//! From what was typed to an engine with a loaded model.

mod numbers;
mod parts;
mod place;
mod progress;
mod source;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tandem_api::LinkReport;
use tandem_backend::cpu::{CpuBackend, Isa, read_bandwidth as cpu_read_bandwidth};
use tandem_backend::{Backend, Precision};
use tandem_backend_cuda::{self as cuda, CudaBackend, KernelProgress};
use tandem_engine::{Engine, EngineSettings};
use tandem_grammar::Masks;
use tandem_harmony::Tokenizer;
use tandem_model::inspect::Report;
use tandem_model::memory::{
    BytesPerToken, Computing, MemoryPlan, MemoryRequest, MemoryTable, bytes_per_token, human, plan_memory,
};
use tandem_model::selftest::{Reference, Verdict, self_test};
use tandem_model::{Config, ExpertTally, Formats, LocalWorker, Model, Runner, Shard, ShardPlan, WeightStore};
use tandem_step::Capacity;
use tokio::sync::watch;
use tracing::{info, warn};

pub use self::numbers::Numbers;
use self::parts::Parts;
pub use self::place::{Place, budget, cpu_options, cuda_options, device_id, gpu_options, threads};
use self::progress::with_progress;
pub use self::progress::{Progress, counted};
pub use self::source::Source;
use crate::roofline::Card;
use crate::settings::ModelArgs;

/// Positions of a KV block.
const BLOCK_TOKENS: u32 = 16;
/// How long a step may take: a prefill chunk of the largest model on a slow CPU takes minutes.
pub const STEP_TIMEOUT: Duration = Duration::from_secs(900);
/// Threads that compute grammar masks. A mask takes a fraction of a step, so few serve many streams.
const MASK_THREADS: usize = 2;

/// A loaded model behind its engine, and what there is to say about it.
pub struct Loaded {
    /// Runs requests.
    pub engine: Engine,
    /// What the model is called unless the settings name it.
    pub name: String,
    /// Who computes it.
    pub formation: Formation,
    /// Where that changes while it is served: who computes it from then on.
    pub changes: Option<watch::Receiver<Option<Formation>>>,
    /// Whether this process computes.
    pub computes_here: bool,
    /// Number formats.
    pub formats: String,
    /// Weight bytes that one decoded token reads.
    pub weight_bytes_per_token: u64,
    /// The model's shape.
    pub config: Config,
    /// Counts the experts that steps read, when it is told to.
    pub experts_read: Arc<ExpertTally>,
    /// Parameters, active or not.
    pub parameters: u64,
    /// Bytes of the tensors as shipped.
    pub checkpoint_bytes: u64,
    /// Something whoever talks to the model should know.
    pub notice: Option<&'static str>,
    /// Still reads the tokenizer's vocabulary, perhaps. Requests that need it wait for it by themselves.
    pub vocabulary: Option<JoinHandle<()>>,
}

impl Loaded {
    /// The same once nothing goes on any more that would disturb a measurement.
    pub fn settled(mut self) -> Result<Self> {
        match self.vocabulary.take().map(JoinHandle::join) {
            Some(Err(_)) => bail!("reading the tokenizer's vocabulary failed"),
            _ => Ok(self),
        }
    }
}

/// Those who compute a model together.
#[derive(Clone)]
pub struct Formation {
    /// In rank order.
    pub nodes: Vec<Node>,
    /// How they are connected, if there are several.
    pub link: Option<LinkReport>,
    /// What memory was planned for, on each.
    pub memory: MemoryTable,
    /// Why they are fewer than they should be, if so.
    pub degraded: Option<String>,
}

impl Formation {
    /// Where they compute, each.
    pub fn devices(&self) -> String {
        self.nodes.iter().map(|node| node.device.as_str()).collect::<Vec<_>>().join("; ")
    }
}

/// One of those who compute a model.
#[derive(Clone)]
pub struct Node {
    /// The machine's name.
    pub name: String,
    /// Device, code path and threads.
    pub device: String,
}

/// Loads the model and starts its engine.
pub fn load(args: &ModelArgs, progress: Progress) -> Result<Loaded> {
    let started = Instant::now();
    let source = Source::open(args)?;
    let config = source.store.config();
    let numbers = Numbers::of(args)?;
    let place = Place::choose(args)?;
    place.announce(args);
    info!("formats: {numbers}");
    let plan = plan_memory(config, &memory_request(args)?)?;
    announce_plan(&plan);
    let reads = bytes_per_token(config, numbers.dense, &Shard::undivided(config));
    announce_reads(&reads, &plan);
    let report = Report::new(config, &memory_request(args)?);
    let formats = numbers.formats();
    let vocabulary = Some(read_vocabulary(config));
    let experts_read = Arc::new(ExpertTally::default());
    let tally = Arc::clone(&experts_read);
    let reference = source.reference(formats);
    let mut parts = Parts::new();
    let (store, capacity) = (source.store.as_ref(), plan.capacity);
    let loading = Loading { store, progress, formats, capacity, tally, kernels: None, reference };
    let (worker, device) = match place {
        Place::Cpu => loading.start(CpuBackend::new(cpu_options(args, numbers.precision)?)?, &mut parts)?,
        Place::Cuda => {
            let backend = CudaBackend::new(cuda_options(args))?;
            parts.end("first kernels");
            let allocated = Arc::clone(backend.device().allocated());
            let kernels = Some(Arc::clone(backend.kernel_progress()));
            let started = Loading { kernels, ..loading }.start(backend, &mut parts)?;
            info!("device memory: {} allocated", human(allocated.load(Ordering::Relaxed)));
            started
        }
    };
    info!("loaded in {:.1} s: {parts}", started.elapsed().as_secs_f64());
    let engine = Engine::start(Box::new(worker), plan.capacity, engine_settings(args, place))?;
    Ok(Loaded {
        engine,
        parameters: report.parameters,
        checkpoint_bytes: report.kinds.iter().map(|line| line.bytes).sum(),
        name: source.name,
        formation: Formation {
            nodes: vec![Node { name: host_name(), device }],
            link: None,
            memory: plan.table,
            degraded: None,
        },
        changes: None,
        computes_here: true,
        formats: numbers.to_string(),
        weight_bytes_per_token: reads.total(),
        config: config.clone(),
        experts_read,
        notice: source.notice,
        vocabulary,
    })
}

/// How the engine is to schedule.
pub fn engine_settings(args: &ModelArgs, place: Place) -> EngineSettings {
    EngineSettings {
        max_queue: args.max_queue as usize,
        prefill_chunk: place.prefill_chunk(args),
        prefill_slice: Some(args.prefill_slice).filter(|time| !time.is_zero()),
        pipeline_depth: place.pipeline_depth(args),
        step_timeout: STEP_TIMEOUT,
        ..EngineSettings::default()
    }
}

/// This machine's name, where the kernel keeps it; without one none is shown.
pub fn host_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// The memory plan for what was typed, without loading anything.
pub fn memory_request(args: &ModelArgs) -> Result<MemoryRequest> {
    memory_request_of(args, ShardPlan::UNDIVIDED, budget(args)?)
}

/// The same for a node that holds one shard and may use `budget_bytes`.
pub fn memory_request_of(args: &ModelArgs, shard: ShardPlan, budget_bytes: u64) -> Result<MemoryRequest> {
    let numbers = Numbers::of(args)?;
    let place = Place::choose(args)?;
    Ok(MemoryRequest {
        dense: numbers.dense,
        kv: numbers.kv,
        computing: match (place, numbers.precision) {
            (Place::Cuda, _) => Computing::Cuda(cuda::working_bytes),
            (Place::Cpu, Precision::Exact) => Computing::CpuExact,
            (Place::Cpu, Precision::Fast) => Computing::CpuFast,
        },
        context: args.context,
        max_streams: args.max_streams,
        prefill_chunk: place.prefill_chunk(args),
        block_tokens: BLOCK_TOKENS,
        budget_bytes,
        shard,
    })
}

/// Bytes per second that the device reads, with the threads the model would use.
pub fn read_bandwidth(args: &ModelArgs, bytes: usize) -> Result<f64> {
    Ok(match Place::choose(args)? {
        Place::Cpu => cpu_read_bandwidth(threads(args), bytes)?,
        Place::Cuda => cuda::read_bandwidth(cuda_options(args), bytes)?,
    })
}

/// The formats of attention and lm_head, and of keys and values.
pub fn formats(args: &ModelArgs) -> Result<Formats> {
    Ok(Numbers::of(args)?.formats())
}

/// Most prompt tokens of a step on this device; on a GPU where `on_gpu` says so.
pub fn prefill_chunk(args: &ModelArgs, on_gpu: bool) -> u32 {
    if on_gpu { Place::Cuda } else { Place::Cpu }.prefill_chunk(args)
}

/// What there is to know of the machine that `device` names, which reads so many bytes per second.
pub fn card(args: &ModelArgs, device: &str, bytes_per_s: f64) -> Result<Card> {
    match Place::choose(args)? {
        Place::Cuda => Card::of_gpu(device).with_context(|| format!("--compare-model: there is no model of {device}")),
        Place::Cpu => {
            let isa = args.isa.as_deref().map(str::parse::<Isa>).transpose()?.unwrap_or_else(Isa::detect);
            Ok(Card::cpu(isa, threads(args), bytes_per_s))
        }
    }
}

/// Says what memory is planned for.
pub fn announce_plan(plan: &MemoryPlan) {
    info!("memory:\n{}", plan.table);
    info!(
        "context: {} tokens, each {} bytes of KV in full layers; sliding layers keep {} tokens a stream at {} bytes",
        plan.capacity.context, plan.full_kv_bytes_per_token, plan.capacity.window, plan.sliding_kv_bytes_per_token
    );
}

/// What the formats cost a decoded token, scales included.
fn announce_reads(reads: &BytesPerToken, plan: &MemoryPlan) {
    let gb = |bytes: u64| bytes as f64 / 1e9;
    info!(
        "a token alone reads {:.2} GB of weights (experts {:.2}, attention {:.2}, lm_head {:.2}, their scales {:.2}) and {} bytes of keys and \
         values for every token before it",
        gb(reads.total()),
        gb(reads.experts),
        gb(reads.attention),
        gb(reads.lm_head),
        gb(reads.dense_scales),
        plan.full_kv_bytes_per_token
    );
}

/// Everything that loading needs beside the device.
struct Loading<'a> {
    store: &'a dyn WeightStore,
    progress: Progress,
    formats: Formats,
    capacity: Capacity,
    tally: Arc<ExpertTally>,
    /// Kernels that are compiled meanwhile.
    kernels: Option<Arc<KernelProgress>>,
    /// What the model is known to compute.
    reference: Option<Reference>,
}

impl Loading<'_> {
    /// Loads onto `backend` and starts a worker; also says what the device is.
    fn start<B: Backend + 'static>(self, backend: B, parts: &mut Parts) -> Result<(LocalWorker, String)>
    where
        Runner<B>: Send,
    {
        info!("device: {}", backend.describe());
        let mut model = with_progress(self.store, self.progress, self.kernels.as_deref(), |store| {
            Ok(Model::load(backend, store, self.formats, self.capacity, ShardPlan::UNDIVIDED)?)
        })?;
        // Kernels are there now, and with them what prompts are computed with.
        let device = model.describe();
        let allocation = model.allocation_time();
        match &self.kernels {
            Some(kernels) => {
                let waited = kernels.waited();
                let rest = [("waiting for kernels", waited), ("working memory", allocation.saturating_sub(waited))];
                parts.end_with("weights", &rest);
                parts.beside("kernels", kernels.took());
            }
            None => parts.end_with("weights", &[("working memory", allocation)]),
        }
        model.prepare(|done, total| {
            // A log needs to know only that it is over.
            if total > 0 && (done == total || self.progress == Progress::Terminal) {
                self.progress.show(&format!("recording steps: {done} of {total}"), done == total);
            }
        })?;
        parts.end("recorded steps");
        let runner = Runner::new(model).with_masker(Box::new(masks()?)).with_tally(self.tally);
        let mut worker = LocalWorker::start(runner).context("starting the worker")?;
        let tested = self_test(&mut worker, &self.capacity, self.reference.as_ref(), STEP_TIMEOUT);
        announce_verdict(&tested?);
        parts.end("self-test");
        Ok((worker, device))
    }
}

/// Says what the self-test saw.
pub fn announce_verdict(verdict: &Verdict) {
    match verdict.beyond {
        0 => info!("self-test: {verdict}"),
        _ => warn!("self-test: {verdict}"),
    }
}

/// Begins to read the tokenizer's vocabulary, as if for constraints: two seconds that the first request should not have to
/// wait for. A model whose own is smaller has no text, and no constraint.
pub fn read_vocabulary(config: &Config) -> JoinHandle<()> {
    let has_text = config.vocab >= Tokenizer::VOCAB_SIZE;
    std::thread::spawn(move || {
        if has_text {
            tandem_grammar::warm_up();
        }
    })
}

/// What follows the constraints of requests.
pub fn masks() -> Result<Masks> {
    Masks::start(MASK_THREADS).context("starting the threads that compute grammar masks")
}
