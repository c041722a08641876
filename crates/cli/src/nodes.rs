//! A model that worker processes compute: on this machine, on others, or both.

mod join;
mod local;
mod ordering;

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use clap::ValueEnum;
use tandem_api::LinkReport;
use tandem_cluster::{Deadlines, LinkFacts, LoadOrder, Plan, Ready, Supervisor, Unproven};
use tandem_engine::Engine;
use tandem_model::inspect::Report;
use tandem_model::memory::{MemoryPlan, bytes_per_token};
use tandem_model::selftest::{Reference, SelfTestError, self_test};
use tandem_model::{ExpertSplit, ShardPlan};
use tandem_step::Worker;
use tempfile::TempDir;
use tokio::sync::watch;
use tracing::info;

use self::join::{invite, remote};
pub use self::join::{open_token, token_file};
use self::local::local;
use self::ordering::Ordering;
use crate::load::{self, Formation, Loaded, Node, Numbers, Place, Source};
use crate::settings::{NodeArgs, ServeArgs};
use crate::worker::BUILD;

/// How often the log tells how far loading is.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(5);
/// How long other nodes may be missing before this one serves alone, where it may.
const DEGRADE_AFTER: Duration = Duration::from_secs(10);

/// Whether worker processes are to compute the model.
pub fn are_asked_for(args: &NodeArgs) -> Result<bool> {
    let many = args.nodes > 1;
    if !many && (args.experts.is_some() || args.link.is_some() || args.listen.is_some()) {
        bail!("--experts, --link and --listen are for several nodes: say how many with --nodes");
    }
    check_listening(args)?;
    if many && !args.local_workers && args.listen.is_none() {
        bail!(
            "--nodes {} needs either --listen ADDRESS, where the other nodes join, or --local-workers, to run all of them here",
            args.nodes
        );
    }
    Ok(args.local_workers || many)
}

/// Settings that say how others join, or what if they do not, need somewhere to join.
fn check_listening(args: &NodeArgs) -> Result<()> {
    let tls = (args.cluster_tls_certificate.is_some(), args.cluster_tls_key.is_some());
    if args.listen.is_none() && (args.degrade || tls != (false, false)) {
        bail!("--degrade and --cluster-tls-certificate are for nodes that join: say where with --listen");
    }
    if args.degrade_after.is_some() && !args.degrade {
        bail!("--degrade-after says when to --degrade, which is not asked for");
    }
    if tls.0 != tls.1 {
        bail!("--cluster-tls-certificate and --cluster-tls-key go together");
    }
    Ok(())
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
    let config = source.store.config().clone();
    let held = shard.shard(&config)?;
    info!("formats: {numbers}");
    let ordering = Ordering::new(args, &source, &numbers, shard)?;
    let planned = ordering.planned();
    let reference = source.reference(numbers.formats());
    let changes = watch::Sender::new(None);
    let mut seen = changes.subscribe();
    let mut supervisor = Supervisor::start(Plan {
        build: BUILD.into(),
        deadlines: Deadlines::default(),
        local: local(args, log, folder)?,
        remote: remote(&args.nodes)?,
        degrade_after: args.nodes.degrade.then(|| args.nodes.degrade_after.unwrap_or(DEGRADE_AFTER)),
        order: Box::new(move |hosts| ordering.order(hosts).map_err(|error| format!("{error:#}"))),
        progress: loading_log(world),
        prove: Box::new(move |worker, order| prove(worker, order, reference.as_ref())),
        formed: Box::new(move |ready| drop(changes.send_replace(formation(ready, &planned)))),
    })?;
    invite(args, &supervisor)?;
    let (worker, _) = supervisor.first()?;
    info!("loaded in {:.1} s", started.elapsed().as_secs_f64());
    let formation = seen.borrow_and_update().clone().ok_or_else(|| anyhow!("no memory plan was made"))?;
    let capacity = worker.capacity().ok_or_else(|| anyhow!("the group does not say what it offers"))?;
    let settings = load::engine_settings(model, place);
    let engine = Engine::start_with(worker, Some(Box::new(supervisor)), capacity, settings)?;
    let report = Report::new(&config, &load::memory_request_of(model, shard, formation.memory.budget_bytes)?);
    Ok(Loaded {
        engine,
        parameters: report.parameters,
        checkpoint_bytes: report.kinds.iter().map(|line| line.bytes).sum(),
        name: source.name,
        formation,
        changes: Some(seen),
        computes_here: false,
        formats: numbers.to_string(),
        weight_bytes_per_token: bytes_per_token(&config, numbers.dense, &held).total(),
        config: config.clone(),
        // Ranks count none.
        experts_read: Arc::default(),
        notice: source.notice,
        vocabulary: None,
    })
}

/// Nobody is served by a group that has not computed a text as it should.
fn prove(worker: &mut dyn Worker, order: &LoadOrder, reference: Option<&Reference>) -> Result<(), Unproven> {
    match self_test(worker, &order.capacity, reference, load::STEP_TIMEOUT) {
        Ok(verdict) => {
            load::announce_verdict(&verdict);
            Ok(())
        }
        Err(error @ SelfTestError::Worker(_)) => Err(Unproven::Lost(error.to_string())),
        Err(error) => Err(Unproven::Wrong(error.to_string())),
    }
}

/// Who computes from now on; the log is told, too.
fn formation(ready: &Ready, planned: &Mutex<Option<MemoryPlan>>) -> Option<Formation> {
    let plan = planned.lock().ok()?.clone()?;
    let nodes: Vec<Node> =
        ready.ranks.iter().map(|(name, device)| Node { name: name.clone(), device: device.clone() }).collect();
    let link = ready.link.as_ref().map(link_report);
    if let Some(link) = &link {
        let speed = link_speed(link.exchange_us, link.bytes_per_s);
        info!("nodes exchange activations over {}: measured {speed}", link.transport);
    }
    let (missing, all) = (ready.missing, nodes.len() + ready.missing);
    let degraded = (missing > 0).then(|| format!("{missing} of {all} nodes missing: the first serves alone"));
    Some(Formation { nodes, link, memory: plan.table, degraded })
}

fn link_report(link: &LinkFacts) -> LinkReport {
    let LinkFacts { description, exchange_us, bytes_per_s } = link.clone();
    LinkReport { transport: description, exchange_us, bytes_per_s }
}

/// What was measured on a link, in words.
pub fn link_speed(exchange_us: f64, bytes_per_s: f64) -> String {
    format!("{exchange_us:.1} µs for a token's exchange, {:.2} GB/s each way", bytes_per_s / 1e9)
}

/// Tells the log how far loading is, all ranks together.
fn loading_log(world: usize) -> Box<dyn Fn(usize, u64, u64) + Send + Sync> {
    let seen = Mutex::new((vec![None::<(Instant, u64, u64)>; world], None::<Instant>));
    Box::new(move |rank, read, total| {
        // What is logged last is worth no more than a missing line.
        let Ok(mut seen) = seen.lock() else { return };
        if let Some(place) = seen.0.get_mut(rank) {
            *place = Some((Instant::now(), read, total));
        }
        if seen.1.is_some_and(|last| last.elapsed() < PROGRESS_INTERVAL) {
            return;
        }
        seen.1 = Some(Instant::now());
        let ranks = seen.0.iter().enumerate().filter_map(|(rank, seen)| Some((rank, (*seen)?)));
        // Ranks that are through, or were of an earlier group, say nothing.
        let each = ranks.filter(|(_, (at, _, _))| at.elapsed() < PROGRESS_INTERVAL).map(|(rank, (_, read, total))| {
            format!("rank {rank} {} % of {:.1} GB", read * 100 / total.max(1), total as f64 / 1e9)
        });
        info!("loading: {}", each.collect::<Vec<_>>().join(", "));
    })
}

/// The word for a value on the command line.
fn word<T: ValueEnum>(value: T) -> String {
    value.to_possible_value().map_or(String::new(), |value| value.get_name().to_owned())
}
