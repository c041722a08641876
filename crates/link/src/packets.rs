//! What devices exchange through shared memory: a message in packets, each of which says by itself that it is there.
//!
//! A packet is 16 bytes: a value and a number, a value and the same number. Whoever sees the number beside a value has the value,
//! as eight aligned bytes are written and read as one. So a message needs no flag, no fence before it and no second look after it,
//! each of which is a trip over PCIe. It is twice as long for that. NCCL calls this its low-latency protocol.
//!
//! Only within shared memory: what a relay sends on is announced by a flag, which travels behind the payload as it is.

use std::sync::atomic::{Ordering, fence};

use crate::error::LinkError;
use crate::link::Link;
use crate::region::Region;

/// Bytes of a packet.
pub const PACKET_BYTES: usize = 16;
/// Set in every packet's number, so that memory never written to holds none.
const NUMBERED: u32 = 1 << 31;
/// Packets are cleared whenever a multiple of so many messages was passed, a quarter of the numbers there are: what lies in a
/// slot is then never old enough for its number to come again.
const CLEARED_EVERY: u64 = 1 << 29;

/// The number in the packets of message `seq`.
pub fn packet_number(seq: u64) -> u32 {
    seq as u32 | NUMBERED
}

/// How often the packets of messages before `seq` were to be cleared.
pub(crate) fn turn(seq: u64) -> u64 {
    seq / CLEARED_EVERY
}

impl Link {
    /// Clears this rank's packets if it is time to. All ranks come to the same number, and so do this together.
    pub(crate) fn clear_old_packets(&mut self) -> Result<(), LinkError> {
        if self.packet_turn == turn(self.next_seq) || !self.region().is_shared() {
            return Ok(());
        }
        self.packet_turn = turn(self.next_seq);
        // Who begins this has taken everything before it; what comes after it nobody has sent yet.
        self.meet()?;
        self.region().clear_packets();
        Ok(())
    }
}

impl Region {
    fn clear_packets(&self) {
        self.packet_words().for_each(|word| word.store(0, Ordering::Relaxed));
        fence(Ordering::SeqCst);
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Duration;

    use super::*;
    use crate::endpoint::{Endpoint, Settings};
    use crate::region::WORLD_MAX;

    const PATIENCE: Duration = Duration::from_secs(20);

    fn two(settings: &Settings) -> Vec<Link> {
        let endpoints: Vec<Endpoint> = (0..2).map(|_| Endpoint::shm(settings).unwrap()).collect();
        let offers: &Vec<Vec<u8>> = &endpoints.iter().map(Endpoint::offer).collect();
        thread::scope(|scope| {
            let connect = |(rank, endpoint): (usize, Endpoint)| {
                scope.spawn(move || endpoint.connect(rank, 2, offers, PATIENCE).unwrap())
            };
            let ranks: Vec<_> = endpoints.into_iter().enumerate().map(connect).collect();
            ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
        })
    }

    #[test]
    fn a_number_is_never_that_of_memory_nobody_wrote_to() {
        for seq in [0, 1, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32] {
            assert_ne!(packet_number(seq), 0);
        }
        assert_eq!(packet_number(5), packet_number(5 + (1 << 31)));
    }

    #[test]
    fn packets_are_cleared_before_their_numbers_come_again() {
        let settings = Settings { slot_bytes: 64, deadline: PATIENCE, ..Settings::default() };
        let left = |link: &Link| link.region().packet_words().filter(|word| word.load(Ordering::Relaxed) != 0).count();
        thread::scope(|scope| {
            for mut link in two(&settings) {
                scope.spawn(move || {
                    let first = CLEARED_EVERY - 4;
                    link.next_seq = first;
                    link.taken = [first; WORLD_MAX];
                    link.region().packet_words().for_each(|word| word.store(7, Ordering::Relaxed));
                    let all = left(&link);
                    for relayed in [0, 2] {
                        assert_eq!(link.number_for_device().unwrap(), first + relayed);
                        link.relay(2, 64).unwrap();
                        assert_eq!(left(&link), all);
                    }
                    // The ranks meet in a message of their own.
                    assert_eq!(link.number_for_device().unwrap(), CLEARED_EVERY + 1);
                    assert_eq!(left(&link), 0);
                    // Once is enough.
                    link.relay(2, 64).unwrap();
                    assert_eq!(link.number_for_device().unwrap(), CLEARED_EVERY + 3);
                });
            }
        });
    }
}
