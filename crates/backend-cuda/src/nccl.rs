//! NCCL, opened at run time where it is installed: to measure our own exchange beside it. Nothing is served through it.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::mem::ManuallyDrop;
use std::sync::Arc;

use cudarc::driver::sys::CUstream;
use libloading::Library;
use tandem_backend::BackendError;

use crate::backend::CudaBackend;
use crate::buffer::CudaBuffer;
use crate::device::Device;

/// Names under which the library is looked for.
const NAMES: [&str; 2] = ["libnccl.so.2", "libnccl.so"];
/// Bytes of what the first rank tells the others (`NCCL_UNIQUE_ID_BYTES`).
pub const NCCL_ID_BYTES: usize = 128;
/// `ncclFloat32` and `ncclSum`.
const FLOAT32: c_int = 7;
const SUM: c_int = 0;

/// `ncclUniqueId`, passed by value.
#[derive(Clone, Copy)]
#[repr(C)]
struct UniqueId([u8; NCCL_ID_BYTES]);

type GetVersion = unsafe extern "C" fn(*mut c_int) -> c_int;
type GetUniqueId = unsafe extern "C" fn(*mut UniqueId) -> c_int;
type CommInitRank = unsafe extern "C" fn(*mut *mut c_void, c_int, UniqueId, c_int) -> c_int;
type GetErrorString = unsafe extern "C" fn(c_int) -> *const c_char;
type AllReduce = unsafe extern "C" fn(*const c_void, *mut c_void, usize, c_int, c_int, *mut c_void, CUstream) -> c_int;

/// The library. It is never unloaded: its threads run on until the process ends.
pub struct Nccl {
    library: ManuallyDrop<Library>,
}

impl Nccl {
    /// Opens it; the error says that it is not there, or why it cannot be used.
    pub fn open() -> Result<Self, BackendError> {
        let mut reason = String::new();
        for name in NAMES {
            // SAFETY: opening a library runs its initialisers; it is the vendor's.
            match unsafe { Library::new(name) } {
                Ok(library) => return Ok(Self { library: ManuallyDrop::new(library) }),
                Err(error) => reason = error.to_string(),
            }
        }
        let where_to = "if it is installed, name its folder in LD_LIBRARY_PATH";
        Err(BackendError::Unsupported(format!("{} was not found ({reason}); {where_to}", NAMES[0])))
    }

    /// Such as 2.28.9.
    pub fn version(&self) -> Result<String, BackendError> {
        let mut version = 0;
        // SAFETY: the signature is that of nccl.h; the pointer is valid for the call.
        self.check("telling its version", unsafe { self.symbol::<GetVersion>(c"ncclGetVersion")?(&mut version) })?;
        Ok(format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100))
    }

    /// What the first rank makes and every rank needs.
    pub fn id(&self) -> Result<[u8; NCCL_ID_BYTES], BackendError> {
        let mut id = UniqueId([0; NCCL_ID_BYTES]);
        // SAFETY: as above.
        self.check("making an id", unsafe { self.symbol::<GetUniqueId>(c"ncclGetUniqueId")?(&mut id) })?;
        Ok(id.0)
    }

    /// The function of that name. The caller names its type.
    fn symbol<F: Copy>(&self, name: &CStr) -> Result<F, BackendError> {
        // SAFETY: every type above is the function's declaration in nccl.h.
        let found = unsafe { self.library.get::<F>(name.to_bytes_with_nul()) };
        found.map(|function| *function).map_err(|error| BackendError::Unsupported(format!("NCCL: {error}")))
    }

    fn check(&self, doing: &str, code: c_int) -> Result<(), BackendError> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: takes any code, gives a static string.
        let text = unsafe { CStr::from_ptr(self.symbol::<GetErrorString>(c"ncclGetErrorString")?(code)) };
        Err(BackendError::Device { doing: format!("NCCL: {doing}"), reason: text.to_string_lossy().into_owned() })
    }
}

/// One rank of a group that NCCL joins. Waits for its peers without an end: to be used in a process that may be killed,
/// whose end gives the communicator up, as giving it up while a recorded step names it may wait too.
pub struct NcclRank {
    nccl: Nccl,
    communicator: *mut c_void,
    all_reduce: AllReduce,
    device: Arc<Device>,
}

impl NcclRank {
    /// Returns when all ranks have called it.
    pub fn new(
        nccl: Nccl,
        backend: &CudaBackend,
        id: [u8; NCCL_ID_BYTES],
        rank: usize,
        world: usize,
    ) -> Result<Self, BackendError> {
        let device = Arc::clone(&backend.device);
        device.bind()?;
        let mut communicator = std::ptr::null_mut();
        let init = nccl.symbol::<CommInitRank>(c"ncclCommInitRank")?;
        // SAFETY: the signature is that of nccl.h; the device's context is current.
        let code = unsafe { init(&mut communicator, world as c_int, UniqueId(id), rank as c_int) };
        nccl.check("joining", code)?;
        let all_reduce = nccl.symbol::<AllReduce>(c"ncclAllReduce")?;
        Ok(Self { nccl, communicator, all_reduce, device })
    }

    /// Enqueues `into = Σ part`, for the first `n` rows.
    pub fn all_reduce(&self, part: &CudaBuffer, n: usize, into: &CudaBuffer) -> Result<(), BackendError> {
        part.check("partial sums", n, into.width)?;
        into.check("sums", n, into.width)?;
        self.device.bind()?;
        self.device.set_busy();
        let (from, to) = (part.row(0) as *const c_void, into.row(0) as *mut c_void);
        // SAFETY: both buffers hold that many values; they live until the stream has been waited for, as freeing them waits.
        let code = unsafe {
            (self.all_reduce)(from, to, n * into.width, FLOAT32, SUM, self.communicator, self.device.stream())
        };
        self.nccl.check("an all-reduce", code)
    }
}
