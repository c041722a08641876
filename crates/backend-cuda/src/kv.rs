use std::sync::Arc;

use cudarc::driver::result;
use tandem_backend::{BackendError, KvFormat, KvShape};

use crate::device::{Device, failed};
use crate::kernels::Kernel;
use crate::memory::DeviceMemory;

/// A pool of KV blocks: `[block][layer][kv_head][keys, values][block_tokens][head_dim]`, so that a block of all layers is one
/// piece and a head's keys of a block another.
pub struct CudaKv {
    pub(crate) memory: DeviceMemory,
    pub(crate) shape: KvShape,
}

impl CudaKv {
    pub(crate) fn new(device: &Arc<Device>, shape: KvShape) -> Result<Self, BackendError> {
        // One lane each for at most four dimensions.
        if shape.head_dim > 128 {
            return Err(BackendError::Shape(format!("heads of {} are wider than 128", shape.head_dim)));
        }
        let memory = DeviceMemory::zeroed(device, shape.blocks * block_bytes(&shape), "keys and values")?;
        Ok(Self { memory, shape })
    }

    /// Copies whole blocks, in order.
    pub(crate) fn copy(&mut self, device: &Device, pairs: &[(u32, u32)]) -> Result<(), BackendError> {
        let (blocks, bytes) = (self.shape.blocks, block_bytes(&self.shape));
        if let Some((from, to)) = pairs.iter().find(|(from, to)| *from as usize >= blocks || *to as usize >= blocks) {
            return Err(BackendError::Shape(format!("a copy of block {from} to {to} in a pool of {blocks}")));
        }
        device.bind()?;
        for &(from, to) in pairs {
            let (from, to) = (self.memory.at(from as usize * bytes), self.memory.at(to as usize * bytes));
            // SAFETY: both blocks were checked to lie in the pool.
            unsafe { result::memcpy_dtod_async(to, from, bytes, device.stream()) }
                .map_err(|error| failed("copying a KV block", error))?;
        }
        Ok(())
    }

    /// Bytes of a value.
    pub(crate) fn value_bytes(&self) -> usize {
        self.shape.format.bytes()
    }

    /// Whether the fast attention kernels read this pool.
    pub(crate) fn usual(&self) -> bool {
        let KvShape { block_tokens, head_dim, format, .. } = self.shape;
        block_tokens == 16 && head_dim == 64 && format != KvFormat::F32
    }

    /// Of two such kernels the one for this pool's format.
    pub(crate) fn pick(&self, bf16: Kernel, fp8: Kernel) -> Kernel {
        if self.shape.format == KvFormat::Fp8 { fp8 } else { bf16 }
    }
}

fn block_bytes(shape: &KvShape) -> usize {
    shape.layers * shape.kv_heads * 2 * shape.block_tokens * shape.head_dim * shape.format.bytes()
}
