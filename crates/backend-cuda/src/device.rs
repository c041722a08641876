use std::ffi::c_int;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use cudarc::driver::sys::{self, CUdevice_attribute, CUstream};
use cudarc::driver::{CudaContext, DriverError, result};
use tandem_backend::BackendError;

/// Why there is no GPU to compute on.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// libcuda.so is not there.
    #[error("no NVIDIA driver: libcuda.so.1 was not found (the driver's package installs it)")]
    NoDriver,
    /// The driver is there, but finds no device, or refuses.
    #[error("the NVIDIA driver {doing}: {reason}")]
    Driver {
        /// What was tried.
        doing: String,
        /// What it said.
        reason: String,
    },
    /// A driver older than CUDA 13.
    #[error(
        "the NVIDIA driver supports CUDA {}.{} at most, but 13.0 is needed: install driver 580 or later",
        version / 1000,
        version % 1000 / 10
    )]
    OldDriver {
        /// As `cuDriverGetVersion` says it: 1000 * major + 10 * minor.
        version: i32,
    },
    /// A GPU for which there are no kernels.
    #[error("{name} has compute capability {major}.{minor}; there are kernels for 9.0 (H100, H200) and 12.1 (GB10)")]
    Unsupported {
        /// The GPU's name.
        name: String,
        /// Compute capability.
        major: i32,
        /// Compute capability.
        minor: i32,
    },
}

/// Most shared memory of a block on a GB10.
const GB10_SHARED_BYTES_MAX: u32 = 101_376;
/// Oldest driver: CUDA 13.0.
const DRIVER_VERSION_MIN: i32 = 13_000;

/// A GPU with its one stream.
pub struct Device {
    context: Arc<CudaContext>,
    stream: CUstream,
    name: String,
    /// Target of the kernels, like `sm_90a`.
    arch: &'static str,
    multiprocessors: u32,
    shared_bytes_max: u32,
    integrated: bool,
    /// Whether anything was enqueued since the stream was waited for.
    busy: AtomicBool,
    allocated: Arc<AtomicU64>,
}

// SAFETY: a stream may be used from any thread on which its context is current; `bind` sees to that.
unsafe impl Send for Device {}
// SAFETY: the driver's calls are thread-safe.
unsafe impl Sync for Device {}

/// Number of GPUs.
pub fn device_count() -> Result<usize, DeviceError> {
    open_driver()?;
    let count = CudaContext::device_count().map_err(|error| driver("counting devices", error))?;
    Ok(usize::try_from(count).unwrap_or(0))
}

/// Opens the driver. Without this check cudarc panics where there is none.
fn open_driver() -> Result<(), DeviceError> {
    // SAFETY: opening a library runs its initialisers; it is the vendor's driver.
    if !unsafe { sys::is_culib_present() } {
        return Err(DeviceError::NoDriver);
    }
    let mut version: c_int = 0;
    // SAFETY: the pointer is valid for the call.
    unsafe { sys::cuDriverGetVersion(&mut version) }.result().map_err(|error| driver("telling its version", error))?;
    if version < DRIVER_VERSION_MIN {
        return Err(DeviceError::OldDriver { version });
    }
    result::init().map_err(|error| driver("starting", error))
}

impl Device {
    /// With no more shared memory for a block than a GB10 gives.
    pub(crate) fn limit_as_gb10(&mut self) {
        self.shared_bytes_max = self.shared_bytes_max.min(GB10_SHARED_BYTES_MAX);
    }

    /// Opens GPU number `ordinal` and makes its context current on this thread.
    pub fn open(ordinal: usize) -> Result<Self, DeviceError> {
        open_driver()?;
        let doing = |what: &str| format!("opening GPU {ordinal}: {what}");
        let context = CudaContext::new(ordinal).map_err(|error| driver(&doing("context"), error))?;
        let attribute = |which| context.attribute(which).map_err(|error| driver(&doing("attributes"), error));
        let name = context.name().map_err(|error| driver(&doing("name"), error))?;
        let (major, minor) = context.compute_capability().map_err(|error| driver(&doing("capability"), error))?;
        let arch = match (major, minor) {
            (9, 0) => "sm_90a",
            (12, 1) => "sm_121a",
            _ => return Err(DeviceError::Unsupported { name, major, minor }),
        };
        use CUdevice_attribute::*;
        let multiprocessors = attribute(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?;
        let shared = attribute(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?;
        let integrated = attribute(CU_DEVICE_ATTRIBUTE_INTEGRATED)? != 0;
        // The lowest priority: on a Spark the desktop draws with the same GPU and must come first.
        let (least, _) = result::stream::get_priority_range().map_err(|error| driver(&doing("priorities"), error))?;
        let stream = result::stream::create_with_priority(result::stream::StreamKind::NonBlocking, least)
            .map_err(|error| driver(&doing("stream"), error))?;
        let (multiprocessors, shared_bytes_max) = (multiprocessors as u32, shared as u32);
        let busy = AtomicBool::new(false);
        let allocated = Arc::default();
        Ok(Self { context, stream, name, arch, multiprocessors, shared_bytes_max, integrated, busy, allocated })
    }

    /// The GPU's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its identity among all GPUs, as hexadecimal digits.
    pub fn uuid(&self) -> Result<String, DeviceError> {
        let uuid = self.context.uuid().map_err(|error| driver("telling the GPU's identity", error))?;
        Ok(uuid.bytes.iter().map(|byte| format!("{:02x}", *byte as u8)).collect())
    }

    /// What its kernels are compiled for.
    pub fn arch(&self) -> &'static str {
        self.arch
    }

    /// Multiprocessors.
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Most shared memory of a block, bytes.
    pub fn shared_bytes_max(&self) -> u32 {
        self.shared_bytes_max
    }

    /// Whether it shares the machine's memory, as a GB10 does.
    pub fn integrated(&self) -> bool {
        self.integrated
    }

    /// Bytes of device memory and page-locked memory allocated through this, at any time.
    pub fn allocated(&self) -> &Arc<AtomicU64> {
        &self.allocated
    }

    /// Free and total device memory, bytes.
    pub fn memory(&self) -> Result<(u64, u64), BackendError> {
        self.bind()?;
        let (free, total) = result::mem_get_info().map_err(|error| failed("asking for free memory", error))?;
        Ok((free as u64, total as u64))
    }

    /// Makes the context current on the calling thread.
    pub(crate) fn bind(&self) -> Result<(), BackendError> {
        self.context.bind_to_thread().map_err(|error| failed("making the device current", error))
    }

    pub(crate) fn stream(&self) -> CUstream {
        self.stream
    }

    /// Takes note that something is enqueued which [`Device::wait_if_busy`] has to wait for.
    pub(crate) fn set_busy(&self) {
        self.busy.store(true, Ordering::Relaxed);
    }

    /// Waits for everything enqueued, unless that was waited for before.
    pub(crate) fn wait_if_busy(&self) -> Result<(), BackendError> {
        if self.busy.load(Ordering::Relaxed) { self.synchronize() } else { Ok(()) }
    }

    /// Waits for everything enqueued.
    pub(crate) fn synchronize(&self) -> Result<(), BackendError> {
        self.bind()?;
        self.busy.store(false, Ordering::Relaxed);
        // SAFETY: the stream is ours and alive.
        unsafe { result::stream::synchronize(self.stream) }.map_err(|error| failed("waiting for the device", error))
    }
}

impl Device {
    /// Copies values to the device and waits. On our stream: the driver's synchronous copy may return before the values
    /// have arrived, and its own stream is not ordered with ours.
    pub(crate) fn upload<T: Copy>(&self, to: u64, values: &[T]) -> Result<(), BackendError> {
        self.bind()?;
        // SAFETY: the caller checked that `to` has room; `values` outlives the wait.
        unsafe { result::memcpy_htod_async(to, values, self.stream()) }
            .map_err(|error| failed("copying to the device", error))?;
        self.synchronize()
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        if self.bind().is_ok() {
            // SAFETY: nothing uses the stream any more. An error here has no one to go to.
            let _ = unsafe { result::stream::destroy(self.stream) };
        }
    }
}

fn driver(doing: &str, error: DriverError) -> DeviceError {
    DeviceError::Driver { doing: format!("failed {doing}"), reason: describe(error) }
}

/// A driver's error while doing something, as this crate's callers see it.
pub(crate) fn failed(doing: &str, error: DriverError) -> BackendError {
    BackendError::Device { doing: doing.to_owned(), reason: describe(error) }
}

fn describe(error: DriverError) -> String {
    let text =
        |text: Result<&std::ffi::CStr, DriverError>| text.map_or("?".into(), |t| t.to_string_lossy().into_owned());
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}
