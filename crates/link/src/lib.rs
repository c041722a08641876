//! The exchange of activations between ranks: one protocol over several transports.
//!
//! Each rank makes an [`Endpoint`], whose offer the control plane carries to all others; with everybody's offers it becomes a
//! [`Link`], on which all ranks make the same calls in the same order.
//!
//! # Protocol
//!
//! A payload is cut into messages of at most one slot. Messages are numbered from 1, without end; message `seq` goes through
//! slot `seq & 1` of its direction. A message is announced by one 64-bit word, its flag: number, operation and length. All
//! ranks run the same plan, so each knows the next flag of its peers and waits until the word *equals* it; the right number with
//! another length or operation means that the ranks disagree, which is an error at once.
//!
//! Two slots suffice. To stage message `n`, a rank must know that its peers have taken `n - 2`. It knows that whenever
//! `n - 1` was the first message of its exchange, for nobody begins an exchange before having ended the one before. So exchanges
//! of one message, all of decoding, need no acknowledgement. Of a longer payload every message but the last is acknowledged
//! by a credit, the number of the last message taken; staging the next message overlaps with waiting for this one.
//!
//! Partial sums are added in the order of ranks, on every rank: all hold the same bits.
//!
//! Every wait has a deadline and watches one abort word. After an error the link is dead, and the peers are told.
//!
//! # Memory
//!
//! See [`Region`]. All words that are waited for lie in host memory, on cache lines of their own, in the region of the
//! rank that waits, so that kernels of a device which sees host memory can do what [`Link`] does here. Within shared memory
//! devices have a quicker way of their own, without flags: packets.

mod endpoint;
mod error;
#[cfg(any(test, feature = "faults"))]
mod faults;
mod fence;
mod flag;
mod futex;
mod link;
mod memory;
mod packets;
mod rdma;
mod region;
mod shm;
mod speed;
mod tcp;
mod transport;

pub use endpoint::{Endpoint, Settings, TransportKind};
pub use error::LinkError;
#[cfg(any(test, feature = "faults"))]
pub use faults::{Fault, Faults};
pub use link::{Abort, Link};
pub use packets::{PACKET_BYTES, packet_number};
pub use rdma::{RdmaChoice, RdmaPort, rdma_ports};
pub use region::{LINE_BYTES, Region, SLOTS, STRIPES_MAX, WORLD_MAX};
pub use speed::LinkSpeed;
