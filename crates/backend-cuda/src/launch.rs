use std::ffi::c_void;

use cudarc::driver::sys::{
    self, CUdeviceptr, CUlaunchAttribute, CUlaunchAttributeID, CUlaunchAttributeValue, CUlaunchConfig,
};
use tandem_backend::BackendError;

use crate::device::{Device, failed};
use crate::kernels::Kernel;

/// One argument of a kernel, by value.
#[derive(Clone, Copy)]
pub(crate) enum Argument {
    Pointer(CUdeviceptr),
    Int(i32),
    Float(f32),
    Long(u64),
}

impl Argument {
    pub(crate) fn address(&mut self) -> *mut c_void {
        match self {
            Argument::Pointer(value) => std::ptr::from_mut(value).cast(),
            Argument::Int(value) => std::ptr::from_mut(value).cast(),
            Argument::Float(value) => std::ptr::from_mut(value).cast(),
            Argument::Long(value) => std::ptr::from_mut(value).cast(),
        }
    }
}

impl From<CUdeviceptr> for Argument {
    fn from(value: CUdeviceptr) -> Self {
        Argument::Pointer(value)
    }
}

impl From<i32> for Argument {
    fn from(value: i32) -> Self {
        Argument::Int(value)
    }
}

impl From<u32> for Argument {
    fn from(value: u32) -> Self {
        Argument::Int(value as i32)
    }
}

impl From<bool> for Argument {
    fn from(value: bool) -> Self {
        Argument::Int(i32::from(value))
    }
}

/// Sizes travel as 32-bit integers: rows, widths, counts. They are checked where they come from.
impl From<usize> for Argument {
    fn from(value: usize) -> Self {
        Argument::Int(value as i32)
    }
}

impl From<f32> for Argument {
    fn from(value: f32) -> Self {
        Argument::Float(value)
    }
}

/// `arguments![a, b, ...]`: each by value, in the order of the kernel's parameters.
macro_rules! arguments {
    ($($value:expr),* $(,)?) => { &mut [$($crate::launch::Argument::from($value)),*] };
}
pub(crate) use arguments;

/// Shape of a launch.
#[derive(Clone, Copy)]
pub(crate) struct Launch {
    pub(crate) grid: (usize, usize, usize),
    pub(crate) threads: usize,
    /// Dynamic shared memory, bytes.
    pub(crate) shared: usize,
}

impl Device {
    /// Enqueues a kernel that waits for its predecessor itself (`griddepcontrol.wait`), so that its start overlaps with
    /// the predecessor's end.
    pub(crate) fn launch(&self, kernel: Kernel, shape: Launch, arguments: &mut [Argument]) -> Result<(), BackendError> {
        let mut values: Vec<*mut c_void> = arguments.iter_mut().map(Argument::address).collect();
        self.launch_raw(kernel, shape, &mut values, true)
    }

    /// Enqueues a kernel that knows nothing of its predecessor.
    pub(crate) fn launch_after(
        &self,
        kernel: Kernel,
        shape: Launch,
        arguments: &mut [Argument],
    ) -> Result<(), BackendError> {
        let mut values: Vec<*mut c_void> = arguments.iter_mut().map(Argument::address).collect();
        self.launch_raw(kernel, shape, &mut values, false)
    }

    /// With arguments as pointers to values.
    pub(crate) fn launch_raw(
        &self,
        kernel: Kernel,
        shape: Launch,
        values: &mut [*mut c_void],
        dependent: bool,
    ) -> Result<(), BackendError> {
        self.bind()?;
        self.set_busy();
        let mut attribute = CUlaunchAttribute {
            id: CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
            pad: [0; 4],
            value: CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 },
        };
        let (x, y, z) = shape.grid;
        let config = CUlaunchConfig {
            gridDimX: x as u32,
            gridDimY: y as u32,
            gridDimZ: z as u32,
            blockDimX: shape.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shape.shared as u32,
            hStream: self.stream(),
            attrs: &mut attribute,
            numAttrs: u32::from(dependent),
        };
        // SAFETY: the kernel is loaded; `values` has one pointer for each of its parameters, each valid for the call, and
        // device memory named by them lives as long as the buffers that own it, whose release waits for the stream.
        unsafe { sys::cuLaunchKernelEx(&config, kernel.0, values.as_mut_ptr(), std::ptr::null_mut()) }
            .result()
            .map_err(|error| failed("launching a kernel", error))
    }
}
