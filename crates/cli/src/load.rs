//! From what was typed to an engine with a loaded model.

use std::io::{IsTerminal, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tandem_backend::cpu::{CpuBackend, CpuOptions, Isa, read_bandwidth as cpu_read_bandwidth};
use tandem_backend::{Backend, DenseFormat, KvFormat, Precision};
use tandem_backend_cuda::{self as cuda, CudaBackend, CudaOptions, Device as Gpu};
use tandem_engine::{Engine, EngineSettings};
use tandem_grammar::Masks;
use tandem_harmony::Tokenizer;
use tandem_model::inspect::Report;
use tandem_model::memory::{
    BytesPerToken, Computing, MemoryPlan, MemoryRequest, MemoryTable, available_memory, bytes_per_token, human,
    plan_memory,
};
use tandem_model::selftest::Reference;
use tandem_model::{
    Checkpoint, Config, Counted, ExpertTally, Formats, LocalWorker, Model, Runner, Shard, ShardPlan, Synthetic,
    SyntheticKind, WeightStore,
};
use tandem_step::Capacity;
use tracing::{info, warn};

use crate::demo;
use crate::roofline::Card;
use crate::settings::{Dense, Device, Kv, ModelArgs, SyntheticShape};

/// Positions of a KV block.
const BLOCK_TOKENS: u32 = 16;
/// Unless told otherwise, this share of the available memory is left to everything else, but not more than the bound.
const SPARE_SHARE: u64 = 10;
const SPARE_BYTES_MAX: u64 = 8 << 30;
/// How long a step may take: a prefill chunk of the largest model on a slow CPU takes minutes.
const STEP_TIMEOUT: Duration = Duration::from_secs(900);
/// Threads that compute grammar masks. A mask takes a fraction of a step, so few serve many streams.
const MASK_THREADS: usize = 2;
/// How often loading tells how far it is, on a terminal and in a log.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// A loaded model behind its engine, and what there is to say about it.
pub struct Loaded {
    /// Runs requests.
    pub engine: Engine,
    /// What the model is called unless the settings name it.
    pub name: String,
    /// Who computes it, in rank order.
    pub nodes: Vec<Node>,
    /// What carries activations between them, if there are several.
    pub link: Option<String>,
    /// Whether this process computes.
    pub computes_here: bool,
    /// Number formats.
    pub formats: String,
    /// What memory was planned for.
    pub memory: MemoryTable,
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
}

/// One of those who compute a model.
pub struct Node {
    /// The machine's name.
    pub name: String,
    /// Device, code path and threads.
    pub device: String,
}

/// How long the parts of loading took.
struct Parts {
    since: Instant,
    parts: Vec<(&'static str, Duration)>,
}

impl Parts {
    fn new() -> Self {
        Self { since: Instant::now(), parts: Vec::new() }
    }

    /// A part is through; the next one begins.
    fn end(&mut self, part: &'static str) {
        self.parts.push((part, self.since.elapsed()));
        self.since = Instant::now();
    }

    /// Two parts are through, of which the second took so long.
    fn end_with(&mut self, first: &'static str, second: &'static str, took: Duration) {
        self.end(first);
        if let Some((_, both)) = self.parts.last_mut() {
            *both = both.saturating_sub(took);
        }
        self.parts.push((second, took));
    }
}

impl std::fmt::Display for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let parts: Vec<String> =
            self.parts.iter().map(|(part, took)| format!("{part} {:.2}", took.as_secs_f64())).collect();
        f.write_str(&parts.join(", "))
    }
}

/// Where loading shows how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// In the log, every few seconds.
    Log,
    /// As one line of the terminal that is written over.
    Terminal,
}

impl Progress {
    /// The terminal where there is one.
    pub fn from_terminal() -> Self {
        if std::io::stderr().is_terminal() { Self::Terminal } else { Self::Log }
    }

    /// Says how far something is; the last time, on a terminal, its line is cleared.
    fn show(self, line: &str, last: bool) {
        match self {
            Self::Log => info!("{line}"),
            Self::Terminal if last => eprint!("\r\x1b[K"),
            Self::Terminal => {
                eprint!("\r{line}\x1b[K");
                // A terminal that cannot be written to is no reason to stop loading.
                let _ = std::io::stderr().flush();
            }
        }
    }
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
    let formats = Formats { dense: numbers.dense, kv: numbers.kv };
    // The first request should not pay for reading the vocabulary.
    let tokenizer = std::thread::spawn(tandem_grammar::warm_up);
    let experts_read = Arc::new(ExpertTally::default());
    let tally = Arc::clone(&experts_read);
    let reference = source.reference(formats);
    let mut parts = Parts::new();
    let loading =
        Loading { store: source.store.as_ref(), progress, formats, capacity: plan.capacity, tally, reference };
    let (worker, device) = match place {
        Place::Cpu => loading.start(CpuBackend::new(cpu_options(args, numbers.precision)?)?, &mut parts)?,
        Place::Cuda => {
            let backend = CudaBackend::new(cuda_options(args))?;
            parts.end("kernels");
            let allocated = Arc::clone(backend.device().allocated());
            let started = loading.start(backend, &mut parts)?;
            info!("device memory: {} allocated", human(allocated.load(Ordering::Relaxed)));
            started
        }
    };
    if tokenizer.join().is_err() {
        bail!("reading the tokenizer's vocabulary failed");
    }
    info!("loaded in {:.1} s: {parts}", started.elapsed().as_secs_f64());
    let engine = Engine::start(Box::new(worker), plan.capacity, engine_settings(args, place))?;
    Ok(Loaded {
        engine,
        parameters: report.parameters,
        checkpoint_bytes: report.kinds.iter().map(|line| line.bytes).sum(),
        name: source.name,
        nodes: vec![Node { name: host_name(), device }],
        link: None,
        computes_here: true,
        formats: numbers.to_string(),
        memory: plan.table,
        weight_bytes_per_token: reads.total(),
        config: config.clone(),
        experts_read,
        notice: source.notice,
    })
}

/// How the engine is to schedule.
pub fn engine_settings(args: &ModelArgs, place: Place) -> EngineSettings {
    EngineSettings {
        max_queue: args.max_queue as usize,
        prefill_chunk: place.prefill_chunk(args),
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
    let numbers = Numbers::of(args)?;
    Ok(Formats { dense: numbers.dense, kv: numbers.kv })
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

/// Where weights come from, and what the model is called.
pub struct Source {
    /// The weights.
    pub store: Box<dyn WeightStore + Send>,
    /// The model's name unless the settings give one.
    pub name: String,
    /// Something whoever talks to the model should know.
    pub notice: Option<&'static str>,
    origin: Origin,
}

/// Whose weights they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Demo,
    Synthetic(SyntheticKind),
    Checkpoint,
}

impl Source {
    /// Opens and checks what was named: a checkpoint folder, a synthetic shape, or neither for the demonstration model.
    pub fn open(args: &ModelArgs) -> Result<Self> {
        if let Some(shape) = args.synthetic {
            let kind = match shape {
                SyntheticShape::Tiny => SyntheticKind::Tiny,
                SyntheticShape::Gpt20b => SyntheticKind::Gpt20b,
                SyntheticShape::Gpt120b => SyntheticKind::Gpt120b,
            };
            let notice = Some("The weights are random: expect random words.");
            return Ok(Self {
                store: Box::new(Synthetic::new(kind)),
                name: format!("synthetic-{kind}"),
                notice,
                origin: Origin::Synthetic(kind),
            });
        }
        if let Some(folder) = &args.model {
            return Ok(Self {
                store: Box::new(Checkpoint::open(folder)?),
                name: folder_name(folder),
                notice: None,
                origin: Origin::Checkpoint,
            });
        }
        let store = Box::new(Checkpoint::open(&demo::checkpoint()?)?);
        Ok(Self { store, name: demo::NAME.into(), notice: Some(demo::NOTICE), origin: Origin::Demo })
    }

    /// What these weights are known to compute, if anything.
    fn reference(&self, formats: Formats) -> Option<Reference> {
        let config = self.store.config();
        match self.origin {
            Origin::Demo => Some(Reference::demo(formats)),
            Origin::Synthetic(kind) => Some(Reference::synthetic(kind, formats)),
            Origin::Checkpoint => Reference::published(config, |text| Tokenizer::shared().encode(text)),
        }
    }
}

/// The last part of the path that says something: `original` does not.
fn folder_name(folder: &Path) -> String {
    let absolute = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let mut names = absolute.iter().rev().filter_map(|part| part.to_str()).filter(|part| *part != "original");
    names.next().filter(|name| *name != "/").unwrap_or("gpt-oss").to_owned()
}

/// Number formats: what was typed, resolved.
pub struct Numbers {
    /// Exact or fast.
    pub precision: Precision,
    /// Of attention and lm_head weights.
    pub dense: DenseFormat,
    /// Of cached keys and values.
    pub kv: KvFormat,
}

impl Numbers {
    /// Resolves them.
    pub fn of(args: &ModelArgs) -> Result<Self> {
        let precision = if args.exact { Precision::Exact } else { Precision::Fast };
        let dense = match args.dense {
            Some(Dense::Q8) => DenseFormat::Q8,
            Some(Dense::Bf16) => DenseFormat::Bf16,
            Some(Dense::Mxfp4) => DenseFormat::Mxfp4,
            None if args.exact => DenseFormat::Bf16,
            None => DenseFormat::Q8,
        };
        let kv = match args.kv {
            Some(Kv::Bf16 | Kv::Fp8) if args.exact => bail!("--exact keeps keys and values in f32; leave --kv out"),
            Some(Kv::Fp8) => KvFormat::Fp8,
            Some(Kv::Bf16) => KvFormat::Bf16,
            Some(Kv::F32) => KvFormat::F32,
            None if args.exact => KvFormat::F32,
            None => KvFormat::Bf16,
        };
        Ok(Self { precision, dense, kv })
    }
}

impl std::fmt::Display for Numbers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let dense = match self.dense {
            DenseFormat::Q8 => "8-bit",
            DenseFormat::Bf16 => "BF16",
            DenseFormat::Mxfp4 => "MXFP4",
        };
        let kv = match self.kv {
            KvFormat::F32 => "F32",
            KvFormat::Bf16 => "BF16",
            KvFormat::Fp8 => "FP8",
        };
        let exact = if self.precision == Precision::Exact { ", exact" } else { "" };
        write!(f, "experts MXFP4, attention and lm_head {dense}, KV {kv}{exact}")
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

/// Memory that may be used in all.
pub fn budget(args: &ModelArgs) -> Result<u64> {
    if let Some(bytes) = args.memory {
        return Ok(bytes);
    }
    let available = match Place::choose(args)? {
        Place::Cpu => host_memory()?,
        Place::Cuda => {
            let gpu = Gpu::open(args.gpu)?;
            let (free, _) = gpu.memory()?;
            // A GB10 shares the machine's memory: what the page cache holds counts as available, what is in use does not.
            if gpu.integrated() { free.max(host_memory()?) } else { free }
        }
    };
    Ok(available - (available / SPARE_SHARE).min(SPARE_BYTES_MAX))
}

fn host_memory() -> Result<u64> {
    available_memory().context("reading how much memory is available")
}

/// CPU threads of the model.
pub fn threads(args: &ModelArgs) -> usize {
    let all = || std::thread::available_parallelism().map_or(1, usize::from);
    args.threads.map_or_else(all, usize::from)
}

/// Options of the CPU backend.
pub fn cpu_options(args: &ModelArgs, precision: Precision) -> Result<CpuOptions> {
    let isa = args.isa.as_deref().map(str::parse::<Isa>).transpose()?;
    Ok(CpuOptions { precision, threads: Some(threads(args)), isa })
}

/// Options of the GPU backend.
pub fn cuda_options(args: &ModelArgs) -> CudaOptions {
    let cache = Some(demo::cache_folder().join("kernels"));
    CudaOptions { ordinal: args.gpu, cache, eager: args.eager }
}

/// Where the model is computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// On the CPU.
    Cpu,
    /// On an NVIDIA GPU.
    Cuda,
}

impl Place {
    /// What was asked for, or, with `--device auto`, a GPU where there is one that will do.
    pub fn choose(args: &ModelArgs) -> Result<Self> {
        let unfit = unfit_for_cuda(args);
        match args.device {
            Device::Cpu => Ok(Self::Cpu),
            Device::Cuda => match unfit {
                Some(why) => bail!("--device cuda: {why}"),
                None => Ok(Self::Cuda),
            },
            Device::Auto => Ok(if unfit.is_some() { Self::Cpu } else { Self::Cuda }),
        }
    }

    /// Prompt tokens of a step: what was asked for, or what the device needs to be at its best without making others wait
    /// for long. A step reads nearly all experts whatever its size, which a GPU wants to share among many tokens.
    pub fn prefill_chunk(self, args: &ModelArgs) -> u32 {
        args.prefill_chunk.unwrap_or(match self {
            Self::Cpu => 512,
            Self::Cuda => 4096,
        })
    }

    /// Steps under way: the host's part of a step is worth hiding where the device computes by itself.
    fn pipeline_depth(self, args: &ModelArgs) -> u32 {
        let depth = args.pipeline_depth.unwrap_or(match self {
            Self::Cpu => 1,
            Self::Cuda => 2,
        });
        depth.into()
    }

    /// Tells what was chosen and why, where the choice was ours.
    fn announce(self, args: &ModelArgs) {
        match (args.device, self) {
            (Device::Auto, Self::Cuda) => info!("--device auto takes the GPU"),
            (Device::Auto, Self::Cpu) => {
                info!("--device auto takes the CPU: {}", unfit_for_cuda(args).unwrap_or_default());
            }
            (Device::Cpu | Device::Cuda, _) => {}
        }
    }
}

/// Why the GPU cannot do what was asked for.
fn unfit_for_cuda(args: &ModelArgs) -> Option<String> {
    if args.exact {
        return Some("exact mode is computed on the CPU".into());
    }
    if args.kv == Some(Kv::F32) {
        return Some("keys and values in f32 are for the CPU".into());
    }
    Gpu::open(args.gpu).err().map(|error| error.to_string())
}

/// Everything that loading needs beside the device.
struct Loading<'a> {
    store: &'a dyn WeightStore,
    progress: Progress,
    formats: Formats,
    capacity: Capacity,
    tally: Arc<ExpertTally>,
    /// What the model is known to compute.
    reference: Option<Reference>,
}

impl Loading<'_> {
    /// Loads onto `backend` and starts a worker; also says what the device is.
    fn start<B: Backend + 'static>(self, backend: B, parts: &mut Parts) -> Result<(LocalWorker, String)>
    where
        Runner<B>: Send,
    {
        let device = backend.describe();
        info!("device: {device}");
        let mut model = with_progress(self.store, self.progress, |store| {
            Ok(Model::load(backend, store, self.formats, self.capacity, ShardPlan::UNDIVIDED)?)
        })?;
        parts.end_with("weights", "working memory", model.allocation_time());
        model.prepare(|done, total| {
            // A log needs to know only that it is over.
            if total > 0 && (done == total || self.progress == Progress::Terminal) {
                self.progress.show(&format!("recording steps: {done} of {total}"), done == total);
            }
        })?;
        parts.end("recorded steps");
        let verdict = model.self_test(self.reference.as_ref())?;
        parts.end("self-test");
        match verdict.beyond {
            0 => info!("self-test: {verdict}"),
            _ => warn!("self-test: {verdict}"),
        }
        let runner = Runner::new(model).with_masker(Box::new(masks()?)).with_tally(self.tally);
        Ok((LocalWorker::start(runner).context("starting the worker")?, device))
    }
}

/// What follows the constraints of requests.
pub fn masks() -> Result<Masks> {
    Masks::start(MASK_THREADS).context("starting the threads that compute grammar masks")
}

/// Runs `load` on a store whose reads are counted and shown.
fn with_progress<T>(
    store: &dyn WeightStore,
    progress: Progress,
    load: impl FnOnce(&dyn WeightStore) -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    let show = |bytes, total| progress.show(&loading_line(bytes, total, started.elapsed()), false);
    let interval = if progress == Progress::Terminal { TERMINAL_INTERVAL } else { LOG_INTERVAL };
    let loaded = counted(store, interval, &show, load);
    if progress == Progress::Terminal {
        progress.show("", true);
    }
    loaded
}

/// How far loading is, for people.
pub fn loading_line(bytes: u64, total: u64, elapsed: Duration) -> String {
    let rate = bytes as f64 / 1e9 / elapsed.as_secs_f64().max(1e-3);
    format!("loading: {} % of {:.1} GB, {rate:.2} GB/s", bytes * 100 / total.max(1), total as f64 / 1e9)
}

/// Runs `load` on a store whose reads are counted; `show(read, total)` is told of them in between, from another thread.
pub fn counted<T>(
    store: &dyn WeightStore,
    interval: Duration,
    show: &(dyn Fn(u64, u64) + Sync),
    load: impl FnOnce(&dyn WeightStore) -> T,
) -> T {
    let read = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let total = store.total_bytes();
    std::thread::scope(|scope| {
        let shown = scope.spawn(|| {
            loop {
                std::thread::park_timeout(interval);
                if done.load(Ordering::Acquire) {
                    return;
                }
                show(read.load(Ordering::Relaxed), total);
            }
        });
        let loaded = load(&Counted::new(store, &read));
        done.store(true, Ordering::Release);
        shown.thread().unpark();
        loaded
    })
}
