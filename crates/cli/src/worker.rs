//! `tandem worker`: one node's part of a model.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use tandem_cluster::{Address, Deadlines, HostFacts, JoinAt, Token, Trust, attend};

use crate::load::{self, Place};
use crate::rank::{ModelRank, rdma_trouble};
use crate::settings::{Dense, Kv, ModelArgs, PrefillActivations, WorkerArgs};

/// Hash of the sources of this program.
pub const BUILD: &str = env!("BUILD_OF_TANDEM");

/// Works until the coordinator or a signal ends it. A worker of another machine dials again when the connection is lost.
pub fn run(args: &WorkerArgs) -> Result<()> {
    if let Some(parent) = args.child_of {
        end_with(parent)?;
    }
    let at = JoinAt {
        address: args.join.clone(),
        token: Token::read(&args.token_file)?,
        trust: trust(args)?,
        build: BUILD.into(),
        host: host_facts(args)?,
        deadlines: Deadlines::default(),
        redial: args.child_of.is_none(),
    };
    let args = args.clone();
    Ok(attend(&at, move || Box::new(ModelRank::new(args.clone())))?)
}

fn trust(args: &WorkerArgs) -> Result<Option<Trust>> {
    let Some(file) = &args.cluster_ca_certificate else { return Ok(None) };
    ensure!(matches!(args.join, Address::Tcp(_)), "--cluster-ca-certificate is for --join HOST:PORT");
    Ok(Some(Trust::open(file).context("--cluster-ca-certificate")?))
}

/// Has the kernel end this process when its parent does, however that happens.
fn end_with(parent: u32) -> Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL).context("asking to be ended with the server")?;
    // The parent may have ended before that.
    ensure!(getppid() == Pid::from_raw(parent as i32), "the server that started this worker has ended");
    // Only shown in lists of processes.
    let _ = prctl::set_name(c"tandem-worker");
    Ok(())
}

fn host_facts(args: &WorkerArgs) -> Result<HostFacts> {
    let alone = machine_args(args);
    let device = match Place::choose(&alone)? {
        Place::Cpu => format!("CPU, {} threads", load::threads(&alone)),
        Place::Cuda => format!("GPU {}", args.gpu),
    };
    Ok(HostFacts {
        name: load::host_name(),
        pid: std::process::id(),
        device,
        memory_bytes: load::budget(&alone)?,
        rdma_trouble: rdma_trouble().unwrap_or_default(),
        device_id: load::device_id(&alone)?,
    })
}

/// What this machine's settings say, whatever the coordinator wants loaded.
pub fn machine_args(args: &WorkerArgs) -> ModelArgs {
    ModelArgs {
        model: None::<PathBuf>,
        synthetic: None,
        device: args.device,
        dense: None::<Dense>,
        kv: None::<Kv>,
        exact: false,
        context: None,
        memory: args.memory,
        max_streams: 1,
        prefill_chunk: None,
        prefill_slice: Duration::ZERO,
        threads: args.threads,
        isa: args.isa.clone(),
        max_queue: 1,
        // All ranks do what the coordinator says.
        eager: false,
        prefill_activations: PrefillActivations::Auto,
        gpu: args.gpu,
        pipeline_depth: None,
    }
}
