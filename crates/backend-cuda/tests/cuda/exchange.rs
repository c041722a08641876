//! Two ranks on two GPUs, which exchange partial sums in their kernels.

use std::time::{Duration, Instant};

use tandem_backend::{Backend, Batch, DenseFormat, Draw, KvFormat, Sequence};
use tandem_backend_cuda::CudaBackend;
use tandem_link::{Endpoint, Link, Settings};
use tandem_model::{
    Checkpoint, Exchange, ExpertSplit, Formats, Model, ModelError, ShardPlan, Synthetic, SyntheticKind, WeightStore,
};
use tandem_step::Capacity;
use tandem_testkit::{CheckpointSpec, golden};

use crate::golden::checkpoint;
use crate::{backend_on, gpus};

const PATIENCE: Duration = Duration::from_secs(60);
const CONTEXT: u32 = 512;

fn links() -> Vec<Link> {
    let settings = Settings::default();
    let endpoints: Vec<Endpoint> = (0..2).map(|_| Endpoint::shm(&settings).unwrap()).collect();
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
fn on_both<T: Send, R: Send>(ranks: Vec<T>, body: impl Fn(usize, T) -> R + Sync) -> Vec<R> {
    let body = &body;
    std::thread::scope(|scope| {
        let ranks: Vec<_> = ranks.into_iter().enumerate().map(|(i, rank)| scope.spawn(move || body(i, rank))).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}

/// Whether the test can run; says so where it cannot.
fn two_gpus(what: &str) -> bool {
    let found = gpus();
    if found < 2 {
        eprintln!("skipped: {what} (needs two GPUs, there are {found})");
    }
    found >= 2
}

#[test]
fn exchanged_sums_are_those_of_the_host_and_quick() {
    const ROUNDS: usize = 200;
    const EACH: usize = 72;
    if !two_gpus("exchanged sums") {
        return;
    }
    let results = on_both(links(), |rank, mut link| {
        let backend = backend_on("exchanged sums", rank, false).unwrap();
        assert!(backend.join(Exchange::memory(&link).as_ref()).unwrap());
        let mut times = Vec::new();
        let mut sums = Vec::new();
        for width in [64, 2_880, 23_040] {
            let mine: Vec<f32> = (0..width).map(|i| ((i * 7 + rank * 13) % 101) as f32 * 0.37 - 11.0).collect();
            let (mut part, mut into) = (backend.buffer(1, width).unwrap(), backend.buffer(1, width).unwrap());
            backend.upload(&mut part, 0, &mine).unwrap();
            let table = [0];
            let sequence = Sequence { rows: 0..1, position: 0, full_blocks: &table, sliding_blocks: &table };
            let sequences = [sequence];
            let batch = Batch { tokens: &[0], sequences: &sequences };
            let mut best = Duration::MAX;
            for round in 0..ROUNDS {
                backend.upload(&mut into, 0, &vec![1.0; width]).unwrap();
                backend.number_exchanges(link.number_for_device().unwrap()).unwrap();
                backend.begin(&batch).unwrap();
                let mut run = || -> Result<(), tandem_backend::BackendError> {
                    (0..EACH).try_for_each(|_| backend.exchange_add(&part, 1, &mut into))
                };
                // Recorded on its second run; another width is another step, so it is run by itself once.
                let started = Instant::now();
                if round == 0 { run() } else { backend.repeat(&batch, &mut run) }.unwrap();
                link.relay(EACH as u64, width * 4).unwrap();
                let mut first = [0.0];
                backend.download(&into, 0, &mut first).unwrap();
                if round > 2 {
                    best = best.min(started.elapsed());
                }
            }
            let mut got = vec![0.0; width];
            backend.download(&into, 0, &mut got).unwrap();
            sums.push(got);
            times.push(best / EACH as u32);
            // The next width has other buffers: recorded steps are dropped.
            backend.join(None).unwrap();
            backend.join(Exchange::memory(&link).as_ref()).unwrap();
        }
        (sums, times)
    });
    for (width, (index, time)) in [64, 2_880, 23_040].into_iter().zip(results[0].1.iter().enumerate()) {
        println!("an all-reduce of {width} f32 between two GPUs, {EACH} of them in a graph: {time:?} each");
        let parts = |rank: usize, i: usize| ((i * 7 + rank * 13) % 101) as f32 * 0.37 - 11.0;
        let wanted: Vec<f32> =
            (0..width).map(|i| (0..EACH).fold(1.0, |sum, _| sum + (parts(0, i) + parts(1, i)))).collect();
        assert!(results.iter().all(|(sums, _)| sums[index] == wanted), "{width} values");
    }
}

#[test]
fn two_gpus_compute_the_bits_of_one_with_both_shards() {
    if !two_gpus("two ranks beside one") {
        return;
    }
    let folder = checkpoint(&CheckpointSpec::A);
    let prompts = golden("a").unwrap();
    let tokens = &prompts[2].tokens;
    let experts = ExpertSplit::Slice;
    let store = Checkpoint::open(folder.path()).unwrap();
    let both = Model::load_all(backend_on("both", 0, true).unwrap(), &store, FORMATS, capacity(&store), 2, experts);
    let alone = logits(&mut both.unwrap(), tokens);
    let ranks = on_both(links(), |rank, link| {
        let store = Checkpoint::open(folder.path()).unwrap();
        let plan = ShardPlan { rank, world: 2, experts };
        let backend = backend_on("a rank", rank, false).unwrap();
        let model = Model::load(backend, &store, FORMATS, capacity(&store), plan).unwrap();
        logits(&mut model.with_exchange(Box::new(link)).unwrap(), tokens)
    });
    assert!(ranks.iter().all(|rank| *rank == alone));
}

/// How long a decoded token takes on two GPUs and on one, the shape named by `TANDEM_TEST_SPEED` (20b or 120b).
#[test]
fn speed_of_two_beside_one() {
    let Ok(shape) = std::env::var("TANDEM_TEST_SPEED") else { return };
    if !two_gpus("speed") {
        return;
    }
    let kind: SyntheticKind = shape.parse().unwrap();
    let one = decode(Model::load(
        backend_on("alone", 0, false).unwrap(),
        &Synthetic::new(kind),
        FORMATS,
        capacity(&Synthetic::new(kind)),
        ShardPlan::UNDIVIDED,
    ));
    let two = on_both(links(), |rank, link| {
        let store = Synthetic::new(kind);
        let plan = ShardPlan { rank, world: 2, experts: ExpertSplit::Slice };
        let model = Model::load(backend_on("a rank", rank, false).unwrap(), &store, FORMATS, capacity(&store), plan);
        decode(model.unwrap().with_exchange(Box::new(link)))
    });
    println!("{shape}: a decoded token takes one GPU {one:?}, two {:?}", two[0]);
}

const FORMATS: Formats = Formats { dense: DenseFormat::Q8, kv: KvFormat::Bf16 };

fn capacity(store: &dyn WeightStore) -> Capacity {
    Capacity {
        block_tokens: 16,
        full_blocks: CONTEXT / 16,
        sliding_blocks: CONTEXT / 16,
        window: store.config().sliding_window as u32,
        context: CONTEXT,
        max_streams: 1,
        max_step_tokens: CONTEXT,
        layers: store.config().layers() as u32,
        vocab: store.config().vocab as u32,
    }
}

fn step(model: &mut Model<CudaBackend>, tokens: &[u32], position: usize) {
    let table: Vec<u32> = (0..CONTEXT / 16).collect();
    let sequence =
        Sequence { rows: 0..tokens.len(), position: position as u32, full_blocks: &table, sliding_blocks: &table };
    model.forward(&Batch { tokens, sequences: &[sequence] }).unwrap();
}

/// Of the last rows of: a chunk too long for kernels to exchange, a short one, then token by token.
fn logits(model: &mut Model<CudaBackend>, tokens: &[u32]) -> Vec<Vec<f32>> {
    let mut all = Vec::new();
    let mut at = 0;
    for len in [60, 5].into_iter().chain([1; 20]) {
        step(model, &tokens[at..at + len], at);
        model.logits(&[len - 1], |_, row| all.push(row.to_vec())).unwrap();
        at += len;
    }
    all
}

/// Median time of a decoded token, the likeliest each time.
fn decode(model: Result<Model<CudaBackend>, ModelError>) -> Duration {
    let mut model = model.unwrap();
    step(&mut model, &[1, 2, 3, 4], 0);
    let mut times = Vec::new();
    let mut token = 5;
    for position in 4..204 {
        let started = Instant::now();
        step(&mut model, &[token], position);
        let draw = Draw { temperature: 0.0, uniform: 0.0, mask: None };
        token = model.draw(&[(0, draw)]).unwrap()[0];
        times.push(started.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}
