//! What a link reaches, measured on it.

use std::time::{Duration, Instant};

use crate::{Link, LinkError};

/// Values of an all-reduce whose time is the latency: a token's activations in gpt-oss.
const TOKEN_VALUES: usize = 2880;
/// What each of both measurements may take. A few exchanges come before either, to know how many fit.
const BUDGET: Duration = Duration::from_millis(250);
/// Exchanges that are timed.
const EXCHANGES_MIN: usize = 5;
const EXCHANGES_MAX: usize = 64;
/// Slots that are streamed.
const STREAMED_MIN: usize = 4;
const STREAMED_MAX: usize = 4096;

/// What a link reaches. Of every rank's figures the worst, so all hold the same.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkSpeed {
    /// Median time of an all-reduce of 2,880 values, a token's activations.
    pub exchange: Duration,
    /// Bytes in a second that a rank sends to each peer while it receives as many.
    pub bytes_per_s: f64,
}

impl Link {
    /// Measures the link by exchanges of its own, in half a second and a little, longer only where an exchange takes a
    /// twentieth of a second. Collective, like all exchanges.
    ///
    /// # Errors
    ///
    /// As of [`Link::all_reduce`].
    pub fn measure(&mut self) -> Result<LinkSpeed, LinkError> {
        // The first exchange waits until everybody is here.
        self.time_exchange()?;
        let one = self.time_exchange()?;
        let count = self.how_many(one, EXCHANGES_MIN, EXCHANGES_MAX)?;
        let mut times = (0..count).map(|_| self.time_exchange()).collect::<Result<Vec<_>, _>>()?;
        times.sort();
        let exchange = self.longest(times[count / 2])?;

        self.time_stream(STREAMED_MIN)?;
        let one = self.time_stream(STREAMED_MIN)? / STREAMED_MIN as u32;
        let count = self.how_many(one, STREAMED_MIN, STREAMED_MAX)?;
        let streamed = self.time_stream(count)?;
        let streamed = self.longest(streamed)?;
        let bytes = (count * self.region().slot_bytes()) as f64;
        Ok(LinkSpeed { exchange, bytes_per_s: bytes / streamed.as_secs_f64().max(1e-9) })
    }

    fn time_exchange(&mut self) -> Result<Duration, LinkError> {
        let mut values = [0.0; TOKEN_VALUES];
        let started = Instant::now();
        self.all_reduce(&mut values)?;
        Ok(started.elapsed())
    }

    fn time_stream(&mut self, slots: usize) -> Result<Duration, LinkError> {
        let bytes = slots * self.region().slot_bytes();
        let started = Instant::now();
        self.stream(bytes)?;
        Ok(started.elapsed())
    }

    /// How many that take so long fit into the budget: the same on all ranks.
    fn how_many(&mut self, one: Duration, least: usize, most: usize) -> Result<usize, LinkError> {
        let one = self.longest(one)?;
        Ok((BUDGET.as_nanos() / one.as_nanos().max(1)).clamp(least as u128, most as u128) as usize)
    }

    /// The longest of all ranks' times.
    fn longest(&mut self, mine: Duration) -> Result<Duration, LinkError> {
        let mine = u64::try_from(mine.as_nanos()).unwrap_or(u64::MAX);
        let mut all = vec![0; 8 * self.world()];
        self.all_gather(&mine.to_le_bytes(), &mut all)?;
        let (words, _) = all.as_chunks();
        Ok(Duration::from_nanos(words.iter().map(|word| u64::from_le_bytes(*word)).max().unwrap_or(mine)))
    }
}
