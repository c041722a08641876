use std::sync::Arc;

use tandem_backend::{BackendError, DenseFormat, RowSource};

use crate::device::Device;
use crate::kernels::Kernels;
use crate::launch::{Launch, arguments};
use crate::memory::DeviceMemory;
use crate::staging::Staging;

/// Weight rows of a tile.
pub(crate) const TILE_ROWS: usize = 16;
/// Bytes of a tile: 32 lanes of 16.
pub(crate) const TILE_BYTES: usize = 512;
/// Bytes of a tile's scales.
pub(crate) const SCALE_BYTES: usize = 32;
/// Weights of a quantisation group.
const GROUP: usize = 32;

/// A dense weight matrix in tiles, in the order in which tensor cores read them (`kernels/README.md`).
pub struct CudaMatrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) format: DenseFormat,
    pub(crate) tiles: DeviceMemory,
    /// Empty for BF16.
    pub(crate) scales: DeviceMemory,
    /// For Q8: f32 a row, the power of two at or above its largest scale. For MXFP4: u8 a row, its largest scale.
    pub(crate) row_base: DeviceMemory,
}

impl CudaMatrix {
    /// Reads a BF16 matrix and packs it on the device.
    pub(crate) fn load(
        device: &Arc<Device>,
        kernels: &Kernels,
        staging: &mut Staging,
        source: &dyn RowSource,
        format: DenseFormat,
    ) -> Result<Self, BackendError> {
        let (rows, cols) = (source.rows(), source.row_bytes() / 2);
        if cols == 0 || !source.row_bytes().is_multiple_of(2 * GROUP) {
            let bytes = source.row_bytes();
            return Err(BackendError::Shape(format!("a row of {bytes} bytes is no multiple of 32 BF16 values")));
        }
        let (row_tiles, groups) = (rows.div_ceil(TILE_ROWS), cols / GROUP);
        // Bytes of a row tile's codes and scales.
        let (tile_bytes, scale_bytes) = match format {
            DenseFormat::Bf16 => (groups * 2 * TILE_BYTES, 0),
            DenseFormat::Q8 => (groups * TILE_BYTES, groups * SCALE_BYTES),
        };
        let base_bytes = if format == DenseFormat::Q8 { row_tiles * TILE_ROWS * size_of::<f32>() } else { 0 };
        let matrix = Self {
            rows,
            cols,
            format,
            tiles: DeviceMemory::zeroed(device, row_tiles * tile_bytes, "a weight matrix")?,
            scales: DeviceMemory::zeroed(device, row_tiles * scale_bytes, "a weight matrix's scales")?,
            row_base: DeviceMemory::zeroed(device, base_bytes, "a weight matrix's row factors")?,
        };
        staging.rows(source, TILE_ROWS, |landed, first, count| {
            let tile = first / TILE_ROWS;
            let (tiles, scales) = (matrix.tiles.at(tile * tile_bytes), matrix.scales.at(tile * scale_bytes));
            let shape = Launch { grid: (groups, count.div_ceil(TILE_ROWS), 1), threads: 32, shared: 0 };
            match format {
                DenseFormat::Bf16 => {
                    device.launch_after(kernels.pack_bf16_tiles, shape, arguments![landed, count, cols, tiles])
                }
                DenseFormat::Q8 => {
                    device.launch_after(kernels.pack_q8_tiles, shape, arguments![landed, count, cols, tiles, scales])
                }
            }
        })?;
        if format == DenseFormat::Q8 {
            let padded = row_tiles * TILE_ROWS;
            let shape = Launch { grid: (padded.div_ceil(256), 1, 1), threads: 256, shared: 0 };
            let (scales, base) = (matrix.scales.at(0), matrix.row_base.at(0));
            device.launch_after(kernels.q8_row_base, shape, arguments![scales, padded, groups, base])?;
        }
        device.synchronize()?;
        Ok(matrix)
    }

    /// Row tiles.
    pub(crate) fn row_tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }
}
