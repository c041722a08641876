//! Exchanges by the kernels of two GPUs: launched one by one and in a recorded step, over each transport, and those of NCCL beside
//! them. Each rank is a process of its own, since what waits for a peer in vain, as NCCL does, can then be ended.

use std::io::stdin;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};
use tandem_backend::{Backend, BackendError, Batch, Sequence};
use tandem_backend_cuda::{self as cuda, CudaBackend, CudaBuffer, NCCL_ID_BYTES, Nccl, NcclRank};
use tandem_link::{Link, TransportKind};
use tandem_model::Exchange;

use super::peer::{Lines, Peer, say};
use super::{CONNECT, Measured, SIZES, Size, endpoint, offer};
use crate::load;
use crate::settings::LinkPeerArgs;

const RANKS: usize = 2;
/// Exchanges of a step: as many as move so many bytes, between these bounds. A token of gpt-oss-120b has 72.
const BYTES_PER_STEP: usize = 16 << 20;
const EXCHANGES_MIN: usize = 4;
const EXCHANGES_MAX: usize = 200;
/// Steps of each size, and how many before those are not counted: one by itself, one that is recorded, one more.
const STEPS: usize = 40;
const UNCOUNTED: usize = 3;
/// A rank says something within this: it opens its GPU and compiles kernels, or measures everything.
const PATIENCE: Duration = Duration::from_secs(120);

/// Whose exchanges.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernels {
    /// Ours, over this transport.
    Ours(TransportKind),
    /// NCCL's. The ranks meet in shared memory before each step.
    Nccl,
}

impl Kernels {
    fn transport(self) -> TransportKind {
        match self {
            Self::Ours(kind) => kind,
            Self::Nccl => TransportKind::Shm,
        }
    }
}

/// Measures with a process for each rank. Why it cannot is an error.
pub fn measure(kernels: Kernels) -> Result<Vec<Measured>> {
    let found = cuda::device_count()?;
    ensure!(found >= RANKS, "it takes two GPUs, there is {found}");
    if kernels == Kernels::Nccl {
        Nccl::open()?;
    }
    let mut ranks = (0..RANKS).map(|number| start(kernels, number)).collect::<Result<Vec<_>>>()?;
    let offers = ranks.iter().map(hear).collect::<Result<Vec<_>>>()?;
    ranks.iter_mut().try_for_each(|rank| offers.iter().try_for_each(|offer| rank.tell(offer)))?;
    let said = ranks.iter().map(hear).collect::<Result<Vec<_>>>()?;
    Ok(serde_json::from_str::<Said>(&said[0]).context("the first rank's figures")?.measured)
}

/// What a rank's process says at its end.
#[derive(Default, Serialize, Deserialize)]
struct Said {
    measured: Vec<Measured>,
    failed: Option<String>,
}

/// Starts a rank's process.
fn start(kernels: Kernels, number: usize) -> Result<Peer> {
    let mut arguments = vec![kernels.transport().to_string(), "--gpu".to_owned(), number.to_string()];
    arguments.extend((kernels == Kernels::Nccl).then(|| "--nccl".to_owned()));
    Peer::start(&arguments)
}

/// A rank's next line; an error if it says that the rank failed.
fn hear(rank: &Peer) -> Result<String> {
    let line = rank.hear(PATIENCE)?;
    match serde_json::from_str(&line) {
        Ok(Said { failed: Some(reason), .. }) => Err(anyhow!(reason)),
        _ => Ok(line),
    }
}

/// A rank's process: opens its GPU, says its offer, hears everybody's, measures and says what it found.
pub fn run_rank(args: &LinkPeerArgs, gpu: usize) -> Result<()> {
    let kernels = if args.nccl { Kernels::Nccl } else { Kernels::Ours(args.transport.parse()?) };
    let said = measure_rank(kernels, gpu)
        .unwrap_or_else(|error| Said { failed: Some(format!("GPU {gpu}: {error:#}")), ..Said::default() });
    say(&serde_json::to_string(&said)?)
}

fn measure_rank(kernels: Kernels, gpu: usize) -> Result<Said> {
    let backend = CudaBackend::new(load::gpu_options(gpu))?;
    let endpoint = endpoint(kernels.transport())?;
    say(&offer(&endpoint)?)?;
    let lines = Lines::of(stdin());
    let offers = (0..RANKS).map(|_| lines.next(PATIENCE)).collect::<Result<Vec<_>>>().context("hearing the offers")?;
    let mut link = endpoint.connect(gpu, RANKS, &offers, CONNECT)?;
    let whose = match kernels {
        Kernels::Ours(_) => Whose::Ours,
        Kernels::Nccl => Whose::Nccl(join_nccl(&backend, gpu, &mut link)?),
    };
    let mut measured = Vec::new();
    for recorded in [false, true] {
        let one =
            |values: usize| Steps::new(&backend, &link, &whose, values)?.measure(&backend, &mut link, &whose, recorded);
        let sizes = SIZES.into_iter().map(one).collect::<Result<Vec<_>>>()?;
        let how = if recorded { "in a recorded step" } else { "one launch each" };
        let (transport, kernels) = match kernels {
            Kernels::Ours(kind) => (kind.to_string(), "kernels"),
            Kernels::Nccl => ("nccl".to_owned(), "NCCL"),
        };
        measured.push(Measured { transport, how: format!("{kernels}, {how}"), link: describe(&link, &whose)?, sizes });
    }
    Ok(Said { measured, failed: None })
}

enum Whose {
    Ours,
    Nccl(NcclRank),
}

/// The first rank's id reaches the others over the link.
fn join_nccl(backend: &CudaBackend, rank: usize, link: &mut Link) -> Result<NcclRank> {
    let nccl = Nccl::open()?;
    let mine = if rank == 0 { nccl.id()? } else { [0; NCCL_ID_BYTES] };
    let mut all = [[0; NCCL_ID_BYTES]; RANKS];
    link.all_gather(&mine, all.as_flattened_mut())?;
    Ok(NcclRank::new(nccl, backend, all[0], rank, RANKS)?)
}

fn describe(link: &Link, whose: &Whose) -> Result<String> {
    match whose {
        Whose::Ours => Ok(link.describe()),
        Whose::Nccl(_) => Ok(format!("version {}", Nccl::open()?.version()?)),
    }
}

/// Steps that are nothing but all-reduces of one buffer.
struct Steps {
    part: CudaBuffer,
    into: CudaBuffer,
    values: usize,
    exchanges: usize,
}

impl Steps {
    fn new(backend: &CudaBackend, link: &Link, whose: &Whose, values: usize) -> Result<Self> {
        // Recorded steps name the buffers before these: joining anew drops them.
        backend.join(None)?;
        if matches!(whose, Whose::Ours) {
            backend.join(Exchange::memory(link).as_ref())?;
        }
        let exchanges = (BYTES_PER_STEP / (4 * values)).clamp(EXCHANGES_MIN, EXCHANGES_MAX);
        Ok(Self { part: backend.buffer(1, values)?, into: backend.buffer(1, values)?, values, exchanges })
    }

    fn measure(mut self, backend: &CudaBackend, link: &mut Link, whose: &Whose, recorded: bool) -> Result<Size> {
        let mut times_us = Vec::with_capacity(STEPS);
        for step in 0..STEPS + UNCOUNTED {
            let took = self.step(backend, link, whose, recorded && step > 0)?;
            if step >= UNCOUNTED {
                times_us.push(took.as_secs_f64() * 1e6 / self.exchanges as f64);
            }
        }
        Ok(Size::new(self.values, self.exchanges * STEPS, times_us))
    }

    fn step(&mut self, backend: &CudaBackend, link: &mut Link, whose: &Whose, recorded: bool) -> Result<Duration> {
        let Self { part, into, values, exchanges } = self;
        let table = [0];
        let sequences = [Sequence { rows: 0..1, position: 0, full_blocks: &table, sliding_blocks: &table }];
        let batch = Batch { tokens: &[0], sequences: &sequences };
        backend.begin(&batch)?;
        // Both begin at about the same time.
        link.all_gather(&[0], &mut [0; RANKS])?;
        if matches!(whose, Whose::Ours) {
            backend.number_exchanges(link.number_for_device()?)?;
        }
        let mut run = || -> Result<(), BackendError> {
            (0..*exchanges).try_for_each(|_| match whose {
                Whose::Ours => backend.exchange_add(part, 1, into),
                Whose::Nccl(nccl) => nccl.all_reduce(part, 1, into),
            })
        };
        let started = Instant::now();
        if recorded { backend.repeat(&batch, &mut run) } else { run() }?;
        if matches!(whose, Whose::Ours) {
            link.relay(*exchanges as u64, *values * size_of::<f32>())?;
        }
        backend.download(into, 0, &mut [0.0])?;
        Ok(started.elapsed())
    }
}
