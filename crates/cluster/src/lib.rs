//! The control plane: one coordinator, which schedules, and the worker processes that each run one rank of the model.
//!
//! A worker dials and the coordinator drives; `proto/tandem/v1/cluster.proto` says what passes between them.
//! [`Supervisor`] is the coordinator's side: it waits for workers, forms a group of them, hands it to the engine as one
//! [`tandem_step::Worker`], and forms the next when it is lost. [`attend`] is the worker's: it runs a [`Rank`].
//!
//! Every wait here has a deadline from [`Deadlines`], and every queue a bound.

mod address;
mod assembly;
mod attend;
mod children;
mod deadlines;
mod dial;
mod doorkeeper;
mod group;
mod group_worker;
mod hitch;
mod listening;
mod member;
mod order;
mod pair;
mod plan;
mod proving;
mod rank;
mod shift;
mod supervisor;
mod token;
mod trust;
mod wire;

pub use address::{Address, AddressError};
pub use attend::{AttendError, JoinAt, attend};
pub use children::{ChildCommand, Children, ChildrenError};
pub use deadlines::Deadlines;
pub use group::{GroupError, Ready};
pub use listening::Acceptors;
pub use order::{Experts, LoadOrder, ModelSource};
pub use pair::{Pair, PairError};
pub use plan::{Decide, Local, Plan, Prove, Remote, Unproven};
pub use rank::{HostFacts, LinkFacts, Rank, RankLoaded, RankOrder};
pub use supervisor::{Supervisor, SupervisorError};
pub use token::{Token, TokenError};
pub use trust::{Trust, TrustError};
pub use wire::WireError;

/// Version of the protocol: raised when a message changes its meaning.
pub const PROTOCOL: u32 = 1;

/// The messages of `proto/tandem/v1/cluster.proto`, which says what they mean.
#[allow(clippy::all, rust_2018_idioms)]
mod proto {
    tonic::include_proto!("tandem.v1");
}
