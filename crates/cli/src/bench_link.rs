//! `tandem bench --link`: how long an exchange between two ranks takes, over each transport that works on this machine, by the host
//! and by the kernels of two GPUs.
//!
//! The second rank is a process of its own, as in service: this program, started again.

mod gpu;
mod peer;

use std::io::stdin;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use tandem_link::{Endpoint, Link, LinkError, RdmaChoice, Settings, TransportKind};

use self::gpu::Kernels;
use self::peer::{Lines, Peer, say};
use crate::settings::{BenchArgs, LinkChoice, LinkPeerArgs};

/// Values of an all-reduce: a token's activations are 2,880, a batch of 16 has as many times 16.
const SIZES: [usize; 9] = [64, 256, 1024, 2880, 4 * 2880, 16 * 2880, 64 << 10, 256 << 10, 1 << 20];
/// Exchanges of each size: as many as move so many bytes, between these bounds.
const BYTES_PER_SIZE: usize = 64 << 20;
const EXCHANGES_MIN: usize = 50;
const EXCHANGES_MAX: usize = 2000;
/// One in so many is run before those, not counted.
const WARM_UP: usize = 5;
/// The second process has so long to start.
const CONNECT: Duration = Duration::from_secs(10);

/// Measures and prints.
pub fn run(args: &BenchArgs) -> Result<()> {
    let report = match args.transport {
        None => Report::of_all()?,
        Some(LinkChoice::Auto) => Report::of_nearest()?,
        Some(LinkChoice::Shm) => Report::of_named(TransportKind::Shm)?,
        Some(LinkChoice::Tcp) => Report::of_named(TransportKind::Tcp)?,
        Some(LinkChoice::Rdma) => Report::of_named(TransportKind::Rdma)?,
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
    }
    Ok(())
}

/// The second rank, or either one with a GPU. Offers go by standard input and output.
pub fn run_peer(args: &LinkPeerArgs) -> Result<()> {
    if let Some(gpu) = args.gpu {
        return gpu::run_rank(args, gpu);
    }
    let kind: TransportKind = args.transport.parse()?;
    let endpoint = endpoint(kind)?;
    let ours = offer(&endpoint)?;
    say(&ours)?;
    let theirs = Lines::of(stdin()).next(CONNECT).context("reading the first rank's offer")?;
    let mut link = endpoint.connect(1, 2, &[theirs, ours], CONNECT)?;
    for values in SIZES {
        measure_size(&mut link, values)?;
    }
    Ok(())
}

/// What was measured over each transport, and why others were not.
#[derive(Debug, Serialize)]
struct Report {
    measured: Vec<Measured>,
    /// Transport and reason.
    not_measured: Vec<(String, String)>,
    /// What `auto` took, and why.
    taken: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Measured {
    transport: String,
    /// Who exchanges, and how.
    how: String,
    /// As the link describes itself.
    link: String,
    sizes: Vec<Size>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Size {
    values: usize,
    exchanges: usize,
    median_us: f64,
    p99_us: f64,
    /// Payload of one rank over the median; as much goes the other way at the same time.
    gigabytes_per_s: f64,
}

impl Report {
    fn of_all() -> Result<Self> {
        let mut report = Self { measured: Vec::new(), not_measured: Vec::new(), taken: None };
        for kind in TransportKind::ALL {
            report.add(kind);
        }
        ensure!(!report.measured.is_empty(), "no transport works here: {}", report.reasons());
        report.add_nccl();
        Ok(report)
    }

    /// What is named is measured or refused.
    fn of_named(kind: TransportKind) -> Result<Self> {
        let mut report = Self { measured: vec![measure(kind)?], not_measured: Vec::new(), taken: None };
        report.add_kernels(kind);
        Ok(report)
    }

    /// Between two processes of one machine nothing is nearer than memory; a network card is nearer than the system's network.
    fn of_nearest() -> Result<Self> {
        let mut report = Self { measured: Vec::new(), not_measured: Vec::new(), taken: None };
        for (kind, why) in [
            (TransportKind::Shm, "both ranks are on this machine"),
            (TransportKind::Rdma, "shared memory does not work here and there is an RDMA device"),
            (TransportKind::Tcp, "neither shared memory nor RDMA works here"),
        ] {
            report.add(kind);
            if !report.measured.is_empty() {
                report.taken = Some(format!("{kind}: {why}"));
                return Ok(report);
            }
        }
        bail!("no transport works here: {}", report.reasons())
    }

    fn add(&mut self, kind: TransportKind) {
        match measure(kind) {
            Ok(measured) => self.measured.push(measured),
            Err(error) => return self.not_measured.push((kind.to_string(), format!("{error:#}"))),
        }
        self.add_kernels(kind);
    }

    fn add_kernels(&mut self, kind: TransportKind) {
        self.add_measured(format!("{kind}, kernels"), gpu::measure(Kernels::Ours(kind)));
    }

    fn add_nccl(&mut self) {
        self.add_measured("NCCL".to_owned(), gpu::measure(Kernels::Nccl));
    }

    fn add_measured(&mut self, what: String, measured: Result<Vec<Measured>>) {
        match measured {
            Ok(measured) => self.measured.extend(measured),
            Err(error) => self.not_measured.push((what, format!("{error:#}"))),
        }
    }

    fn reasons(&self) -> String {
        let reason = |(kind, why): &(String, String)| format!("{kind}: {why}");
        self.not_measured.iter().map(reason).collect::<Vec<_>>().join("; ")
    }

    fn print(&self) {
        println!("all-reduce between two processes of this machine\n");
        if let Some(taken) = &self.taken {
            println!("auto took {taken}\n");
        }
        for measured in &self.measured {
            println!("{}, {}: {}", measured.transport, measured.how, measured.link);
            println!("{:>12}{:>12}{:>12}{:>12}{:>12}", "values", "bytes", "median, us", "p99, us", "GB/s");
            for size in &measured.sizes {
                let Size { values, median_us, p99_us, gigabytes_per_s, .. } = size;
                println!("{values:>12}{:>12}{median_us:>12.1}{p99_us:>12.1}{gigabytes_per_s:>12.2}", values * 4);
            }
            println!();
        }
        for (kind, why) in &self.not_measured {
            println!("{kind}: not measured: {why}");
        }
    }
}

fn measure(kind: TransportKind) -> Result<Measured> {
    let endpoint = endpoint(kind)?;
    let ours = offer(&endpoint)?;
    let mut peer = Peer::start(&[kind.to_string()])?;
    peer.tell(&ours)?;
    let theirs = peer.hear(CONNECT)?;
    let mut link = endpoint.connect(0, 2, &[ours, theirs], CONNECT)?;
    let sizes = SIZES.into_iter().map(|values| measure_size(&mut link, values)).collect::<Result<_, _>>()?;
    Ok(Measured { transport: kind.to_string(), how: "host".to_owned(), link: link.describe(), sizes })
}

fn endpoint(kind: TransportKind) -> Result<Endpoint, LinkError> {
    let settings = Settings::default();
    match kind {
        TransportKind::Shm => Endpoint::shm(&settings),
        TransportKind::Tcp => Endpoint::tcp(&settings, Ipv4Addr::LOCALHOST.into()),
        TransportKind::Rdma => Endpoint::rdma(&settings, &RdmaChoice::default()),
    }
}

/// What the other rank must be told, a line of JSON.
fn offer(endpoint: &Endpoint) -> Result<String> {
    String::from_utf8(endpoint.offer()).context("an offer")
}

/// Both ranks run this with the same numbers.
fn measure_size(link: &mut Link, values: usize) -> Result<Size, LinkError> {
    let exchanges = (BYTES_PER_SIZE / (4 * values)).clamp(EXCHANGES_MIN, EXCHANGES_MAX);
    let mut buffer = vec![0.0; values];
    for _ in 0..exchanges / WARM_UP {
        link.all_reduce(&mut buffer)?;
    }
    let mut times_us = Vec::with_capacity(exchanges);
    for _ in 0..exchanges {
        let started = Instant::now();
        link.all_reduce(&mut buffer)?;
        times_us.push(started.elapsed().as_secs_f64() * 1e6);
    }
    Ok(Size::new(values, exchanges, times_us))
}

impl Size {
    /// Of so many exchanges, which took these times each.
    fn new(values: usize, exchanges: usize, mut times_us: Vec<f64>) -> Self {
        times_us.sort_by(f64::total_cmp);
        let (median_us, p99_us) = (times_us[times_us.len() / 2], times_us[times_us.len() * 99 / 100]);
        Self { values, exchanges, median_us, p99_us, gigabytes_per_s: 4.0 * values as f64 / median_us / 1e3 }
    }
}
