//! Who is to make up groups, and what is to become of them.

use std::time::Duration;

use tandem_step::Worker;

use crate::children::ChildCommand;
use crate::listening::Acceptors;
use crate::{Deadlines, HostFacts, LoadOrder, Ready, Token};

/// Says what to load, given the machines in rank order.
pub type Decide = Box<dyn FnMut(&[HostFacts]) -> Result<LoadOrder, String> + Send>;

/// Has a group that has loaded prove that it computes what it should.
pub type Prove = Box<dyn FnMut(&mut dyn Worker, &LoadOrder) -> Result<(), Unproven> + Send>;

/// Why a group is not handed over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unproven {
    /// A rank was lost meanwhile.
    Lost(String),
    /// It computes something else.
    Wrong(String),
}

/// Who is to make up the groups, and how.
pub struct Plan {
    /// Hash of the sources of this program; workers of another are refused.
    pub build: String,
    /// How long things may take.
    pub deadlines: Deadlines,
    /// Workers of this machine.
    pub local: Local,
    /// Workers of others, if any.
    pub remote: Option<Remote>,
    /// How long workers of other machines may be missing before the one of this machine serves alone; `None`: for ever.
    pub degrade_after: Option<Duration>,
    /// Says what to load, given the machines in rank order: all, or the first alone.
    pub order: Decide,
    /// Is told how far a rank's loading is: rank, bytes read, bytes in all.
    pub progress: Box<dyn Fn(usize, u64, u64) + Send + Sync>,
    /// Proves a group before anybody is served by it.
    pub prove: Prove,
    /// Is told of every group that is handed over.
    pub formed: Box<dyn FnMut(&Ready) + Send>,
}

/// Workers that are children of this process; they have the first ranks.
pub struct Local {
    /// How many.
    pub count: usize,
    /// Where they connect, in a folder that only this user can enter.
    pub listener: std::os::unix::net::UnixListener,
    /// What they and we know.
    pub token: Token,
    /// Starts one.
    pub command: ChildCommand,
}

/// Workers that are not.
pub struct Remote {
    /// How many.
    pub count: usize,
    /// Where they connect.
    pub listener: std::net::TcpListener,
    /// What they and we know.
    pub token: Token,
    /// With what connections are encrypted; `None`: they are not.
    pub tls: Option<Acceptors>,
}
