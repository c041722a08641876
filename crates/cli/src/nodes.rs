//! A model that worker processes compute: on this machine, on others, or both.

use std::fs::Permissions;
use std::net::{TcpListener, ToSocketAddrs};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use tandem_backend::{DenseFormat, KvFormat};
use tandem_cluster::{
    Deadlines, Experts, HostFacts, LoadOrder, Local, ModelSource, Plan, Ready, Remote, Supervisor, Token,
};
use tandem_engine::Engine;
use tandem_model::inspect::Report;
use tandem_model::memory::{MemoryPlan, bytes_per_token, human, plan_memory};
use tandem_model::{ExpertSplit, ShardPlan};
use tempfile::TempDir;
use tracing::{info, warn};

use crate::fingerprint::fingerprint;
use crate::load::{self, Loaded, Node, Numbers, Place, Source};
use crate::settings::{Dense, Device, Kv, LinkChoice, ModelArgs, NodeArgs, ServeArgs};
use crate::worker::BUILD;

/// How often the log tells how far loading is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);

/// Whether worker processes are to compute the model.
pub fn are_asked_for(args: &NodeArgs) -> Result<bool> {
    let many = args.nodes > 1;
    if !many && (args.experts.is_some() || args.link.is_some() || args.listen.is_some()) {
        bail!("--experts, --link and --listen are for several nodes: say how many with --nodes");
    }
    if many && !args.local_workers && args.listen.is_none() {
        bail!(
            "--nodes {} needs either --listen ADDRESS, where the other nodes join, or --local-workers, to run all of them here",
            args.nodes
        );
    }
    Ok(args.local_workers || many)
}

/// A folder that only this user can enter, for the socket and the token of this machine's workers. Gone when dropped.
pub fn runtime_folder() -> Result<TempDir> {
    let base = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).filter(|folder| folder.is_dir());
    let base = base.unwrap_or_else(std::env::temp_dir);
    let owner_alone = Permissions::from_mode(0o700);
    let made = tempfile::Builder::new().prefix("tandem-").permissions(owner_alone).tempdir_in(&base);
    made.with_context(|| format!("making a folder for the workers' socket in {}", base.display()))
}

/// Starts the workers of this machine, waits for those of others, and loads the model on all of them.
pub fn load(args: &ServeArgs, log: Option<&str>, folder: &Path) -> Result<Loaded> {
    let started = Instant::now();
    let model = &args.model;
    let source = Source::open(model)?;
    let numbers = Numbers::of(model)?;
    let place = Place::choose(model)?;
    let world = usize::from(args.nodes.nodes);
    // Of several ranks the first needs most.
    let shard = ShardPlan { rank: 0, world, experts: args.nodes.experts.map_or(ExpertSplit::Slice, ExpertSplit::from) };
    let held = shard.shard(source.store.config())?;
    let fingerprint = fingerprint(source.store.as_ref())?;
    let config = source.store.config().clone();
    info!("formats: {numbers}");
    let planned = Arc::new(Mutex::new(None));
    let ordering = Ordering {
        model: model.clone(),
        shard,
        chosen: args.nodes.link.unwrap_or(LinkChoice::Auto),
        is_local: args.nodes.local_workers,
        config: config.clone(),
        order: LoadOrder {
            experts: match shard.experts {
                ExpertSplit::Slice => Experts::Slice,
                ExpertSplit::Whole => Experts::Whole,
            },
            model: model_source(model)?,
            fingerprint,
            exact: model.exact,
            dense: dense_word(numbers.dense),
            kv: kv_word(numbers.kv),
            capacity: tandem_step::Capacity::default(),
            link: String::new(),
        },
        planned: planned.clone(),
    };
    let mut supervisor = Supervisor::start(Plan {
        build: BUILD.into(),
        deadlines: Deadlines::default(),
        local: local(args, log, folder)?,
        remote: remote(&args.nodes)?,
        order: Box::new(move |hosts| ordering.order(hosts).map_err(|error| format!("{error:#}"))),
        progress: loading_log(world),
    })?;
    invite(args, &supervisor)?;
    let (worker, ready) = supervisor.first()?;
    info!("loaded in {:.1} s", started.elapsed().as_secs_f64());
    if !ready.link.is_empty() {
        info!("nodes exchange activations over {}", ready.link);
    }
    let plan = planned.lock().ok().and_then(|plan| plan.clone()).ok_or_else(|| anyhow!("no memory plan was made"))?;
    let settings = load::engine_settings(model, place);
    let engine = Engine::start_with(worker, Some(Box::new(supervisor)), plan.capacity, settings)?;
    let report = Report::new(&config, &load::memory_request_of(model, shard, plan.table.budget_bytes)?);
    Ok(Loaded {
        engine,
        parameters: report.parameters,
        checkpoint_bytes: report.kinds.iter().map(|line| line.bytes).sum(),
        name: source.name,
        nodes: nodes(&ready),
        link: Some(ready.link).filter(|link| !link.is_empty()),
        computes_here: false,
        formats: numbers.to_string(),
        memory: plan.table,
        weight_bytes_per_token: bytes_per_token(&config, numbers.dense, &held).total(),
        config: config.clone(),
        // Ranks count none.
        experts_read: Arc::default(),
        notice: source.notice,
    })
}

/// Decides what a group loads. The first decision stands, since the engine counts on it.
struct Ordering {
    model: ModelArgs,
    shard: ShardPlan,
    chosen: LinkChoice,
    is_local: bool,
    config: tandem_model::Config,
    order: LoadOrder,
    planned: Arc<Mutex<Option<MemoryPlan>>>,
}

impl Ordering {
    fn order(&self, hosts: &[HostFacts]) -> Result<LoadOrder> {
        let budget = hosts.iter().map(|host| host.memory_bytes).min().unwrap_or(0);
        let mut planned = self.planned.lock().map_err(|_| anyhow!("planning memory failed before"))?;
        let plan = match planned.take() {
            Some(plan) if plan.table.total_bytes() > budget => {
                let needed = human(plan.table.total_bytes());
                *planned = Some(plan);
                bail!("a node has {} to use, and {needed} are planned for", human(budget));
            }
            Some(plan) => plan,
            None => {
                let plan = plan_memory(&self.config, &load::memory_request_of(&self.model, self.shard, budget)?)?;
                load::announce_plan(&plan);
                plan
            }
        };
        let order = LoadOrder { capacity: plan.capacity, link: self.link(hosts)?, ..self.order.clone() };
        *planned = Some(plan);
        Ok(order)
    }

    /// How activations travel: as was named, or by the best that all nodes have.
    fn link(&self, hosts: &[HostFacts]) -> Result<String> {
        if hosts.len() == 1 {
            return Ok(String::new());
        }
        Ok(match (self.chosen, self.is_local) {
            (LinkChoice::Auto, true) => {
                info!("--link auto takes shm: all nodes are processes of this machine");
                "shm".into()
            }
            (LinkChoice::Auto, false) => auto_link(hosts),
            (LinkChoice::Shm, false) => {
                bail!("--link shm: other machines share no memory with this one; leave --link out, or take tcp or rdma")
            }
            (named, _) => word(named),
        })
    }
}

/// Of this machine's workers: all, or the first rank's alone.
fn local(args: &ServeArgs, log: Option<&str>, folder: &Path) -> Result<Local> {
    let count = if args.nodes.local_workers { usize::from(args.nodes.nodes) } else { 1 };
    let socket = folder.join("control");
    let listener = UnixListener::bind(&socket).with_context(|| format!("listening on {}", socket.display()))?;
    let token_file = folder.join("token");
    let token = Token::open_or_create(&token_file)?;
    let flags = child_flags(&args.model, count, &socket, &token_file, log)?;
    let gpus = matches!(Place::choose(&args.model)?, Place::Cuda);
    let command = move |index: usize| {
        // This very program, even if the file has been replaced meanwhile.
        let mut command = Command::new("/proc/self/exe");
        command.arg0("tandem").args(&flags);
        if gpus {
            command.args(["--gpu", &index.to_string()]);
        }
        let ours = std::env::vars_os().map(|(name, _)| name);
        for name in ours.filter(|name| name.to_string_lossy().starts_with("TANDEM_")) {
            command.env_remove(name);
        }
        // An interrupt at the terminal is for the server, which lets open requests finish.
        command.process_group(0);
        command
    };
    Ok(Local { count, listener, token, command: Box::new(command) })
}

/// What this machine's workers are told on their command line: the share of the machine that is each one's.
fn child_flags(
    model: &ModelArgs,
    count: usize,
    socket: &Path,
    token_file: &Path,
    log: Option<&str>,
) -> Result<Vec<String>> {
    let place = Place::choose(model)?;
    let (device, share) = match place {
        Place::Cpu => (Device::Cpu, count as u64),
        // Each has a GPU of its own.
        Place::Cuda => (Device::Cuda, 1),
    };
    let threads = (load::threads(model) / count).max(1);
    let mut flags = vec![
        "worker".into(),
        format!("--join=unix:{}", socket.display()),
        format!("--token-file={}", token_file.display()),
        format!("--child-of={}", std::process::id()),
        format!("--device={}", word(device)),
        format!("--memory={}", load::budget(model)? / share),
        format!("--threads={threads}"),
    ];
    flags.extend(model.isa.iter().map(|isa| format!("--isa={isa}")));
    flags.extend(log.map(|log| format!("--log={log}")));
    if model.eager {
        flags.push("--eager".into());
    }
    Ok(flags)
}

fn remote(args: &NodeArgs) -> Result<Option<Remote>> {
    let Some(address) = &args.listen else { return Ok(None) };
    let file = token_file(args);
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let token = Token::open_or_create(&file)?;
    let mut found = address.to_socket_addrs().with_context(|| format!("--listen {address}"))?;
    let at = found.next().ok_or_else(|| anyhow!("--listen {address}: no such address"))?;
    let listener = TcpListener::bind(at).with_context(|| format!("listening on {at} for the other nodes"))?;
    Ok(Some(Remote { count: usize::from(args.nodes) - 1, listener, token }))
}

/// Says how the other nodes join.
fn invite(args: &ServeArgs, supervisor: &Supervisor) -> Result<()> {
    let Some(address) = supervisor.address() else { return Ok(()) };
    let file = token_file(&args.nodes);
    let file = file.canonicalize().unwrap_or(file);
    info!(
        "copy {} to each other node (readable by its owner alone), and run there:\n    \
         tandem worker --join {address} --token-file join-token",
        file.display()
    );
    Ok(())
}

/// Where the secret is kept: as told, or among this user's settings.
fn token_file(args: &NodeArgs) -> PathBuf {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".config"));
    let settings = || std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home);
    let default = || settings().unwrap_or_else(|| PathBuf::from(".")).join("tandem").join("join-token");
    args.token_file.clone().unwrap_or_else(default)
}

fn model_source(model: &ModelArgs) -> Result<ModelSource> {
    Ok(match (&model.model, model.synthetic) {
        (_, Some(shape)) => ModelSource::Synthetic(word(shape)),
        (Some(folder), None) => {
            ModelSource::Path(folder.canonicalize().with_context(|| format!("finding {}", folder.display()))?)
        }
        (None, None) => ModelSource::Demo,
    })
}

/// RDMA where every node has it.
fn auto_link(hosts: &[HostFacts]) -> String {
    match hosts.iter().find(|host| !host.rdma_trouble.is_empty()) {
        None => {
            info!("--link auto takes rdma: every node has a device for it");
            "rdma".into()
        }
        Some(host) => {
            warn!(
                "--link auto takes tcp, which is several times slower than rdma: on {}, {}",
                host.name, host.rdma_trouble
            );
            "tcp".into()
        }
    }
}

fn nodes(ready: &Ready) -> Vec<Node> {
    ready.ranks.iter().map(|(name, device)| Node { name: name.clone(), device: device.clone() }).collect()
}

/// Tells the log how far loading is, all ranks together.
fn loading_log(world: usize) -> Box<dyn Fn(usize, u64, u64) + Send + Sync> {
    let seen = Mutex::new((vec![(0, 0); world], None::<Instant>));
    Box::new(move |rank, read, total| {
        // What is logged last is worth no more than a missing line.
        let Ok(mut seen) = seen.lock() else { return };
        if let Some(place) = seen.0.get_mut(rank) {
            *place = (read, total);
        }
        if seen.1.is_some_and(|last| last.elapsed() < PROGRESS_INTERVAL) {
            return;
        }
        seen.1 = Some(Instant::now());
        let each = seen.0.iter().enumerate().map(|(rank, (read, total))| {
            format!("rank {rank} {} % of {:.1} GB", read * 100 / (*total).max(1), *total as f64 / 1e9)
        });
        info!("loading: {}", each.collect::<Vec<_>>().join(", "));
    })
}

/// The word for a value on the command line.
fn word<T: ValueEnum>(value: T) -> String {
    value.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}

fn dense_word(dense: DenseFormat) -> String {
    word(match dense {
        DenseFormat::Q8 => Dense::Q8,
        DenseFormat::Bf16 => Dense::Bf16,
        DenseFormat::Mxfp4 => Dense::Mxfp4,
    })
}

fn kv_word(kv: KvFormat) -> String {
    word(match kv {
        KvFormat::Bf16 => Kv::Bf16,
        KvFormat::Fp8 => Kv::Fp8,
        KvFormat::F32 => Kv::F32,
    })
}
