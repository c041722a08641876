use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::sys::{self, CUdeviceptr};
use tandem_backend::BackendError;

use crate::device::{Device, failed};

/// Host memory that the device may access; no longer when dropped.
pub(crate) struct Registered {
    device: Arc<Device>,
    start: usize,
    bytes: usize,
    on_device: CUdeviceptr,
}

impl Registered {
    pub(crate) fn new(device: &Arc<Device>, start: usize, bytes: usize) -> Result<Self, BackendError> {
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

/// Where the device finds what this process has at `address`, which one of these holds.
pub(crate) fn on_device(registered: &[Registered], address: usize) -> Result<CUdeviceptr, BackendError> {
    let inside = |memory: &&Registered| (memory.start..memory.start + memory.bytes).contains(&address);
    let memory = registered.iter().find(inside);
    let memory = memory.ok_or_else(|| BackendError::Shape("an address outside the link's memory".into()))?;
    Ok(memory.on_device + (address - memory.start) as u64)
}
