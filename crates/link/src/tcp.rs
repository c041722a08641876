//! TCP: a connection between each two ranks, driven by the thread that exchanges. What arrives goes straight to its slot; a
//! full send buffer is waited for while everything that comes in is taken, so two ranks that send at once do not block each
//! other.

mod connection;
mod frame;
mod join;

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::endpoint::Group;
use crate::error::LinkError;
use crate::flag::Flag;
use crate::memory::Memory;
use crate::region::{Layout, Region, WORLD_MAX};
use crate::transport::{Awaited, Gone, Transport, Watch};

use connection::{Connection, wait_for_any};
use frame::Header;

/// What a peer must know to connect.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct TcpOffer {
    address: SocketAddr,
    /// What a peer shows to prove that it was given this offer.
    nonce: [u64; 2],
}

/// A port that waits for the peers.
pub(crate) struct TcpEndpoint {
    layout: Layout,
    epoch: u64,
    listener: TcpListener,
    offer: TcpOffer,
}

impl TcpEndpoint {
    /// Listens on a free port of the address, which has to be one that the peers reach.
    pub(crate) fn new(layout: Layout, epoch: u64, address: IpAddr) -> Result<Self, LinkError> {
        if address.is_unspecified() {
            return Err(LinkError::Setting(format!("{address} is no address that peers could connect to")));
        }
        let failed = |source| LinkError::system(format!("listening on {address} for the link"), source);
        let listener = TcpListener::bind((address, 0)).map_err(failed)?;
        let offer = TcpOffer { address: listener.local_addr().map_err(failed)?, nonce: crate::endpoint::random()? };
        Ok(Self { layout, epoch, listener, offer })
    }

    pub(crate) fn offer(&self) -> TcpOffer {
        self.offer.clone()
    }

    pub(crate) fn connect(self, group: &Group, offers: &[TcpOffer]) -> Result<(Box<dyn Transport>, Region), LinkError> {
        let region = Region::new(self.layout, Memory::anonymous(self.layout.bytes())?.into());
        Ok((Box::new(self.meet(group, offers)?), region))
    }

    /// Connects to all peers.
    pub(crate) fn meet(self, group: &Group, offers: &[TcpOffer]) -> Result<TcpTransport, LinkError> {
        let streams = join::join(&self.listener, self.epoch, group, offers)?;
        let mut peers: [Option<Connection>; WORLD_MAX] = Default::default();
        for (peer, stream) in streams {
            peers[peer] = Some(Connection::new(stream, peer, self.epoch)?);
        }
        // The port is closed here: whoever comes later finds nobody.
        Ok(TcpTransport { rank: group.rank, epoch: self.epoch, peers })
    }
}

/// The connections of a rank.
pub(crate) struct TcpTransport {
    rank: usize,
    epoch: u64,
    peers: [Option<Connection>; WORLD_MAX],
}

impl TcpTransport {
    /// Sends the frame, header first, as room in the send buffer comes up.
    fn send(
        &mut self,
        region: &mut Region,
        peer: usize,
        header: &Header,
        slot: usize,
        watch: &Watch,
    ) -> Result<(), LinkError> {
        let (head, bytes) = (header.encode(), header.payload_bytes());
        let mut done = 0;
        while done < head.len() + bytes {
            let payload = region.sent(slot, bytes);
            let Some(connection) = &mut self.peers[peer] else { break };
            match connection.send(&head, payload, done)? {
                0 => self.make_room(region, peer, watch)?,
                sent => done += sent,
            }
        }
        Ok(())
    }

    /// Waits until the peer's connection takes more, or anything comes in, which is taken: the peer may wait for that itself.
    fn make_room(&mut self, region: &mut Region, peer: usize, watch: &Watch) -> Result<(), LinkError> {
        watch.check(peer, "room in the send buffer")?;
        wait_for_any(&self.peers, Some(peer), crate::transport::SLEEP.min(watch.left()));
        self.poll(region)
    }

    fn header(&self, kind: frame::Kind, word: u64, checksum: u32) -> Header {
        Header { kind, from: self.rank, epoch: self.epoch, word, checksum }
    }
}

impl Transport for TcpTransport {
    fn publish(&mut self, region: &mut Region, peer: usize, flag: Flag, watch: &Watch) -> Result<(), LinkError> {
        let checksum = crc32fast::hash(region.sent(flag.slot(), flag.bytes()));
        let header = self.header(frame::Kind::Message, flag.0, checksum);
        self.send(region, peer, &header, flag.slot(), watch)
    }

    fn credit(&mut self, region: &mut Region, peer: usize, seq: u64, watch: &Watch) -> Result<(), LinkError> {
        let header = self.header(frame::Kind::Credit, seq, 0);
        match self.send(region, peer, &header, 0, watch) {
            // It may have all it needs. If not, whoever waits for it notices.
            Err(LinkError::PeerGone { .. }) => Ok(()),
            other => other,
        }
    }

    fn poll(&mut self, region: &mut Region) -> Result<(), LinkError> {
        self.peers.iter_mut().flatten().try_for_each(|connection| connection.pull(region))
    }

    fn sleep(&mut self, region: &mut Region, _: usize, _: Awaited, at_most: Duration) -> Result<(), LinkError> {
        wait_for_any(&self.peers, None, at_most);
        self.poll(region)
    }

    fn gone(&self, _region: &Region, peer: usize) -> Option<Gone> {
        self.peers[peer].as_ref()?.end().cloned()
    }

    fn close(&mut self, region: &mut Region, failed: bool) {
        let kind = if failed { frame::Kind::Failed } else { frame::Kind::Closed };
        let farewell = self.header(kind, 0, 0).encode();
        for connection in self.peers.iter_mut().flatten() {
            connection.close(region, &farewell);
        }
    }

    fn describe(&self) -> String {
        let peers: Vec<String> = self.peers.iter().flatten().map(|peer| peer.address().to_string()).collect();
        format!("TCP to {}", peers.join(", "))
    }
}
