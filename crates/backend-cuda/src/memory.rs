use cudarc::driver::result;
use cudarc::driver::sys::{CUdeviceptr, CUresult};
use tandem_backend::BackendError;

use crate::device::{Device, failed};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes of device memory, freed when dropped.
pub(crate) struct DeviceMemory {
    device: Arc<Device>,
    pointer: CUdeviceptr,
    bytes: usize,
}

impl DeviceMemory {
    /// Zeroed bytes for `what`.
    pub(crate) fn zeroed(device: &Arc<Device>, bytes: usize, what: &str) -> Result<Self, BackendError> {
        device.bind()?;
        // An empty allocation has no address.
        let size = bytes.max(16);
        // SAFETY: plain allocation; the pointer is kept until drop.
        let pointer = unsafe { result::malloc_sync(size) }.map_err(|error| match error.0 {
            CUresult::CUDA_ERROR_OUT_OF_MEMORY => BackendError::OutOfMemory { what: what.to_owned(), bytes },
            _ => failed(&format!("allocating {what}"), error),
        })?;
        let memory = Self { device: Arc::clone(device), pointer, bytes };
        device.allocated().fetch_add(bytes as u64, Ordering::Relaxed);
        // SAFETY: the allocation has `size` bytes.
        unsafe { result::memset_d8_async(pointer, 0, size, device.stream()) }
            .map_err(|error| failed(&format!("clearing {what}"), error))?;
        Ok(memory)
    }

    /// Enqueues zeroes into the first `bytes`.
    pub(crate) fn clear(&self, bytes: usize) -> Result<(), BackendError> {
        self.device.bind()?;
        let bytes = bytes.min(self.bytes);
        // SAFETY: the allocation has at least that many bytes.
        unsafe { result::memset_d8_async(self.pointer, 0, bytes, self.device.stream()) }
            .map_err(|error| failed("clearing device memory", error))
    }

    /// Its address on the device.
    pub(crate) fn at(&self, byte: usize) -> CUdeviceptr {
        debug_assert!(byte <= self.bytes);
        self.pointer + byte as u64
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for DeviceMemory {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated by `zeroed`, freed once. Freeing waits for the work that uses it. An error here has no
            // one to go to.
            let _ = unsafe { result::free_sync(self.pointer) };
        }
        self.device.allocated().fetch_sub(self.bytes as u64, Ordering::Relaxed);
    }
}

/// Page-locked host memory, which the device copies from and to without a detour.
pub(crate) struct PinnedMemory {
    device: Arc<Device>,
    pointer: *mut u8,
    bytes: usize,
}

// SAFETY: plain memory, owned by this value.
unsafe impl Send for PinnedMemory {}

impl PinnedMemory {
    pub(crate) fn new(device: &Arc<Device>, bytes: usize) -> Result<Self, BackendError> {
        device.bind()?;
        // SAFETY: plain allocation; flag 0 is cached memory, which the host reads fast too.
        let pointer = unsafe { result::malloc_host(bytes, 0) }
            .map_err(|error| failed(&format!("allocating {bytes} bytes of page-locked memory"), error))?;
        // SAFETY: the allocation has `bytes` bytes.
        unsafe { std::ptr::write_bytes(pointer.cast::<u8>(), 0, bytes) };
        device.allocated().fetch_add(bytes as u64, Ordering::Relaxed);
        Ok(Self { device: Arc::clone(device), pointer: pointer.cast(), bytes })
    }

    /// Its address on the device, which reads and writes it in place.
    pub(crate) fn on_device(&self) -> CUdeviceptr {
        // Under unified addressing, which every 64-bit system has, page-locked memory has one address for both.
        self.pointer as CUdeviceptr
    }

    pub(crate) fn as_slice(&self) -> &[u8] {
        // SAFETY: initialised in `new`, `bytes` long.
        unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) }
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: as above, and borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) }
    }
}

impl Drop for PinnedMemory {
    fn drop(&mut self) {
        if self.device.bind().is_ok() {
            // SAFETY: allocated by `new`, freed once.
            let _ = unsafe { result::free_host(self.pointer.cast()) };
        }
        self.device.allocated().fetch_sub(self.bytes as u64, Ordering::Relaxed);
    }
}
