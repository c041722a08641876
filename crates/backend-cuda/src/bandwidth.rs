use std::time::Instant;

use tandem_backend::BackendError;

use crate::backend::{CudaBackend, CudaOptions};
use crate::launch::{Argument, Launch};
use crate::memory::DeviceMemory;

/// Passes over the buffer between two looks at the clock, so that starting a launch does not count.
const PASSES: usize = 20;
/// Measurements; the best counts.
const TRIES: usize = 5;

/// Measures how fast the GPU reads its memory, bytes per second, over a buffer of `bytes`, which should be many times its
/// caches.
pub fn read_bandwidth(options: CudaOptions, bytes: usize) -> Result<f64, BackendError> {
    let backend = CudaBackend::new(options)?;
    let (device, kernels) = (&backend.device, backend.kernels()?);
    let buffer = DeviceMemory::zeroed(device, bytes, "the bandwidth probe")?;
    let sink = DeviceMemory::zeroed(device, 4, "the bandwidth probe")?;
    let shape = Launch { grid: (2 * device.multiprocessors() as usize, 1, 1), threads: 512, shared: 0 };
    let mut best = 0.0_f64;
    for _ in 0..TRIES {
        device.synchronize()?;
        let begun = Instant::now();
        for _ in 0..PASSES {
            let words = Argument::Long((bytes / 16) as u64);
            device.launch_after(kernels.read_once, shape, &mut [buffer.at(0).into(), words, sink.at(0).into()])?;
        }
        device.synchronize()?;
        best = best.max((PASSES * bytes) as f64 / begun.elapsed().as_secs_f64());
    }
    Ok(best)
}
