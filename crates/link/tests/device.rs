//! A device that stages, waits and adds by itself: here a thread that has nothing but the addresses of [`Region`], as a
//! GPU's kernels do.

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Instant;

use support::device::{RDMA, with_device};
use support::{Make, PATIENCE, group, on_all, plain_sum, reduce_and_compare, settings, values};
use tandem_link::{Endpoint, Link, Region, SLOTS};

const SHM: Make = Endpoint::shm;
const TCP: Make = |settings| Endpoint::tcp(settings, IpAddr::V4(Ipv4Addr::LOCALHOST));

/// Addresses, as a kernel gets them.
struct Device {
    rank: usize,
    staged: [usize; SLOTS],
    /// By rank, without this one.
    peers: Vec<Peer>,
}

struct Peer {
    rank: usize,
    /// For each slot, where its message is, its flag, and where to announce ours to it.
    received: [usize; SLOTS],
    flag: [usize; SLOTS],
    tell: [usize; SLOTS],
}

impl Device {
    fn new(link: &Link) -> Self {
        let (region, rank) = (link.region(), link.rank());
        let both = |address: &dyn Fn(usize) -> usize| [address(0), address(1)];
        let tell = |peer: usize, slot: usize| {
            let word = region.flag_at_peer(rank, peer, slot).unwrap_or_else(|| region.outgoing(slot));
            word.as_ptr() as usize
        };
        let peer = |peer: usize| {
            let flag = both(&|slot| region.flag(peer, slot, 0).as_ptr() as usize);
            let received = both(&|slot| region.received(peer, slot) as usize);
            Peer { rank: peer, received, flag, tell: both(&|slot| tell(peer, slot)) }
        };
        let peers = (0..link.world()).filter(|peer| *peer != rank).map(peer).collect();
        Self { rank, staged: both(&|slot| region.staged(slot) as usize), peers }
    }

    /// The sums of messages `numbers`, each of `count` values, salted with its number.
    fn run(&self, numbers: Range<u64>, count: usize) -> Vec<Vec<f32>> {
        numbers.map(|seq| self.exchange(seq, &values(self.rank, count, seq))).collect()
    }

    fn exchange(&self, seq: u64, mine: &[f32]) -> Vec<f32> {
        let slot = (seq & 1) as usize;
        let announcement = Region::announcement(seq, size_of_val(mine));
        // SAFETY: the slot is this rank's until it is announced, and as long as `count` values.
        unsafe { std::ptr::copy_nonoverlapping(mine.as_ptr(), self.staged[slot] as *mut f32, mine.len()) };
        fence(Ordering::SeqCst);
        for peer in &self.peers {
            word(peer.tell[slot]).store(announcement, Ordering::Release);
        }
        let started = Instant::now();
        let mut parts = vec![(self.rank, mine.to_vec())];
        for Peer { rank: peer, received, flag, .. } in &self.peers {
            while word(flag[slot]).load(Ordering::Acquire) != announcement {
                assert!(started.elapsed() < PATIENCE, "message {seq} of rank {peer} never came");
                std::thread::yield_now();
            }
            let mut part = vec![0.0; mine.len()];
            // SAFETY: announced, so it lies there until this rank announces the message after the next.
            unsafe { std::ptr::copy_nonoverlapping(received[slot] as *const f32, part.as_mut_ptr(), part.len()) };
            parts.push((*peer, part));
        }
        parts.sort_by_key(|(rank, _)| *rank);
        let mut parts = parts.into_iter().map(|(_, part)| part);
        let first = parts.next().unwrap_or_default();
        parts.fold(first, |sum, part| sum.iter().zip(part).map(|(a, b)| a + b).collect())
    }
}

fn word(address: usize) -> &'static AtomicU64 {
    // SAFETY: an aligned word of the region, which outlives the device's run.
    unsafe { AtomicU64::from_ptr(address as *mut u64) }
}

/// In turns: the device's exchanges, then the host's.
fn device_and_host_take_turns(make: Make, world: usize) {
    const COUNT: usize = 720;
    let mut links = group(make, world, &settings(4096));
    on_all(&mut links, |link| {
        for messages in [1, 2, 0, 7, 24] {
            let device = Device::new(link);
            let first = link.number_for_device().expect("a number");
            let numbers = first..first + messages;
            let sums = std::thread::scope(|scope| {
                let sums = scope.spawn(|| device.run(numbers.clone(), COUNT));
                link.relay(messages, COUNT * 4).expect("relaying");
                sums.join().expect("the device")
            });
            for (seq, sum) in numbers.zip(sums) {
                assert!(sum == plain_sum(world, COUNT, seq), "message {seq} of {link:?}");
            }
            reduce_and_compare(link, 5000, messages);
        }
    });
}

#[test]
fn over_shared_memory() {
    (2..=4).for_each(|world| device_and_host_take_turns(SHM, world));
}

#[test]
fn over_tcp() {
    (2..=4).for_each(|world| device_and_host_take_turns(TCP, world));
}

#[test]
fn over_rdma() {
    with_device(|| (2..=4).for_each(|world| device_and_host_take_turns(RDMA, world)));
}

#[test]
fn messages_that_fit_no_slot_are_refused() {
    let mut links = group(SHM, 2, &settings(64));
    let error = links[0].relay(1, 68).expect_err("68 bytes in a slot of 64");
    assert!(error.to_string().contains("68 bytes"), "{error}");
}
