use std::sync::Arc;

use cudarc::driver::result;
use tandem_backend::{BackendError, ExpertCount};

use crate::backend::CudaBackend;
use crate::buffer::CudaRouting;
use crate::device::{Device, failed};
use crate::launch::{Launch, arguments};
use crate::memory::DeviceMemory;
use crate::work::TALLY_BYTES;

/// Counts the different experts that steps of single rows read, while it is told to.
pub(crate) struct Tally {
    /// Layers and different experts, 64 bits each.
    memory: DeviceMemory,
    pub(crate) on: bool,
}

impl Tally {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Self, BackendError> {
        Ok(Self { memory: DeviceMemory::zeroed(device, TALLY_BYTES, "a count of experts")?, on: false })
    }

    /// What was counted since it was last taken.
    pub(crate) fn take(&self, device: &Device) -> Result<ExpertCount, BackendError> {
        device.synchronize()?;
        let mut counted = [0_u64; 2];
        // SAFETY: the memory has two such values.
        unsafe { result::memcpy_dtoh_sync(&mut counted, self.memory.at(0)) }
            .map_err(|error| failed("reading a count of experts", error))?;
        self.memory.clear(TALLY_BYTES)?;
        Ok(ExpertCount { layers: counted[0], distinct: counted[1] })
    }
}

impl CudaBackend {
    /// Counts what `n` rows chose, if it is wanted and they are single rows.
    pub(crate) fn tally(&self, routing: &CudaRouting, n: usize) -> Result<(), BackendError> {
        let state = self.state();
        if !state.tally.on || !state.rows()?.single() {
            return Ok(());
        }
        let (ids, _) = routing.row(0);
        let shape = Launch { grid: (1, 1, 1), threads: 256, shared: 0 };
        let arguments = arguments![ids, n * routing.top_k, state.tally.memory.at(0)];
        self.device.launch_after(self.kernels()?.count_experts, shape, arguments)
    }
}
