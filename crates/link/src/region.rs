//! The memory that messages go through, and where things are in it.

use std::slice;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::error::LinkError;
use crate::flag::{Flag, SLOT_BYTES_MAX};
use crate::memory::Memory;

/// Ranks of a group at most. Every region has room for as many, so that it can be made before ranks are given out.
pub const WORLD_MAX: usize = 4;
/// Slots of each direction between two ranks.
pub const SLOTS: usize = 2;
/// Devices that one message may be split over.
pub const STRIPES_MAX: usize = 2;
/// Every word that is waited for has a cache line of its own.
pub const LINE_BYTES: usize = 64;

/// Line 0: who made the region. Line 1: the abort word. Line 2: whether the owner sleeps.
const NONCE_AT: usize = 0;
const ABORT_AT: usize = LINE_BYTES;
const SLEEPING_AT: usize = 2 * LINE_BYTES;
/// Line 3: what a device announces to whoever relays its messages, a word a slot.
const OUTGOING_AT: usize = 3 * LINE_BYTES;
/// A lane for each rank, written by that rank: a flag line a slot, a credit, a state.
const LANES_AT: usize = 4 * LINE_BYTES;
const CREDIT_IN_LANE: usize = SLOTS * LINE_BYTES;
const STATE_IN_LANE: usize = CREDIT_IN_LANE + LINE_BYTES;
const LANE_BYTES: usize = STATE_IN_LANE + LINE_BYTES;
/// Payloads begin on a page.
const PAYLOAD_AT: usize = 4096;

/// Ranks whose slots to receive in, which shared memory does not need, make one slot of packets. Packets take twice a slot's
/// length; the rest is for pieces that blocks of a device cut them into.
const PACKET_LANES: usize = WORLD_MAX / SLOTS;

const _: () = assert!(LANES_AT + WORLD_MAX * LANE_BYTES <= PAYLOAD_AT);
const _: () = assert!(STRIPES_MAX * 8 <= LINE_BYTES);
// A sleeper waits for the low half of a flag.
const _: () = assert!(cfg!(target_endian = "little"));

/// Where things are in a region: all follows from the length of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Layout {
    pub(crate) slot_bytes: usize,
}

impl Layout {
    pub(crate) fn new(slot_bytes: usize) -> Result<Self, LinkError> {
        if slot_bytes == 0 || !slot_bytes.is_multiple_of(LINE_BYTES) || slot_bytes > SLOT_BYTES_MAX {
            return Err(LinkError::Setting(format!(
                "a slot of {slot_bytes} bytes: it has to be a multiple of {LINE_BYTES}, {SLOT_BYTES_MAX} at most"
            )));
        }
        Ok(Self { slot_bytes })
    }

    /// Bytes of the region.
    pub(crate) fn bytes(self) -> usize {
        self.received(WORLD_MAX, 0)
    }

    pub(crate) fn flag(self, peer: usize, slot: usize, stripe: usize) -> usize {
        lane(peer) + slot * LINE_BYTES + stripe * 8
    }

    pub(crate) fn credit(self, peer: usize) -> usize {
        lane(peer) + CREDIT_IN_LANE
    }

    pub(crate) fn state(self, peer: usize) -> usize {
        lane(peer) + STATE_IN_LANE
    }

    pub(crate) fn staged(self, slot: usize) -> usize {
        PAYLOAD_AT + slot * self.slot_bytes
    }

    pub(crate) fn received(self, peer: usize, slot: usize) -> usize {
        PAYLOAD_AT + ((1 + peer) * SLOTS + slot) * self.slot_bytes
    }

    /// Two ranks' slots to receive in, for each slot.
    pub(crate) fn packets(self, slot: usize) -> usize {
        self.received(slot * PACKET_LANES, 0)
    }

    pub(crate) fn packet_bytes(self) -> usize {
        PACKET_LANES * SLOTS * self.slot_bytes
    }
}

fn lane(peer: usize) -> usize {
    LANES_AT + peer * LANE_BYTES
}

/// What a rank has let its peers know of itself, in its lane of their regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum State {
    /// Nothing yet.
    Away = 0,
    /// Has everything it needs to begin.
    Ready = 1,
    /// Ended its link in good order.
    Closed = 2,
    /// Ended its link after an error.
    Failed = 3,
}

impl State {
    fn from_word(word: u32) -> Self {
        [Self::Away, Self::Ready, Self::Closed].get(word as usize).copied().unwrap_or(Self::Failed)
    }
}

/// One rank's memory: two slots to send from, and for each peer two slots to receive in with a flag each, a credit and a
/// state. With shared memory the slots to receive in are those that the peer sends from.
///
/// A backend whose device sees host memory registers [`Region::mappings`] and does its part in kernels:
///
/// * Message numbers count from [`crate::Link::number_for_device`]; message `seq` goes through slot `seq & 1`. A payload is as many
///   messages as it fills slots.
/// * With shared memory ([`Region::is_shared`]) it writes packets at [`Region::packets`], each with [`crate::packet_number`], and
///   waits for those of a peer at [`Region::peer_packets`]. How a message is cut into packets is the devices' own affair.
/// * Otherwise it stages at [`Region::staged`], fences, and writes the word [`Region::announcement`] gives at [`Region::outgoing`],
///   where [`crate::Link::relay`] finds it and sends what is staged. It waits until each of the [`Region::stripes`] words at
///   [`Region::flag`] *equals* the announcement (it may be seen half-written: never compare by order), fences, and reads at
///   [`Region::received`].
/// * Watch [`Region::abort_word`] while waiting, and never wait without a bound.
/// * A message may be sent when all peers have taken message `seq - 2`. A device sends none before it has taken all of the one
///   before, so the arrival of `seq - 1` says that, and it needs no credits.
#[derive(Debug)]
pub struct Region {
    layout: Layout,
    own: Arc<Memory>,
    /// The peers' regions, where they are shared memory.
    theirs: [Option<Memory>; WORLD_MAX],
    /// Messages longer than this come in several stripes.
    stripe_above: usize,
    stripes: usize,
}

impl Region {
    pub(crate) fn new(layout: Layout, own: Arc<Memory>) -> Self {
        Self { layout, own, theirs: Default::default(), stripe_above: usize::MAX, stripes: 1 }
    }

    pub(crate) fn with_peer(mut self, peer: usize, memory: Memory) -> Self {
        self.theirs[peer] = Some(memory);
        self
    }

    pub(crate) fn with_stripes(mut self, stripes: usize, above: usize) -> Self {
        (self.stripes, self.stripe_above) = (stripes, above);
        self
    }

    /// Bytes of a slot.
    pub fn slot_bytes(&self) -> usize {
        self.layout.slot_bytes
    }

    /// Address and length of the memory that a device has to be given access to: this rank's region, then any of its peers'.
    pub fn mappings(&self) -> Vec<(*mut u8, usize)> {
        let all = std::iter::once(&*self.own).chain(self.theirs.iter().flatten());
        all.map(|memory| (memory.at(0), memory.bytes())).collect()
    }

    /// Where a message is put together: `slot_bytes` bytes on a cache line.
    pub fn staged(&self, slot: usize) -> *mut u8 {
        self.own.at(self.layout.staged(slot))
    }

    /// Where a peer's message is found once its flag is up.
    pub fn received(&self, peer: usize, slot: usize) -> *const u8 {
        match &self.theirs[peer] {
            Some(memory) => memory.at(self.layout.staged(slot)),
            None => self.own.at(self.layout.received(peer, slot)),
        }
    }

    /// How many of a slot's flag words announce a message of so many bytes: one for each device that brings a part.
    pub fn stripes(&self, bytes: usize) -> usize {
        if bytes > self.stripe_above { self.stripes } else { 1 }
    }

    /// The word that announces message `seq` of an all-reduce of so many bytes.
    pub fn announcement(seq: u64, bytes: usize) -> u64 {
        Flag::new(seq, crate::flag::Operation::Reduce, bytes).0
    }

    /// The words that tell of a peer's message, one for each stripe.
    pub fn flag(&self, peer: usize, slot: usize, stripe: usize) -> &AtomicU64 {
        word64(&self.own, self.layout.flag(peer, slot, stripe))
    }

    /// Without shared memory, the word by which a device tells this process of a message that is staged.
    pub fn outgoing(&self, slot: usize) -> &AtomicU64 {
        word64(&self.own, OUTGOING_AT + slot * 8)
    }

    /// Whether all ranks see each other's memory.
    pub fn is_shared(&self) -> bool {
        self.theirs.iter().any(Option::is_some)
    }

    /// With shared memory, where a device writes a message's packets: [`Region::packet_bytes`] bytes on a cache line.
    pub fn packets(&self, slot: usize) -> *mut u8 {
        self.own.at(self.layout.packets(slot))
    }

    /// With shared memory, where a peer's device writes them.
    pub fn peer_packets(&self, peer: usize, slot: usize) -> Option<*const u8> {
        Some(self.theirs[peer].as_ref()?.at(self.layout.packets(slot)))
    }

    /// Room for one message's packets.
    pub fn packet_bytes(&self) -> usize {
        self.layout.packet_bytes()
    }

    /// All words of this rank's packets.
    pub(crate) fn packet_words(&self) -> impl Iterator<Item = &AtomicU64> {
        let words = self.layout.packet_bytes() / 8;
        (0..SLOTS)
            .flat_map(move |slot| (0..words).map(move |word| word64(&self.own, self.layout.packets(slot) + word * 8)))
    }

    /// Longest message of all-reduces in one stripe, and stripes of a longer one.
    pub fn striping(&self) -> (usize, usize) {
        (self.stripe_above.min(self.slot_bytes()), self.stripes)
    }

    /// The number of the last message that a peer has taken, as far as it said so.
    pub fn credit(&self, peer: usize) -> &AtomicU64 {
        word64(&self.own, self.layout.credit(peer))
    }

    /// Not zero: whoever waits gives up.
    pub fn abort_word(&self) -> &AtomicU32 {
        abort_word(&self.own)
    }

    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    pub(crate) fn own(&self) -> &Arc<Memory> {
        &self.own
    }

    pub(crate) fn peer_memory(&self, peer: usize) -> Option<&Memory> {
        self.theirs[peer].as_ref()
    }

    pub(crate) fn state(&self, peer: usize) -> State {
        State::from_word(word32(&self.own, self.layout.state(peer)).load(Ordering::Acquire))
    }

    pub(crate) fn sleeping(&self) -> &AtomicU32 {
        sleeping(&self.own)
    }

    /// The first `bytes` bytes of what is staged, to write.
    pub(crate) fn stage(&mut self, slot: usize, bytes: usize) -> &mut [u8] {
        assert!(bytes <= self.layout.slot_bytes);
        // SAFETY: inside the mapping; the protocol lets nobody read a slot that is being staged, and `&mut self` keeps
        // this process from having another view.
        unsafe { slice::from_raw_parts_mut(self.staged(slot), bytes) }
    }

    /// The first `bytes` bytes of what was staged.
    pub(crate) fn sent(&self, slot: usize, bytes: usize) -> &[u8] {
        assert!(bytes <= self.layout.slot_bytes);
        // SAFETY: inside the mapping; written by `stage` alone, which needs `&mut self`.
        unsafe { slice::from_raw_parts(self.staged(slot), bytes) }
    }

    /// The first `bytes` bytes of a peer's message, whose flag was seen up.
    pub(crate) fn taken(&self, peer: usize, slot: usize, bytes: usize) -> &[u8] {
        assert!(bytes <= self.layout.slot_bytes);
        // SAFETY: inside a mapping; the peer leaves the slot alone until it knows the message to be taken.
        unsafe { slice::from_raw_parts(self.received(peer, slot), bytes) }
    }

    /// Where a transport that receives for itself puts a peer's message.
    pub(crate) fn landing(&mut self, peer: usize, slot: usize, bytes: usize) -> &mut [u8] {
        assert!(bytes <= self.layout.slot_bytes && self.theirs[peer].is_none());
        // SAFETY: inside the mapping, and only this transport writes there.
        unsafe { slice::from_raw_parts_mut(self.own.at(self.layout.received(peer, slot)), bytes) }
    }
}

pub(crate) fn word64(memory: &Memory, offset: usize) -> &AtomicU64 {
    // SAFETY: inside the mapping and aligned, as all offsets of words are; only ever accessed atomically on this machine.
    unsafe { AtomicU64::from_ptr(memory.at(offset).cast()) }
}

pub(crate) fn word32(memory: &Memory, offset: usize) -> &AtomicU32 {
    // SAFETY: as in `word64`.
    unsafe { AtomicU32::from_ptr(memory.at(offset).cast()) }
}

/// See [`Region::abort_word`].
pub(crate) fn abort_word(memory: &Memory) -> &AtomicU32 {
    word32(memory, ABORT_AT)
}

/// Not zero: the region's owner sleeps until one of its words changes.
pub(crate) fn sleeping(memory: &Memory) -> &AtomicU32 {
    word32(memory, SLEEPING_AT)
}

/// The words that say which region this is: a peer that maps it compares them with the offer.
pub(crate) fn nonce(memory: &Memory) -> [&AtomicU64; 2] {
    [word64(memory, NONCE_AT), word64(memory, NONCE_AT + 8)]
}
