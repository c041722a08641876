use std::sync::{Arc, Mutex};

use cudarc::driver::result;
use tandem_backend::{BackendError, RowSource};

use crate::device::{Device, failed};
use crate::memory::{DeviceMemory, PinnedMemory};

/// Bytes read before they are copied to the device. Two of these alternate in page-locked memory.
const CHUNK_BYTES: usize = 32 << 20;
/// Threads that read: a fast disk wants several requests at a time, a generator several cores.
const READERS_MAX: usize = 16;

/// The way of weights to the device: read by several threads into page-locked memory, copied, handed to a kernel. Reading
/// overlaps with copying and packing.
pub(crate) struct Staging {
    device: Arc<Device>,
    pinned: [PinnedMemory; 2],
    landing: [DeviceMemory; 2],
}

impl Staging {
    pub(crate) fn new(device: &Arc<Device>) -> Result<Self, BackendError> {
        let pinned = || PinnedMemory::new(device, CHUNK_BYTES);
        let landing = || DeviceMemory::zeroed(device, CHUNK_BYTES, "the staging buffer");
        Ok(Self { device: Arc::clone(device), pinned: [pinned()?, pinned()?], landing: [landing()?, landing()?] })
    }

    /// Reads all rows, as many at a time as fit and as make a multiple of `unit` rows, and calls `each` with the address of
    /// the landed rows, the first row's index and their number. What `each` enqueues may use them: it is waited for before
    /// they are overwritten.
    pub(crate) fn rows(
        &mut self,
        source: &dyn RowSource,
        unit: usize,
        mut each: impl FnMut(u64, usize, usize) -> Result<(), BackendError>,
    ) -> Result<(), BackendError> {
        let (rows, row_bytes) = (source.rows(), source.row_bytes());
        let at_once = CHUNK_BYTES / (row_bytes * unit).max(1) * unit;
        if at_once == 0 {
            return Err(BackendError::Shape(format!("{unit} rows of {row_bytes} bytes do not fit {CHUNK_BYTES}")));
        }
        for (turn, first) in (0..rows).step_by(at_once).enumerate() {
            let count = at_once.min(rows - first);
            let (half, bytes) = (turn % 2, count * row_bytes);
            // What the turn before enqueued goes on while this one reads; what used this half was waited for then.
            read_in_parallel(source, first, count, &mut self.pinned[half].as_mut_slice()[..bytes])?;
            self.device.synchronize()?;
            self.copy(half, bytes)?;
            each(self.landing[half].at(0), first, count)?;
        }
        self.device.synchronize()
    }

    fn copy(&self, half: usize, bytes: usize) -> Result<(), BackendError> {
        self.device.bind()?;
        let from = &self.pinned[half].as_slice()[..bytes];
        // SAFETY: both buffers have at least `bytes` bytes and live until the stream has been waited for.
        unsafe { result::memcpy_htod_async(self.landing[half].at(0), from, self.device.stream()) }
            .map_err(|error| failed("copying weights to the device", error))
    }
}

fn read_in_parallel(source: &dyn RowSource, first: usize, count: usize, out: &mut [u8]) -> Result<(), BackendError> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let each = count.div_ceil(cores.min(READERS_MAX)).max(1);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for (index, part) in out.chunks_mut(each * source.row_bytes()).enumerate() {
            let failure = &failure;
            scope.spawn(move || {
                let from = first + index * each;
                if let Err(source) = source.read(from, part) {
                    let error = BackendError::Read { what: format!("weight rows from {from}"), source };
                    failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
                }
            });
        }
    });
    failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}
