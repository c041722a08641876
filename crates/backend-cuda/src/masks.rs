use std::sync::Arc;

use cudarc::driver::result;
use tandem_backend::BackendError;

use crate::device::{Device, failed};
use crate::memory::{DeviceMemory, PinnedMemory};
use crate::work;

/// The masks of one launch of `draw.cu`, brought to the device together.
#[derive(Default)]
pub(crate) struct Masks {
    memory: Option<Memory>,
}

/// Room for the masks of one launch.
pub(crate) struct Memory {
    pinned: PinnedMemory,
    device: DeviceMemory,
    /// Words of a mask, and how many there is room for.
    words: usize,
    words_max: usize,
}

impl Masks {
    /// Room for masks of so many words each; made when a mask is first seen.
    pub(crate) fn room(&mut self, device: &Arc<Device>, words: usize) -> Result<&mut Memory, BackendError> {
        if self.memory.as_ref().is_none_or(|memory| memory.words_max < words) {
            let bytes = work::masks(words);
            let (pinned, memory) = (PinnedMemory::new(device, bytes)?, DeviceMemory::zeroed(device, bytes, "masks")?);
            self.memory = Some(Memory { pinned, device: memory, words, words_max: words });
        }
        let memory = self.memory.as_mut().ok_or_else(|| BackendError::Unsupported("no room for masks".into()))?;
        memory.words = words;
        Ok(memory)
    }

    /// Enqueues the copy of the first `count` masks; their address on the device.
    pub(crate) fn send(&self, device: &Device, count: usize) -> Result<u64, BackendError> {
        let Some(memory) = self.memory.as_ref().filter(|_| count > 0) else { return Ok(0) };
        device.bind()?;
        let bytes = &memory.pinned.as_slice()[..count * memory.words * 4];
        // SAFETY: both have room for that many bytes; the host writes again only after the draw has been waited for.
        unsafe { result::memcpy_htod_async(memory.device.at(0), bytes, device.stream()) }
            .map_err(|error| failed("bringing masks to the device", error))?;
        Ok(memory.device.at(0))
    }
}

impl Memory {
    /// Sets mask number `index`. Tokens beyond its end are not allowed.
    pub(crate) fn put(&mut self, index: usize, mask: &[u32]) {
        let bytes = self.words * 4;
        let to = &mut self.pinned.as_mut_slice()[index * bytes..][..bytes];
        let words = mask.iter().copied().chain(std::iter::repeat(0));
        to.chunks_exact_mut(4).zip(words).for_each(|(to, word)| to.copy_from_slice(&word.to_le_bytes()));
    }
}
