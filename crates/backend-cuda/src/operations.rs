//! The operations as the trait has them.

use std::ffi::c_void;

use cudarc::driver::result;
use tandem_backend::{
    AttentionContext, Backend, BackendError, Batch, Candidate, DenseFormat, Draw, ExchangeMemory, ExpertCount,
    ExpertsShape, ExpertsSource, KvShape, LogitsPart, Rope, RowSource, StepLimits,
};

use crate::activations::ExpertInputs;
use crate::backend::CudaBackend;
use crate::buffer::{CudaBuffer, CudaRouting, CudaVector};
use crate::device::failed;
use crate::exchange::Joined;
use crate::experts::{CudaExperts, Loader};
use crate::few::{DRAWS_MAX, GATHER_MAX, Linear, RowList, THREADS, TOKENS, check_rows};
use crate::graph::{Graphs, RECORDED_ROWS_MAX};
use crate::kv::CudaKv;
use crate::launch::{Argument, Launch, arguments};
use crate::matrix::CudaMatrix;
use crate::memory::DeviceMemory;

impl Backend for CudaBackend {
    type Buffer = CudaBuffer;
    type Matrix = CudaMatrix;
    type Vector = CudaVector;
    type Experts = CudaExperts;
    type Kv = CudaKv;
    type Routing = CudaRouting;

    fn describe(&self) -> String {
        let graphs = if self.eager { "eager" } else { "recorded steps" };
        // Nobody waits for kernels to read a name.
        let prompts = match self.late.known().map(|loaded| loaded.expert_inputs) {
            None | Some(ExpertInputs::F16) => String::new(),
            Some(mxfp8) => format!(", experts of prompts {}", mxfp8.describe()),
        };
        format!("{} ({}), F16 activations{prompts}, {graphs}", self.device.name(), self.device.arch())
    }

    fn eight_bit_prompts(&self) -> bool {
        // Kernels that failed to load are told of by whoever wants to launch them.
        self.expert_inputs().is_ok_and(|inputs| inputs != ExpertInputs::F16)
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
        self.late.check()?;
        let mut state = self.state();
        let staging = state.staging(&self.device)?;
        Loader { device: &self.device, kernels: &self.packing, staging }.vector(source)
    }

    fn matrix(&self, source: &dyn RowSource, format: DenseFormat) -> Result<CudaMatrix, BackendError> {
        self.late.check()?;
        let mut state = self.state();
        CudaMatrix::load(&self.device, &self.packing, state.staging(&self.device)?, source, format)
    }

    fn experts(&self, shape: ExpertsShape, source: &ExpertsSource<'_>) -> Result<CudaExperts, BackendError> {
        self.late.check()?;
        let mut state = self.state();
        CudaExperts::load(&self.device, &self.packing, state.staging(&self.device)?, shape, source)
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

    fn join(&self, memory: Option<&ExchangeMemory>) -> Result<bool, BackendError> {
        let mut state = self.state();
        // Recorded steps know the old memory.
        state.scratch.moved = true;
        state.exchange = None;
        state.exchange = memory.map(|memory| Joined::new(&self.device, memory)).transpose()?;
        Ok(state.exchange.is_some())
    }

    fn number_exchanges(&self, first: u64) -> Result<(), BackendError> {
        self.device.wait_if_busy()?;
        match &mut self.state().exchange {
            Some(joined) => joined.number(&self.device, first),
            None => Ok(()),
        }
    }

    fn exchange_add(&self, part: &CudaBuffer, n: usize, into: &mut CudaBuffer) -> Result<(), BackendError> {
        self.exchange_rows(part, n, into)
    }

    fn reserve(&self, limits: StepLimits) -> Result<(), BackendError> {
        self.kernels()?;
        let mut state = self.state();
        // Reading weights is over.
        state.staging = None;
        state.reserve_all(&self.device, &limits)
    }

    fn begin(&self, batch: &Batch<'_>) -> Result<(), BackendError> {
        self.state().begin(&self.device, self.kernels()?, batch)
    }

    fn repeat<E: From<BackendError>>(
        &self,
        batch: &Batch<'_>,
        run: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        let rows = batch.tokens.len();
        let single = batch.sequences.len() == rows;
        if self.eager || !single || rows > RECORDED_ROWS_MAX {
            return run();
        }
        // Taken out while it runs: the operations want the state too.
        let mut graphs = std::mem::replace(&mut self.state().graphs, Graphs::new(&self.device));
        if std::mem::take(&mut self.state().scratch.moved) {
            graphs.clear();
        }
        // Steps that count have a kernel more in every layer.
        let counting = self.state().tally.on;
        let ran = graphs.run(if counting { COUNTING + rows } else { rows }, run);
        self.state().graphs = graphs;
        ran
    }

    fn wait(&self) -> Result<(), BackendError> {
        self.device.wait_if_busy()
    }

    fn worth_recording(&self) -> Vec<usize> {
        if self.eager { Vec::new() } else { (1..=TOKENS).chain([16, 32, RECORDED_ROWS_MAX]).collect() }
    }

    fn count_experts(&self, on: bool) -> Result<(), BackendError> {
        let mut state = self.state();
        state.tally.on = on;
        state.tally.take(&self.device).map(drop)
    }

    fn experts_counted(&self) -> Result<ExpertCount, BackendError> {
        self.state().tally.take(&self.device)
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
        self.simple(self.kernels()?.embed, n, arguments![table.tiles.at(0), table.cols, tokens, out.row(0)])
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
        self.simple(self.kernels()?.rms_norm, n, arguments![x.row(0), x.width, weight.memory.at(0), eps, out.row(0)])
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
        self.launch_with_cache(self.kernels()?.rope_store_any, shape, &mut values, 4, context, kv)
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
        self.simple(self.kernels()?.add_rows, values.div_ceil(THREADS).min(1024), &mut arguments)
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
            self.device.launch_raw(self.kernels()?.gather_rows, shape, &mut values, true)?;
        }
        Ok(())
    }

    const DRAWS: bool = true;

    fn draw(&self, logits: &CudaBuffer, draws: &[(usize, Draw)], tokens: &mut [u32]) -> Result<(), BackendError> {
        let rows = draws.iter().map(|(row, _)| row + 1).max().unwrap_or(0);
        logits.check("logits", rows, logits.width)?;
        if draws.len() != tokens.len() {
            return Err(BackendError::Shape(format!("{} draws of {} tokens", draws.len(), tokens.len())));
        }
        for (some, tokens) in draws.chunks(DRAWS_MAX).zip(tokens.chunks_mut(DRAWS_MAX)) {
            self.draw_some(logits, some, tokens)?;
        }
        Ok(())
    }

    fn likeliest(
        &self,
        part: &LogitsPart<'_, CudaBuffer>,
        draws: &[(usize, Draw)],
        best: &mut [Candidate],
    ) -> Result<(), BackendError> {
        self.part_likeliest(part, draws, best)
    }

    fn weigh(
        &self,
        part: &LogitsPart<'_, CudaBuffer>,
        draws: &[(usize, Draw)],
        largest: &[f32],
        sums: &mut [u64],
    ) -> Result<(), BackendError> {
        self.part_weigh(part, draws, largest, sums)
    }

    fn find(
        &self,
        part: &LogitsPart<'_, CudaBuffer>,
        draws: &[(usize, Draw)],
        largest: &[f32],
        targets: &[Option<u64>],
        tokens: &mut [Option<u32>],
    ) -> Result<(), BackendError> {
        self.part_find(part, draws, largest, targets, tokens)
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

/// Added to the number of rows under which a step that counts experts is recorded.
const COUNTING: usize = RECORDED_ROWS_MAX;

fn check_part(buffer: &CudaBuffer, first: usize, values: usize) -> Result<(), BackendError> {
    if first * buffer.width + values <= buffer.rows * buffer.width {
        return Ok(());
    }
    let (rows, width) = (buffer.rows, buffer.width);
    Err(BackendError::Shape(format!("{values} values from row {first} of a buffer [{rows}, {width}]")))
}
