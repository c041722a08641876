use std::error::Error;

use tandem_backend::{ExchangeMemory, PacketMemory, Passage, PeerMemory, RelayMemory};
use tandem_link::{Link, Region, SLOTS};

/// How a rank shares values with the others, which all make the same calls in the same order.
pub trait Exchange: Send {
    /// Which rank this is.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world(&self) -> usize;

    /// Replaces `values` by the sum of all ranks' values, added in rank order: every rank gets the same bits.
    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), ExchangeError>;

    /// Fills `all` with every rank's `mine`, in rank order. All are equally long, and `all` is as long as they together.
    fn all_gather(&mut self, mine: &[u8], all: &mut [u8]) -> Result<(), ExchangeError>;

    /// The memory that a device can exchange sums through by itself, if there is any.
    fn memory(&self) -> Option<ExchangeMemory> {
        None
    }

    /// The number of the first message that a device may exchange now.
    fn number_for_device(&mut self) -> Result<u64, ExchangeError> {
        Err(ExchangeError::new("this exchange has no memory for devices"))
    }

    /// Stands for so many sums that a device exchanges by itself, each of so many bytes.
    fn relay(&mut self, _exchanges: u64, _bytes: usize) -> Result<(), ExchangeError> {
        Err(ExchangeError::new("this exchange has no memory for devices"))
    }
}

/// Another rank did not answer in time, or sent what it should not have.
#[derive(Debug, thiserror::Error)]
#[error("exchange with the other ranks: {0}")]
pub struct ExchangeError(#[source] pub Box<dyn Error + Send + Sync>);

impl ExchangeError {
    /// For a reason.
    pub fn new(reason: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        Self(reason.into())
    }
}

impl Exchange for Link {
    fn rank(&self) -> usize {
        Link::rank(self)
    }

    fn world(&self) -> usize {
        Link::world(self)
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), ExchangeError> {
        Link::all_reduce(self, values).map_err(ExchangeError::new)
    }

    fn all_gather(&mut self, mine: &[u8], all: &mut [u8]) -> Result<(), ExchangeError> {
        Link::all_gather(self, mine, all).map_err(ExchangeError::new)
    }

    fn memory(&self) -> Option<ExchangeMemory> {
        let (region, rank, world) = (self.region(), Link::rank(self), Link::world(self));
        let passage = match region.is_shared() {
            true => Passage::Packets(packets(region, world)),
            false => Passage::Relayed(relayed(region, rank, world)),
        };
        Some(ExchangeMemory {
            rank,
            world,
            message_bytes: region.slot_bytes(),
            mappings: region.mappings().into_iter().map(|(start, bytes)| (start as usize, bytes)).collect(),
            abort: region.abort_word().as_ptr() as usize,
            passage,
        })
    }

    fn number_for_device(&mut self) -> Result<u64, ExchangeError> {
        Link::number_for_device(self).map_err(ExchangeError::new)
    }

    fn relay(&mut self, exchanges: u64, bytes: usize) -> Result<(), ExchangeError> {
        Link::relay(self, exchanges, bytes).map_err(ExchangeError::new)
    }
}

fn packets(region: &Region, world: usize) -> PacketMemory {
    let of = |peer: usize| by_slot(|slot| region.peer_packets(peer, slot).map_or(0, |packets| packets as usize));
    PacketMemory {
        sent: by_slot(|slot| region.packets(slot) as usize),
        received: (0..world).map(of).collect(),
        slot_bytes: region.packet_bytes(),
    }
}

fn relayed(region: &Region, rank: usize, world: usize) -> RelayMemory {
    let peer = |peer: usize| PeerMemory {
        received: by_slot(|slot| region.received(peer, slot) as usize),
        flag: by_slot(|slot| region.flag(peer, slot, 0).as_ptr() as usize),
    };
    let (stripe_above, stripes) = region.striping();
    RelayMemory {
        staged: by_slot(|slot| region.staged(slot) as usize),
        tell: by_slot(|slot| region.outgoing(slot).as_ptr() as usize),
        announcement_step: Region::announcement(1, 0),
        stripe_above,
        stripes,
        peers: (0..world).map(|other| if other == rank { PeerMemory::default() } else { peer(other) }).collect(),
    }
}

fn by_slot(address: impl FnMut(usize) -> usize) -> [usize; SLOTS] {
    let mut slots = [0, 1];
    slots.iter_mut().zip((0..SLOTS).map(address)).for_each(|(slot, address)| *slot = address);
    slots
}
