use std::error::Error;

use tandem_link::Link;

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
}
