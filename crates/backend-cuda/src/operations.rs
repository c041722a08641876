//! The operations: checks, shapes of launches, arguments.

use std::ffi::c_void;

use cudarc::driver::result;
use tandem_backend::{
    AttentionContext, AttentionKind, Backend, BackendError, Batch, DenseFormat, Draw, ExpertsShape, ExpertsSource,
    KvShape, Rope, RowSource, StepLimits,
};

use crate::backend::{CudaBackend, ensure};
use crate::buffer::{CudaBuffer, CudaRouting, CudaVector};
use crate::device::{Device, failed};
use crate::experts::{CudaExperts, Loader};
use crate::kernels::Kernel;
use crate::kv::CudaKv;
use crate::launch::{Argument, Launch, arguments};
use crate::many::ManyLinear;
use crate::matrix::CudaMatrix;
use crate::memory::DeviceMemory;
use crate::rows::StepShape;

/// Tokens of one launch of a decode kernel: the narrow side of the tensor-core product.
const TOKENS: usize = 8;
/// Threads of a decode kernel.
const THREADS: usize = 256;
/// Bytes of a block's sums: warps x 16 rows x 8 tokens x 4.
const SUM_BYTES: usize = 8 * 16 * 8 * 4;
/// Matrices of so many row tiles (lm_head) give every warp a tile of its own instead of sharing k.
const MANY_TILES: usize = 2048;
/// Blocks of a decode kernel on a multiprocessor at the same time: enough loads in flight, few prologues.
const BLOCKS_EACH: usize = 3;
/// Parts into which the router's k is cut, so that more than a few multiprocessors read it.
const ROUTER_PARTS: usize = 4;
/// Most splits of attention over one sequence.
const SPLITS_MAX: usize = 32;
/// f32 values of a split's record for one key head: 8 query heads of 64 sums, a maximum and a total.
const SPLIT_VALUES: usize = 8 * 66;
/// Rows of one gather launch.
const GATHER_MAX: usize = 128;

impl Device {
    /// Copies values to the device and waits. On our stream: the driver's synchronous copy may return before the values
    /// have arrived, and its own stream is not ordered with ours.
    pub(crate) fn upload(&self, to: u64, values: &[f32]) -> Result<(), BackendError> {
        self.bind()?;
        // SAFETY: the caller checked that `to` has room; `values` outlives the wait.
        unsafe { result::memcpy_htod_async(to, values, self.stream()) }
            .map_err(|error| failed("copying to the device", error))?;
        self.synchronize()
    }
}

/// Bytes of a token's activations in shared memory, as `staged_stride` in `decode.cuh` has it.
fn staged_stride(padded_k: usize) -> usize {
    let bytes = padded_k * 2;
    if bytes % 128 == 64 { bytes } else { bytes + 64 }
}

/// How an operation of a linear layer is asked for.
struct Linear<'a> {
    x: &'a CudaBuffer,
    n: usize,
    weight: &'a CudaMatrix,
    bias: Option<&'a CudaVector>,
    norm: Option<(&'a CudaVector, f32)>,
    add: bool,
}

impl CudaBackend {
    fn simple(&self, kernel: Kernel, grid: usize, arguments: &mut [Argument]) -> Result<(), BackendError> {
        self.device.launch(kernel, Launch { grid: (grid, 1, 1), threads: THREADS, shared: 0 }, arguments)
    }

    /// `out = norm(x) · weightᵀ + bias`, or added to `out`.
    fn linear_rows(&self, op: &Linear<'_>, out: &mut CudaBuffer) -> Result<(), BackendError> {
        let Linear { x, n, weight, bias, norm, add } = *op;
        x.check("linear input", n, weight.cols)?;
        out.check("linear output", n, weight.rows)?;
        check_vector(bias, weight.rows)?;
        check_vector(norm.map(|(norm, _)| norm), weight.cols)?;
        if n > TOKENS {
            return self.linear_many(&ManyLinear { x, n, weight, bias, norm, add }, out);
        }
        let many = weight.row_tiles() >= MANY_TILES;
        let kernels = &self.kernels;
        let (kernel, tile_cols, parts) = match (weight.format, many) {
            (DenseFormat::Bf16, false) => (kernels.linear_decode_bf16, 32, 2),
            (DenseFormat::Bf16, true) => (kernels.linear_decode_bf16_many, 32, 2),
            (DenseFormat::Q8, false) => (kernels.linear_decode_q8, 32, 1),
            (DenseFormat::Q8, true) => (kernels.linear_decode_q8_many, 32, 1),
        };
        let token_bytes = parts * staged_stride(weight.cols.next_multiple_of(tile_cols));
        let tokens = self.tokens_at_once(2 * SUM_BYTES, token_bytes)?;
        let works = if many { weight.row_tiles().div_ceil(8) } else { weight.row_tiles() };
        let grid = works.min(BLOCKS_EACH * self.device.multiprocessors() as usize);
        for first in (0..n).step_by(tokens) {
            let count = tokens.min(n - first);
            let shape = Launch { grid: (grid, 1, 1), threads: THREADS, shared: 2 * SUM_BYTES + count * token_bytes };
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
                    add
                ],
            )?;
        }
        Ok(())
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
    fn route_rows(
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
        if n > TOKENS {
            let Some(((norm, eps), normed)) = norm.zip(normed) else { return self.route_many(x, n, weight, bias, out) };
            self.simple(
                self.kernels.rms_norm,
                n,
                arguments![x.row(0), x.width, norm.memory.at(0), eps, normed.row(0)],
            )?;
            return self.route_many(normed, n, weight, bias, out);
        }
        let token_bytes = 2 * staged_stride(weight.cols);
        let tokens = self.tokens_at_once(SUM_BYTES, token_bytes)?;
        let parts = ROUTER_PARTS.min(weight.cols / 32);
        let mut state = self.state();
        let scratch = &mut state.scratch;
        let logits = ensure(&self.device, &mut scratch.logits, parts * TOKENS * experts * 4, "router logits")?;
        let arrived = ensure(&self.device, &mut scratch.arrived, COUNTER_BYTES, "counters")?;
        for first in (0..n).step_by(tokens) {
            let count = tokens.min(n - first);
            let shared = SUM_BYTES + count * token_bytes;
            let shape = Launch { grid: (weight.row_tiles(), parts, 1), threads: THREADS, shared };
            let (norm_at, eps) = norm.map_or((0, 0.0), |(norm, eps)| (norm.memory.at(0), eps));
            let (ids, weights) = out.row(first);
            self.device.launch(
                self.kernels.route_decode,
                shape,
                arguments![
                    x.row(first),
                    count,
                    weight.cols,
                    experts,
                    weight.tiles.at(0),
                    bias.memory.at(0),
                    norm_at,
                    eps,
                    normed.map_or(0, |normed| normed.row(first)),
                    logits,
                    arrived,
                    top_k,
                    ids,
                    weights
                ],
            )?;
        }
        Ok(())
    }

    fn moe_rows(
        &self,
        x: &CudaBuffer,
        n: usize,
        routing: &CudaRouting,
        experts: &CudaExperts,
        out: &mut CudaBuffer,
        add: bool,
    ) -> Result<(), BackendError> {
        let ExpertsShape { experts: count, hidden, intermediate, limit, alpha } = experts.shape;
        x.check("experts' input", n, hidden)?;
        out.check("experts' output", n, hidden)?;
        if n > routing.rows {
            return Err(BackendError::Shape(format!("a routing of {} rows for {n}", routing.rows)));
        }
        if n > TOKENS {
            if !add {
                out.clear(n)?;
            }
            return self.moe_many(x, n, routing, experts, out);
        }
        let top_k = routing.top_k;
        let token_bytes = staged_stride(hidden.next_multiple_of(64));
        let tokens = self.tokens_at_once(2 * SUM_BYTES, token_bytes)?;
        let mut state = self.state();
        let inner_bytes = TOKENS * top_k * intermediate * 2;
        let inner = ensure(&self.device, &mut state.scratch.inner, inner_bytes, "experts' inner activations")?;
        for first in (0..n).step_by(tokens) {
            let some = tokens.min(n - first);
            let (ids, weights) = routing.row(first);
            let works = ((some * top_k).min(count) * intermediate.div_ceil(8)).div_ceil(2);
            let grid = works.min(BLOCKS_EACH * self.device.multiprocessors() as usize);
            let shape = Launch { grid: (grid, 1, 1), threads: THREADS, shared: 2 * SUM_BYTES + some * token_bytes };
            self.device.launch(
                self.kernels.moe_gate_up_decode,
                shape,
                arguments![
                    x.row(first),
                    some,
                    hidden,
                    intermediate,
                    count,
                    top_k,
                    ids,
                    weights,
                    experts.gate_up.tiles.at(0),
                    experts.gate_up.scales.at(0),
                    experts.gate_up_bias.memory.at(0),
                    limit,
                    alpha,
                    inner
                ],
            )?;
            let shape = Launch { grid: (hidden.div_ceil(16), 1, 1), threads: THREADS, shared: 0 };
            self.device.launch(
                self.kernels.moe_down_decode,
                shape,
                arguments![
                    inner,
                    some,
                    intermediate,
                    hidden,
                    count,
                    top_k,
                    ids,
                    weights,
                    experts.down.tiles.at(0),
                    experts.down.scales.at(0),
                    experts.down_bias.memory.at(0),
                    out.row(first),
                    add
                ],
            )?;
        }
        Ok(())
    }

    /// Attention over rows whose keys are stored, or, with `rotate`, that rotate and store their own.
    fn attend_rows(
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
            return self.launch_with_cache(self.kernels.attention_any, shape, &mut values, 3, context, kv);
        }
        let (inv_freq, scale) = match rope {
            Some(rope) => (state.rope(&self.device, rope)?, rope.scale),
            None => (0, 0.0),
        };
        // Two to three blocks a multiprocessor; a window is never split.
        let wanted = BLOCKS_EACH * self.device.multiprocessors() as usize / (n * kv_heads);
        let splits = if window > 0 { 1 } else { wanted.clamp(1, SPLITS_MAX) };
        let bytes = if splits > 1 { n * kv_heads * splits * SPLIT_VALUES * 4 } else { 0 };
        let partial = ensure(&self.device, &mut state.scratch.splits, bytes, "attention's splits")?;
        let counters = COUNTER_BYTES.max(n * kv_heads * 4);
        let arrived = ensure(&self.device, &mut state.scratch.arrived, counters, "counters")?;
        let rows = state.rows()?;
        let (tables, stride) = rows.tables(context.kind);
        self.device.launch(
            self.kernels.attention_decode,
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

    fn draw_some(
        &self,
        logits: &CudaBuffer,
        first: usize,
        draws: &[Draw],
        tokens: &mut [u32],
    ) -> Result<(), BackendError> {
        const NONE: f32 = 0.0;
        let mut list = DrawList { uniform: [0.0; DRAWS_MAX], inverse_temperature: [NONE; DRAWS_MAX] };
        for (i, draw) in draws.iter().enumerate() {
            list.uniform[i] = draw.uniform;
            list.inverse_temperature[i] = if draw.temperature > 0.0 { draw.temperature.recip() } else { NONE };
        }
        let mut state = self.state();
        let scratch = &mut state.scratch;
        let chunks = ensure(&self.device, &mut scratch.chunks, DRAWS_MAX * DRAW_CHUNKS * 12, "chunks of logits")?;
        let arrived = ensure(&self.device, &mut scratch.arrived, COUNTER_BYTES, "counters")?;
        let chosen = ensure(&self.device, &mut scratch.tokens, DRAWS_MAX * 4, "chosen tokens")?;
        let mut arguments =
            [logits.row(first).into(), logits.width.into(), Argument::from(chunks), arrived.into(), chosen.into()];
        let mut values: Vec<*mut c_void> = arguments.iter_mut().map(Argument::address).collect();
        values.insert(2, std::ptr::from_mut(&mut list).cast());
        let shape = Launch { grid: (DRAW_CHUNKS, draws.len(), 1), threads: THREADS, shared: 0 };
        self.device.launch_raw(self.kernels.draw_tokens, shape, &mut values, true)?;
        self.device.synchronize()?;
        // SAFETY: room for DRAWS_MAX tokens, and no more are asked for.
        unsafe { result::memcpy_dtoh_sync(tokens, chosen) }.map_err(|error| failed("reading chosen tokens", error))
    }

    /// Launches with the cache's description, a structure, as argument number `place`.
    fn launch_with_cache(
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
struct RowList {
    rows: [i32; GATHER_MAX],
}

/// Rows of one launch of `draw.cu`, and blocks of a row.
const DRAWS_MAX: usize = 64;
const DRAW_CHUNKS: usize = 64;

/// `Draws` of `draw.cu`.
#[repr(C)]
struct DrawList {
    uniform: [f64; DRAWS_MAX],
    inverse_temperature: [f32; DRAWS_MAX],
}

/// Counters: of the router, and of 8 decoding rows' attention.
const COUNTER_BYTES: usize = 4096;

impl Backend for CudaBackend {
    type Buffer = CudaBuffer;
    type Matrix = CudaMatrix;
    type Vector = CudaVector;
    type Experts = CudaExperts;
    type Kv = CudaKv;
    type Routing = CudaRouting;

    fn describe(&self) -> String {
        let graphs = if self.eager { "eager" } else { "recorded steps" };
        format!("{} ({}), F16 activations, {graphs}", self.device.name(), self.device.arch())
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<CudaBuffer, BackendError> {
        CudaBuffer::new(&self.device, rows, width)
    }

    fn routing(&self, rows: usize, top_k: usize) -> Result<CudaRouting, BackendError> {
        if top_k == 0 {
            return Err(BackendError::Shape("a routing to no experts".to_owned()));
        }
        let memory = || DeviceMemory::zeroed(&self.device, rows * top_k * 4, "a routing");
        Ok(CudaRouting { experts: memory()?, weights: memory()?, rows, top_k })
    }

    fn kv(&self, shape: KvShape) -> Result<CudaKv, BackendError> {
        CudaKv::new(&self.device, shape)
    }

    fn vector(&self, source: &dyn RowSource) -> Result<CudaVector, BackendError> {
        let mut state = self.state();
        let staging = state.staging(&self.device)?;
        Loader { device: &self.device, kernels: &self.kernels, staging }.vector(source)
    }

    fn matrix(&self, source: &dyn RowSource, format: DenseFormat) -> Result<CudaMatrix, BackendError> {
        let mut state = self.state();
        CudaMatrix::load(&self.device, &self.kernels, state.staging(&self.device)?, source, format)
    }

    fn experts(&self, shape: ExpertsShape, source: &ExpertsSource<'_>) -> Result<CudaExperts, BackendError> {
        let mut state = self.state();
        CudaExperts::load(&self.device, &self.kernels, state.staging(&self.device)?, shape, source)
    }

    fn download(&self, buffer: &CudaBuffer, first: usize, out: &mut [f32]) -> Result<(), BackendError> {
        check_part(buffer, first, out.len())?;
        self.device.synchronize()?;
        // SAFETY: checked above.
        unsafe { result::memcpy_dtoh_sync(out, buffer.row(first)) }
            .map_err(|error| failed("copying from the device", error))
    }

    fn upload(&self, buffer: &mut CudaBuffer, first: usize, values: &[f32]) -> Result<(), BackendError> {
        check_part(buffer, first, values.len())?;
        self.device.upload(buffer.row(first), values)
    }

    fn reserve(&self, limits: StepLimits) -> Result<(), BackendError> {
        let StepLimits { rows, sequences, blocks } = limits;
        let mut state = self.state();
        // Reading weights is over.
        state.staging = None;
        state.reserve(&self.device, StepShape { rows, sequences, blocks })
    }

    fn begin(&self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.state().begin(&self.device, &self.kernels, batch)
    }

    fn repeat<E: From<BackendError>>(
        &self,
        batch: &Batch<'_>,
        run: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let rows = batch.tokens.len();
        let single = batch.sequences.len() == rows;
        if self.eager || !single || rows > TOKENS {
            return run();
        }
        // Taken out while it runs: the operations want the state too.
        let mut graphs = std::mem::replace(&mut self.state().graphs, crate::graph::Graphs::new(&self.device));
        let ran = graphs.run(rows, run);
        self.state().graphs = graphs;
        ran
    }

    fn copy_blocks(&self, kv: &mut CudaKv, pairs: &[(u32, u32)]) -> Result<(), BackendError> {
        kv.copy(&self.device, pairs)
    }

    fn embed(&self, table: &CudaMatrix, batch: &Batch<'_>, out: &mut CudaBuffer) -> Result<(), BackendError> {
        let n = batch.tokens.len();
        out.check("embedding", n, table.cols)?;
        if table.format != DenseFormat::Bf16 {
            return Err(BackendError::Shape("the embedding table must be BF16".to_owned()));
        }
        if let Some(token) = batch.tokens.iter().find(|token| **token as usize >= table.rows) {
            return Err(BackendError::Shape(format!("token {token} of a vocabulary of {}", table.rows)));
        }
        let tokens = self.state().rows()?.tokens();
        self.simple(self.kernels.embed, n, arguments![table.tiles.at(0), table.cols, tokens, out.row(0)])
    }

    fn rms_norm(
        &self,
        x: &CudaBuffer,
        n: usize,
        weight: &CudaVector,
        eps: f32,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        x.check("norm input", n, weight.len)?;
        out.check("norm output", n, weight.len)?;
        self.simple(self.kernels.rms_norm, n, arguments![x.row(0), x.width, weight.memory.at(0), eps, out.row(0)])
    }

    fn linear(
        &self,
        x: &CudaBuffer,
        n: usize,
        weight: &CudaMatrix,
        bias: Option<&CudaVector>,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        self.linear_rows(&Linear { x, n, weight, bias, norm: None, add: false }, out)
    }

    fn rope_store(
        &self,
        qkv: &mut CudaBuffer,
        rope: &Rope,
        context: &AttentionContext<'_>,
        kv: &mut CudaKv,
    ) -> Result<(), BackendError> {
        let n = check_rows(context, qkv, kv)?;
        if kv.usual() {
            return self.rope_store_many(qkv, rope, context, kv, n);
        }
        let mut state = self.state();
        let inv_freq = state.rope(&self.device, rope)?;
        let rows = state.rows()?;
        let (tables, stride) = rows.tables(context.kind);
        let mut values = [
            qkv.row(0).into(),
            context.heads.into(),
            inv_freq.into(),
            rope.scale.into(),
            tables.into(),
            stride.into(),
            rows.sequences().into(),
            rows.positions().into(),
        ];
        let shape = Launch { grid: (n, 1, 1), threads: THREADS, shared: 0 };
        self.launch_with_cache(self.kernels.rope_store_any, shape, &mut values, 4, context, kv)
    }

    fn attention(
        &self,
        qkv: &CudaBuffer,
        sinks: &CudaVector,
        context: &AttentionContext<'_>,
        kv: &CudaKv,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        self.attend_rows(qkv, None, sinks, context, kv, out)
    }

    fn route(
        &self,
        x: &CudaBuffer,
        n: usize,
        weight: &CudaMatrix,
        bias: &CudaVector,
        out: &mut CudaRouting,
    ) -> Result<(), BackendError> {
        self.route_rows(x, n, None, weight, bias, None, out)
    }

    fn moe(
        &self,
        x: &CudaBuffer,
        n: usize,
        routing: &CudaRouting,
        experts: &CudaExperts,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        self.moe_rows(x, n, routing, experts, out, false)
    }

    fn add(&self, x: &mut CudaBuffer, n: usize, y: &CudaBuffer) -> Result<(), BackendError> {
        y.check("sum", n, x.width)?;
        x.check("sum", n, x.width)?;
        let values = n * x.width;
        let mut arguments = [x.row(0).into(), y.row(0).into(), Argument::Long(values as u64)];
        self.simple(self.kernels.add_rows, values.div_ceil(THREADS).min(1024), &mut arguments)
    }

    fn gather(&self, x: &CudaBuffer, rows: &[usize], out: &mut CudaBuffer) -> Result<(), BackendError> {
        out.check("gathered rows", rows.len(), x.width)?;
        x.check("rows to gather", rows.iter().max().map_or(0, |last| last + 1), x.width)?;
        for (chunk, some) in rows.chunks(GATHER_MAX).enumerate() {
            let mut list = RowList { rows: [0; GATHER_MAX] };
            list.rows.iter_mut().zip(some).for_each(|(to, row)| *to = *row as i32);
            let mut arguments = [Argument::from(x.row(0)), x.width.into(), out.row(chunk * GATHER_MAX).into()];
            let mut values: Vec<*mut c_void> = arguments.iter_mut().map(Argument::address).collect();
            values.insert(2, std::ptr::from_mut(&mut list).cast());
            let shape = Launch { grid: (some.len(), 1, 1), threads: THREADS, shared: 0 };
            self.device.launch_raw(self.kernels.gather_rows, shape, &mut values, true)?;
        }
        Ok(())
    }

    const DRAWS: bool = true;

    fn draw(&self, logits: &CudaBuffer, draws: &[Draw], tokens: &mut [u32]) -> Result<(), BackendError> {
        logits.check("logits", draws.len(), logits.width)?;
        if draws.len() != tokens.len() {
            return Err(BackendError::Shape(format!("{} draws of {} tokens", draws.len(), tokens.len())));
        }
        for (chunk, some) in draws.chunks(DRAWS_MAX).enumerate() {
            let first = chunk * DRAWS_MAX;
            self.draw_some(logits, first, some, &mut tokens[first..first + some.len()])?;
        }
        Ok(())
    }

    // ---- fused ----

    fn norm_linear(
        &self,
        x: &CudaBuffer,
        n: usize,
        (norm, eps): (&CudaVector, f32),
        weight: &CudaMatrix,
        bias: Option<&CudaVector>,
        _normed: &mut CudaBuffer,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        self.linear_rows(&Linear { x, n, weight, bias, norm: Some((norm, eps)), add: false }, out)
    }

    fn linear_add(
        &self,
        x: &CudaBuffer,
        n: usize,
        weight: &CudaMatrix,
        bias: Option<&CudaVector>,
        _update: &mut CudaBuffer,
        into: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        self.linear_rows(&Linear { x, n, weight, bias, norm: None, add: true }, into)
    }

    fn rope_attention(
        &self,
        qkv: &mut CudaBuffer,
        rope: &Rope,
        sinks: &CudaVector,
        context: &AttentionContext<'_>,
        kv: &mut CudaKv,
        out: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        // Rows of one sequence read each other's keys: those must be stored before any of them looks.
        if kv.usual() && context.heads / kv.shape.kv_heads <= 8 && self.state().rows()?.single() {
            return self.attend_rows(qkv, Some(rope), sinks, context, kv, out);
        }
        self.rope_store(qkv, rope, context, kv)?;
        self.attend_rows(qkv, None, sinks, context, kv, out)
    }

    fn norm_route(
        &self,
        x: &CudaBuffer,
        n: usize,
        (norm, eps): (&CudaVector, f32),
        weight: &CudaMatrix,
        bias: &CudaVector,
        normed: &mut CudaBuffer,
        out: &mut CudaRouting,
    ) -> Result<(), BackendError> {
        normed.check("normalised rows", n, weight.cols)?;
        self.route_rows(x, n, Some((norm, eps)), weight, bias, Some(normed), out)
    }

    fn moe_add(
        &self,
        x: &CudaBuffer,
        n: usize,
        routing: &CudaRouting,
        experts: &CudaExperts,
        _update: &mut CudaBuffer,
        into: &mut CudaBuffer,
    ) -> Result<(), BackendError> {
        self.moe_rows(x, n, routing, experts, into, true)
    }
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

fn check_part(buffer: &CudaBuffer, first: usize, values: usize) -> Result<(), BackendError> {
    if first * buffer.width + values <= buffer.rows * buffer.width {
        return Ok(());
    }
    let (rows, width) = (buffer.rows, buffer.width);
    Err(BackendError::Shape(format!("{values} values from row {first} of a buffer [{rows}, {width}]")))
}

/// Rows of the batch, which `qkv` must hold.
fn check_rows(context: &AttentionContext<'_>, qkv: &CudaBuffer, kv: &CudaKv) -> Result<usize, BackendError> {
    let n = context.batch.tokens.len();
    let KvShape { kv_heads, head_dim, layers, .. } = kv.shape;
    qkv.check("attention input", n, (context.heads + 2 * kv_heads) * head_dim)?;
    if context.layer >= layers || !context.heads.is_multiple_of(kv_heads) {
        let heads = context.heads;
        return Err(BackendError::Shape(format!("layer {} of {layers}, {heads} heads over {kv_heads}", context.layer)));
    }
    Ok(n)
}
