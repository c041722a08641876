use std::ffi::{CStr, c_int};
use std::io;
use std::ptr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::LinkError;
use crate::memory::Memory;
use crate::region::{SLOTS, WORLD_MAX};

use super::port::Port;
use super::verbs::{self, Verbs};

/// Requests that may be under way to one peer. Two messages and a few credits are what the protocol has at a time.
const SEND_QUEUE: u32 = 64;
/// Completions looked at in one go.
const BATCH: usize = 16;
/// Time for an acknowledgement, 4.096 µs times two to this power: 67 ms.
const TIMEOUT: u8 = 14;
/// Sendings before a peer counts as gone. (7 in `NOT_READY_RETRIES` would mean forever; soft-RoCE takes it so here as well.)
const RETRIES: u8 = 6;
const NOT_READY_RETRIES: u8 = 6;
/// 0.64 ms until the next try at a peer that is not ready.
const NOT_READY_TIMER: u8 = 12;
const HOPS: u8 = 64;
/// `IBV_MTU_4096`.
const MTU_MAX: u32 = 5;

/// What a peer must know of a device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct AdapterOffer {
    gid: [u8; 16],
    /// As verbs count: 1 is 256 bytes, 5 is 4096.
    mtu: u32,
    remote_key: u32,
    /// Number of the queue pair for each rank, and of the first packet on all of them.
    pairs: [u32; WORLD_MAX],
    first_packet: u32,
}

/// One device with this rank's memory registered, and a reliable connection for each rank.
pub(super) struct Adapter {
    verbs: &'static Verbs,
    port: Port,
    mtu: u32,
    first_packet: u32,
    memory: Arc<Memory>,
    context: *mut verbs::Context,
    domain: *mut verbs::ProtectionDomain,
    registered: *mut verbs::MemoryRegion,
    completions: *mut verbs::CompletionQueue,
    pairs: [*mut verbs::QueuePair; WORLD_MAX],
    remote_keys: [u32; WORLD_MAX],
    /// Requests under way to each peer.
    queued: [u32; WORLD_MAX],
    /// Payloads under way from each slot.
    reading: [u32; SLOTS],
    failed: [Option<String>; WORLD_MAX],
}

// SAFETY: verbs objects may be used from any thread; `&mut self` keeps it one at a time.
unsafe impl Send for Adapter {}

impl Adapter {
    /// Opens the device and registers the memory.
    pub(super) fn open(port: Port, memory: &Arc<Memory>) -> Result<Self, LinkError> {
        let no_library = |error| LinkError::NoRdma(format!("{error}: is rdma-core (libibverbs1) installed?"));
        let mut adapter = Self {
            verbs: Verbs::get().map_err(no_library)?,
            port,
            mtu: 0,
            first_packet: (crate::endpoint::random()?[0] & 0xFF_FFFF) as u32,
            memory: Arc::clone(memory),
            context: ptr::null_mut(),
            domain: ptr::null_mut(),
            registered: ptr::null_mut(),
            completions: ptr::null_mut(),
            pairs: [ptr::null_mut(); WORLD_MAX],
            remote_keys: [0; WORLD_MAX],
            queued: [0; WORLD_MAX],
            reading: [0; SLOTS],
            failed: Default::default(),
        };
        // What was made is taken apart by `drop` if a later part fails.
        adapter.open_device()?;
        adapter.query_mtu()?;
        adapter.register()?;
        adapter.make_queues()?;
        Ok(adapter)
    }

    pub(super) fn offer(&self) -> AdapterOffer {
        AdapterOffer {
            gid: self.port.gid,
            mtu: self.mtu,
            // SAFETY: registered in `open`, alive until `drop`.
            remote_key: unsafe { (*self.registered).remote_key },
            // SAFETY: made in `open`, alive until `drop`.
            pairs: self.pairs.map(|pair| unsafe { (*pair).number }),
            first_packet: self.first_packet,
        }
    }

    /// Connects this rank's queue pair for `peer` with that of the peer for this rank.
    pub(super) fn connect(&mut self, rank: usize, peer: usize, theirs: &AdapterOffer) -> Result<(), LinkError> {
        self.remote_keys[peer] = theirs.remote_key;
        let receive = verbs::QueuePairAttributes {
            state: verbs::state::READY_TO_RECEIVE,
            path_mtu: self.mtu.min(theirs.mtu),
            peer: theirs.pairs[rank],
            receive_number: theirs.first_packet,
            reads_in: 1,
            not_ready_timer: NOT_READY_TIMER,
            address: verbs::Address {
                gid: gid_words(theirs.gid),
                own_gid_index: self.port.gid_index,
                hop_limit: HOPS,
                is_global: 1,
                port: self.port.number,
                ..Default::default()
            },
            ..Default::default()
        };
        let advice = "does the GID index name a RoCE v2 GID, and is there a route to the peer's address?";
        self.modify(peer, receive, verbs::given::READY_TO_RECEIVE, "making a queue pair ready to receive", advice)?;
        let send = verbs::QueuePairAttributes {
            state: verbs::state::READY_TO_SEND,
            send_number: self.first_packet,
            timeout: TIMEOUT,
            retries: RETRIES,
            not_ready_retries: NOT_READY_RETRIES,
            reads_out: 1,
            ..Default::default()
        };
        self.modify(peer, send, verbs::given::READY_TO_SEND, "making a queue pair ready to send", "")
    }

    /// Writes a part of send slot `slot` and then the word into the peer's memory, in that order. Needs room for two requests.
    pub(super) fn write_message(
        &mut self,
        peer: usize,
        slot: usize,
        part: Part,
        word: u64,
        word_at: u64,
    ) -> Result<(), LinkError> {
        let mut piece = verbs::Piece {
            address: part.from as u64,
            length: part.bytes as u32,
            // SAFETY: registered in `open`, alive until `drop`.
            key: unsafe { (*self.registered).local_key },
        };
        let mut word_piece = word_piece(&word);
        let mut flag = self.request(peer, &mut word_piece, word_at, verbs::SIGNALED | verbs::INLINE);
        flag.id = Id { peer, requests: 2, slot: Some(slot) }.encode();
        let mut payload = self.request(peer, &mut piece, part.to, 0);
        // Heard of only if it fails: then it is what tells why.
        payload.id = Id { peer, requests: 0, slot: None }.encode();
        payload.next = &raw mut flag;
        self.reading[slot] += 1;
        self.post(peer, &mut payload, 2)
    }

    /// Writes a word into the peer's memory. Needs room for one request.
    pub(super) fn write_word(&mut self, peer: usize, word: u64, at: u64) -> Result<(), LinkError> {
        let mut piece = word_piece(&word);
        let mut request = self.request(peer, &mut piece, at, verbs::SIGNALED | verbs::INLINE);
        request.id = Id { peer, requests: 1, slot: None }.encode();
        self.post(peer, &mut request, 1)
    }

    /// Whether the peer's queue has room for a message.
    pub(super) fn has_room(&self, peer: usize) -> bool {
        self.queued[peer] + 2 <= SEND_QUEUE
    }

    /// Whether nothing is read from the slot any more.
    pub(super) fn sent(&self, slot: usize) -> bool {
        self.reading[slot] == 0
    }

    /// Whether nothing is under way to any peer that is still there.
    pub(super) fn is_idle(&self) -> bool {
        (0..WORLD_MAX).all(|peer| self.queued[peer] == 0 || self.failed[peer].is_some())
    }

    /// Why the peer cannot be reached any more.
    pub(super) fn failed(&self, peer: usize) -> Option<&String> {
        self.failed[peer].as_ref()
    }

    /// Takes note of what has been sent, and of what could not be.
    pub(super) fn poll(&mut self) -> Result<(), LinkError> {
        let mut batch = [verbs::Completion::default(); BATCH];
        // SAFETY: the queue is alive until `drop`.
        let count = unsafe { verbs::poll(self.completions, &mut batch) };
        if count < 0 {
            return Err(self.error("polling a completion queue", io::Error::from_raw_os_error(-count), ""));
        }
        batch[..count as usize].iter().for_each(|completion| self.complete(completion));
        Ok(())
    }

    fn complete(&mut self, completion: &verbs::Completion) {
        let Id { peer, requests, slot } = Id::decode(completion.id);
        self.queued[peer] = self.queued[peer].saturating_sub(requests);
        if let Some(slot) = slot {
            self.reading[slot] = self.reading[slot].saturating_sub(1);
        }
        if completion.status != 0 {
            let reason = format!("{} on {}", self.verbs.status(completion.status), self.port.device);
            self.failed[peer].get_or_insert(reason);
        }
    }

    fn request(&self, peer: usize, piece: &mut verbs::Piece, to: u64, flags: u32) -> verbs::SendRequest {
        verbs::SendRequest {
            id: 0,
            next: ptr::null_mut(),
            pieces: ptr::from_mut(piece),
            piece_count: 1,
            operation: verbs::RDMA_WRITE,
            flags,
            immediate: 0,
            remote_address: to,
            remote_key: self.remote_keys[peer],
            rest: [0; 9],
        }
    }

    fn post(&mut self, peer: usize, requests: &mut verbs::SendRequest, count: u32) -> Result<(), LinkError> {
        // SAFETY: the pair is alive until `drop`; words are inline, payloads lie in memory that stays registered until then.
        let error = unsafe { verbs::post(self.pairs[peer], requests) };
        if error != 0 {
            return Err(self.error("posting a write", io::Error::from_raw_os_error(error.abs()), ""));
        }
        self.queued[peer] += count;
        Ok(())
    }

    fn open_device(&mut self) -> Result<(), LinkError> {
        let mut count: c_int = 0;
        // SAFETY: gives a list of `count` devices, or null.
        let list = unsafe { (self.verbs.device_list)(&raw mut count) };
        if list.is_null() {
            return Err(self.last_error("listing RDMA devices", "is the kernel module ib_uverbs loaded?"));
        }
        for index in 0..count as usize {
            // SAFETY: the list has `count` entries, each with a name.
            unsafe {
                let device = *list.add(index);
                if CStr::from_ptr((self.verbs.device_name)(device)).to_bytes() == self.port.device.as_bytes() {
                    self.context = (self.verbs.open_device)(device);
                }
            }
        }
        let source = io::Error::last_os_error();
        // SAFETY: the list came from the call above.
        unsafe { (self.verbs.free_device_list)(list) };
        if self.context.is_null() {
            let advice = "does /dev/infiniband/uverbs* exist here, may this user open it, and is the device's provider \
                          (ibverbs-providers) installed?";
            return Err(self.error("opening the device", source, advice));
        }
        Ok(())
    }

    fn query_mtu(&mut self) -> Result<(), LinkError> {
        let mut attributes = verbs::PortAttributes::default();
        // SAFETY: the context is open, and there is more room than the library writes.
        let error = unsafe { (self.verbs.query_port)(self.context, self.port.number, &raw mut attributes) };
        if error != 0 {
            return Err(self.error("asking for the port's state", io::Error::from_raw_os_error(error.abs()), ""));
        }
        if attributes.state != verbs::PORT_ACTIVE || !(1..=MTU_MAX).contains(&attributes.mtu) {
            let what = format!("the port is in state {} with MTU code {}", attributes.state, attributes.mtu);
            return Err(LinkError::NoRdma(format!("{}: {what}; is its network interface up?", self.port.device)));
        }
        self.mtu = attributes.mtu;
        Ok(())
    }

    fn register(&mut self) -> Result<(), LinkError> {
        // SAFETY: the context is open.
        self.domain = unsafe { (self.verbs.allocate_domain)(self.context) };
        if self.domain.is_null() {
            return Err(self.last_error("allocating a protection domain", ""));
        }
        let (start, bytes) = (self.memory.at(0), self.memory.bytes());
        // SAFETY: the mapping is all ours and outlives the registration: `self` holds it.
        self.registered = unsafe { (self.verbs.register)(self.domain, start.cast(), bytes, verbs::ACCESS as c_int) };
        if self.registered.is_null() {
            let advice = "is the limit of locked memory (ulimit -l, LimitMEMLOCK=) large enough?";
            return Err(self.last_error(&format!("registering {bytes} bytes"), advice));
        }
        Ok(())
    }

    fn make_queues(&mut self) -> Result<(), LinkError> {
        let length = (SEND_QUEUE as usize * WORLD_MAX) as c_int;
        // SAFETY: the context is open; no channel, no user pointer, the first interrupt vector.
        self.completions =
            unsafe { (self.verbs.create_completion_queue)(self.context, length, ptr::null_mut(), ptr::null_mut(), 0) };
        if self.completions.is_null() {
            return Err(self.last_error("making a completion queue", ""));
        }
        for peer in 0..WORLD_MAX {
            self.make_pair(peer)?;
        }
        Ok(())
    }

    fn make_pair(&mut self, peer: usize) -> Result<(), LinkError> {
        let capacity = verbs::Capacity {
            send_requests: SEND_QUEUE,
            receive_requests: 1,
            send_pieces: 1,
            receive_pieces: 1,
            inline_bytes: 8,
        };
        let mut init = verbs::QueuePairInit {
            user: ptr::null_mut(),
            send_queue: self.completions,
            receive_queue: self.completions,
            shared_receive_queue: ptr::null_mut(),
            capacity,
            kind: verbs::RELIABLE_CONNECTION,
            signal_all: 0,
        };
        // SAFETY: domain and queues are alive.
        self.pairs[peer] = unsafe { (self.verbs.create_queue_pair)(self.domain, &raw mut init) };
        if self.pairs[peer].is_null() {
            return Err(
                self.last_error("making a queue pair", "is the limit of locked memory (ulimit -l) large enough?")
            );
        }
        let attributes = verbs::QueuePairAttributes {
            state: verbs::state::INIT,
            port: self.port.number,
            access: verbs::ACCESS,
            ..Default::default()
        };
        self.modify(peer, attributes, verbs::given::INIT, "initialising a queue pair", "")
    }

    fn modify(
        &self,
        peer: usize,
        mut attributes: verbs::QueuePairAttributes,
        given: c_int,
        what: &str,
        advice: &'static str,
    ) -> Result<(), LinkError> {
        // SAFETY: the pair is alive, and what is given is filled in.
        match unsafe { (self.verbs.modify_queue_pair)(self.pairs[peer], &raw mut attributes, given) } {
            0 => Ok(()),
            error => Err(self.error(what, io::Error::from_raw_os_error(error.abs()), advice)),
        }
    }

    fn last_error(&self, what: &str, advice: &'static str) -> LinkError {
        self.error(what, io::Error::last_os_error(), advice)
    }

    fn error(&self, what: &str, source: io::Error, advice: &'static str) -> LinkError {
        LinkError::Rdma { device: self.port.device.clone(), what: what.into(), source, advice }
    }
}

impl Drop for Adapter {
    fn drop(&mut self) {
        // SAFETY: each was made by the library and is taken apart once, what stands on others before those.
        unsafe {
            for pair in self.pairs.into_iter().filter(|pair| !pair.is_null()) {
                (self.verbs.destroy_queue_pair)(pair);
            }
            if !self.completions.is_null() {
                (self.verbs.destroy_completion_queue)(self.completions);
            }
            if !self.registered.is_null() {
                (self.verbs.deregister)(self.registered);
            }
            if !self.domain.is_null() {
                (self.verbs.free_domain)(self.domain);
            }
            if !self.context.is_null() {
                (self.verbs.close_device)(self.context);
            }
        }
    }
}

impl std::fmt::Display for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (port, mtu) = (&self.port, 128 << self.mtu);
        write!(f, "{} ({}, GID {}, MTU {mtu})", port.device, port.address(), port.gid_index)
    }
}

/// A piece of a payload: from an address here to one at the peer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub(super) from: *const u8,
    pub(super) bytes: usize,
    pub(super) to: u64,
}

/// What a completion is told to remember.
struct Id {
    peer: usize,
    /// Requests it stands for: those before it have no completion of their own.
    requests: u32,
    slot: Option<usize>,
}

impl Id {
    fn encode(&self) -> u64 {
        let slot = self.slot.map_or(0, |slot| slot as u64 + 1);
        self.peer as u64 | u64::from(self.requests) << 8 | slot << 16
    }

    fn decode(id: u64) -> Self {
        let byte = |at: u64| (id >> at & 0xFF) as usize;
        let slot = byte(16).checked_sub(1).map(|slot| slot % SLOTS);
        Self { peer: byte(0) % WORLD_MAX, requests: byte(8) as u32, slot }
    }
}

fn word_piece(word: &u64) -> verbs::Piece {
    verbs::Piece { address: ptr::from_ref(word) as u64, length: 8, key: 0 }
}

/// The bytes as they are, in words.
fn gid_words(gid: [u8; 16]) -> [u64; 2] {
    let (words, _) = gid.as_chunks();
    [u64::from_ne_bytes(words[0]), u64::from_ne_bytes(words[1])]
}
