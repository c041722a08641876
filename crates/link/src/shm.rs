//! Shared memory between processes of one host. Each rank's region is a nameless file that its peers map: payloads are read
//! where they were staged, flags are written where they are waited for, and nobody stands between.

use std::fs::{File, OpenOptions};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::endpoint::Group;
use crate::error::LinkError;
use crate::flag::Flag;
use crate::futex;
use crate::memory::{Memory, is_sealed, nameless_file};
use crate::region::{Layout, Region, SLOTS, State, WORLD_MAX, nonce, sleeping, word32, word64};
use crate::transport::{Awaited, Gone, Transport, Watch};

/// Between two looks at whether the peers are there.
const CONNECT_PAUSE: Duration = Duration::from_millis(1);

/// What a peer must know to map a region.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct ShmOffer {
    /// The owner's process and its descriptor of the memory file.
    pid: u32,
    fd: i32,
    /// What the region begins with.
    nonce: [u64; 2],
}

/// A region that waits for its peers.
pub(crate) struct ShmEndpoint {
    layout: Layout,
    /// Open until the peers have mapped it: they find it by its number.
    file: File,
    memory: Arc<Memory>,
    nonce: [u64; 2],
}

impl ShmEndpoint {
    pub(crate) fn new(layout: Layout) -> Result<Self, LinkError> {
        let file = nameless_file(layout.bytes())?;
        let memory = Arc::new(Memory::shared(&file, layout.bytes())?);
        let random = crate::endpoint::random()?;
        for (word, value) in nonce(&memory).into_iter().zip(random) {
            word.store(value, Ordering::Relaxed);
        }
        Ok(Self { layout, file, memory, nonce: random })
    }

    pub(crate) fn offer(&self) -> ShmOffer {
        ShmOffer { pid: std::process::id(), fd: self.file.as_raw_fd(), nonce: self.nonce }
    }

    pub(crate) fn connect(self, group: &Group, offers: &[ShmOffer]) -> Result<(Box<dyn Transport>, Region), LinkError> {
        let mut region = Region::new(self.layout, self.memory);
        let mut transport = ShmTransport { rank: group.rank, world: group.world, peers: Default::default() };
        for peer in group.peers() {
            let bytes = self.layout.bytes();
            let memory = attach(&offers[peer], bytes).map_err(|reason| LinkError::Offer { peer, reason })?;
            region = region.with_peer(peer, memory);
            transport.peers[peer] = Peer { process: process(offers[peer].pid), dead: false };
        }
        transport.tell(&region, State::Ready);
        for peer in group.peers() {
            while region.state(peer) == State::Away {
                transport.notice_death(peer);
                if let Some(gone) = transport.gone(&region, peer) {
                    return Err(LinkError::PeerGone { peer, reason: gone.reason });
                }
                group.check_time(peer)?;
                thread::sleep(CONNECT_PAUSE);
            }
        }
        // The memory file is closed here: everybody has it mapped, and nobody else can get at it any more.
        Ok((Box::new(transport), region))
    }
}

/// Maps a peer's region by way of its process. That works for processes of one user on one host.
fn attach(offer: &ShmOffer, bytes: usize) -> Result<Memory, String> {
    let path = format!("/proc/{}/fd/{}", offer.pid, offer.fd);
    let file = OpenOptions::new().read(true).write(true).open(&path).map_err(|error| {
        format!("opening {path}: {error}; shared memory is for processes of one user that see each other in /proc")
    })?;
    let found = file.metadata().map_err(|error| format!("{path}: {error}"))?.len();
    if found != bytes as u64 || !is_sealed(&file) {
        return Err(format!("{path} is no memory file of {bytes} bytes"));
    }
    let memory = Memory::shared(&file, bytes).map_err(|error| error.to_string())?;
    let found = nonce(&memory).map(|word| word.load(Ordering::Relaxed));
    if found == offer.nonce { Ok(memory) } else { Err(format!("{path} is another link's memory")) }
}

/// A descriptor that tells of the process's end. None where that cannot be had: deadlines are then all there is.
fn process(pid: u32) -> Option<OwnedFd> {
    // SAFETY: no pointers involved.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    // SAFETY: just opened, owned by nothing else.
    (fd >= 0).then(|| unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

#[derive(Default)]
struct Peer {
    process: Option<OwnedFd>,
    dead: bool,
}

struct ShmTransport {
    rank: usize,
    world: usize,
    peers: [Peer; WORLD_MAX],
}

impl ShmTransport {
    /// Writes this rank's state where each peer sees it.
    fn tell(&self, region: &Region, state: State) {
        for peer in (0..self.world).filter(|peer| *peer != self.rank) {
            let Some(memory) = region.peer_memory(peer) else { continue };
            word32(memory, region.layout().state(self.rank)).store(state as u32, Ordering::SeqCst);
            // It may sleep on any of these.
            (0..SLOTS).for_each(|slot| futex::wake(word64(memory, region.layout().flag(self.rank, slot, 0))));
            futex::wake(word64(memory, region.layout().credit(self.rank)));
        }
    }

    /// Writes a word in this rank's lane of the peer's region, and wakes the peer if it sleeps.
    fn put(&self, region: &Region, peer: usize, offset: usize, value: u64) {
        let Some(memory) = region.peer_memory(peer) else { return };
        let word = word64(memory, offset);
        word.store(value, Ordering::Release);
        // A sleeper raises its word first and looks at ours then; here it is the other way round, so one sees the other.
        fence(Ordering::SeqCst);
        if sleeping(memory).load(Ordering::Relaxed) != 0 {
            futex::wake(word);
        }
    }

    fn notice_death(&mut self, peer: usize) {
        let Some(process) = &self.peers[peer].process else { return };
        let mut poll = libc::pollfd { fd: process.as_raw_fd(), events: libc::POLLIN, revents: 0 };
        // SAFETY: one valid entry; no time to wait.
        let ended = unsafe { libc::poll(&raw mut poll, 1, 0) };
        self.peers[peer].dead |= ended > 0;
    }
}

impl Transport for ShmTransport {
    fn publish(&mut self, region: &mut Region, peer: usize, flag: Flag, _watch: &Watch) -> Result<(), LinkError> {
        self.put(region, peer, region.layout().flag(self.rank, flag.slot(), 0), flag.0);
        Ok(())
    }

    fn credit(&mut self, region: &mut Region, peer: usize, seq: u64, _watch: &Watch) -> Result<(), LinkError> {
        self.put(region, peer, region.layout().credit(self.rank), seq);
        Ok(())
    }

    fn sleep(
        &mut self,
        region: &mut Region,
        peer: usize,
        awaited: Awaited,
        at_most: Duration,
    ) -> Result<(), LinkError> {
        let (word, enough) = match awaited {
            Awaited::Message(flag) => (region.flag(peer, flag.slot(), 0), flag.0),
            Awaited::Credit(seq) => (region.credit(peer), seq),
            Awaited::Sent(_) => return Ok(()),
        };
        region.sleeping().store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let seen = word.load(Ordering::Acquire);
        if seen < enough {
            futex::wait(word, seen, at_most);
        }
        region.sleeping().store(0, Ordering::Relaxed);
        self.notice_death(peer);
        Ok(())
    }

    fn gone(&self, region: &Region, peer: usize) -> Option<Gone> {
        let dead = || self.peers[peer].dead.then(|| Gone::failed("its process ended"));
        Gone::from_state(region.state(peer)).or_else(dead)
    }

    fn close(&mut self, region: &mut Region, failed: bool) {
        self.tell(region, if failed { State::Failed } else { State::Closed });
    }

    fn describe(&self) -> String {
        format!("shared memory of {} processes", self.world)
    }
}
