use std::sync::Arc;

use cudarc::driver::result;
use tandem_backend::{BackendError, ExpertsShape, ExpertsSource, RowSource};

use crate::buffer::CudaVector;
use crate::device::{Device, failed};
use crate::kernels::Packing;
use crate::launch::{Launch, arguments};
use crate::matrix::{SCALE_BYTES, TILE_BYTES, TILE_ROWS};
use crate::memory::DeviceMemory;
use crate::staging::Staging;

/// Columns of an MXFP4 tile.
const TILE_COLS: usize = 64;

/// Most experts of a layer, as the router's kernel keeps them in registers.
const EXPERTS_MAX: usize = 256;

/// The experts of one layer.
pub struct CudaExperts {
    pub(crate) shape: ExpertsShape,
    pub(crate) gate_up: ExpertMatrices,
    pub(crate) gate_up_bias: CudaVector,
    pub(crate) down: ExpertMatrices,
    pub(crate) down_bias: CudaVector,
}

/// One matrix of every expert, MXFP4.
pub(crate) struct ExpertMatrices {
    pub(crate) tiles: DeviceMemory,
    pub(crate) scales: DeviceMemory,
    /// The largest scale byte of each row.
    pub(crate) row_base: DeviceMemory,
}

impl CudaExperts {
    pub(crate) fn load(
        device: &Arc<Device>,
        kernels: &Packing,
        staging: &mut Staging,
        shape: ExpertsShape,
        source: &ExpertsSource<'_>,
    ) -> Result<Self, BackendError> {
        let ExpertsShape { experts, first, total, hidden, intermediate, limit, .. } = shape;
        if first + experts > total {
            return Err(BackendError::Shape(format!("{experts} experts of {total}, from {first} on")));
        }
        if !hidden.is_multiple_of(32) || !intermediate.is_multiple_of(32) || experts == 0 || experts > EXPERTS_MAX {
            return Err(BackendError::Shape(format!("{experts} experts of {hidden} and {intermediate}")));
        }
        // What lies between the two products is kept in F16.
        if limit * (limit + 1.0) > 60_000.0 {
            return Err(BackendError::Unsupported(format!("a SwiGLU limit of {limit} exceeds F16")));
        }
        let mut load = Loader { device, kernels, staging };
        let gate_up =
            load.matrices(experts, 2 * intermediate, hidden, true, source.gate_up_blocks, source.gate_up_scales)?;
        let down = load.matrices(experts, hidden, intermediate, false, source.down_blocks, source.down_scales)?;
        let gate_up_bias = load.vector(source.gate_up_bias)?;
        let down_bias = load.vector(source.down_bias)?;
        if gate_up_bias.len != experts * 2 * intermediate || down_bias.len != experts * hidden {
            return Err(BackendError::Shape(format!("biases of {} and {}", gate_up_bias.len, down_bias.len)));
        }
        Ok(Self { shape, gate_up, gate_up_bias, down, down_bias })
    }
}

/// Brings tensors to the device.
pub(crate) struct Loader<'a> {
    pub(crate) device: &'a Arc<Device>,
    pub(crate) kernels: &'a Packing,
    pub(crate) staging: &'a mut Staging,
}

impl Loader<'_> {
    /// BF16 values as f32.
    pub(crate) fn vector(&mut self, source: &dyn RowSource) -> Result<CudaVector, BackendError> {
        let row = source.row_bytes() / 2;
        let len = source.rows() * row;
        let memory = DeviceMemory::zeroed(self.device, len * size_of::<f32>(), "a vector")?;
        let (device, kernels) = (self.device, self.kernels);
        self.staging.rows(source, 1, |landed, first, count| {
            let shape = Launch { grid: ((count * row).div_ceil(256).min(1024), 1, 1), threads: 256, shared: 0 };
            let values = crate::launch::Argument::Long((count * row) as u64);
            let to = memory.at(first * row * size_of::<f32>());
            device.launch_after(kernels.widen, shape, &mut [landed.into(), values, to.into()])
        })?;
        Ok(CudaVector { memory, len })
    }

    /// `experts` matrices `[rows, cols]`. `paired`: rows alternate between gates and ups.
    fn matrices(
        &mut self,
        experts: usize,
        rows: usize,
        cols: usize,
        paired: bool,
        blocks: &dyn RowSource,
        raw_scales: &dyn RowSource,
    ) -> Result<ExpertMatrices, BackendError> {
        if blocks.rows() != experts * rows || blocks.row_bytes() != cols / 2 {
            return Err(BackendError::Shape(format!("{} blocks of {} bytes", blocks.rows(), blocks.row_bytes())));
        }
        if raw_scales.rows() != experts * rows || raw_scales.row_bytes() != cols / 32 {
            return Err(BackendError::Shape(format!(
                "{} scales of {} bytes",
                raw_scales.rows(),
                raw_scales.row_bytes()
            )));
        }
        let (row_tiles, k_tiles) = (rows.div_ceil(TILE_ROWS), cols.div_ceil(TILE_COLS));
        let each = row_tiles * k_tiles;
        let (device, kernels) = (self.device, self.kernels);
        let memory = |bytes, what| DeviceMemory::zeroed(device, bytes, what);
        let tiles = memory(experts * each * TILE_BYTES, "experts")?;
        let scales = memory(experts * each * SCALE_BYTES, "experts' scales")?;
        let padded = experts * row_tiles * TILE_ROWS;
        let row_base = memory(padded, "experts' row factors")?;
        let refused = memory(size_of::<u32>(), "a flag")?;
        self.staging.rows(blocks, rows, |landed, first, count| {
            let expert = first / rows;
            let shape = Launch { grid: (k_tiles, row_tiles, count / rows), threads: 32, shared: 0 };
            let to = tiles.at(expert * each * TILE_BYTES);
            device.launch_after(kernels.pack_mxfp4_tiles, shape, arguments![landed, rows, cols, paired, to])
        })?;
        self.staging.rows(raw_scales, rows, |landed, first, count| {
            let expert = first / rows;
            let shape = Launch { grid: (k_tiles, row_tiles, count / rows), threads: 32, shared: 0 };
            let to = scales.at(expert * each * SCALE_BYTES);
            let flag = refused.at(0);
            device.launch_after(kernels.pack_mxfp4_scales, shape, arguments![landed, rows, cols, paired, to, flag])
        })?;
        let shape = Launch { grid: (padded.div_ceil(256), 1, 1), threads: 256, shared: 0 };
        let (from, to) = (scales.at(0), row_base.at(0));
        device.launch_after(kernels.mxfp4_row_base, shape, arguments![from, padded, k_tiles, to])?;
        let mut flag = [0_u32];
        device.synchronize()?;
        // SAFETY: the flag has four bytes.
        unsafe { result::memcpy_dtoh_sync(&mut flag, refused.at(0)) }
            .map_err(|error| failed("reading a flag", error))?;
        if flag[0] != 0 {
            return Err(BackendError::Unsupported("an MXFP4 scale is 255, which is not a number".into()));
        }
        Ok(ExpertMatrices { tiles, scales, row_base })
    }
}
