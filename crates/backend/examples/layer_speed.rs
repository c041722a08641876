//! Times the weight-bound operations of one gpt-oss-20b layer against the machine's read bandwidth.
//!
//! ```text
//! cargo run --release -p tandem-backend --example layer_speed -- [--isa NAME] [--threads N]
//! ```

use std::{error::Error, io, time::Instant};

use tandem_backend::{
    AttentionContext, AttentionKind, Backend, Batch, DenseFormat, ExpertsShape, ExpertsSource, KvFormat, KvShape,
    Precision, Rope, RowSource, Sequence,
    cpu::{CpuBackend, CpuOptions, Isa, read_bandwidth},
};

const HIDDEN: usize = 2880;
const EXPERTS: usize = 32;
const TOP_K: usize = 4;
const QKV: usize = 5120;
/// A slice of the vocabulary, large enough not to stay in any cache.
const LM_HEAD: usize = 60_000;

/// Random bytes made on the spot; `modulo` keeps scale bytes in range.
struct Noise {
    rows: usize,
    row_bytes: usize,
    kind: Kind,
}

#[derive(Clone, Copy)]
enum Kind {
    Bf16,
    Nibbles,
    Scales,
}

impl RowSource for Noise {
    fn rows(&self) -> usize {
        self.rows
    }

    fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()> {
        let mut state = first as u64 + 1;
        for chunk in out.chunks_mut(2) {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let random = (state >> 40) as u16;
            let value = match self.kind {
                // Sign and mantissa at random, exponent 2^-6.
                Kind::Bf16 => (random & 0x807f) | 0x3c80,
                Kind::Nibbles => random,
                Kind::Scales => 0x7777 + (random & 0x0101),
            };
            chunk.copy_from_slice(&value.to_le_bytes()[..chunk.len()]);
        }
        Ok(())
    }
}

fn noise(rows: usize, row_bytes: usize, kind: Kind) -> Noise {
    Noise { rows, row_bytes, kind }
}

fn main() -> Result<(), Box<dyn Error>> {
    let (mut isa, mut threads) = (None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().ok_or_else(|| format!("{name} wants a value"))?;
        match name.as_str() {
            "--isa" => isa = Some(value.parse::<Isa>()?),
            "--threads" => threads = Some(value.parse()?),
            _ => return Err(format!("unknown option {name}; known are --isa and --threads").into()),
        }
    }
    let backend = CpuBackend::new(CpuOptions { precision: Precision::Fast, threads, isa })?;
    println!("{}", backend.describe());
    let bandwidth = probe(&backend)?;
    println!("read bandwidth {:.1} GB/s", bandwidth / 1e9);
    let layer = Layer::load(&backend)?;
    for n in [1, 2, 4, 8] {
        layer.decode(n, bandwidth)?;
    }
    for n in [64, 512] {
        layer.prefill(n)?;
    }
    attention(&backend)?;
    let again = probe(&backend)?;
    println!("read bandwidth again {:.1} GB/s", again / 1e9);
    Ok(())
}

struct Layer<'a> {
    backend: &'a CpuBackend,
    qkv: <CpuBackend as Backend>::Matrix,
    lm_head: <CpuBackend as Backend>::Matrix,
    router: <CpuBackend as Backend>::Matrix,
    router_bias: Vec<f32>,
    experts: <CpuBackend as Backend>::Experts,
}

impl<'a> Layer<'a> {
    fn load(backend: &'a CpuBackend) -> Result<Self, Box<dyn Error>> {
        let begun = Instant::now();
        let shape = ExpertsShape {
            experts: EXPERTS,
            first: 0,
            total: EXPERTS,
            hidden: HIDDEN,
            intermediate: HIDDEN,
            limit: 7.0,
            alpha: 1.702,
        };
        let source = ExpertsSource {
            gate_up_blocks: &noise(EXPERTS * 2 * HIDDEN, HIDDEN / 2, Kind::Nibbles),
            gate_up_scales: &noise(EXPERTS * 2 * HIDDEN, HIDDEN / 32, Kind::Scales),
            gate_up_bias: &noise(EXPERTS, 4 * HIDDEN, Kind::Bf16),
            down_blocks: &noise(EXPERTS * HIDDEN, HIDDEN / 2, Kind::Nibbles),
            down_scales: &noise(EXPERTS * HIDDEN, HIDDEN / 32, Kind::Scales),
            down_bias: &noise(EXPERTS, 2 * HIDDEN, Kind::Bf16),
        };
        let layer = Self {
            backend,
            qkv: backend.matrix(&noise(QKV, 2 * HIDDEN, Kind::Bf16), DenseFormat::Q8)?,
            lm_head: backend.matrix(&noise(LM_HEAD, 2 * HIDDEN, Kind::Bf16), DenseFormat::Q8)?,
            router: backend.matrix(&noise(EXPERTS, 2 * HIDDEN, Kind::Bf16), DenseFormat::Bf16)?,
            router_bias: backend.vector(&noise(1, 2 * EXPERTS, Kind::Bf16))?,
            experts: backend.experts(shape, &source)?,
        };
        println!("loaded in {:.2} s", begun.elapsed().as_secs_f64());
        Ok(layer)
    }

    /// Inputs and outputs for `n` rows; `seed` varies the experts chosen.
    fn input(&self, n: usize, seed: u64) -> Result<<CpuBackend as Backend>::Buffer, Box<dyn Error>> {
        let mut x = self.backend.buffer(n, HIDDEN)?;
        let mut state = seed;
        let values: Vec<f32> = (0..n * HIDDEN)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                (state >> 40) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect();
        self.backend.upload(&mut x, 0, &values)?;
        Ok(x)
    }

    fn decode(&self, n: usize, bandwidth: f64) -> Result<(), Box<dyn Error>> {
        let backend = self.backend;
        let mut out = backend.buffer(n, LM_HEAD)?;
        let x = self.input(n, 1)?;
        let head = best(12, |_| backend.linear(&x, n, &self.lm_head, None, &mut out))?;
        report("lm_head part, q8", n, LM_HEAD * HIDDEN * 34 / 32, head, bandwidth);
        let mut out = backend.buffer(n, QKV)?;
        let qkv = best(40, |_| backend.linear(&x, n, &self.qkv, None, &mut out))?;
        // 15.7 MB: may partly stay in a large L3.
        report("qkv, q8", n, QKV * HIDDEN * 34 / 32, qkv, bandwidth);
        let mut out = backend.buffer(n, HIDDEN)?;
        let mut routing = backend.routing(n, TOP_K)?;
        let routed = best(40, |_| backend.route(&x, n, &self.router, &self.router_bias, &mut routing))?;
        println!("  router                {n:4} rows {:9.1} us", routed * 1e6);
        if n > 1 {
            return Ok(());
        }
        // Every run has other experts, so that none is in cache.
        let mut inputs = Vec::new();
        for seed in 0..16 {
            let x = self.input(n, seed * 7919 + 3)?;
            let mut routing = backend.routing(n, TOP_K)?;
            backend.route(&x, n, &self.router, &self.router_bias, &mut routing)?;
            inputs.push((x, routing));
        }
        let times = best(48, |i| {
            let (x, routing) = &inputs[i % inputs.len()];
            backend.moe(x, n, routing, &self.experts, &mut out)
        })?;
        let mean = mean(48, |i| {
            let (x, routing) = &inputs[i % inputs.len()];
            backend.moe(x, n, routing, &self.experts, &mut out)
        })?;
        let bytes = TOP_K * 3 * HIDDEN * HIDDEN * 17 / 32;
        report("experts (best)", n, bytes, times, bandwidth);
        report("experts (mean)", n, bytes, mean, bandwidth);
        Ok(())
    }

    fn prefill(&self, n: usize) -> Result<(), Box<dyn Error>> {
        let backend = self.backend;
        let x = self.input(n, 5)?;
        let mut out = backend.buffer(n, QKV)?;
        let qkv = best(3, |_| backend.linear(&x, n, &self.qkv, None, &mut out))?;
        println!("  qkv                   {n:4} rows {:9.2} ms {:7.0} GOP/s", qkv * 1e3, rate(n * QKV * HIDDEN, qkv));
        let mut out = backend.buffer(n, HIDDEN)?;
        let mut routing = backend.routing(n, TOP_K)?;
        backend.route(&x, n, &self.router, &self.router_bias, &mut routing)?;
        let moe = best(3, |_| backend.moe(&x, n, &routing, &self.experts, &mut out))?;
        let work = n * TOP_K * 3 * HIDDEN * HIDDEN;
        println!("  experts               {n:4} rows {:9.2} ms {:7.0} GOP/s", moe * 1e3, rate(work, moe));
        Ok(())
    }
}

/// Attention of one layer: a prompt of 512 tokens, and one token after 4,095.
fn attention(backend: &CpuBackend) -> Result<(), Box<dyn Error>> {
    const TOKENS: usize = 4096;
    let (heads, kv_heads, head_dim, block_tokens) = (64, 8, 64, 16);
    let blocks = TOKENS / block_tokens;
    let shape = KvShape { layers: 1, blocks, block_tokens, kv_heads, head_dim, format: KvFormat::Bf16 };
    let mut kv = backend.kv(shape)?;
    let sinks = backend.vector(&noise(1, 2 * heads, Kind::Bf16))?;
    let rope = Rope { inv_freq: (0..32).map(|j| 0.7_f32.powi(j)).collect(), scale: 1.0 };
    let table: Vec<u32> = (0..blocks as u32).collect();
    for (position, n) in [(0, 512), (TOKENS - 1, 1)] {
        let mut qkv = backend.buffer(n, QKV)?;
        backend.upload(&mut qkv, 0, &vec![0.1; n * QKV])?;
        let mut out = backend.buffer(n, heads * head_dim)?;
        let sequences =
            [Sequence { rows: 0..n, position: position as u32, full_blocks: &table, sliding_blocks: &table }];
        let batch = Batch { tokens: &vec![0; n], sequences: &sequences };
        for kind in [AttentionKind::Full, AttentionKind::Sliding { window: 128 }] {
            let context = AttentionContext { batch: &batch, kind, layer: 0, heads };
            let store = best(5, |_| backend.rope_store(&mut qkv, &rope, &context, &mut kv))?;
            let attend = best(20, |_| backend.attention(&qkv, &sinks, &context, &kv, &mut out))?;
            println!(
                "  {kind:?} from {position}, {n} rows: rope and store {:.1} us, attention {:.1} us",
                store * 1e6,
                attend * 1e6
            );
        }
    }
    Ok(())
}

/// Operations per second in units of 10^9, a multiply-add counting two.
fn rate(multiply_adds: usize, seconds: f64) -> f64 {
    2.0 * multiply_adds as f64 / seconds / 1e9
}

fn report(what: &str, n: usize, bytes: usize, seconds: f64, bandwidth: f64) {
    let rate = bytes as f64 / seconds;
    let share = 100.0 * rate / bandwidth;
    println!("  {what:21} {n:4} rows {:9.1} us {:7.1} GB/s {share:5.1} % of read", seconds * 1e6, rate / 1e9);
}

/// The shortest of several runs, in seconds.
fn best<E: Error + 'static>(runs: usize, mut work: impl FnMut(usize) -> Result<(), E>) -> Result<f64, Box<dyn Error>> {
    let mut best = f64::INFINITY;
    for run in 0..runs {
        let begun = Instant::now();
        work(run)?;
        best = best.min(begun.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// The mean of several runs, in seconds.
fn mean<E: Error + 'static>(runs: usize, mut work: impl FnMut(usize) -> Result<(), E>) -> Result<f64, Box<dyn Error>> {
    let begun = Instant::now();
    (0..runs).try_for_each(&mut work)?;
    Ok(begun.elapsed().as_secs_f64() / runs as f64)
}

/// The best of many short probes, so that other programs on the machine disturb it less. 128 MiB is beyond every cache.
fn probe(backend: &CpuBackend) -> Result<f64, Box<dyn Error>> {
    let mut best = 0.0_f64;
    for _ in 0..10 {
        best = best.max(read_bandwidth(backend.threads(), 128 << 20)?);
    }
    Ok(best)
}
