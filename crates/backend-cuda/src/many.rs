//! Operations on more rows than the decode kernels take: bound by arithmetic, on tiles of rows.

use tandem_backend::{AttentionContext, BackendError, DenseFormat, Rope};

use crate::backend::CudaBackend;
use crate::buffer::{CudaBuffer, CudaRouting, CudaVector};
use crate::few::window;
use crate::kernels::{Kernel, TILES, TileKernel, Tiled, WIDE_TILE};
use crate::kv::CudaKv;
use crate::launch::{Launch, arguments};
use crate::matrix::CudaMatrix;
use crate::work;

/// Rows that a block of `attention_prefill` works on: (row, query head) pairs over query heads of a key head.
const ATTENTION_ROWS: usize = 128;
/// Its shared memory: three stages of 64 keys and values.
const ATTENTION_SHARED: usize = 49_152;

/// Activation rows up to which each narrow tile is the fastest, measured on an H200 (`kernels/check/bench_prefill.py`).
const DENSE_BEST: [usize; 4] = [16, 64, 64, 128];
/// A product with the tile that suits a number of rows.
pub(crate) struct Choice {
    pub(crate) kernel: Kernel,
    /// Activation rows of a tile.
    pub(crate) rows: usize,
    pub(crate) wide: bool,
    pub(crate) shape: Launch,
}

/// How a dense layer of many rows is asked for.
pub(crate) struct ManyLinear<'a> {
    pub(crate) x: &'a CudaBuffer,
    pub(crate) n: usize,
    pub(crate) weight: &'a CudaMatrix,
    pub(crate) bias: Option<&'a CudaVector>,
    pub(crate) norm: Option<(&'a CudaVector, f32)>,
    pub(crate) add: bool,
}

impl CudaBackend {
    /// `out = norm(x) · weightᵀ + bias`, or added to `out`.
    pub(crate) fn linear_many(&self, op: &ManyLinear<'_>, out: &CudaBuffer) -> Result<(), BackendError> {
        let ManyLinear { x, n, weight, bias, norm, add } = *op;
        let tiled = match weight.format {
            DenseFormat::Bf16 => &self.kernels()?.dense_bf16,
            DenseFormat::Q8 => &self.kernels()?.dense_q8,
            DenseFormat::Mxfp4 => &self.kernels()?.dense_mxfp4,
        };
        let choice = self.choose(tiled, DENSE_BEST, n);
        let bf16 = weight.format == DenseFormat::Bf16;
        let narrow = match norm {
            Some((norm, eps)) => self.norm_narrow(x, n, norm, eps, bf16, choice.wide)?,
            None => self.narrow(x, n, bf16, choice.wide, false)?.0,
        };
        self.multiply(&choice, weight, bias, narrow, n, out.row(0), add)
    }

    /// Router of many rows: logits from activations in two BF16 parts, so that choices are as good as f32.
    pub(crate) fn route_many(
        &self,
        x: &CudaBuffer,
        n: usize,
        weight: &CudaMatrix,
        bias: &CudaVector,
        out: &CudaRouting,
    ) -> Result<(), BackendError> {
        let choice = self.choose(&self.kernels()?.dense_bf16, DENSE_BEST, n);
        let (high, low) = self.narrow(x, n, true, choice.wide, true)?;
        let logits = {
            let mut state = self.state();
            state.scratch.ensure(&self.device, |s| &mut s.logits, work::many_logits(n, weight.rows), "router logits")?
        };
        self.multiply(&choice, weight, None, high, n, logits, false)?;
        self.multiply(&choice, weight, None, low, n, logits, true)?;
        let (ids, weights) = out.row(0);
        let shape = Launch { grid: (n.div_ceil(8), 1, 1), threads: 256, shared: 0 };
        let arguments = arguments![logits, n, bias.memory.at(0), weight.rows, out.top_k, ids, weights];
        self.device.launch_after(self.kernels()?.choose_experts, shape, arguments)
    }

    /// Rotates queries in place, stores keys and values.
    pub(crate) fn rope_store_many(
        &self,
        qkv: &CudaBuffer,
        rope: &Rope,
        context: &AttentionContext<'_>,
        kv: &CudaKv,
        n: usize,
    ) -> Result<(), BackendError> {
        let mut state = self.state();
        let inv_freq = state.rope(&self.device, rope)?;
        let rows = state.rows()?;
        let (tables, stride) = rows.tables(context.kind);
        let (sequences, first_rows, positions) = rows.runs();
        let shape = Launch { grid: (n, 1, 1), threads: 256, shared: 0 };
        self.device.launch_after(
            kv.pick(self.kernels()?.rope_store, self.kernels()?.rope_store_fp8),
            shape,
            arguments![
                qkv.row(0),
                0_u64,
                kv.memory.at(0),
                kv.shape.layers,
                context.layer,
                kv.shape.kv_heads,
                context.heads,
                tables,
                stride,
                first_rows,
                positions,
                sequences,
                inv_freq,
                rope.scale
            ],
        )
    }

    /// Attention over rotated queries and stored keys.
    pub(crate) fn attention_many(
        &self,
        qkv: &CudaBuffer,
        sinks: &CudaVector,
        context: &AttentionContext<'_>,
        kv: &CudaKv,
        out: &CudaBuffer,
    ) -> Result<(), BackendError> {
        let (heads, kv_heads) = (context.heads, kv.shape.kv_heads);
        let each = ATTENTION_ROWS / (heads / kv_heads);
        let runs: usize = context.batch.sequences.iter().map(|sequence| sequence.rows.len().div_ceil(each)).sum();
        let state = self.state();
        let rows = state.rows()?;
        let (tables, stride) = rows.tables(context.kind);
        let (sequences, first_rows, positions) = rows.runs();
        const F32: i32 = 2;
        self.device.launch_after(
            kv.pick(self.kernels()?.attention_prefill, self.kernels()?.attention_prefill_fp8),
            Launch { grid: (runs, kv_heads, 1), threads: 128, shared: ATTENTION_SHARED },
            arguments![
                qkv.row(0),
                true,
                qkv.width,
                kv.memory.at(0),
                kv.shape.layers,
                context.layer,
                kv_heads,
                heads,
                tables,
                stride,
                first_rows,
                positions,
                sequences,
                sinks.memory.at(0),
                out.row(0),
                F32,
                false,
                window(context.kind),
                0.125_f32
            ],
        )
    }

    /// Whether `attention_many` takes these heads.
    pub(crate) fn attends_many(context: &AttentionContext<'_>, kv: &CudaKv) -> bool {
        kv.usual() && (context.heads / kv.shape.kv_heads).is_power_of_two() && context.heads / kv.shape.kv_heads <= 8
    }

    #[allow(clippy::too_many_arguments)]
    fn multiply(
        &self,
        choice: &Choice,
        weight: &CudaMatrix,
        bias: Option<&CudaVector>,
        narrow: u64,
        n: usize,
        out: u64,
        add: bool,
    ) -> Result<(), BackendError> {
        let bias = bias.map_or(0, |bias| bias.memory.at(0));
        let (tiles, scales, base) = (weight.tiles.at(0), weight.scales.at(0), weight.row_base.at(0));
        let arguments = arguments![tiles, scales, base, bias, narrow, out, n, weight.rows, weight.cols, add];
        self.device.launch_after(choice.kernel, choice.shape, arguments)
    }

    /// Rows of `x` in 16 bits, and what rounding left where that is wanted.
    pub(crate) fn narrow(
        &self,
        x: &CudaBuffer,
        n: usize,
        bf16: bool,
        permuted: bool,
        rest: bool,
    ) -> Result<(u64, u64), BackendError> {
        let mut state = self.state();
        let bytes = work::narrow(n, x.width);
        let narrow = state.scratch.ensure(&self.device, |s| &mut s.narrow, bytes, "narrow activations")?;
        let rest = match rest {
            true => state.scratch.ensure(&self.device, |s| &mut s.rest, bytes, "the rest of narrow activations")?,
            false => 0,
        };
        let shape = Launch { grid: (n, 1, 1), threads: 256, shared: 0 };
        let arguments = arguments![x.row(0), narrow, rest, x.width, bf16, permuted];
        self.device.launch_after(self.kernels()?.narrow_rows, shape, arguments)?;
        Ok((narrow, rest))
    }

    fn norm_narrow(
        &self,
        x: &CudaBuffer,
        n: usize,
        norm: &CudaVector,
        eps: f32,
        bf16: bool,
        permuted: bool,
    ) -> Result<u64, BackendError> {
        let mut state = self.state();
        let narrow =
            state.scratch.ensure(&self.device, |s| &mut s.narrow, work::narrow(n, x.width), "narrow activations")?;
        let shape = Launch { grid: (n, 1, 1), threads: 256, shared: 0 };
        let arguments = arguments![x.row(0), norm.memory.at(0), narrow, x.width, eps, bf16, permuted];
        self.device.launch_after(self.kernels()?.rms_norm_rows, shape, arguments)?;
        Ok(narrow)
    }

    /// The tile for `rows` activation rows a matrix, given the rows up to which each narrow tile is the fastest.
    pub(crate) fn choose(&self, tiled: &Tiled, best: [usize; 4], rows: usize) -> Choice {
        let (of_tile, rows, wide) = match tiled.wide.filter(|_| rows > best[3]) {
            Some(wide) => (wide, WIDE_TILE, true),
            None => {
                let index = best.iter().position(|most| rows <= *most).unwrap_or(TILES.len() - 1);
                (tiled.narrow[index], TILES[index], false)
            }
        };
        self.persistent(of_tile, rows, wide)
    }

    /// A product over tiles of so many rows, with as many blocks as the device holds at once.
    pub(crate) fn persistent(&self, of_tile: TileKernel, rows: usize, wide: bool) -> Choice {
        let TileKernel { kernel, shared } = of_tile;
        let each = (self.device.shared_bytes_max() as usize / (shared + 1024)).clamp(1, 4);
        let grid = (self.device.multiprocessors() as usize * each, 1, 1);
        Choice { kernel, rows, wide, shape: Launch { grid, threads: if wide { 256 } else { 128 }, shared } }
    }
}
