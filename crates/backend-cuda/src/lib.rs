//! The CUDA backend. One binary starts anywhere: the driver and NVRTC are opened when first wanted, kernels are compiled
//! for the device found and cached, and a machine without a GPU gets an error that says what is missing.
//!
//! Everything runs on one stream in the order called, so that operations need no synchronisation among themselves. The
//! kernels are in `kernels/` at the root of the repository.

mod activations;
mod backend;
mod bandwidth;
mod block_scale;
mod buffer;
mod compile;
mod count;
mod device;
mod draw_part;
mod exchange;
mod experts;
mod few;
mod graph;
mod kernels;
mod kv;
mod late;
mod launch;
mod many;
mod many_experts;
mod masks;
mod matrix;
mod memory;
mod nccl;
mod operations;
mod registered;
mod rows;
mod staging;
mod work;

pub use activations::PrefillActivations;
pub use backend::{CudaBackend, CudaOptions};
pub use bandwidth::read_bandwidth;
pub use buffer::{CudaBuffer, CudaRouting, CudaVector};
pub use compile::{CompileError, Compiler, Cubin};
pub use device::{Device, DeviceError, device_count};
pub use experts::CudaExperts;
pub use kernels::{SOURCES, Source};
pub use kv::CudaKv;
pub use late::KernelProgress;
pub use matrix::CudaMatrix;
pub use nccl::{NCCL_ID_BYTES, Nccl, NcclRank};
pub use work::working_bytes;
