//! A model on two GPUs, each a rank, beside one GPU.

use std::time::{Duration, Instant};

use tandem_backend::{Batch, DenseFormat, Draw, ExchangeMemory, KvFormat, PacketMemory, Passage, Sequence};
use tandem_backend_cuda::CudaBackend;
use tandem_link::TransportKind;
use tandem_model::{
    Checkpoint, Exchange, ExchangeError, ExpertSplit, Formats, Model, ShardPlan, Synthetic, SyntheticKind, WeightStore,
};
use tandem_step::Capacity;
use tandem_testkit::{CheckpointSpec, golden};

use crate::backend_on;
use crate::exchange::{SLOT_BYTES, links, meet, on_both, time_of_exchange, two_gpus};
use crate::golden::checkpoint;

const CONTEXT: u32 = 512;
const RANKS: usize = 2;

fn shard(rank: usize) -> ShardPlan {
    ShardPlan { rank, world: RANKS, experts: ExpertSplit::Slice }
}

#[test]
fn two_gpus_compute_the_bits_of_one_with_both_shards() {
    if !two_gpus("two ranks beside one") {
        return;
    }
    let folder = checkpoint(&CheckpointSpec::A);
    let prompts = golden("a").unwrap();
    let tokens = &prompts[2].tokens;
    let store = Checkpoint::open(folder.path()).unwrap();
    let backend = backend_on("both", 0, true).unwrap();
    let both = Model::load_all(backend, &store, FORMATS, capacity(&store), RANKS, ExpertSplit::Slice);
    let alone = logits(&mut both.unwrap(), tokens);
    // Chunks of the prompt need several slots of this length.
    for kind in [TransportKind::Shm, TransportKind::Tcp] {
        let ranks = on_both(links(kind, 4096), |rank, mut link| {
            let store = Checkpoint::open(folder.path()).unwrap();
            let backend = backend_on("a rank", rank, false).unwrap();
            let model = Model::load(backend, &store, FORMATS, capacity(&store), shard(rank)).unwrap();
            meet(&mut link);
            logits(&mut model.with_exchange(Box::new(link)).unwrap(), tokens)
        });
        assert!(ranks.iter().all(|rank| *rank == alone), "over {kind}");
    }
}

/// Tokens are drawn from each rank's part where it is; one GPU sums weights otherwise, so only the likeliest are the same.
#[test]
fn two_gpus_draw_the_tokens_of_one() {
    if !two_gpus("two ranks that draw") {
        return;
    }
    let folder = checkpoint(&CheckpointSpec::A);
    let store = Checkpoint::open(folder.path()).unwrap();
    let draws: Vec<Draw> = [(0.0, 0.0), (1.0, 0.3), (0.7, 0.999)].map(draw).to_vec();
    let backend = backend_on("both", 0, true).unwrap();
    let both = Model::load_all(backend, &store, FORMATS, capacity(&store), RANKS, ExpertSplit::Slice);
    let all = logits(&mut both.unwrap(), &TOKENS).pop().unwrap();
    let drawn = on_both(links(TransportKind::Shm, SLOT_BYTES), |rank, mut link| {
        let store = Checkpoint::open(folder.path()).unwrap();
        let backend = backend_on("a rank", rank, false).unwrap();
        let model = Model::load(backend, &store, FORMATS, capacity(&store), shard(rank)).unwrap();
        meet(&mut link);
        let mut model = model.with_exchange(Box::new(link)).unwrap();
        logits(&mut model, &TOKENS);
        draws.iter().map(|draw| model.draw(&[(0, draw.clone())]).unwrap()[0]).collect::<Vec<u32>>()
    });
    assert_eq!(drawn[0], drawn[1]);
    for (token, draw) in drawn[0].iter().zip(&draws) {
        assert_covers(&all, draw, *token as usize);
    }
}

/// Prompt of 85 tokens, as [`logits`] takes them.
const TOKENS: [u32; 85] = [3; 85];

fn draw((temperature, uniform): (f32, f64)) -> Draw {
    Draw { temperature, uniform, mask: None }
}

/// Weights are f32 on the device.
const BORDER: f64 = 1e-4;

fn assert_covers(logits: &[f32], draw: &Draw, token: usize) {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if draw.temperature == 0.0 {
        return assert_eq!(token, logits.iter().position(|logit| *logit == largest).unwrap());
    }
    let weight = |logit: &f32| (f64::from(logit - largest) / f64::from(draw.temperature)).exp();
    let total: f64 = logits.iter().map(weight).sum();
    let before = logits[..token].iter().map(weight).sum::<f64>() / total;
    let after = before + weight(&logits[token]) / total;
    assert!((before - BORDER..=after + BORDER).contains(&draw.uniform), "{draw:?}: {token} covers {before} to {after}");
}

/// How long a decoded token takes on two GPUs and on one, the shape named by `TANDEM_TEST_SPEED` (20b or 120b), beside what its
/// parts make: a rank's step without anyone to wait for, which is half the bytes in the same launches, and twice a layer what an
/// exchange takes longer than it does then.
#[test]
fn speed_of_two_beside_one() {
    let Ok(shape) = std::env::var("TANDEM_TEST_SPEED") else { return };
    if !two_gpus("speed") {
        return;
    }
    let kind: SyntheticKind = shape.parse().unwrap();
    let load = |rank: usize, plan: ShardPlan| {
        let store = Synthetic::new(kind);
        let backend = backend_on("speed", rank, false).unwrap();
        Model::load(backend, &store, FORMATS, capacity(&store), plan).unwrap()
    };
    let one = decode(load(0, ShardPlan::UNDIVIDED));
    let half = decode(load(0, shard(0)).with_exchange(Box::new(Nobody::new())).unwrap());
    let hidden = kind.config().hidden;
    let alone = time_of_exchange(&backend_on("speed", 0, false).unwrap(), &mut Nobody::new(), hidden);
    let together = on_both(links(TransportKind::Shm, SLOT_BYTES), |rank, mut link| {
        time_of_exchange(&backend_on("speed", rank, false).unwrap(), &mut link, hidden)
    });
    let two = on_both(links(TransportKind::Shm, SLOT_BYTES), |rank, mut link| {
        let model = load(rank, shard(rank));
        meet(&mut link);
        decode(model.with_exchange(Box::new(link)).unwrap())
    });
    let (two, together, exchanges) = (two[0], together[0], 2 * kind.config().layers() as u32);
    let predicted = half + exchanges * together.saturating_sub(alone);
    let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
    println!("{shape}: a decoded token takes one GPU {one:?}, two {two:?}: {:.3} times as fast", ratio(one, two));
    println!("  half of it by itself {half:?}; an exchange {together:?}, by itself {alone:?}, {exchanges} of them");
    println!("  so {predicted:?} is predicted, and measured {:.3} times that", ratio(two, predicted));
}

/// The other rank left out: a device sends its packets and waits for nobody's.
struct Nobody {
    memory: Box<[[u64; 8]]>,
}

impl Nobody {
    const MESSAGE_BYTES: usize = 64 << 10;
    const SLOT_BYTES: usize = 4 * Self::MESSAGE_BYTES;
    /// Before the slots: the abort word, on a page of its own.
    const SLOTS_AT: usize = 4096;

    fn new() -> Self {
        Self { memory: vec![[0; 8]; (Self::SLOTS_AT + 2 * Self::SLOT_BYTES) / 64].into() }
    }
}

impl Exchange for Nobody {
    fn rank(&self) -> usize {
        0
    }

    fn world(&self) -> usize {
        RANKS
    }

    fn deadline(&self) -> Duration {
        Duration::from_secs(60)
    }

    fn all_reduce(&mut self, _values: &mut [f32]) -> Result<(), ExchangeError> {
        Err(ExchangeError::new("nobody is there"))
    }

    /// The others say what this rank does.
    fn all_gather(&mut self, mine: &[u8], all: &mut [u8]) -> Result<(), ExchangeError> {
        all.chunks_exact_mut(mine.len()).for_each(|theirs| theirs.copy_from_slice(mine));
        Ok(())
    }

    fn memory(&self) -> Option<ExchangeMemory> {
        let start = self.memory.as_ptr() as usize;
        let slot = |slot: usize| start + Self::SLOTS_AT + slot * Self::SLOT_BYTES;
        Some(ExchangeMemory {
            rank: 0,
            world: 1,
            message_bytes: Self::MESSAGE_BYTES,
            mappings: vec![(start, size_of_val(&*self.memory))],
            abort: start,
            passage: Passage::Packets(PacketMemory {
                sent: [slot(0), slot(1)],
                received: vec![[0; 2]],
                slot_bytes: Self::SLOT_BYTES,
            }),
        })
    }

    fn number_for_device(&mut self) -> Result<u64, ExchangeError> {
        Ok(1)
    }

    fn relay(&mut self, _exchanges: u64, _bytes: usize) -> Result<(), ExchangeError> {
        Ok(())
    }
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

/// Of the last rows of: a chunk, a short one, then token by token.
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
fn decode(mut model: Model<CudaBackend>) -> Duration {
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
