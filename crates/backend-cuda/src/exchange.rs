//! Partial sums of several ranks, added up by kernels through host memory.

use std::ffi::c_void;
use std::sync::Arc;
use std::time::Duration;

use cudarc::driver::result;
use cudarc::driver::sys::CUdeviceptr;
use tandem_backend::{BackendError, ExchangeMemory, PacketMemory, Passage, RelayMemory};

use crate::backend::{CudaBackend, State};
use crate::buffer::CudaBuffer;
use crate::device::{Device, failed};
use crate::launch::{Argument, Launch};
use crate::memory::{DeviceMemory, PinnedMemory};
use crate::registered::{Registered, on_device};
use crate::work::COUNTER_BYTES;

/// Ranks that a kernel knows.
const WORLD_MAX: usize = 4;
/// How long a kernel waits for a peer: well below the time in which a request must have failed.
const WAIT_MAX: Duration = Duration::from_secs(2);
const THREADS: usize = 512;
/// Bytes of a packet, which carries two values.
const PACKET_BYTES: usize = 16;
/// Blocks that share a message of packets at most: a packet a thread where slots have their usual length.
const PACKET_BLOCKS_MAX: usize = 64;
/// Values of a message through a relay that a block takes before another one joins it.
const BLOCK_VALUES: usize = 8192;
/// Blocks of such a message have to be resident at once.
const RELAYED_BLOCKS_MAX: usize = 32;

/// Memory shared with the other ranks, as the device sees it.
pub(crate) struct Joined {
    lanes: Lanes,
    /// The number of the step's first message: where the host writes it, and where kernels read it.
    written: PinnedMemory,
    first: DeviceMemory,
    /// Messages of this step so far.
    count: usize,
    message_bytes: usize,
    /// Let go of last.
    _registered: Vec<Registered>,
}

/// What a kernel knows of the memory.
enum Lanes {
    Packets(Packets, usize),
    Relayed(Relayed),
}

impl Joined {
    pub(crate) fn new(device: &Arc<Device>, memory: &ExchangeMemory) -> Result<Self, BackendError> {
        if memory.world > WORLD_MAX {
            return Err(BackendError::Unsupported(format!("exchanges among {} ranks on a GPU", memory.world)));
        }
        let register = |&(start, bytes): &(usize, usize)| Registered::new(device, start, bytes);
        let registered = memory.mappings.iter().map(register).collect::<Result<Vec<_>, _>>()?;
        let written = PinnedMemory::new(device, size_of::<u64>())?;
        let first = DeviceMemory::zeroed(device, size_of::<u64>(), "a message's number")?;
        let group = Group {
            rank: memory.rank as i32,
            world: memory.world as i32,
            abort: on_device(&registered, memory.abort)?,
            first: first.at(0),
            limit: WAIT_MAX.as_nanos() as u64,
        };
        let lanes = match &memory.passage {
            Passage::Packets(packets) => Lanes::Packets(Packets::new(group, packets, &registered)?, packets.slot_bytes),
            Passage::Relayed(relayed) => Lanes::Relayed(Relayed::new(group, relayed, &registered)?),
        };
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
        if len == 0 || !len.is_multiple_of(4) {
            return Err(BackendError::Shape(format!("an exchange of {len} values: they have to be a multiple of 4")));
        }
        let mut state = self.state();
        let State { scratch, exchange, .. } = &mut *state;
        let arrived = scratch.ensure(&self.device, |s| &mut s.arrived, COUNTER_BYTES, "counters")?;
        let joined = exchange.as_mut().ok_or_else(|| BackendError::Unsupported("no exchange was joined".into()))?;
        let Joined { lanes, count, message_bytes, .. } = joined;
        let index = *count;
        *count += (len * size_of::<f32>()).div_ceil(*message_bytes);
        match lanes {
            Lanes::Packets(packets, slot_bytes) => {
                let pieces = Pieces::new(len / 2, *count - index, *slot_bytes)?;
                self.exchange_packets(packets, index, pieces, part, into)
            }
            Lanes::Relayed(relayed) => {
                let most = *message_bytes / size_of::<f32>();
                for (message, at) in (0..len).step_by(most).enumerate() {
                    let values = Values { at, len: most.min(len - at) };
                    self.exchange_relayed(relayed, index + message, values, part, into, arrived)?;
                }
                Ok(())
            }
        }
    }

    fn exchange_packets(
        &self,
        packets: &mut Packets,
        index: usize,
        (mut pieces, blocks): (Pieces, usize),
        part: &CudaBuffer,
        into: &CudaBuffer,
    ) -> Result<(), BackendError> {
        let mut arguments: [Argument; 3] = [index.into(), part.row(0).into(), into.row(0).into()];
        let [index, part, into] = arguments.each_mut().map(Argument::address);
        let (packets, pieces): (*mut Packets, *mut Pieces) = (packets, &mut pieces);
        let mut values = [packets.cast(), index, pieces.cast::<c_void>(), part, into];
        let shape = Launch { grid: (blocks, 1, 1), threads: THREADS, shared: 0 };
        self.device.launch_raw(self.kernels()?.exchange_packets, shape, &mut values, true)
    }

    fn exchange_relayed(
        &self,
        relayed: &mut Relayed,
        index: usize,
        Values { at, len }: Values,
        part: &CudaBuffer,
        into: &CudaBuffer,
        arrived: CUdeviceptr,
    ) -> Result<(), BackendError> {
        let offset = (at * size_of::<f32>()) as u64;
        let mut arguments = [
            index.into(),
            Argument::Pointer(part.row(0) + offset),
            Argument::Long(len as u64),
            Argument::Pointer(into.row(0) + offset),
            Argument::Pointer(arrived),
        ];
        let mut values: Vec<*mut c_void> = arguments.iter_mut().map(Argument::address).collect();
        values.insert(0, std::ptr::from_mut(relayed).cast());
        let blocks = len.div_ceil(BLOCK_VALUES).min(RELAYED_BLOCKS_MAX);
        let shape = Launch { grid: (blocks, 1, 1), threads: THREADS, shared: 0 };
        self.device.launch_raw(self.kernels()?.exchange_relayed, shape, &mut values, true)
    }
}

/// Values of one message.
struct Values {
    at: usize,
    len: usize,
}

/// `Group` of `exchange.cu`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Group {
    rank: i32,
    world: i32,
    abort: CUdeviceptr,
    first: CUdeviceptr,
    limit: u64,
}

impl Group {
    /// Whether so many are all ranks.
    fn are_all(&self, ranks: usize) -> Result<(), BackendError> {
        if ranks == self.world as usize {
            return Ok(());
        }
        Err(BackendError::Shape(format!("memory of {ranks} ranks of {}", self.world)))
    }

    /// Runs `set` for every other rank.
    fn peers(&self, set: impl FnMut(usize) -> Result<(), BackendError>) -> Result<(), BackendError> {
        (0..self.world as usize).filter(|peer| *peer != self.rank as usize).try_for_each(set)
    }
}

/// `Packets` of `exchange.cu`.
#[repr(C)]
struct Packets {
    group: Group,
    sent: [CUdeviceptr; 2],
    received: [[CUdeviceptr; 2]; WORLD_MAX],
}

impl Packets {
    fn new(group: Group, memory: &PacketMemory, registered: &[Registered]) -> Result<Self, BackendError> {
        group.are_all(memory.received.len())?;
        let mut packets = Self { group, sent: both(registered, memory.sent)?, received: [[0; 2]; WORLD_MAX] };
        group.peers(|peer| {
            packets.received[peer] = both(registered, memory.received[peer])?;
            Ok(())
        })?;
        Ok(packets)
    }
}

/// `Pieces` of `exchange.cu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
struct Pieces {
    messages: u32,
    base: u32,
    extra: u32,
    stride: u32,
}

impl Pieces {
    /// So many pairs of values in so many messages, and the blocks that share each. The same on every rank.
    fn new(pairs: usize, messages: usize, slot_bytes: usize) -> Result<(Self, usize), BackendError> {
        let blocks = pairs.div_ceil(messages).div_ceil(THREADS).min(PACKET_BLOCKS_MAX);
        let pieces = messages * blocks;
        let stride = pairs.div_ceil(pieces);
        if pairs > u32::MAX as usize || blocks * stride * PACKET_BYTES > slot_bytes {
            return Err(BackendError::Shape(format!(
                "{pairs} pairs of values in {messages} messages of {slot_bytes} bytes"
            )));
        }
        let number = |value: usize| value as u32;
        let (base, extra) = (number(pairs / pieces), number(pairs % pieces));
        Ok((Self { messages: number(messages), base, extra, stride: number(stride) }, blocks))
    }
}

/// `Relayed` of `exchange.cu`.
#[repr(C)]
struct Relayed {
    group: Group,
    staged: [CUdeviceptr; 2],
    tell: [CUdeviceptr; 2],
    step: u64,
    stripe_above: u64,
    stripes: u32,
    received: [[CUdeviceptr; 2]; WORLD_MAX],
    flag: [[CUdeviceptr; 2]; WORLD_MAX],
}

impl Relayed {
    fn new(group: Group, memory: &RelayMemory, registered: &[Registered]) -> Result<Self, BackendError> {
        group.are_all(memory.peers.len())?;
        // Each word that announces a message is waited for by a thread of its own.
        if memory.stripes == 0 || memory.peers.len() * memory.stripes > THREADS {
            return Err(BackendError::Shape(format!("{} words announce a message", memory.stripes)));
        }
        let mut relayed = Self {
            group,
            staged: both(registered, memory.staged)?,
            tell: both(registered, memory.tell)?,
            step: memory.announcement_step,
            stripe_above: memory.stripe_above as u64,
            stripes: memory.stripes as u32,
            received: [[0; 2]; WORLD_MAX],
            flag: [[0; 2]; WORLD_MAX],
        };
        group.peers(|peer| {
            relayed.received[peer] = both(registered, memory.peers[peer].received)?;
            relayed.flag[peer] = both(registered, memory.peers[peer].flag)?;
            Ok(())
        })?;
        Ok(relayed)
    }
}

fn both(registered: &[Registered], addresses: [usize; 2]) -> Result<[CUdeviceptr; 2], BackendError> {
    Ok([on_device(registered, addresses[0])?, on_device(registered, addresses[1])?])
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOT_VALUES: usize = (256 << 10) / 4;

    /// As the kernel takes them: block by block of each message.
    #[test]
    fn pieces_cover_all_pairs_once_and_fit_their_slots() {
        for values in [4, 64, 2880, 23_040, SLOT_VALUES, SLOT_VALUES + 4, 60 * 2880, 8192 * 2880, 8191 * 2880 + 4] {
            let (pairs, messages) = (values / 2, values.div_ceil(SLOT_VALUES));
            let (pieces, blocks) = Pieces::new(pairs, messages, 4 * SLOT_VALUES * 4).unwrap();
            let Pieces { base, extra, stride, .. } = pieces;
            let mut next = 0;
            for piece in 0..(messages * blocks) as u32 {
                let (begin, count) = (piece * base + piece.min(extra), base + u32::from(piece < extra));
                assert_eq!(begin, next);
                assert!((1..=stride).contains(&count), "{values} values: a piece of {count}");
                next += count;
            }
            assert_eq!(next as usize, pairs);
            assert!(blocks * stride as usize * PACKET_BYTES <= 3 * SLOT_VALUES * 4);
        }
    }

    #[test]
    fn what_fits_no_slot_is_refused() {
        assert!(Pieces::new(1 << 20, 1, 1 << 20).is_err());
    }
}
