use std::io;
use std::time::Duration;

/// Why an exchange, or setting one up, failed. After an error of an exchange the link is dead: a rank cannot know how far
/// the others got, so only a new link with a new epoch makes them agree again.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// Somebody called [`crate::Abort::abort`].
    #[error("the exchange was aborted")]
    Aborted,
    /// An earlier call failed.
    #[error("the link is closed since an earlier exchange failed: {0}")]
    Dead(String),
    /// A peer did not do its part in time.
    #[error("rank {peer} gave no {what} within {waited:?}")]
    Timeout {
        /// Whose part is missing.
        peer: usize,
        /// What was waited for.
        what: &'static str,
        /// How long.
        waited: Duration,
    },
    /// A peer's process, connection or queue pair is gone.
    #[error("rank {peer} is gone: {reason}")]
    PeerGone {
        /// Who.
        peer: usize,
        /// How that was noticed.
        reason: String,
    },
    /// A peer is in another exchange than this rank: other sizes, or another operation.
    #[error("rank {peer} sent {got} where {expected} was due: the ranks do not run the same plan")]
    Disagreement {
        /// Who.
        peer: usize,
        /// What it sent.
        got: String,
        /// What this rank had in mind.
        expected: String,
    },
    /// What a peer sent breaks the protocol.
    #[error("rank {peer} broke the protocol: {what}")]
    Protocol {
        /// Who.
        peer: usize,
        /// In which way.
        what: String,
    },
    /// Buffers whose lengths do not fit each other. The link stays usable.
    #[error("the lengths do not fit: {0}")]
    Shape(String),
    /// A setting that cannot be.
    #[error("{0}")]
    Setting(String),
    /// What another rank offered cannot be used.
    #[error("rank {peer}'s offer is of no use: {reason}")]
    Offer {
        /// Whose.
        peer: usize,
        /// Why.
        reason: String,
    },
    /// The group was not complete in time.
    #[error("rank {peer} did not connect within {waited:?}")]
    NotConnected {
        /// Who is missing.
        peer: usize,
        /// How long was waited.
        waited: Duration,
    },
    /// This machine has no RDMA device that can be used, for the reasons given.
    #[error("RDMA cannot be used here: {0}")]
    NoRdma(String),
    /// An RDMA device refused something.
    #[error("RDMA device {device}: {what}: {source}{}{advice}", if advice.is_empty() { "" } else { "; " })]
    Rdma {
        /// Which.
        device: String,
        /// What was being done.
        what: String,
        /// What verbs said.
        source: io::Error,
        /// What to look at. May be empty.
        advice: &'static str,
    },
    /// The operating system refused something.
    #[error("{what}: {source}")]
    System {
        /// What was being done.
        what: String,
        /// What it said.
        source: io::Error,
    },
}

impl LinkError {
    /// The error that the last system call of this thread left in `errno`.
    pub(crate) fn last_os(what: impl Into<String>) -> Self {
        Self::System { what: what.into(), source: io::Error::last_os_error() }
    }

    pub(crate) fn system(what: impl Into<String>, source: io::Error) -> Self {
        Self::System { what: what.into(), source }
    }
}
