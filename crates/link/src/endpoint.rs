use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::error::LinkError;
use crate::link::Link;
use crate::rdma::{RdmaChoice, RdmaEndpoint, RdmaOffer};
use crate::region::{Layout, WORLD_MAX};
use crate::shm::{ShmEndpoint, ShmOffer};
use crate::tcp::{TcpEndpoint, TcpOffer};

/// Raised by every change of the protocol or of the region: ranks of different versions do not connect.
const VERSION: u32 = 2;
/// An offer is a few hundred bytes.
const OFFER_BYTES_MAX: usize = 64 << 10;

/// What all ranks of a link have in common.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Which run of the group this is. What is left of another one is refused.
    pub epoch: u64,
    /// Longest wait for a peer within an exchange. It has to cover how much later than this rank a peer may come to it.
    pub deadline: Duration,
    /// How long a wait looks again and again before it sleeps.
    pub spin: Duration,
    /// Longest message, a multiple of 64 bytes. The same on all ranks.
    pub slot_bytes: usize,
}

impl Default for Settings {
    /// Two seconds, 50 µs and 256 KiB.
    fn default() -> Self {
        Self { epoch: 0, deadline: Duration::from_secs(2), spin: Duration::from_micros(50), slot_bytes: 256 << 10 }
    }
}

impl Settings {
    /// Bytes of memory that each rank has for messages, and registers with every RDMA device.
    ///
    /// # Errors
    ///
    /// A length of a slot that cannot be.
    pub fn region_bytes(&self) -> Result<usize, LinkError> {
        Ok(Layout::new(self.slot_bytes)?.bytes())
    }
}

/// How messages travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TransportKind {
    /// Memory that processes of one host share.
    Shm,
    /// TCP connections.
    Tcp,
    /// RDMA writes over RoCE v2.
    Rdma,
}

impl TransportKind {
    /// All there are.
    pub const ALL: [Self; 3] = [Self::Shm, Self::Tcp, Self::Rdma];

    fn name(self) -> &'static str {
        match self {
            Self::Shm => "shm",
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
        }
    }
}

impl fmt::Display for TransportKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for TransportKind {
    type Err = LinkError;

    fn from_str(name: &str) -> Result<Self, LinkError> {
        let known = || Self::ALL.map(Self::name).join(", ");
        let found = Self::ALL.into_iter().find(|kind| kind.name() == name);
        found.ok_or_else(|| LinkError::Setting(format!("no transport {name}; there are {}", known())))
    }
}

/// One rank's side of a link that is not connected yet. Its offer goes to all ranks, by whatever means they have to talk; with
/// everybody's offers it becomes a [`Link`].
pub struct Endpoint {
    settings: Settings,
    side: Side,
    #[cfg(any(test, feature = "faults"))]
    faults: Option<crate::Faults>,
}

enum Side {
    Shm(ShmEndpoint),
    Tcp(TcpEndpoint),
    Rdma(RdmaEndpoint),
}

/// What a rank tells the others: JSON, so that people can read it in a log.
#[derive(Serialize, Deserialize)]
struct Offer {
    version: u32,
    epoch: u64,
    slot_bytes: usize,
    #[serde(flatten)]
    way: Way,
}

#[derive(Clone, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Way {
    Shm(ShmOffer),
    Tcp(TcpOffer),
    Rdma(RdmaOffer),
}

impl Endpoint {
    /// An endpoint for processes of one user on one host.
    pub fn shm(settings: &Settings) -> Result<Self, LinkError> {
        let layout = Layout::new(settings.slot_bytes)?;
        Ok(Self::new(settings, Side::Shm(ShmEndpoint::new(layout)?)))
    }

    /// An endpoint that listens on a free port of `address`, an address of this machine that the peers reach.
    pub fn tcp(settings: &Settings, address: IpAddr) -> Result<Self, LinkError> {
        let layout = Layout::new(settings.slot_bytes)?;
        let endpoint = TcpEndpoint::new(layout, settings.epoch, address)?;
        Ok(Self::new(settings, Side::Tcp(endpoint)))
    }

    /// An endpoint on RDMA devices of this machine.
    pub fn rdma(settings: &Settings, choice: &RdmaChoice) -> Result<Self, LinkError> {
        let layout = Layout::new(settings.slot_bytes)?;
        let endpoint = RdmaEndpoint::new(layout, settings.epoch, choice)?;
        Ok(Self::new(settings, Side::Rdma(endpoint)))
    }

    fn new(settings: &Settings, side: Side) -> Self {
        Self {
            settings: settings.clone(),
            side,
            #[cfg(any(test, feature = "faults"))]
            faults: None,
        }
    }

    /// Makes the link have faults on what it sends.
    #[cfg(any(test, feature = "faults"))]
    pub fn with_faults(self, faults: crate::Faults) -> Self {
        Self { faults: Some(faults), ..self }
    }

    /// What all ranks need to know of this one. It holds a secret: whoever has it can take part.
    pub fn offer(&self) -> Vec<u8> {
        let way = match &self.side {
            Side::Shm(endpoint) => Way::Shm(endpoint.offer()),
            Side::Tcp(endpoint) => Way::Tcp(endpoint.offer()),
            Side::Rdma(endpoint) => Way::Rdma(endpoint.offer()),
        };
        let (epoch, slot_bytes) = (self.settings.epoch, self.settings.slot_bytes);
        let offer = Offer { version: VERSION, epoch, slot_bytes, way };
        serde_json::to_vec(&offer).unwrap_or_default()
    }

    /// Connects to all ranks. `offers` are those of all ranks in their order, this one's included. Returns when every peer has
    /// connected to this rank and this rank to every peer.
    ///
    /// # Errors
    ///
    /// A group or an offer that cannot be, and [`LinkError::NotConnected`] after `deadline`.
    pub fn connect<O: AsRef<[u8]>>(
        self,
        rank: usize,
        world: usize,
        offers: &[O],
        deadline: Duration,
    ) -> Result<Link, LinkError> {
        let group = Group::new(rank, world, offers.len(), deadline)?;
        let offers = self.understand(&group, offers)?;
        let (transport, region) = match self.side {
            Side::Shm(endpoint) => endpoint.connect(&group, &offers.of(Way::shm)?)?,
            Side::Tcp(endpoint) => endpoint.connect(&group, &offers.of(Way::tcp)?)?,
            Side::Rdma(endpoint) => endpoint.connect(&group, &offers.of(Way::rdma)?)?,
        };
        #[cfg(any(test, feature = "faults"))]
        let transport = crate::faults::wrap(transport, self.faults);
        Ok(Link::new(rank, world, transport, region, self.settings.deadline, self.settings.spin))
    }

    fn understand<O: AsRef<[u8]>>(&self, group: &Group, offers: &[O]) -> Result<Offers, LinkError> {
        let mut ways = Vec::with_capacity(group.world);
        for (peer, bytes) in offers.iter().enumerate() {
            let wrong = |reason| LinkError::Offer { peer, reason };
            ways.push(self.understand_one(bytes.as_ref()).map_err(wrong)?);
        }
        Ok(Offers(ways))
    }

    fn understand_one(&self, bytes: &[u8]) -> Result<Way, String> {
        if bytes.len() > OFFER_BYTES_MAX {
            return Err(format!("{} bytes are no offer", bytes.len()));
        }
        let offer: Offer = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        let agree = |what, theirs: u64, ours: u64| match theirs == ours {
            true => Ok(()),
            false => Err(format!("its {what} is {theirs}, this rank's {ours}")),
        };
        agree("protocol version", offer.version.into(), VERSION.into())?;
        agree("epoch", offer.epoch, self.settings.epoch)?;
        agree("slot length", offer.slot_bytes as u64, self.settings.slot_bytes as u64)?;
        Ok(offer.way)
    }
}

impl Way {
    fn shm(self) -> Option<ShmOffer> {
        if let Self::Shm(offer) = self { Some(offer) } else { None }
    }

    fn tcp(self) -> Option<TcpOffer> {
        if let Self::Tcp(offer) = self { Some(offer) } else { None }
    }

    fn rdma(self) -> Option<RdmaOffer> {
        if let Self::Rdma(offer) = self { Some(offer) } else { None }
    }
}

/// Every rank's way of being reached, in the order of ranks.
struct Offers(Vec<Way>);

impl Offers {
    fn of<T>(self, kind: impl Fn(Way) -> Option<T>) -> Result<Vec<T>, LinkError> {
        let of_kind = |(peer, way)| {
            let other = || LinkError::Offer { peer, reason: "it is for another transport".into() };
            kind(way).ok_or_else(other)
        };
        self.0.into_iter().enumerate().map(of_kind).collect()
    }
}

/// Who connects to whom, and until when.
pub(crate) struct Group {
    pub(crate) rank: usize,
    pub(crate) world: usize,
    started: Instant,
    deadline: Duration,
}

impl Group {
    fn new(rank: usize, world: usize, offers: usize, deadline: Duration) -> Result<Self, LinkError> {
        if !(2..=WORLD_MAX).contains(&world) || rank >= world || offers != world {
            return Err(LinkError::Setting(format!(
                "rank {rank} of {world} with {offers} offers: a link has 2 to {WORLD_MAX} ranks, and an offer of each"
            )));
        }
        Ok(Self { rank, world, started: Instant::now(), deadline })
    }

    pub(crate) fn peers(&self) -> impl Iterator<Item = usize> + use<> {
        let rank = self.rank;
        (0..self.world).filter(move |peer| *peer != rank)
    }

    /// The time that all of it may take.
    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    pub(crate) fn left(&self) -> Duration {
        self.deadline.saturating_sub(self.started.elapsed())
    }

    /// An error that names `peer` as missing once the time is up.
    pub(crate) fn check_time(&self, peer: usize) -> Result<(), LinkError> {
        let waited = self.started.elapsed();
        if waited < self.deadline { Ok(()) } else { Err(LinkError::NotConnected { peer, waited: self.deadline }) }
    }
}

/// Words that nobody can guess.
pub(crate) fn random() -> Result<[u64; 2], LinkError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| LinkError::Setting(format!("this system gives no random bytes: {error}")))?;
    let (words, _) = bytes.as_chunks();
    Ok([u64::from_le_bytes(words[0]), u64::from_le_bytes(words[1])])
}
