use std::sync::Arc;

use tandem_backend::{BackendError, DenseFormat, RowSource};

use crate::device::Device;
use crate::kernels::Packing;
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
        kernels: &Packing,
        staging: &mut Staging,
        source: &dyn RowSource,
        format: DenseFormat,
    ) -> Result<Self, BackendError> {
        let (rows, cols) = (source.rows(), source.row_bytes() / 2);
        if cols == 0 || !source.row_bytes().is_multiple_of(2 * GROUP) {
            let bytes = source.row_bytes();
            return Err(BackendError::Shape(format!("a row of {bytes} bytes is no multiple of 32 BF16 values")));
        }
        let row_tiles = rows.div_ceil(TILE_ROWS);
        let layout = Layout::of(format, cols);
        let (tile_bytes, scale_bytes) = (layout.k_tiles * layout.tile_bytes, layout.k_tiles * layout.scale_bytes);
        let padded = row_tiles * TILE_ROWS;
        let matrix = Self {
            rows,
            cols,
            format,
            tiles: DeviceMemory::zeroed(device, row_tiles * tile_bytes, "a weight matrix")?,
            scales: DeviceMemory::zeroed(device, row_tiles * scale_bytes, "a weight matrix's scales")?,
            row_base: DeviceMemory::zeroed(device, padded * layout.base_bytes, "a weight matrix's row factors")?,
        };
        staging.rows(source, TILE_ROWS, |landed, first, count| {
            let tile = first / TILE_ROWS;
            let (tiles, scales) = (matrix.tiles.at(tile * tile_bytes), matrix.scales.at(tile * scale_bytes));
            let shape = Launch { grid: (layout.k_tiles, count.div_ceil(TILE_ROWS), 1), threads: 32, shared: 0 };
            let pack = match format {
                DenseFormat::Bf16 => {
                    return device.launch_after(kernels.pack_bf16_tiles, shape, arguments![landed, count, cols, tiles]);
                }
                DenseFormat::Q8 => kernels.pack_q8_tiles,
                DenseFormat::Mxfp4 => kernels.pack_bf16_to_mxfp4,
            };
            device.launch_after(pack, shape, arguments![landed, count, cols, tiles, scales])
        })?;
        let row_base = match format {
            DenseFormat::Bf16 => None,
            DenseFormat::Q8 => Some(kernels.q8_row_base),
            DenseFormat::Mxfp4 => Some(kernels.mxfp4_row_base),
        };
        if let Some(kernel) = row_base {
            let shape = Launch { grid: (padded.div_ceil(256), 1, 1), threads: 256, shared: 0 };
            let (scales, base) = (matrix.scales.at(0), matrix.row_base.at(0));
            device.launch_after(kernel, shape, arguments![scales, padded, layout.k_tiles, base])?;
        }
        device.synchronize()?;
        Ok(matrix)
    }

    /// Row tiles.
    pub(crate) fn row_tiles(&self) -> usize {
        self.rows.div_ceil(TILE_ROWS)
    }
}

/// What a row tile consists of.
struct Layout {
    /// Tiles along k.
    k_tiles: usize,
    /// Bytes of one.
    tile_bytes: usize,
    /// Bytes of its scales.
    scale_bytes: usize,
    /// Bytes of a row's factor.
    base_bytes: usize,
}

impl Layout {
    fn of(format: DenseFormat, cols: usize) -> Self {
        let groups = cols / GROUP;
        match format {
            DenseFormat::Bf16 => Self { k_tiles: groups, tile_bytes: 2 * TILE_BYTES, scale_bytes: 0, base_bytes: 0 },
            DenseFormat::Q8 => {
                Self { k_tiles: groups, tile_bytes: TILE_BYTES, scale_bytes: SCALE_BYTES, base_bytes: size_of::<f32>() }
            }
            DenseFormat::Mxfp4 => {
                Self { k_tiles: groups.div_ceil(2), tile_bytes: TILE_BYTES, scale_bytes: SCALE_BYTES, base_bytes: 1 }
            }
        }
    }
}
