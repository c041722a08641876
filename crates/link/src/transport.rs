use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::error::LinkError;
use crate::flag::Flag;
use crate::memory::Memory;
use crate::region::{Region, State, abort_word};

/// Longest sleep before the abort word and the peers' health are looked at again.
pub(crate) const SLEEP: Duration = Duration::from_millis(2);

/// What a wait waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Awaited {
    /// This message of the peer.
    Message(Flag),
    /// The peer's word that it has taken our message of this number.
    Credit(u64),
    /// The device's word that it has read this send slot.
    Sent(usize),
}

impl Awaited {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Message(_) => "message",
            Self::Credit(_) => "acknowledgement",
            Self::Sent(_) => "completion of a send",
        }
    }
}

/// How messages get from one rank's send slots to where another one looks for them. The protocol on top is the same for all:
/// what a transport does is to bring bytes, flags and credits in order.
pub(crate) trait Transport: Send {
    /// Brings what is staged in the flag's slot to `peer`, then raises the flag there. The slot must not be staged again
    /// before [`Transport::sent`].
    fn publish(&mut self, region: &mut Region, peer: usize, flag: Flag, watch: &Watch) -> Result<(), LinkError>;

    /// Tells `peer` that its messages up to `seq` have been taken.
    fn credit(&mut self, region: &mut Region, peer: usize, seq: u64, watch: &Watch) -> Result<(), LinkError>;

    /// Moves along what is under way, without waiting.
    fn poll(&mut self, _region: &mut Region) -> Result<(), LinkError> {
        Ok(())
    }

    /// Sleeps until something may have changed that `peer` has to do with, `at_most` at most.
    fn sleep(&mut self, region: &mut Region, peer: usize, awaited: Awaited, at_most: Duration)
    -> Result<(), LinkError>;

    /// Whether nothing reads this send slot any more.
    fn sent(&mut self, _slot: usize) -> bool {
        true
    }

    /// That nothing more will come from `peer`, once that is known. What came before stays in the region.
    fn gone(&self, region: &Region, peer: usize) -> Option<Gone>;

    /// Tells the peers that nothing more will come, and whether that is because of an error. As far as that can be done at once.
    fn close(&mut self, region: &mut Region, failed: bool);

    /// Transport and devices, for the log.
    fn describe(&self) -> String;
}

/// The end of a peer.
#[derive(Clone, Debug)]
pub(crate) struct Gone {
    /// How it was noticed.
    pub(crate) reason: String,
    /// Whether it was in the middle of something, which nobody will complete now.
    pub(crate) failed: bool,
}

impl Gone {
    pub(crate) fn failed(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), failed: true }
    }

    pub(crate) fn closed() -> Self {
        Self { reason: "it closed the link".into(), failed: false }
    }

    /// What a peer said of itself.
    pub(crate) fn from_state(state: State) -> Option<Self> {
        match state {
            State::Away | State::Ready => None,
            State::Closed => Some(Self::closed()),
            State::Failed => Some(Self::failed("its link failed")),
        }
    }
}

/// When a wait has to end: a time limit and the abort word.
#[derive(Clone, Debug)]
pub(crate) struct Watch {
    abort: Arc<Memory>,
    started: Instant,
    limit: Duration,
}

impl Watch {
    /// Starts now.
    pub(crate) fn new(abort: &Arc<Memory>, limit: Duration) -> Self {
        Self { abort: Arc::clone(abort), started: Instant::now(), limit }
    }

    /// An error once the time is up or the link was aborted.
    pub(crate) fn check(&self, peer: usize, what: &'static str) -> Result<(), LinkError> {
        if abort_word(&self.abort).load(Ordering::Relaxed) != 0 {
            return Err(LinkError::Aborted);
        }
        let waited = self.elapsed();
        if waited >= self.limit { Err(LinkError::Timeout { peer, what, waited: self.limit }) } else { Ok(()) }
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(crate) fn left(&self) -> Duration {
        self.limit.saturating_sub(self.elapsed())
    }
}
