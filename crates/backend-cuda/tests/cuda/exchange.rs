//! Two ranks on two GPUs, which exchange partial sums in their kernels.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use tandem_backend::{Backend, BackendError, Batch, Sequence};
use tandem_backend_cuda::{CudaBackend, CudaBuffer};
use tandem_link::{Endpoint, Link, Settings, TransportKind};
use tandem_model::Exchange;

use crate::{backend_on, gpus};

const PATIENCE: Duration = Duration::from_secs(60);
/// As in service.
pub const SLOT_BYTES: usize = 256 << 10;

/// Both ends of a link of this process. Its host waits for as long as a rank may take to load.
pub fn links(kind: TransportKind, slot_bytes: usize) -> Vec<Link> {
    let settings = &Settings { slot_bytes, deadline: PATIENCE, ..Settings::default() };
    let endpoint = |_| match kind {
        TransportKind::Shm => Endpoint::shm(settings).unwrap(),
        TransportKind::Tcp => Endpoint::tcp(settings, Ipv4Addr::LOCALHOST.into()).unwrap(),
        TransportKind::Rdma => panic!("RDMA needs devices"),
    };
    let endpoints: Vec<Endpoint> = (0..2).map(endpoint).collect();
    let offers: &Vec<Vec<u8>> = &endpoints.iter().map(Endpoint::offer).collect();
    std::thread::scope(|scope| {
        let connect = |(rank, endpoint): (usize, Endpoint)| {
            scope.spawn(move || endpoint.connect(rank, 2, offers, PATIENCE).unwrap())
        };
        let ranks: Vec<_> = endpoints.into_iter().enumerate().map(connect).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Runs `body` on both ranks at once.
pub fn on_both<T: Send, R: Send>(ranks: Vec<T>, body: impl Fn(usize, T) -> R + Sync) -> Vec<R> {
    let body = &body;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = ranks.into_iter().enumerate().map(|(i, rank)| scope.spawn(move || body(i, rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Returns when both ranks have come here: a kernel waits for less than one of them may be late.
pub fn meet(link: &mut Link) {
    link.all_gather(&[0], &mut [0; 2]).unwrap();
}

/// Whether the test can run; says so where it cannot.
pub fn two_gpus(what: &str) -> bool {
    let found = gpus();
    if found < 2 {
        eprintln!("skipped: {what} (needs two GPUs, there are {found})");
    }
    found >= 2
}

/// A step that is nothing but all-reduces of one buffer.
struct Exchanges {
    part: CudaBuffer,
    into: CudaBuffer,
    width: usize,
    count: usize,
}

impl Exchanges {
    fn new(backend: &CudaBackend, part: &[f32], count: usize) -> Self {
        // Recorded steps name the buffers before these.
        backend.join(None).unwrap();
        let width = part.len();
        let (mut mine, into) = (backend.buffer(1, width).unwrap(), backend.buffer(1, width).unwrap());
        backend.upload(&mut mine, 0, part).unwrap();
        Self { part: mine, into, width, count }
    }

    /// From ones on: the sums, and how long the quickest of some rounds took. The first round is run by itself, the second recorded.
    fn run(&mut self, backend: &CudaBackend, exchange: &mut dyn Exchange, rounds: usize) -> (Vec<f32>, Duration) {
        const UNCOUNTED: usize = 3;
        assert!(backend.join(exchange.memory().as_ref()).unwrap());
        let best = (0..rounds + UNCOUNTED).map(|round| {
            let time = self.round(backend, exchange, round == 0);
            if round < UNCOUNTED { Duration::MAX } else { time }
        });
        let best = best.min().unwrap_or_default();
        let mut sums = vec![0.0; self.width];
        backend.download(&self.into, 0, &mut sums).unwrap();
        backend.join(None).unwrap();
        (sums, best / self.count as u32)
    }

    fn round(&mut self, backend: &CudaBackend, exchange: &mut dyn Exchange, by_itself: bool) -> Duration {
        let Self { part, into, width, count } = self;
        let table = [0];
        let sequence = Sequence { rows: 0..1, position: 0, full_blocks: &table, sliding_blocks: &table };
        let sequences = [sequence];
        let batch = Batch { tokens: &[0], sequences: &sequences };
        backend.upload(into, 0, &vec![1.0; *width]).unwrap();
        backend.begin(&batch).unwrap();
        // Both begin at about the same time.
        exchange.all_gather(&[0], &mut vec![0; exchange.world()]).unwrap();
        backend.number_exchanges(exchange.number_for_device().unwrap()).unwrap();
        let mut run =
            || -> Result<(), BackendError> { (0..*count).try_for_each(|_| backend.exchange_add(part, 1, into)) };
        let started = Instant::now();
        if by_itself { run() } else { backend.repeat(&batch, &mut run) }.unwrap();
        exchange.relay(*count as u64, *width * 4).unwrap();
        let mut first = [0.0];
        backend.download(into, 0, &mut first).unwrap();
        started.elapsed()
    }
}

/// How long an all-reduce of `width` values takes in a recorded step.
pub fn time_of_exchange(backend: &CudaBackend, exchange: &mut dyn Exchange, width: usize) -> Duration {
    const COUNT: usize = 200;
    Exchanges::new(backend, &vec![0.0; width], COUNT).run(backend, exchange, 50).1
}

fn part(rank: usize, width: usize) -> Vec<f32> {
    (0..width).map(|i| ((i * 7 + rank * 13) % 101) as f32 * 0.37 - 11.0).collect()
}

/// Values and how many exchanges of them: a few, a token's, those of eight, of 64 and of a chunk of a prompt.
const CASES: [(usize, usize); 5] = [(64, 200), (2_880, 200), (23_040, 100), (184_320, 50), (5_898_240, 3)];

fn sums_are_those_of_the_host(kind: TransportKind) {
    if !two_gpus("exchanged sums") {
        return;
    }
    let results = on_both(links(kind, SLOT_BYTES), |rank, mut link| {
        let backend = backend_on("exchanged sums", rank, false).unwrap();
        let one = |(width, count): (usize, usize)| {
            let mut exchanges = Exchanges::new(&backend, &part(rank, width), count);
            exchanges.run(&backend, &mut link, if width > 100_000 { 5 } else { 100 })
        };
        CASES.map(one)
    });
    for (index, (width, count)) in CASES.into_iter().enumerate() {
        let time = results[0][index].1;
        println!(
            "an all-reduce of {width} f32 between two GPUs over {kind}, {count} of them in a graph: {time:?} each"
        );
        let (a, b) = (part(0, width), part(1, width));
        let sum = |(a, b): (&f32, &f32)| (0..count).fold(1.0, |sum, _| sum + (a + b));
        let wanted: Vec<f32> = a.iter().zip(&b).map(sum).collect();
        assert!(results.iter().all(|result| result[index].0 == wanted), "{width} values over {kind}");
    }
}

#[test]
fn sums_through_shared_memory_are_those_of_the_host() {
    sums_are_those_of_the_host(TransportKind::Shm);
}

#[test]
fn sums_through_a_relay_are_those_of_the_host() {
    sums_are_those_of_the_host(TransportKind::Tcp);
}
