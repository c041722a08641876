//! A device that stages, waits and adds by itself: here a thread that has nothing but the addresses of [`Region`], as a
//! GPU's kernels do.

mod support;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::time::Instant;

use support::device::{RDMA, with_device};
use support::{Make, PATIENCE, group, on_all, plain_sum, reduce_and_compare, settings, values};
use tandem_link::{Endpoint, Link, Region, SLOTS, packet_number};

const SHM: Make = Endpoint::shm;
const TCP: Make = |settings| Endpoint::tcp(settings, IpAddr::V4(Ipv4Addr::LOCALHOST));

/// Addresses, as a kernel gets them.
struct Device {
    rank: usize,
    world: usize,
    slot_bytes: usize,
    passage: Passage,
}

enum Passage {
    /// For each slot, where its packets go; where those of each rank are.
    Packets { sent: [usize; SLOTS], received: Vec<[usize; SLOTS]> },
    /// For each slot, where a message is staged and announced; of each rank, where its message and its flag are.
    Relayed { staged: [usize; SLOTS], tell: [usize; SLOTS], received: Vec<[usize; SLOTS]>, flag: Vec<[usize; SLOTS]> },
}

impl Device {
    fn new(link: &Link) -> Self {
        let (region, rank, world) = (link.region(), link.rank(), link.world());
        let both = |address: &dyn Fn(usize) -> usize| [address(0), address(1)];
        let of_all = |address: &dyn Fn(usize, usize) -> usize| {
            (0..world).map(|peer| if peer == rank { [0; SLOTS] } else { both(&|slot| address(peer, slot)) }).collect()
        };
        let passage = if region.is_shared() {
            let received = |peer: usize, slot: usize| region.peer_packets(peer, slot).expect("shared memory") as usize;
            Passage::Packets { sent: both(&|slot| region.packets(slot) as usize), received: of_all(&received) }
        } else {
            Passage::Relayed {
                staged: both(&|slot| region.staged(slot) as usize),
                tell: both(&|slot| region.outgoing(slot).as_ptr() as usize),
                received: of_all(&|peer, slot| region.received(peer, slot) as usize),
                flag: of_all(&|peer, slot| region.flag(peer, slot, 0).as_ptr() as usize),
            }
        };
        Self { rank, world, slot_bytes: region.slot_bytes(), passage }
    }

    /// The sums of so many exchanges, the first message's number being `first`, each of `count` values salted with its index.
    fn run(&self, first: u64, exchanges: u64, count: usize) -> Vec<Vec<f32>> {
        let messages = (count * 4).div_ceil(self.slot_bytes) as u64;
        let exchange = |index: u64| self.exchange(first + index * messages, &values(self.rank, count, index));
        (0..exchanges).map(exchange).collect()
    }

    fn exchange(&self, first: u64, mine: &[f32]) -> Vec<f32> {
        (first..).zip(mine.chunks(self.slot_bytes / 4)).flat_map(|(seq, mine)| self.message(seq, mine)).collect()
    }

    fn message(&self, seq: u64, mine: &[f32]) -> Vec<f32> {
        self.send(seq, mine);
        let part = |rank: usize| if rank == self.rank { mine.to_vec() } else { self.receive(seq, rank, mine.len()) };
        let first = part(0);
        (1..self.world).map(part).fold(first, |sum, part| sum.iter().zip(part).map(|(a, b)| a + b).collect())
    }

    fn send(&self, seq: u64, mine: &[f32]) {
        let slot = (seq & 1) as usize;
        match &self.passage {
            Passage::Packets { sent, .. } => {
                for (index, value) in mine.iter().enumerate() {
                    let half = u64::from(packet_number(seq)) << 32 | u64::from(value.to_bits());
                    word(sent[slot] + index * 8).store(half, Ordering::Relaxed);
                }
            }
            Passage::Relayed { staged, tell, .. } => {
                // SAFETY: the slot is this rank's until it is announced, and as long as a message.
                unsafe { std::ptr::copy_nonoverlapping(mine.as_ptr(), staged[slot] as *mut f32, mine.len()) };
                fence(Ordering::SeqCst);
                word(tell[slot]).store(Region::announcement(seq, size_of_val(mine)), Ordering::Release);
            }
        }
    }

    fn receive(&self, seq: u64, peer: usize, count: usize) -> Vec<f32> {
        let slot = (seq & 1) as usize;
        match &self.passage {
            Passage::Packets { received, .. } => {
                let value = |index: usize| {
                    let here = |half: u64| (half >> 32) as u32 == packet_number(seq);
                    f32::from_bits(self.wait(seq, peer, received[peer][slot] + index * 8, here) as u32)
                };
                (0..count).map(value).collect()
            }
            Passage::Relayed { received, flag, .. } => {
                self.wait(seq, peer, flag[peer][slot], |word| word == Region::announcement(seq, count * 4));
                let mut part = vec![0.0; count];
                // SAFETY: announced, so it lies there until this rank announces the message after the next.
                unsafe { std::ptr::copy_nonoverlapping(received[peer][slot] as *const f32, part.as_mut_ptr(), count) };
                part
            }
        }
    }

    fn wait(&self, seq: u64, peer: usize, address: usize, here: impl Fn(u64) -> bool) -> u64 {
        let started = Instant::now();
        loop {
            let seen = word(address).load(Ordering::Acquire);
            if here(seen) {
                return seen;
            }
            assert!(started.elapsed() < PATIENCE, "message {seq} of rank {peer} never came to rank {}", self.rank);
            std::thread::yield_now();
        }
    }
}

fn word(address: usize) -> &'static AtomicU64 {
    // SAFETY: an aligned word of the region, which outlives the device's run.
    unsafe { AtomicU64::from_ptr(address as *mut u64) }
}

/// In turns: the device's exchanges, of one message and of several, then the host's.
fn device_and_host_take_turns(make: Make, world: usize) {
    let mut links = group(make, world, &settings(4096));
    on_all(&mut links, |link| {
        for (exchanges, count) in [(1, 720), (2, 720), (0, 720), (7, 1024), (24, 720), (3, 1028), (5, 3000)] {
            let device = Device::new(link);
            let first = link.number_for_device().expect("a number");
            let sums = std::thread::scope(|scope| {
                let sums = scope.spawn(|| device.run(first, exchanges, count));
                link.relay(exchanges, count * 4).expect("relaying");
                sums.join().expect("the device")
            });
            for (index, sum) in (0..).zip(sums) {
                assert!(sum == plain_sum(world, count, index), "exchange {index} of {count} values, {link:?}");
            }
            reduce_and_compare(link, 5000, exchanges);
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
fn only_shared_memory_has_packets() {
    let mut shared = group(SHM, 2, &settings(64));
    on_all(&mut shared, |link| {
        let region = link.region();
        assert!(region.is_shared() && region.packet_bytes() >= 2 * region.slot_bytes());
        let peer = 1 - link.rank();
        assert!(region.peer_packets(peer, 0).is_some() && region.peer_packets(link.rank(), 0).is_none());
        let apart = region.packets(1) as usize - region.packets(0) as usize;
        assert!(apart >= region.packet_bytes());
    });
    let mut connected = group(TCP, 2, &settings(64));
    on_all(&mut connected, |link| {
        assert!(!link.region().is_shared() && link.region().peer_packets(1 - link.rank(), 0).is_none());
    });
}
