//! The CPU backend: weights repacked into tiles of sixteen rows, kernels written once for all instruction sets.

#![allow(clippy::needless_range_loop, reason = "a lane or a row indexes several arrays at once")]

mod attention;
mod bandwidth;
mod buffer;
mod dot;
mod experts;
mod isa;
mod kv;
mod linear;
mod math;
mod matrix;
mod moe;
mod mxfp4;
mod norm;
mod pages;
mod pool;
mod route;
mod rows;
mod simd;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use bandwidth::read_bandwidth;
pub use buffer::CpuBuffer;
pub use experts::CpuExperts;
pub use isa::Isa;
pub use kv::CpuKv;
pub use matrix::CpuMatrix;
pub use route::CpuRouting;

use attention::Attention;
use dot::{Bf16, Dot, Mxfp4F32, Mxfp4Split, Q8F32, Q8Split};
use linear::Linear;
use moe::{ExpertPlan, Moe};
use pages::Shared;
use pool::Pool;
use rows::{F32Rows, F32Scratch, Rows, SplitScratch};

use crate::{
    AttentionContext, Backend, BackendError, Batch, DenseFormat, ExpertCount, ExpertsShape, ExpertsSource, KvShape,
    Precision, Rope, RowSource,
};

/// How a [`CpuBackend`] computes.
#[derive(Clone, Copy, Debug)]
pub struct CpuOptions {
    /// Exact or fast.
    pub precision: Precision,
    /// Threads, the caller's included; by default one per available core.
    pub threads: Option<usize>,
    /// Instruction set; by default the best there is.
    pub isa: Option<Isa>,
}

/// The CPU backend.
pub struct CpuBackend {
    pool: Pool,
    isa: Isa,
    precision: Precision,
    scratch: Mutex<Scratch>,
    /// Whether the step under way has one row of every sequence.
    single: AtomicBool,
    /// What [`Backend::count_experts`] asked for; `None`: nothing.
    counted: Mutex<Option<ExpertCount>>,
}

/// What lives only within an operation.
#[derive(Default)]
struct Scratch {
    /// Activations going into the experts, quantised twice as all of these are.
    x: SplitScratch,
    /// Going into a dense matrix.
    split: SplitScratch,
    /// Between gate-up and down.
    z: SplitScratch,
    /// The same in f32.
    z_f32: F32Scratch,
    /// Router logits.
    logits: F32Scratch,
}

impl CpuBackend {
    /// Starts the threads; fails where the instruction set asked for is missing.
    pub fn new(options: CpuOptions) -> Result<Self, BackendError> {
        let isa = options.isa.unwrap_or_else(Isa::detect);
        if !isa.available() {
            return Err(BackendError::Unsupported(format!("this machine has no {isa}")));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = options.threads.unwrap_or(cores).max(1);
        let pool = Pool::new(threads)
            .map_err(|e| BackendError::Unsupported(format!("could not start {threads} compute threads: {e}")))?;
        Ok(Self {
            pool,
            isa,
            precision: options.precision,
            scratch: Mutex::default(),
            single: AtomicBool::new(false),
            counted: Mutex::default(),
        })
    }

    /// The instruction set in use.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Threads in use.
    pub fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn exact(&self) -> bool {
        self.precision == Precision::Exact
    }

    fn scratch(&self) -> MutexGuard<'_, Scratch> {
        self.scratch.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn counted(&self) -> MutexGuard<'_, Option<ExpertCount>> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// `out = x · weightᵀ + bias` with one pairing of formats.
    fn multiply<D: Dot>(
        &self,
        x: D::Rows,
        n: usize,
        weight: &CpuMatrix,
        bias: Option<&[f32]>,
        (out, width): (Shared<f32>, usize),
    ) {
        let op = Linear::<D> {
            tiles: &weight.tiles,
            tile_bytes: weight.tile_bytes(),
            cols: weight.cols,
            features: weight.rows,
            x,
            n,
            bias,
            out,
            width,
        };
        op.run(&self.pool, self.isa);
    }

    /// Rows of `x` as they are.
    fn plain(&self, x: &CpuBuffer) -> F32Rows {
        // Only read from: `Rows` has one type for both directions.
        F32Rows::new(Shared::reading(&x.values), x.width)
    }

    /// Writes the first `n` rows of `x` to `rows`, quantised.
    fn quantise<R: Rows>(&self, x: &CpuBuffer, n: usize, rows: R) -> R {
        // SAFETY: the instruction set was checked in `new`; every row is written by one thread.
        let one = |row: usize| unsafe { self.isa.run(norm::Quantise { values: x.row(row), rows, row }) };
        if n < 8 {
            (0..n).for_each(one);
        } else {
            self.pool.for_each(n, &one);
        }
        rows
    }
}

impl Backend for CpuBackend {
    type Buffer = CpuBuffer;
    type Matrix = CpuMatrix;
    type Vector = Vec<f32>;
    type Experts = CpuExperts;
    type Kv = CpuKv;
    type Routing = CpuRouting;

    fn describe(&self) -> String {
        let activations = if self.exact() { "f32 activations, exact" } else { "activations int8 twice over" };
        let (isa, threads) = (self.isa, self.pool.threads());
        let plural = if threads == 1 { "" } else { "s" };
        format!("cpu {isa}, {threads} thread{plural}, {activations}")
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<CpuBuffer, BackendError> {
        CpuBuffer::new(rows, width)
    }

    fn routing(&self, rows: usize, top_k: usize) -> Result<CpuRouting, BackendError> {
        if top_k == 0 {
            return Err(BackendError::Shape("a routing to no experts".to_owned()));
        }
        Ok(CpuRouting { rows, top_k, experts: vec![0; rows * top_k], weights: vec![0.0; rows * top_k] })
    }

    fn kv(&self, shape: KvShape) -> Result<CpuKv, BackendError> {
        CpuKv::new(shape)
    }

    fn vector(&self, source: &dyn RowSource) -> Result<Vec<f32>, BackendError> {
        experts::read_bf16(source, "a vector")
    }

    fn matrix(&self, source: &dyn RowSource, format: DenseFormat) -> Result<CpuMatrix, BackendError> {
        CpuMatrix::load(&self.pool, source, format)
    }

    fn experts(&self, shape: ExpertsShape, source: &ExpertsSource<'_>) -> Result<CpuExperts, BackendError> {
        CpuExperts::load(&self.pool, shape, source)
    }

    fn download(&self, buffer: &CpuBuffer, first: usize, out: &mut [f32]) -> Result<(), BackendError> {
        let values = buffer.values.get(first * buffer.width..first * buffer.width + out.len());
        let values = values.ok_or_else(|| beyond(buffer, first, out.len()))?;
        out.copy_from_slice(values);
        Ok(())
    }

    fn upload(&self, buffer: &mut CpuBuffer, first: usize, values: &[f32]) -> Result<(), BackendError> {
        let start = first * buffer.width;
        if start + values.len() > buffer.values.len() {
            return Err(beyond(buffer, first, values.len()));
        }
        buffer.values[start..start + values.len()].copy_from_slice(values);
        Ok(())
    }

    fn on_host<E: From<BackendError>>(
        &self,
        buffer: &mut CpuBuffer,
        values: usize,
        change: &mut dyn FnMut(&mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        if values > buffer.values.len() {
            return Err(beyond(buffer, 0, values).into());
        }
        change(&mut buffer.values[..values])
    }

    fn begin(&self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.single.store(batch.sequences.len() == batch.tokens.len(), Ordering::Relaxed);
        Ok(())
    }

    fn count_experts(&self, on: bool) -> Result<(), BackendError> {
        *self.counted() = on.then(ExpertCount::default);
        Ok(())
    }

    fn experts_counted(&self) -> Result<ExpertCount, BackendError> {
        Ok(self.counted().as_mut().map(std::mem::take).unwrap_or_default())
    }

    fn copy_blocks(&self, kv: &mut CpuKv, pairs: &[(u32, u32)]) -> Result<(), BackendError> {
        kv.copy_blocks(pairs)
    }

    fn embed(&self, table: &CpuMatrix, batch: &Batch<'_>, out: &mut CpuBuffer) -> Result<(), BackendError> {
        let tokens = batch.tokens;
        out.check("embedding", tokens.len(), table.cols)?;
        if table.format != DenseFormat::Bf16 {
            return Err(BackendError::Shape("the embedding table must be BF16".to_owned()));
        }
        for (row, token) in tokens.iter().enumerate() {
            if *token as usize >= table.rows {
                return Err(BackendError::Shape(format!("token {token} of a vocabulary of {}", table.rows)));
            }
            table.unpack_bf16_row(*token as usize, out.row_mut(row));
        }
        Ok(())
    }

    fn rms_norm(
        &self,
        x: &CpuBuffer,
        n: usize,
        weight: &Vec<f32>,
        eps: f32,
        out: &mut CpuBuffer,
    ) -> Result<(), BackendError> {
        x.check("norm input", n, weight.len())?;
        out.check("norm output", n, weight.len())?;
        let width = x.width;
        let results = Shared::new(&mut out.values);
        let one = |row: usize| {
            // SAFETY: every row is written by one thread; the instruction set was checked in `new`.
            unsafe {
                let out = results.slice(row * width, width);
                self.isa.run(norm::RmsNorm { x: x.row(row), weight, eps, out });
            }
        };
        if n < 16 {
            (0..n).for_each(one);
        } else {
            self.pool.for_each(n, &one);
        }
        Ok(())
    }

    fn linear(
        &self,
        x: &CpuBuffer,
        n: usize,
        weight: &CpuMatrix,
        bias: Option<&Vec<f32>>,
        out: &mut CpuBuffer,
    ) -> Result<(), BackendError> {
        x.check("linear input", n, weight.cols)?;
        out.check("linear output", n, weight.rows)?;
        check_bias(bias.map(Vec::as_slice), weight.rows)?;
        let bias = bias.map(Vec::as_slice);
        let to = (Shared::new(&mut out.values), weight.rows);
        match (weight.format, self.precision) {
            (DenseFormat::Bf16, Precision::Exact) => self.multiply::<Bf16<true>>(self.plain(x), n, weight, bias, to),
            (DenseFormat::Bf16, Precision::Fast) => self.multiply::<Bf16<false>>(self.plain(x), n, weight, bias, to),
            (DenseFormat::Q8, Precision::Exact) => self.multiply::<Q8F32>(self.plain(x), n, weight, bias, to),
            (DenseFormat::Q8, Precision::Fast) => {
                let mut scratch = self.scratch();
                let x = self.quantise(x, n, scratch.split.rows(n, x.width)?);
                self.multiply::<Q8Split>(x, n, weight, bias, to);
            }
            (DenseFormat::Mxfp4, Precision::Exact) => self.multiply::<Mxfp4F32>(self.plain(x), n, weight, bias, to),
            (DenseFormat::Mxfp4, Precision::Fast) => {
                let mut scratch = self.scratch();
                let x = self.quantise(x, n, scratch.split.rows(n, x.width)?);
                self.multiply::<Mxfp4Split>(x, n, weight, bias, to);
            }
        }
        Ok(())
    }

    fn rope_store(
        &self,
        qkv: &mut CpuBuffer,
        rope: &Rope,
        context: &AttentionContext<'_>,
        kv: &mut CpuKv,
    ) -> Result<(), BackendError> {
        check_rows(context, qkv)?;
        let width = qkv.width;
        attention::rope_store(&self.pool, Shared::new(&mut qkv.values), width, rope, context, kv)
    }

    fn attention(
        &self,
        qkv: &CpuBuffer,
        sinks: &Vec<f32>,
        context: &AttentionContext<'_>,
        kv: &CpuKv,
        out: &mut CpuBuffer,
    ) -> Result<(), BackendError> {
        check_rows(context, qkv)?;
        let (heads, dim) = (context.heads, kv.shape.head_dim);
        qkv.check("attention input", context.batch.tokens.len(), (heads + 2 * kv.shape.kv_heads) * dim)?;
        out.check("attention output", context.batch.tokens.len(), heads * dim)?;
        check_bias(Some(sinks), heads)?;
        let op = Attention {
            qkv: &qkv.values,
            width: qkv.width,
            sinks,
            context,
            kv,
            out_width: out.width,
            out: Shared::new(&mut out.values),
            exact: self.exact(),
        };
        op.run(&self.pool, self.isa)
    }

    fn route(
        &self,
        x: &CpuBuffer,
        n: usize,
        weight: &CpuMatrix,
        bias: &Vec<f32>,
        out: &mut CpuRouting,
    ) -> Result<(), BackendError> {
        x.check("router input", n, weight.cols)?;
        check_bias(Some(bias), weight.rows)?;
        if weight.format != DenseFormat::Bf16 || n > out.rows || out.top_k > weight.rows {
            let (top_k, experts) = (out.top_k, weight.rows);
            return Err(BackendError::Shape(format!("a BF16 router of {n} rows to {top_k} of {experts} experts")));
        }
        let experts = weight.rows;
        let mut scratch = self.scratch();
        let logits = scratch.logits.values(n * experts)?;
        if self.exact() {
            self.multiply::<Bf16<true>>(self.plain(x), n, weight, Some(bias), (logits, experts));
        } else {
            self.multiply::<Bf16<false>>(self.plain(x), n, weight, Some(bias), (logits, experts));
        }
        for row in 0..n {
            let ranks = row * out.top_k..(row + 1) * out.top_k;
            // SAFETY: written by `multiply`, which is through.
            let logits = unsafe { logits.slice(row * experts, experts) };
            route::choose(logits, &mut out.experts[ranks.clone()], &mut out.weights[ranks]);
        }
        Ok(())
    }

    fn moe(
        &self,
        x: &CpuBuffer,
        n: usize,
        routing: &CpuRouting,
        experts: &CpuExperts,
        out: &mut CpuBuffer,
    ) -> Result<(), BackendError> {
        let shape = &experts.shape;
        x.check("experts' input", n, shape.hidden)?;
        out.check("experts' output", n, shape.hidden)?;
        let chosen = routing.experts.get(..n * routing.top_k);
        if !chosen.is_some_and(|c| c.iter().all(|e| (*e as usize) < shape.total)) {
            return Err(BackendError::Shape(format!("a routing of {n} rows over {} experts", shape.total)));
        }
        let plan = ExpertPlan::new(routing, n, shape.first..shape.first + shape.experts);
        if let Some(counted) = self.counted().as_mut().filter(|_| self.single.load(Ordering::Relaxed)) {
            *counted += ExpertCount { layers: 1, distinct: plan.distinct() as u64 };
        }
        let mut scratch = self.scratch();
        let (width, to) = (out.width, Shared::new(&mut out.values));
        if self.exact() {
            let z = F32Rows::new(scratch.z_f32.values(plan.slots() * shape.intermediate)?, shape.intermediate);
            let x = self.plain(x);
            let op = Moe::<Mxfp4F32> { plan: &plan, routing, experts, n, x, z, out: to, width };
            op.run(&self.pool, self.isa);
        } else {
            let x = self.quantise(x, n, scratch.x.rows(n, x.width)?);
            let z = scratch.z.rows(plan.slots(), shape.intermediate)?;
            let op = Moe::<Mxfp4Split> { plan: &plan, routing, experts, n, x, z, out: to, width };
            op.run(&self.pool, self.isa);
        }
        Ok(())
    }

    fn add(&self, x: &mut CpuBuffer, n: usize, y: &CpuBuffer) -> Result<(), BackendError> {
        y.check("sum", n, x.width)?;
        x.check("sum", n, x.width)?;
        let len = n * x.width;
        for (x, y) in x.values[..len].iter_mut().zip(&y.values[..len]) {
            *x += y;
        }
        Ok(())
    }

    fn gather(&self, x: &CpuBuffer, rows: &[usize], out: &mut CpuBuffer) -> Result<(), BackendError> {
        out.check("gathered rows", rows.len(), x.width)?;
        for (to, from) in rows.iter().enumerate() {
            x.check("rows to gather", from + 1, x.width)?;
            out.row_mut(to).copy_from_slice(x.row(*from));
        }
        Ok(())
    }
}

fn beyond(buffer: &CpuBuffer, first: usize, values: usize) -> BackendError {
    let (rows, width) = (buffer.rows, buffer.width);
    BackendError::Shape(format!("{values} values from row {first} of a buffer [{rows}, {width}]"))
}

fn check_bias(bias: Option<&[f32]>, len: usize) -> Result<(), BackendError> {
    match bias {
        Some(bias) if bias.len() != len => {
            Err(BackendError::Shape(format!("a vector of {} for {len} outputs", bias.len())))
        }
        _ => Ok(()),
    }
}

/// The sequences' rows must cover the batch and the buffer hold them.
fn check_rows(context: &AttentionContext<'_>, qkv: &CpuBuffer) -> Result<(), BackendError> {
    let mut next = 0;
    for sequence in context.batch.sequences {
        if sequence.rows.start != next || sequence.rows.is_empty() {
            return Err(BackendError::Shape(format!("sequence rows {:?} after row {next}", sequence.rows)));
        }
        next = sequence.rows.end;
    }
    if next != context.batch.tokens.len() || next > qkv.rows {
        let (tokens, rows) = (context.batch.tokens.len(), qkv.rows);
        return Err(BackendError::Shape(format!("sequences of {next} rows, {tokens} tokens, a buffer of {rows}")));
    }
    Ok(())
}
