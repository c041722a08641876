//! RDMA: a message is a write of the payload into the peer's memory, then one of its flag on the same connection, which keeps
//! their order. Nothing is received: the flag is polled in this rank's own memory.
//!
//! Two devices share long messages, half each, and each raises a flag word of its own: no order holds between them. Beside the
//! queue pairs each two ranks keep a TCP connection on the address of the first device. Over it they meet when their queue pairs
//! can receive, and it tells at once when a peer's process ends.

mod adapter;
mod port;
mod verbs;

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::endpoint::Group;
use crate::error::LinkError;
use crate::flag::Flag;
use crate::memory::Memory;
use crate::region::{Layout, Region, WORLD_MAX};
use crate::tcp::{TcpEndpoint, TcpOffer, TcpTransport};
use crate::transport::{Awaited, Gone, Transport, Watch};

use adapter::{Adapter, AdapterOffer, Part};
pub use port::{RdmaChoice, RdmaPort, rdma_ports};

/// Messages longer than this are split over the devices: below, a second write costs more than it saves.
const STRIPE_ABOVE: usize = 32 << 10;
/// Nothing wakes a sleeper when a flag arrives, so it looks again soon.
const NAP: Duration = Duration::from_micros(20);
/// Longest wait at the end for what is under way: a peer may still need it.
const DRAIN: Duration = Duration::from_millis(500);

/// What a peer must know to write into this rank's memory.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct RdmaOffer {
    meeting: TcpOffer,
    /// Where the region is in this rank's memory.
    region: u64,
    devices: Vec<AdapterOffer>,
}

/// Devices that wait for the peers.
pub(crate) struct RdmaEndpoint {
    layout: Layout,
    memory: Arc<Memory>,
    adapters: Vec<Adapter>,
    meeting: TcpEndpoint,
}

impl RdmaEndpoint {
    pub(crate) fn new(layout: Layout, epoch: u64, choice: &RdmaChoice) -> Result<Self, LinkError> {
        let ports = choice.ports()?;
        let memory = Arc::new(Memory::anonymous(layout.bytes())?);
        let meeting = TcpEndpoint::new(layout, epoch, ports[0].address().into())?;
        let adapters = ports.into_iter().map(|port| Adapter::open(port, &memory)).collect::<Result<_, _>>()?;
        Ok(Self { layout, memory, adapters, meeting })
    }

    pub(crate) fn offer(&self) -> RdmaOffer {
        RdmaOffer {
            meeting: self.meeting.offer(),
            region: self.memory.at(0) as u64,
            devices: self.adapters.iter().map(Adapter::offer).collect(),
        }
    }

    pub(crate) fn connect(
        mut self,
        group: &Group,
        offers: &[RdmaOffer],
    ) -> Result<(Box<dyn Transport>, Region), LinkError> {
        let devices = offers.iter().map(|offer| offer.devices.len()).min().unwrap_or(0).min(self.adapters.len());
        if let Some(peer) = offers.iter().position(|offer| offer.devices.is_empty()) {
            return Err(LinkError::Offer { peer, reason: "it has no devices".into() });
        }
        self.adapters.truncate(devices);
        for (index, adapter) in self.adapters.iter_mut().enumerate() {
            for peer in group.peers() {
                adapter.connect(group.rank, peer, &offers[peer].devices[index])?;
            }
        }
        // Whoever has met its peers knows that they can receive.
        let meetings: Vec<TcpOffer> = offers.iter().map(|offer| offer.meeting.clone()).collect();
        let lifelines = self.meeting.meet(group, &meetings)?;
        let mut regions = [0; WORLD_MAX];
        offers.iter().zip(&mut regions).for_each(|(offer, region)| *region = offer.region);
        let region = Region::new(self.layout, self.memory).with_stripes(devices, STRIPE_ABOVE);
        let transport = RdmaTransport { rank: group.rank, adapters: self.adapters, regions, lifelines };
        Ok((Box::new(transport), region))
    }
}

struct RdmaTransport {
    rank: usize,
    adapters: Vec<Adapter>,
    /// Where each peer's region is in its memory.
    regions: [u64; WORLD_MAX],
    lifelines: TcpTransport,
}

impl RdmaTransport {
    /// Waits until the adapter has room for a message to the peer.
    fn make_room(&mut self, index: usize, peer: usize, watch: &Watch) -> Result<(), LinkError> {
        while !self.adapters[index].has_room(peer) {
            self.adapters[index].poll()?;
            if let Some(reason) = self.adapters[index].failed(peer) {
                return Err(LinkError::PeerGone { peer, reason: reason.clone() });
            }
            watch.check(peer, "room in the send queue")?;
        }
        Ok(())
    }
}

impl Transport for RdmaTransport {
    fn publish(&mut self, region: &mut Region, peer: usize, flag: Flag, watch: &Watch) -> Result<(), LinkError> {
        let (layout, slot) = (region.layout(), flag.slot());
        for (stripe, part) in parts(flag.bytes(), region.stripes(flag.bytes())).enumerate() {
            self.make_room(stripe, peer, watch)?;
            let to = self.regions[peer] + (layout.received(self.rank, slot) + part.start) as u64;
            let from = region.staged(slot).wrapping_add(part.start);
            let word_at = self.regions[peer] + layout.flag(self.rank, slot, stripe) as u64;
            self.adapters[stripe].write_message(peer, slot, Part { from, bytes: part.len(), to }, flag.0, word_at)?;
        }
        Ok(())
    }

    fn credit(&mut self, region: &mut Region, peer: usize, seq: u64, watch: &Watch) -> Result<(), LinkError> {
        match self.make_room(0, peer, watch) {
            // It may have all it needs. If not, whoever waits for it notices.
            Err(LinkError::PeerGone { .. }) => Ok(()),
            Err(error) => Err(error),
            Ok(()) => {
                let at = self.regions[peer] + region.layout().credit(self.rank) as u64;
                self.adapters[0].write_word(peer, seq, at)
            }
        }
    }

    fn poll(&mut self, _region: &mut Region) -> Result<(), LinkError> {
        self.adapters.iter_mut().try_for_each(Adapter::poll)
    }

    fn sleep(
        &mut self,
        region: &mut Region,
        peer: usize,
        awaited: Awaited,
        at_most: Duration,
    ) -> Result<(), LinkError> {
        self.lifelines.sleep(region, peer, awaited, at_most.min(NAP))
    }

    fn sent(&mut self, slot: usize) -> bool {
        self.adapters.iter().all(|adapter| adapter.sent(slot))
    }

    fn gone(&self, region: &Region, peer: usize) -> Option<Gone> {
        let failed = self.adapters.iter().find_map(|adapter| adapter.failed(peer));
        failed.map(|reason| Gone::failed(reason.clone())).or_else(|| self.lifelines.gone(region, peer))
    }

    fn close(&mut self, region: &mut Region, failed: bool) {
        let started = Instant::now();
        let idle = |adapters: &[Adapter]| adapters.iter().all(Adapter::is_idle);
        while !failed && !idle(&self.adapters) && started.elapsed() < DRAIN && self.poll(region).is_ok() {}
        self.lifelines.close(region, failed);
    }

    fn describe(&self) -> String {
        let devices: Vec<String> = self.adapters.iter().map(Adapter::to_string).collect();
        format!("RDMA over {}", devices.join(" and "))
    }
}

/// A message's parts: one, or equal halves on cache lines.
fn parts(bytes: usize, stripes: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    let each = bytes.div_ceil(stripes).next_multiple_of(crate::region::LINE_BYTES);
    (0..stripes).map(move |stripe| (stripe * each).min(bytes)..((stripe + 1) * each).min(bytes))
}
