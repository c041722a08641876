use std::sync::Arc;

use tandem_backend::BackendError;

use crate::device::Device;
use crate::memory::DeviceMemory;

/// Activations in device memory, f32 `[rows, width]`.
pub struct CudaBuffer {
    pub(crate) memory: DeviceMemory,
    pub(crate) rows: usize,
    pub(crate) width: usize,
}

impl CudaBuffer {
    pub(crate) fn new(device: &Arc<Device>, rows: usize, width: usize) -> Result<Self, BackendError> {
        let what = format!("a buffer [{rows}, {width}]");
        Ok(Self { memory: DeviceMemory::zeroed(device, rows * width * size_of::<f32>(), &what)?, rows, width })
    }

    /// Address of a row.
    pub(crate) fn row(&self, row: usize) -> u64 {
        self.memory.at(row * self.width * size_of::<f32>())
    }

    /// Zeroes the first `rows` rows.
    pub(crate) fn clear(&self, rows: usize) -> Result<(), BackendError> {
        self.memory.clear(rows * self.width * size_of::<f32>())
    }

    /// Refuses fewer than `rows` rows, or another width.
    pub(crate) fn check(&self, what: &str, rows: usize, width: usize) -> Result<(), BackendError> {
        if rows <= self.rows && width == self.width {
            return Ok(());
        }
        let (has_rows, has_width) = (self.rows, self.width);
        Err(BackendError::Shape(format!("{what}: [{rows}, {width}] of a buffer [{has_rows}, {has_width}]")))
    }
}

/// f32 parameters in device memory.
pub struct CudaVector {
    pub(crate) memory: DeviceMemory,
    pub(crate) len: usize,
}

/// Chosen experts (i32) and their weights (f32), `[rows, top_k]` each.
pub struct CudaRouting {
    pub(crate) experts: DeviceMemory,
    pub(crate) weights: DeviceMemory,
    pub(crate) rows: usize,
    pub(crate) top_k: usize,
}

impl CudaRouting {
    /// Addresses of a row's experts and weights.
    pub(crate) fn row(&self, row: usize) -> (u64, u64) {
        (self.experts.at(row * self.top_k * 4), self.weights.at(row * self.top_k * 4))
    }
}
