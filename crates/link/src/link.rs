use std::fmt;
use std::hint;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::LinkError;
use crate::fence;
use crate::flag::{Flag, Operation, SEQ_MAX};
use crate::memory::Memory;
use crate::region::{Region, WORLD_MAX, abort_word};
use crate::transport::{Awaited, SLEEP, Transport, Watch};

/// Looks at a word between two looks at the clock.
const LOOKS: u32 = 32;
/// A word that half matches is looked at again after this long before it counts as wrong: a device may have written half.
const SETTLE: Duration = Duration::from_millis(1);

/// One rank's end of a group of ranks that run the same plan. All calls are collective: every rank makes the same ones in the
/// same order, and each returns when this rank has what it needs.
pub struct Link {
    rank: usize,
    world: usize,
    /// Before the region: it may still be told to let go of that memory.
    transport: Box<dyn Transport>,
    region: Region,
    /// Longest wait for a peer.
    deadline: Duration,
    /// How long a wait looks without sleeping.
    spin: Duration,
    pub(crate) next_seq: u64,
    /// For each peer, the number up to which it is known to have taken our messages.
    pub(crate) taken: [u64; WORLD_MAX],
    /// How often packets were cleared.
    pub(crate) packet_turn: u64,
    dead: Option<String>,
}

impl Link {
    pub(crate) fn new(
        rank: usize,
        world: usize,
        transport: Box<dyn Transport>,
        region: Region,
        deadline: Duration,
        spin: Duration,
    ) -> Self {
        let taken = [0; WORLD_MAX];
        Self { rank, world, transport, region, deadline, spin, next_seq: 1, taken, packet_turn: 0, dead: None }
    }

    /// This rank's number, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Ranks of the group.
    pub fn world(&self) -> usize {
        self.world
    }

    /// How long it waits for the others before it fails.
    pub fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Adds up every rank's `values` in place: rank 0's, plus rank 1's, and so on, so that all ranks hold the same bits. Any
    /// length, the same on every rank.
    ///
    /// # Errors
    ///
    /// Any but [`LinkError::Shape`] ends the link; `values` may then be partly summed.
    pub fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), LinkError> {
        self.collective(|link| link.reduce(values))
    }

    /// Puts every rank's `mine` into `all`, in the order of ranks. All of one length, and `all` of `world` times that.
    ///
    /// # Errors
    ///
    /// [`LinkError::Shape`] if `all` has another length. Any other ends the link; `all` may then be partly written.
    pub fn all_gather(&mut self, mine: &[u8], all: &mut [u8]) -> Result<(), LinkError> {
        if all.len() != mine.len() * self.world {
            let (mine, all, world) = (mine.len(), all.len(), self.world);
            return Err(LinkError::Shape(format!("{mine} bytes from each of {world} ranks into {all}")));
        }
        self.collective(|link| link.gather(mine, all))
    }

    /// Transport and devices, for the log.
    pub fn describe(&self) -> String {
        self.transport.describe()
    }

    /// What ends all waits of this link from another thread.
    pub fn abort_handle(&self) -> Abort {
        Abort(Arc::clone(self.region.own()))
    }

    /// The memory that messages go through, for a backend that stages and waits by itself.
    pub fn region(&self) -> &Region {
        &self.region
    }

    /// The number of the first message that a device may send by itself; it has ended what it was given numbers for before. Waits
    /// until every peer has taken what lies in that message's slot, as of an exchange of several messages it may not have yet.
    ///
    /// # Errors
    ///
    /// As of [`Link::all_reduce`].
    pub fn number_for_device(&mut self) -> Result<u64, LinkError> {
        self.collective(|link| {
            link.clear_old_packets()?;
            let before = Awaited::Credit(link.next_seq.saturating_sub(2));
            peers(link.rank, link.world).try_for_each(|peer| link.wait(peer, before))
        })?;
        Ok(self.next_seq)
    }

    /// Stands for `exchanges` all-reduces of `bytes` each, as many messages as slots these fill, which a device carries out
    /// by itself, numbered from [`Link::number_for_device`] on. With shared memory nothing is left to do; otherwise this sends
    /// what the device announces, and returns when all is sent and everybody's last message is here.
    ///
    /// # Errors
    ///
    /// As of [`Link::all_reduce`].
    pub fn relay(&mut self, exchanges: u64, bytes: usize) -> Result<(), LinkError> {
        self.collective(|link| link.relay_all(exchanges, bytes))
    }

    fn relay_all(&mut self, exchanges: u64, bytes: usize) -> Result<(), LinkError> {
        let shared = self.region.is_shared();
        for _ in 0..exchanges {
            let chunks = Chunks::new(self.next_seq, Operation::Reduce, bytes, self.region.slot_bytes())?;
            if shared {
                self.next_seq += chunks.count as u64;
            } else {
                self.relay_messages(&chunks)?;
            }
        }
        // Who sent the last of these had taken the one before it.
        let taken = self.next_seq.saturating_sub(2);
        peers(self.rank, self.world).for_each(|peer| self.taken[peer] = self.taken[peer].max(taken));
        Ok(())
    }

    fn relay_messages(&mut self, chunks: &Chunks) -> Result<(), LinkError> {
        for index in 0..chunks.count {
            self.await_device(chunks.flag(index))?;
            self.publish(chunks.flag(index))?;
        }
        chunks.count.checked_sub(1).map_or(Ok(()), |last| self.receive(chunks.flag(last)))
    }

    /// Returns when every rank has come here, and so has taken all messages before.
    pub(crate) fn meet(&mut self) -> Result<(), LinkError> {
        let mut all = [0; WORLD_MAX];
        let world = self.world;
        self.gather(&[0], &mut all[..world])
    }

    /// Waits until the device has staged this message.
    fn await_device(&mut self, flag: Flag) -> Result<(), LinkError> {
        let watch = self.watch();
        loop {
            for _ in 0..LOOKS {
                self.transport.poll(&mut self.region)?;
                if self.region.outgoing(flag.slot()).load(Ordering::Acquire) == flag.0 {
                    return Ok(());
                }
                hint::spin_loop();
            }
            watch.check(self.rank, "message of this rank's device")?;
        }
    }

    fn collective(&mut self, run: impl FnOnce(&mut Self) -> Result<(), LinkError>) -> Result<(), LinkError> {
        if let Some(reason) = &self.dead {
            return Err(LinkError::Dead(reason.clone()));
        }
        if self.region.abort_word().load(Ordering::Relaxed) != 0 {
            return self.die(LinkError::Aborted);
        }
        run(self).or_else(|error| self.die(error))
    }

    /// Whatever happened, the ranks are no longer at the same place: nothing that comes later could be trusted.
    fn die(&mut self, error: LinkError) -> Result<(), LinkError> {
        self.dead = Some(error.to_string());
        self.transport.close(&mut self.region, true);
        Err(error)
    }

    fn reduce(&mut self, values: &mut [f32]) -> Result<(), LinkError> {
        let chunks = Chunks::new(self.next_seq, Operation::Reduce, size_of_val(values), self.region.slot_bytes())?;
        for turn in 0..=chunks.count {
            if turn == 1 {
                self.begin(chunks.flag(0))?;
            }
            if let Some((flag, bytes)) = chunks.get(turn) {
                self.reserve(flag)?;
                pack(&values[bytes.start / 4..bytes.end / 4], self.region.stage(flag.slot(), flag.bytes()));
                self.publish(flag)?;
            }
            if let Some((flag, bytes)) = turn.checked_sub(1).and_then(|before| chunks.get(before)) {
                self.receive(flag)?;
                self.sum(flag, &mut values[bytes.start / 4..bytes.end / 4]);
                self.release(flag, turn == chunks.count)?;
            }
        }
        Ok(())
    }

    fn gather(&mut self, mine: &[u8], all: &mut [u8]) -> Result<(), LinkError> {
        let each = mine.len();
        all[self.rank * each..][..each].copy_from_slice(mine);
        self.pass(
            each,
            |bytes, staged| staged.copy_from_slice(&mine[bytes]),
            |peer, bytes, part| {
                all[peer * each..][bytes].copy_from_slice(part);
            },
        )
    }

    /// Sends `bytes` to every peer and takes as many from each, message by message: `stage(range, slot)` writes a part of what is
    /// sent, `take(peer, range, slot)` reads a part of what came.
    fn pass(
        &mut self,
        bytes: usize,
        mut stage: impl FnMut(Range<usize>, &mut [u8]),
        mut take: impl FnMut(usize, Range<usize>, &[u8]),
    ) -> Result<(), LinkError> {
        let chunks = Chunks::new(self.next_seq, Operation::Gather, bytes, self.region.slot_bytes())?;
        for turn in 0..=chunks.count {
            if turn == 1 {
                self.begin(chunks.flag(0))?;
            }
            if let Some((flag, bytes)) = chunks.get(turn) {
                self.reserve(flag)?;
                stage(bytes, self.region.stage(flag.slot(), flag.bytes()));
                self.publish(flag)?;
            }
            if let Some((flag, bytes)) = turn.checked_sub(1).and_then(|before| chunks.get(before)) {
                self.receive(flag)?;
                for peer in peers(self.rank, self.world) {
                    take(peer, bytes.clone(), self.region.taken(peer, flag.slot(), flag.bytes()));
                }
                self.release(flag, turn == chunks.count)?;
            }
        }
        Ok(())
    }

    /// As [`Link::all_gather`] of so many bytes, which nobody wants: the payload is made in the slot and read out of it.
    pub(crate) fn stream(&mut self, bytes: usize) -> Result<(), LinkError> {
        let (mut value, mut sink) = (0, vec![0; self.region.slot_bytes()]);
        let stage = |_, staged: &mut [u8]| {
            value = u8::wrapping_add(value, 1);
            staged.fill(value);
        };
        self.collective(|link| link.pass(bytes, stage, |_, _, part| sink[..part.len()].copy_from_slice(part)))?;
        hint::black_box(sink);
        Ok(())
    }

    /// Waits until the slot of this message may be staged: every peer has taken the message two before.
    fn reserve(&mut self, flag: Flag) -> Result<(), LinkError> {
        for peer in peers(self.rank, self.world) {
            self.wait(peer, Awaited::Credit(flag.seq().saturating_sub(2)))?;
            self.wait(peer, Awaited::Sent(flag.slot()))?;
        }
        Ok(())
    }

    fn publish(&mut self, flag: Flag) -> Result<(), LinkError> {
        self.next_seq = flag.seq() + 1;
        fence::before_flag();
        let watch = self.watch();
        peers(self.rank, self.world).try_for_each(|peer| self.transport.publish(&mut self.region, peer, flag, &watch))
    }

    /// Waits for the first message of every peer: who begins an exchange has ended the one before, so its last message, which
    /// nobody acknowledges, is known to be taken.
    fn begin(&mut self, first: Flag) -> Result<(), LinkError> {
        for peer in peers(self.rank, self.world) {
            self.wait(peer, Awaited::Message(first))?;
            self.taken[peer] = self.taken[peer].max(first.seq() - 1);
        }
        Ok(())
    }

    /// Waits for this message of every peer.
    fn receive(&mut self, flag: Flag) -> Result<(), LinkError> {
        for peer in peers(self.rank, self.world) {
            self.wait(peer, Awaited::Message(flag))?;
        }
        fence::after_flag();
        Ok(())
    }

    /// Adds the parts in the order of ranks. This rank's own is read where it was staged.
    fn sum(&self, flag: Flag, values: &mut [f32]) {
        for rank in 0..self.world {
            let part = match rank == self.rank {
                true => self.region.sent(flag.slot(), flag.bytes()),
                false => self.region.taken(rank, flag.slot(), flag.bytes()),
            };
            match rank {
                0 => unpack(part, values, |_, part| part),
                _ => unpack(part, values, |sum, part| sum + part),
            }
        }
    }

    /// Lets the peers use the slot again. The last message of an exchange needs no word: the next exchange says it.
    fn release(&mut self, flag: Flag, last: bool) -> Result<(), LinkError> {
        if last {
            return Ok(());
        }
        let watch = self.watch();
        peers(self.rank, self.world)
            .try_for_each(|peer| self.transport.credit(&mut self.region, peer, flag.seq(), &watch))
    }

    fn watch(&self) -> Watch {
        Watch::new(self.region.own(), self.deadline)
    }

    fn wait(&mut self, peer: usize, awaited: Awaited) -> Result<(), LinkError> {
        if self.ready(peer, awaited)? {
            return Ok(());
        }
        let watch = self.watch();
        loop {
            for _ in 0..LOOKS {
                self.transport.poll(&mut self.region)?;
                if self.ready(peer, awaited)? {
                    return Ok(());
                }
                hint::spin_loop();
            }
            if let Some(error) = self.news(peer) {
                // Its last message may have come before the news.
                self.transport.poll(&mut self.region)?;
                return if self.ready(peer, awaited)? { Ok(()) } else { Err(error) };
            }
            watch.check(peer, awaited.name())?;
            if watch.elapsed() > self.spin {
                self.transport.sleep(&mut self.region, peer, awaited, SLEEP.min(watch.left()))?;
            }
        }
    }

    /// Why waiting for `peer` is in vain: it is gone, or another one failed, whom it waits for as well.
    fn news(&self, awaited: usize) -> Option<LinkError> {
        peers(self.rank, self.world).find_map(|peer| {
            let gone = self.transport.gone(&self.region, peer)?;
            (gone.failed || peer == awaited).then_some(LinkError::PeerGone { peer, reason: gone.reason })
        })
    }

    fn ready(&mut self, peer: usize, awaited: Awaited) -> Result<bool, LinkError> {
        match awaited {
            Awaited::Message(flag) => self.is_here(peer, flag),
            Awaited::Credit(seq) => Ok(self.is_taken(peer, seq)),
            Awaited::Sent(slot) => Ok(self.transport.sent(slot)),
        }
    }

    fn is_here(&self, peer: usize, flag: Flag) -> Result<bool, LinkError> {
        for stripe in 0..self.region.stripes(flag.bytes()) {
            let word = self.region.flag(peer, flag.slot(), stripe);
            let seen = Flag(word.load(Ordering::Acquire));
            if seen == flag {
                continue;
            }
            if seen.seq() == flag.seq() {
                return self.settle(peer, flag, stripe);
            }
            return Ok(false);
        }
        Ok(true)
    }

    /// The number is right and the rest is not: half written, or the peer is in another exchange.
    fn settle(&self, peer: usize, flag: Flag, stripe: usize) -> Result<bool, LinkError> {
        std::thread::sleep(SETTLE);
        let seen = Flag(self.region.flag(peer, flag.slot(), stripe).load(Ordering::Acquire));
        if seen.seq() != flag.seq() || seen == flag {
            return Ok(false);
        }
        Err(LinkError::Disagreement { peer, got: seen.to_string(), expected: flag.to_string() })
    }

    fn is_taken(&mut self, peer: usize, seq: u64) -> bool {
        if self.taken[peer] >= seq {
            return true;
        }
        let credit = self.region.credit(peer).load(Ordering::Acquire);
        // A word seen half-written may be larger than anything that was sent.
        if credit >= seq && credit < self.next_seq {
            self.taken[peer] = credit;
        }
        self.taken[peer] >= seq
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        if self.dead.is_none() {
            self.transport.close(&mut self.region, false);
        }
    }
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Link({} of {}, {}, at message {})", self.rank, self.world, self.describe(), self.next_seq)
    }
}

/// Ends all waits of a link, now and from then on. Cheap to clone and to use from any thread, also after the link is gone.
#[derive(Clone, Debug)]
pub struct Abort(Arc<Memory>);

impl Abort {
    /// The link's current wait, if any, and every later call fail with [`LinkError::Aborted`]; the peers are told.
    pub fn abort(&self) {
        abort_word(&self.0).store(1, Ordering::SeqCst);
    }
}

fn peers(rank: usize, world: usize) -> impl Iterator<Item = usize> {
    (0..world).filter(move |peer| *peer != rank)
}

/// A payload cut into messages of one slot each.
struct Chunks {
    first_seq: u64,
    operation: Operation,
    bytes: usize,
    slot_bytes: usize,
    count: usize,
}

impl Chunks {
    fn new(first_seq: u64, operation: Operation, bytes: usize, slot_bytes: usize) -> Result<Self, LinkError> {
        let count = bytes.div_ceil(slot_bytes);
        if first_seq + count as u64 > SEQ_MAX {
            return Err(LinkError::Setting("the numbers of this epoch's messages are used up".into()));
        }
        Ok(Self { first_seq, operation, bytes, slot_bytes, count })
    }

    /// A message's flag, and which bytes of the payload are in it. None past the last.
    fn get(&self, index: usize) -> Option<(Flag, Range<usize>)> {
        (index < self.count).then(|| (self.flag(index), self.range(index)))
    }

    fn flag(&self, index: usize) -> Flag {
        Flag::new(self.first_seq + index as u64, self.operation, self.range(index).len())
    }

    fn range(&self, index: usize) -> Range<usize> {
        let start = index * self.slot_bytes;
        start..self.bytes.min(start + self.slot_bytes)
    }
}

fn pack(values: &[f32], bytes: &mut [u8]) {
    for (bytes, value) in bytes.as_chunks_mut().0.iter_mut().zip(values) {
        *bytes = value.to_le_bytes();
    }
}

fn unpack(bytes: &[u8], values: &mut [f32], put: impl Fn(f32, f32) -> f32) {
    for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
        *value = put(*value, f32::from_le_bytes(*bytes));
    }
}
