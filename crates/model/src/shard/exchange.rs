use std::error::Error;
use std::time::Duration;

use tandem_backend::{ExchangeMemory, PeerMemory};
use tandem_link::{Link, Region, SLOTS};

/// How a rank shares values with the others, which all make the same calls in the same order.
pub trait Exchange: Send {
    /// Which rank this is.
    fn rank(&self) -> usize;

    /// How many there are.
    fn world(&self) -> usize;

    /// How long it waits for the others' part before it fails.
    fn deadline(&self) -> Duration;

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

    /// Stands for so many sums that a device exchanges by itself, each in a message of so many bytes.
    fn relay(&mut self, _messages: u64, _bytes: usize) -> Result<(), ExchangeError> {
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

    fn deadline(&self) -> Duration {
        Link::deadline(self)
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), ExchangeError> {
        Link::all_reduce(self, values).map_err(ExchangeError::new)
    }

    fn all_gather(&mut self, mine: &[u8], all: &mut [u8]) -> Result<(), ExchangeError> {
        Link::all_gather(self, mine, all).map_err(ExchangeError::new)
    }

    fn memory(&self) -> Option<ExchangeMemory> {
        let region = self.region();
        let peer = |peer: usize| {
            if peer == Link::rank(self) {
                return PeerMemory::default();
            }
            PeerMemory {
                received: by_slot(|slot| region.received(peer, slot) as usize),
                flag: by_slot(|slot| region.flag(peer, slot, 0).as_ptr() as usize),
                tell: by_slot(|slot| {
                    let direct = region.flag_at_peer(Link::rank(self), peer, slot);
                    direct.unwrap_or_else(|| region.outgoing(slot)).as_ptr() as usize
                }),
            }
        };
        Some(ExchangeMemory {
            rank: Link::rank(self),
            world: Link::world(self),
            message_bytes: region.single_stripe_bytes(),
            mappings: region.mappings().into_iter().map(|(start, bytes)| (start as usize, bytes)).collect(),
            staged: by_slot(|slot| region.staged(slot) as usize),
            abort: region.abort_word().as_ptr() as usize,
            announcement_step: Region::announcement(1, 0),
            peers: (0..Link::world(self)).map(peer).collect(),
        })
    }

    fn number_for_device(&mut self) -> Result<u64, ExchangeError> {
        Link::number_for_device(self).map_err(ExchangeError::new)
    }

    fn relay(&mut self, messages: u64, bytes: usize) -> Result<(), ExchangeError> {
        Link::relay(self, messages, bytes).map_err(ExchangeError::new)
    }
}

fn by_slot(address: impl FnMut(usize) -> usize) -> [usize; SLOTS] {
    let mut slots = [0, 1];
    slots.iter_mut().zip((0..SLOTS).map(address)).for_each(|(slot, address)| *slot = address);
    slots
}
