//! Operations on a few rows, at most eight at a time through kernels bound by reading weights, and on single rows of
//! sequences; small operations on any number of rows. More rows go on to `many.rs`.

use std::ffi::c_void;
use std::ops::Range;

use tandem_backend::{AttentionContext, AttentionKind, BackendError, DenseFormat, Draw, ExpertsShape, KvShape, Rope};

use crate::backend::{CudaBackend, State};
use crate::buffer::{CudaBuffer, CudaRouting, CudaVector};
use crate::experts::CudaExperts;
use crate::kernels::Kernel;
use crate::kv::CudaKv;
use crate::launch::{Argument, Launch, arguments};
use crate::many::ManyLinear;
use crate::matrix::CudaMatrix;
use crate::memory::PinnedMemory;
use crate::work::{self, COUNTER_BYTES, MULTIPROCESSORS_MAX};

/// Tokens of one launch of a decode kernel: the narrow side of the tensor-core product.
pub(crate) const TOKENS: usize = 8;
/// Threads of a decode kernel.
pub(crate) const THREADS: usize = 256;
/// Bytes of a block's sums: warps x 16 rows x 8 tokens x 4.
pub(crate) const SUM_BYTES: usize = 8 * 16 * 8 * 4;
/// Matrices of so many row tiles (lm_head) give every warp a tile of its own instead of sharing k.
const MANY_TILES: usize = 2048;
/// Blocks of a decode kernel on a multiprocessor at the same time: enough loads in flight, few prologues.
const BLOCKS_EACH: usize = 3;
/// Rows up to which one launch of the router's decode kernel is faster than the five of many rows.
pub(crate) const ROUTE_ROWS_MAX: usize = 128;
/// Rows from which on staging them once, in a launch of its own, is faster than in every block.
const STAGED_ROWS_MIN: usize = 3;
/// Blocks that share a row tile of the experts' second product.
pub(crate) const DOWN_BLOCKS: usize = 2;
/// Parts into which the router's k is cut, so that more than a few multiprocessors read it.
pub(crate) const ROUTER_PARTS: usize = 4;
/// Most splits of attention over one sequence.
const SPLITS_MAX: usize = 32;
/// f32 values of a split's record for one key head: 8 query heads of 64 sums, a maximum and a total.
const SPLIT_VALUES: usize = 8 * 66;
/// Rows of one gather launch.
pub(crate) const GATHER_MAX: usize = 128;

/// Bytes of a token's activations in shared memory, as `staged_stride` in `decode.cuh` has it.
pub(crate) fn staged_stride(padded_k: usize) -> usize {
    let bytes = padded_k * 2;
    if bytes % 128 == 64 { bytes } else { bytes + 64 }
}

/// Numbers of `Format` in `decode.cuh`.
#[derive(Clone, Copy)]
pub(crate) enum Operand {
    Bf16 = 0,
    Q8 = 1,
    Mxfp4 = 2,
}

/// Rows staged before: addresses of `Prestaged` in `decode.cuh`, 0 where each block is to stage them itself.
#[derive(Clone, Copy, Default)]
struct Prestaged {
    values: u64,
    factors: u64,
}

/// How an operation of a linear layer is asked for.
pub(crate) struct Linear<'a> {
    pub(crate) x: &'a CudaBuffer,
    pub(crate) n: usize,
    pub(crate) weight: &'a CudaMatrix,
    pub(crate) bias: Option<&'a CudaVector>,
    pub(crate) norm: Option<(&'a CudaVector, f32)>,
    pub(crate) add: bool,
}

impl Operand {
    /// Values a weight's operand is made of: a high and a low part where BF16 alone would lose too much.
    fn parts(self) -> usize {
        if matches!(self, Operand::Bf16) { 2 } else { 1 }
    }
}

impl CudaBackend {
    pub(crate) fn simple(&self, kernel: Kernel, grid: usize, arguments: &mut [Argument]) -> Result<(), BackendError> {
        self.device.launch(kernel, Launch { grid: (grid, 1, 1), threads: THREADS, shared: 0 }, arguments)
    }

    /// `out = norm(x) · weightᵀ + bias`, or added to `out`.
    pub(crate) fn linear_rows(&self, op: &Linear<'_>, out: &mut CudaBuffer) -> Result<(), BackendError> {
        let Linear { x, n, weight, bias, norm, add } = *op;
        x.check("linear input", n, weight.cols)?;
        out.check("linear output", n, weight.rows)?;
        check_vector(bias, weight.rows)?;
        check_vector(norm.map(|(norm, _)| norm), weight.cols)?;
        if n > TOKENS {
            return self.linear_many(&ManyLinear { x, n, weight, bias, norm, add }, out);
        }
        let many = weight.row_tiles() >= MANY_TILES;
        let kernels = self.kernels()?;
        let (kernel, format, tile_cols) = match (weight.format, many) {
            (DenseFormat::Bf16, false) => (kernels.linear_decode_bf16, Operand::Bf16, 32),
            (DenseFormat::Bf16, true) => (kernels.linear_decode_bf16_many, Operand::Bf16, 32),
            (DenseFormat::Q8, false) => (kernels.linear_decode_q8, Operand::Q8, 32),
            (DenseFormat::Q8, true) => (kernels.linear_decode_q8_many, Operand::Q8, 32),
            (DenseFormat::Mxfp4, false) => (kernels.linear_decode_mxfp4, Operand::Mxfp4, 64),
            (DenseFormat::Mxfp4, true) => (kernels.linear_decode_mxfp4_many, Operand::Mxfp4, 64),
        };
        let padded = weight.cols.next_multiple_of(tile_cols);
        let token_bytes = format.parts() * staged_stride(padded);
        let tokens = self.tokens_at_once(2 * SUM_BYTES, token_bytes)?;
        let works = if many { weight.row_tiles().div_ceil(8) } else { weight.row_tiles() };
        let grid = works.min(BLOCKS_EACH * self.device.multiprocessors() as usize);
        for first in (0..n).step_by(tokens) {
            let count = tokens.min(n - first);
            let shape = Launch { grid: (grid, 1, 1), threads: THREADS, shared: 2 * SUM_BYTES + count * token_bytes };
            let before = self.stage(x, first..first + count, norm, format, padded, None)?;
            let (norm_at, eps) = norm.map_or((0, 0.0), |(norm, eps)| (norm.memory.at(0), eps));
            self.device.launch(
                kernel,
                shape,
                arguments![
                    x.row(first),
                    x.width,
                    count,
                    weight.cols,
                    weight.rows,
                    weight.tiles.at(0),
                    weight.scales.at(0),
                    address(bias),
                    norm_at,
                    eps,
                    out.row(first),
                    out.width,
                    add,
                    before.values,
                    before.factors
                ],
            )?;
        }
        Ok(())
    }

    /// Stages rows in a launch of its own where that pays; normalised rows then go to `copy` as well.
    fn stage(
        &self,
        x: &CudaBuffer,
        rows: Range<usize>,
        norm: Option<(&CudaVector, f32)>,
        format: Operand,
        padded: usize,
        copy: Option<&CudaBuffer>,
    ) -> Result<Prestaged, BackendError> {
        let n = rows.len();
        if n < STAGED_ROWS_MIN {
            return Ok(Prestaged::default());
        }
        let values_bytes = n * format.parts() * staged_stride(padded);
        let mut state = self.state();
        let bytes = work::staged(n, format.parts(), padded);
        let values = state.scratch.ensure(&self.device, |s| &mut s.staged, bytes, "staged activations")?;
        let before = Prestaged { values, factors: values + values_bytes as u64 };
        let (norm_at, eps) = norm.map_or((0, 0.0), |(norm, eps)| (norm.memory.at(0), eps));
        let copy = copy.map_or(0, |copy| copy.row(rows.start));
        self.simple(
            self.kernels()?.stage_rows,
            n,
            arguments![
                x.row(rows.start),
                x.width,
                x.width,
                padded,
                norm_at,
                eps,
                format as i32,
                before.values,
                before.factors,
                copy
            ],
        )?;
        Ok(before)
    }

    /// Tokens whose activations fit a block's shared memory beside `fixed` bytes and 2 KB of static arrays.
    fn tokens_at_once(&self, fixed: usize, token_bytes: usize) -> Result<usize, BackendError> {
        let room = (self.device.shared_bytes_max() as usize).saturating_sub(fixed + 2048);
        match (room / token_bytes).min(TOKENS) {
            0 => Err(BackendError::Shape(format!("a row of {token_bytes} bytes does not fit shared memory"))),
            tokens => Ok(tokens),
        }
    }

    /// Router, with the norm where given; the normalised rows go to `normed`.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn route_rows(
        &self,
        x: &CudaBuffer,
        n: usize,
        norm: Option<(&CudaVector, f32)>,
        weight: &CudaMatrix,
        bias: &CudaVector,
        normed: Option<&CudaBuffer>,
        out: &CudaRouting,
    ) -> Result<(), BackendError> {
        x.check("router input", n, weight.cols)?;
        check_vector(Some(bias), weight.rows)?;
        let (experts, top_k) = (weight.rows, out.top_k);
        if weight.format != DenseFormat::Bf16 || n > out.rows || top_k > experts || top_k > 8 || experts > 256 {
            return Err(BackendError::Shape(format!("a BF16 router of {n} rows to {top_k} of {experts} experts")));
        }
        if n > ROUTE_ROWS_MAX {
            let Some(((norm, eps), normed)) = norm.zip(normed) else { return self.route_many(x, n, weight, bias, out) };
            self.simple(
                self.kernels()?.rms_norm,
                n,
                arguments![x.row(0), x.width, norm.memory.at(0), eps, normed.row(0)],
            )?;
            return self.route_many(normed, n, weight, bias, out);
        }
        let token_bytes = 2 * staged_stride(weight.cols);
        let tokens = self.tokens_at_once(SUM_BYTES, token_bytes)?;
        let parts = ROUTER_PARTS.min(weight.cols / 32);
        let groups = n.div_ceil(tokens);
        let before = self.stage(x, 0..n, norm, Operand::Bf16, weight.cols, normed)?;
        let mut state = self.state();
        let scratch = &mut state.scratch;
        let bytes = work::routed_logits(groups * tokens, experts);
        let logits = scratch.ensure(&self.device, |s| &mut s.logits, bytes, "router logits")?;
        let arrived = scratch.ensure(&self.device, |s| &mut s.arrived, COUNTER_BYTES, "counters")?;
        let shared = SUM_BYTES + tokens.min(n) * token_bytes;
        let (norm_at, eps) = norm.map_or((0, 0.0), |(norm, eps)| (norm.memory.at(0), eps));
        let (ids, weights) = out.row(0);
        self.device.launch(
            self.kernels()?.route_decode,
            Launch { grid: (weight.row_tiles(), parts, groups), threads: THREADS, shared },
            arguments![
                x.row(0),
                n,
                tokens,
                weight.cols,
                experts,
                weight.tiles.at(0),
                bias.memory.at(0),
                norm_at,
                eps,
                normed.map_or(0, |normed| normed.row(0)),
                logits,
                arrived,
                top_k,
                ids,
                weights,
                before.values,
                before.factors
            ],
        )
    }

    pub(crate) fn moe_rows(
        &self,
        x: &CudaBuffer,
        n: usize,
        routing: &CudaRouting,
        experts: &CudaExperts,
        out: &mut CudaBuffer,
        add: bool,
    ) -> Result<(), BackendError> {
        let ExpertsShape { experts: count, first: first_held, total, hidden, intermediate, limit, alpha } =
            experts.shape;
        x.check("experts' input", n, hidden)?;
        out.check("experts' output", n, hidden)?;
        if n > routing.rows {
            return Err(BackendError::Shape(format!("a routing of {} rows for {n}", routing.rows)));
        }
        self.tally(routing, n)?;
        if n > TOKENS {
            if !add {
                out.clear(n)?;
            }
            return self.moe_many(x, n, routing, experts, out);
        }
        let top_k = routing.top_k;
        let token_bytes = staged_stride(hidden.next_multiple_of(64));
        let tokens = self.tokens_at_once(2 * SUM_BYTES, token_bytes)?;
        let inner_bytes = work::inner(TOKENS * top_k, intermediate);
        let tiles = hidden.div_ceil(16);
        let (inner, partial, arrived) = {
            let scratch = &mut self.state().scratch;
            let device = &self.device;
            let bytes = work::down_partial(tiles);
            (
                scratch.ensure(device, |s| &mut s.inner, inner_bytes, "experts' inner activations")?,
                scratch.ensure(device, |s| &mut s.partial, bytes, "partial sums")?,
                scratch.ensure(device, |s| &mut s.arrived, work::arrived_down(tiles), "counters")?,
            )
        };
        for first in (0..n).step_by(tokens) {
            let some = tokens.min(n - first);
            let before = self.stage(x, first..first + some, None, Operand::Mxfp4, hidden.next_multiple_of(64), None)?;
            let (ids, weights) = routing.row(first);
            let works = ((some * top_k).min(count) * intermediate.div_ceil(8)).div_ceil(2);
            let grid = works.min(BLOCKS_EACH * self.device.multiprocessors() as usize);
            let shape = Launch { grid: (grid, 1, 1), threads: THREADS, shared: 2 * SUM_BYTES + some * token_bytes };
            self.device.launch(
                self.kernels()?.moe_gate_up_decode,
                shape,
                arguments![
                    x.row(first),
                    some,
                    hidden,
                    intermediate,
                    first_held,
                    count,
                    total,
                    top_k,
                    ids,
                    weights,
                    experts.gate_up.tiles.at(0),
                    experts.gate_up.scales.at(0),
                    experts.gate_up_bias.memory.at(0),
                    limit,
                    alpha,
                    inner,
                    before.values,
                    before.factors
                ],
            )?;
            let shape = Launch { grid: (tiles, DOWN_BLOCKS, 1), threads: THREADS, shared: 0 };
            self.device.launch(
                self.kernels()?.moe_down_decode,
                shape,
                arguments![
                    inner,
                    some,
                    intermediate,
                    hidden,
                    first_held,
                    count,
                    total,
                    top_k,
                    ids,
                    weights,
                    experts.down.tiles.at(0),
                    experts.down.scales.at(0),
                    experts.down_bias.memory.at(0),
                    out.row(first),
                    add,
                    partial,
                    arrived
                ],
            )?;
        }
        Ok(())
    }

    /// Attention over rows whose keys are stored, or, with `rotate`, that rotate and store their own.
    pub(crate) fn attend_rows(
        &self,
        qkv: &CudaBuffer,
        rope: Option<&Rope>,
        sinks: &CudaVector,
        context: &AttentionContext<'_>,
        kv: &CudaKv,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        let n = check_rows(context, qkv, kv)?;
        let (heads, kv_heads) = (context.heads, kv.shape.kv_heads);
        out.check("attention output", n, heads * kv.shape.head_dim)?;
        check_vector(Some(sinks), heads)?;
        if Self::attends_many(context, kv) && !self.state().rows()?.single() {
            return self.attention_many(qkv, sinks, context, kv, out);
        }
        let window = window(context.kind);
        let mut state = self.state();
        if !kv.usual() || heads / kv_heads > 8 {
            let rows = state.rows()?;
            let (tables, stride) = rows.tables(context.kind);
            let shape = Launch { grid: (n, heads.div_ceil(8), 1), threads: THREADS, shared: 0 };
            let mut values = [
                qkv.row(0).into(),
                heads.into(),
                sinks.memory.at(0).into(),
                tables.into(),
                stride.into(),
                rows.sequences().into(),
                rows.positions().into(),
                window.into(),
                out.row(0).into(),
            ];
            return self.launch_with_cache(self.kernels()?.attention_any, shape, &mut values, 3, context, kv);
        }
        let (inv_freq, scale) = match rope {
            Some(rope) => (state.rope(&self.device, rope)?, rope.scale),
            None => (0, 0.0),
        };
        let splits = splits(n, kv_heads, window, self.device.multiprocessors() as usize);
        let bytes = split_records(n, kv_heads, splits);
        let partial = state.scratch.ensure(&self.device, |s| &mut s.splits, bytes, "attention's splits")?;
        let counters = work::arrived(n, kv_heads);
        let arrived = state.scratch.ensure(&self.device, |s| &mut s.arrived, counters, "counters")?;
        let rows = state.rows()?;
        let (tables, stride) = rows.tables(context.kind);
        self.device.launch(
            kv.pick(self.kernels()?.attention_decode, self.kernels()?.attention_decode_fp8),
            Launch { grid: (splits, kv_heads, n), threads: THREADS, shared: 0 },
            arguments![
                qkv.row(0),
                heads,
                kv_heads,
                inv_freq,
                scale,
                rope.is_some(),
                sinks.memory.at(0),
                kv.memory.at(0),
                kv.shape.layers,
                context.layer,
                tables,
                stride,
                rows.sequences(),
                rows.positions(),
                window,
                partial,
                arrived,
                out.row(0)
            ],
        )
    }

    pub(crate) fn draw_some(
        &self,
        logits: &CudaBuffer,
        draws: &[(usize, Draw)],
        tokens: &mut [u32],
    ) -> Result<(), BackendError> {
        const LIKELIEST: f32 = 0.0;
        const ALL: i32 = -1;
        let mut list = DrawList {
            uniform: [0.0; DRAWS_MAX],
            inverse_temperature: [LIKELIEST; DRAWS_MAX],
            mask: [ALL; DRAWS_MAX],
            row: [0; DRAWS_MAX],
        };
        let words = logits.width.div_ceil(32);
        let mut state = self.state();
        let State { scratch, chosen, masks, .. } = &mut *state;
        let mut masked = 0;
        for (i, (row, draw)) in draws.iter().enumerate() {
            list.row[i] = *row as i32;
            list.uniform[i] = draw.uniform;
            list.inverse_temperature[i] = if draw.temperature > 0.0 { draw.temperature.recip() } else { LIKELIEST };
            if let Some(mask) = &draw.mask {
                list.mask[i] = masked as i32;
                masks.room(&self.device, words)?.put(masked, mask);
                masked += 1;
            }
        }
        let masks = masks.send(&self.device, masked)?;
        let chunks = scratch.ensure(&self.device, |s| &mut s.chunks, work::chunks(), "chunks of logits")?;
        let arrived = scratch.ensure(&self.device, |s| &mut s.arrived, COUNTER_BYTES, "counters")?;
        let chosen = match chosen {
            Some(chosen) => chosen,
            None => chosen.insert(PinnedMemory::new(&self.device, work::chosen())?),
        };
        let mut arguments = [
            logits.row(0).into(),
            logits.width.into(),
            Argument::Pointer(masks),
            chunks.into(),
            arrived.into(),
            Argument::Pointer(chosen.on_device()),
        ];
        let mut values: Vec<*mut c_void> = arguments.iter_mut().map(Argument::address).collect();
        values.insert(2, std::ptr::from_mut(&mut list).cast());
        let shape = Launch { grid: (DRAW_CHUNKS, draws.len(), 1), threads: THREADS, shared: 0 };
        self.device.launch_raw(self.kernels()?.draw_tokens, shape, &mut values, true)?;
        self.device.synchronize()?;
        for (token, bytes) in tokens.iter_mut().zip(chosen.as_slice().chunks_exact(4)) {
            *token = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        }
        Ok(())
    }

    /// Launches with the cache's description, a structure, as argument number `place`.
    pub(crate) fn launch_with_cache(
        &self,
        kernel: Kernel,
        shape: Launch,
        arguments: &mut [Argument],
        place: usize,
        context: &AttentionContext<'_>,
        kv: &CudaKv,
    ) -> Result<(), BackendError> {
        let KvShape { layers, block_tokens, kv_heads, head_dim, .. } = kv.shape;
        let number = |value: usize| value as i32;
        let mut cache = Cache {
            pool: kv.memory.at(0),
            bytes: number(kv.value_bytes()),
            layers: number(layers),
            layer: number(context.layer),
            kv_heads: number(kv_heads),
            block_tokens: number(block_tokens),
            dim: number(head_dim),
        };
        let mut values: Vec<*mut c_void> = arguments.iter_mut().map(Argument::address).collect();
        values.insert(place, std::ptr::from_mut(&mut cache).cast());
        self.device.launch_raw(kernel, shape, &mut values, true)
    }
}

/// `Cache` of `attention_any.cu`.
#[repr(C)]
struct Cache {
    pool: u64,
    bytes: i32,
    layers: i32,
    layer: i32,
    kv_heads: i32,
    block_tokens: i32,
    dim: i32,
}

/// `RowList` of `rows.cu`.
#[repr(C)]
pub(crate) struct RowList {
    pub(crate) rows: [i32; GATHER_MAX],
}

/// Draws of one launch of `draw.cu`, and blocks of a draw.
pub(crate) const DRAWS_MAX: usize = 64;
pub(crate) const DRAW_CHUNKS: usize = 64;

/// `Draws` of `draw.cu`.
#[repr(C)]
struct DrawList {
    uniform: [f64; DRAWS_MAX],
    inverse_temperature: [f32; DRAWS_MAX],
    mask: [i32; DRAWS_MAX],
    row: [i32; DRAWS_MAX],
}

/// Splits of attention of `n` single rows: two to three blocks a multiprocessor; a window is never split.
pub(crate) fn splits(n: usize, kv_heads: usize, window: usize, multiprocessors: usize) -> usize {
    let wanted = BLOCKS_EACH * multiprocessors.min(MULTIPROCESSORS_MAX) / (n * kv_heads);
    if window > 0 { 1 } else { wanted.clamp(1, SPLITS_MAX) }
}

/// Bytes of what they leave for one another.
pub(crate) fn split_records(n: usize, kv_heads: usize, splits: usize) -> usize {
    if splits > 1 { n * kv_heads * splits * SPLIT_VALUES * 4 } else { 0 }
}

/// The most bytes of any number of rows up to this.
pub(crate) fn split_records_max(rows: usize, kv_heads: usize) -> usize {
    let of = |n| split_records(n, kv_heads, splits(n, kv_heads, 0, MULTIPROCESSORS_MAX));
    (1..=rows).map(of).max().unwrap_or(0)
}

fn address(vector: Option<&CudaVector>) -> u64 {
    vector.map_or(0, |vector| vector.memory.at(0))
}

/// 0: all earlier positions.
pub(crate) fn window(kind: AttentionKind) -> usize {
    match kind {
        AttentionKind::Full => 0,
        AttentionKind::Sliding { window } => window,
    }
}

fn check_vector(vector: Option<&CudaVector>, len: usize) -> Result<(), BackendError> {
    match vector {
        Some(vector) if vector.len != len => {
            Err(BackendError::Shape(format!("a vector of {} where {len} are needed", vector.len)))
        }
        _ => Ok(()),
    }
}

/// Rows of the batch, which `qkv` must hold.
pub(crate) fn check_rows(context: &AttentionContext<'_>, qkv: &CudaBuffer, kv: &CudaKv) -> Result<usize, BackendError> {
    let n = context.batch.tokens.len();
    let KvShape { kv_heads, head_dim, layers, .. } = kv.shape;
    qkv.check("attention input", n, (context.heads + 2 * kv_heads) * head_dim)?;
    if context.layer >= layers || !context.heads.is_multiple_of(kv_heads) {
        let heads = context.heads;
        return Err(BackendError::Shape(format!("layer {} of {layers}, {heads} heads over {kv_heads}", context.layer)));
    }
    Ok(n)
}
