//! Partial sums of several ranks, added up by kernels through host memory.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::result;
use cudarc::driver::sys::{self, CUdeviceptr};
use tandem_backend::{BackendError, ExchangeMemory};

use crate::backend::CudaBackend;
use crate::buffer::CudaBuffer;
use crate::device::{Device, failed};
use crate::launch::{Argument, Launch};
use crate::memory::{DeviceMemory, PinnedMemory};
use crate::work::COUNTER_BYTES;

/// Ranks that a kernel knows.
const WORLD_MAX: usize = 4;
/// How long a kernel waits for a peer: well below the time in which a request must have failed.
const WAIT_MAX: Duration = Duration::from_secs(2);
const THREADS: usize = 512;
/// Values that a block takes before another one joins it.
const BLOCK_VALUES: usize = 8192;
/// All blocks have to be resident at once.
const BLOCKS_MAX: usize = 32;

/// Memory shared with the other ranks, as the device sees it.
pub(crate) struct Joined {
    lanes: Lanes,
    /// The number of the step's first message: where the host writes it, and where kernels read it.
    written: PinnedMemory,
    first: DeviceMemory,
    /// Exchanges of this step so far.
    count: usize,
    message_bytes: usize,
    /// Let go of last.
    _registered: Vec<Registered>,
}

impl Joined {
    pub(crate) fn new(device: &Arc<Device>, memory: &ExchangeMemory) -> Result<Self, BackendError> {
        if memory.world > WORLD_MAX || memory.peers.len() != memory.world {
            return Err(BackendError::Unsupported(format!("exchanges among {} ranks on a GPU", memory.world)));
        }
        let registered = memory
            .mappings
            .iter()
            .map(|&(start, bytes)| Registered::new(device, start, bytes))
            .collect::<Result<Vec<_>, _>>()?;
        let at = |address: usize| on_device(&registered, address);
        let both =
            |addresses: [usize; 2]| -> Result<[u64; 2], BackendError> { Ok([at(addresses[0])?, at(addresses[1])?]) };
        let written = PinnedMemory::new(device, size_of::<u64>())?;
        let first = DeviceMemory::zeroed(device, size_of::<u64>(), "a message's number")?;
        let mut lanes = Lanes {
            rank: memory.rank as i32,
            world: memory.world as i32,
            staged: both(memory.staged)?,
            abort: at(memory.abort)?,
            first: first.at(0),
            step: memory.announcement_step,
            limit: WAIT_MAX.as_nanos() as u64,
            received: [[0; 2]; WORLD_MAX],
            flag: [[0; 2]; WORLD_MAX],
            tell: [[0; 2]; WORLD_MAX],
        };
        for (rank, peer) in memory.peers.iter().enumerate().filter(|(rank, _)| *rank != memory.rank) {
            lanes.received[rank] = both(peer.received)?;
            lanes.flag[rank] = both(peer.flag)?;
            lanes.tell[rank] = both(peer.tell)?;
        }
        Ok(Self { lanes, written, first, count: 0, message_bytes: memory.message_bytes, _registered: registered })
    }

    /// Kernels of the step before must have ended: they read the number where it is written.
    pub(crate) fn number(&mut self, device: &Device, first: u64) -> Result<(), BackendError> {
        self.count = 0;
        self.written.as_mut_slice().copy_from_slice(&first.to_ne_bytes());
        device.bind()?;
        // SAFETY: both have eight bytes; the host does not write again before the stream has been waited for.
        unsafe { result::memcpy_htod_async(self.first.at(0), self.written.as_slice(), device.stream()) }
            .map_err(|error| failed("bringing a message's number to the device", error))
    }
}

impl CudaBackend {
    pub(crate) fn exchange_rows(&self, part: &CudaBuffer, n: usize, into: &CudaBuffer) -> Result<(), BackendError> {
        part.check("partial sums", n, into.width)?;
        into.check("sums", n, into.width)?;
        let len = n * into.width;
        let mut state = self.state();
        let arrived = state.scratch.ensure(&self.device, |s| &mut s.arrived, COUNTER_BYTES, "counters")?;
        let joined =
            state.exchange.as_mut().ok_or_else(|| BackendError::Unsupported("no exchange was joined".into()))?;
        if len * size_of::<f32>() > joined.message_bytes || !len.is_multiple_of(4) {
            return Err(BackendError::Shape(format!("an exchange of {len} values in {} bytes", joined.message_bytes)));
        }
        let mut arguments = [
            joined.count.into(),
            part.row(0).into(),
            Argument::Long(len as u64),
            into.row(0).into(),
            Argument::Pointer(arrived),
        ];
        joined.count += 1;
        let mut values: Vec<*mut c_void> = arguments.iter_mut().map(Argument::address).collect();
        values.insert(0, std::ptr::from_mut(&mut joined.lanes).cast());
        let blocks = len.div_ceil(BLOCK_VALUES).min(BLOCKS_MAX);
        let shape = Launch { grid: (blocks, 1, 1), threads: THREADS, shared: 0 };
        self.device.launch_raw(self.kernels()?.exchange_add, shape, &mut values, true)
    }
}

/// `Lanes` of `exchange.cu`.
#[repr(C)]
struct Lanes {
    rank: i32,
    world: i32,
    staged: [CUdeviceptr; 2],
    abort: CUdeviceptr,
    first: CUdeviceptr,
    step: u64,
    limit: u64,
    received: [[CUdeviceptr; 2]; WORLD_MAX],
    flag: [[CUdeviceptr; 2]; WORLD_MAX],
    tell: [[CUdeviceptr; 2]; WORLD_MAX],
}

/// Host memory that the device may access; no longer when dropped.
struct Registered {
    device: Arc<Device>,
    start: usize,
    bytes: usize,
    on_device: CUdeviceptr,
}

impl Registered {
    fn new(device: &Arc<Device>, start: usize, bytes: usize) -> Result<Self, BackendError> {
        device.bind()?;
        let doing = |error| {
            failed(
                &format!("registering {bytes} bytes of the link's memory (is the memlock limit high enough?)"),
                error,
            )
        };
        let flags = sys::CU_MEMHOSTREGISTER_PORTABLE | sys::CU_MEMHOSTREGISTER_DEVICEMAP;
        // SAFETY: whoever gave the address keeps the mapping until this is dropped.
        unsafe { sys::cuMemHostRegister_v2(start as *mut c_void, bytes, flags) }.result().map_err(doing)?;
        let mut registered = Self { device: Arc::clone(device), start, bytes, on_device: 0 };
        // SAFETY: registered above; the pointer is valid for the call.
        unsafe { sys::cuMemHostGetDevicePointer_v2(&mut registered.on_device, start as *mut c_void, 0) }
            .result()
            .map_err(doing)?;
        Ok(registered)
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // Kernels may still be at work there.
        if self.device.synchronize().is_ok() {
            // SAFETY: registered by `new`, let go of once. An error here has no one to go to.
            let _ = unsafe { sys::cuMemHostUnregister(self.start as *mut c_void) }.result();
        }
    }
}

fn on_device(registered: &[Registered], address: usize) -> Result<CUdeviceptr, BackendError> {
    let inside = |memory: &&Registered| (memory.start..memory.start + memory.bytes).contains(&address);
    let memory = registered.iter().find(inside);
    let memory = memory.ok_or_else(|| BackendError::Shape("an address outside the link's memory".into()))?;
    Ok(memory.on_device + (address - memory.start) as u64)
}
