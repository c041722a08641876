//! How the connections of a group come about: each rank dials those before it and is dialled by those after it. Both sides show
//! the secret of the other's offer; whoever cannot is turned away, and disturbs nobody.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use crate::endpoint::Group;
use crate::error::LinkError;

use super::TcpOffer;

const MAGIC: u64 = u64::from_le_bytes(*b"TDMLINK1");
const HELLO_BYTES: usize = 48;
/// Whoever says nothing for so long after connecting is turned away.
const HELLO_LIMIT: Duration = Duration::from_secs(1);
/// Strangers that may be connected at a time before they have said who they are.
const STRANGERS_MAX: usize = 32;
const PAUSE: Duration = Duration::from_millis(1);

/// The connections to all peers.
pub(super) fn join(
    listener: &TcpListener,
    epoch: u64,
    group: &Group,
    offers: &[TcpOffer],
) -> Result<Vec<(usize, TcpStream)>, LinkError> {
    let mut joined = Vec::new();
    for peer in 0..group.rank {
        joined.push((peer, dial(epoch, group, peer, offers)?));
    }
    listener.set_nonblocking(true).map_err(|source| LinkError::system("listening for the link", source))?;
    let mut strangers = Vec::new();
    while let Some(missing) = (group.rank + 1..group.world).find(|peer| joined.iter().all(|(known, _)| known != peer)) {
        group.check_time(missing)?;
        let busy = accept(listener, &mut strangers);
        strangers.retain_mut(|stranger: &mut Stranger| match stranger.listen() {
            Listened::More => stranger.since.elapsed() < HELLO_LIMIT,
            Listened::Nonsense => false,
            Listened::Hello(hello) => {
                let known = |peer: usize| joined.iter().any(|(joined, _)| *joined == peer);
                if let Some(peer) = hello.sender(epoch, group, &offers[group.rank]).filter(|peer| !known(*peer))
                    && let Some(stream) = stranger.welcome(&Hello::new(epoch, group.rank, peer, offers))
                {
                    joined.push((peer, stream));
                }
                false
            }
        });
        if !busy {
            thread::sleep(PAUSE);
        }
    }
    Ok(joined)
}

/// Whether somebody came.
fn accept(listener: &TcpListener, strangers: &mut Vec<Stranger>) -> bool {
    let Ok((stream, _)) = listener.accept() else { return false };
    if strangers.len() < STRANGERS_MAX && stream.set_nonblocking(true).is_ok() {
        strangers.push(Stranger { stream, said: [0; HELLO_BYTES], bytes: 0, since: Instant::now() });
    }
    true
}

fn dial(epoch: u64, group: &Group, peer: usize, offers: &[TcpOffer]) -> Result<TcpStream, LinkError> {
    let failed = |source: std::io::Error| match source.kind() {
        ErrorKind::TimedOut | ErrorKind::WouldBlock => LinkError::NotConnected { peer, waited: group.deadline() },
        _ => LinkError::PeerGone { peer, reason: format!("connecting to {}: {source}", offers[peer].address) },
    };
    let left = || group.left().max(Duration::from_millis(1));
    let mut stream = TcpStream::connect_timeout(&offers[peer].address, left()).map_err(failed)?;
    stream.write_all(&Hello::new(epoch, group.rank, peer, offers).encode()).map_err(failed)?;
    stream.set_read_timeout(Some(left())).map_err(failed)?;
    let mut answer = [0; HELLO_BYTES];
    stream.read_exact(&mut answer).map_err(failed)?;
    match Hello::decode(&answer) == Some(Hello::new(epoch, peer, group.rank, offers)) {
        true => Ok(stream),
        false => Err(LinkError::PeerGone { peer, reason: format!("{} is not it", offers[peer].address) }),
    }
}

/// A connection that has not said who it is.
struct Stranger {
    stream: TcpStream,
    said: [u8; HELLO_BYTES],
    bytes: usize,
    since: Instant,
}

enum Listened {
    More,
    Nonsense,
    Hello(Hello),
}

impl Stranger {
    fn listen(&mut self) -> Listened {
        match self.stream.read(&mut self.said[self.bytes..]) {
            Ok(0) => Listened::Nonsense,
            Ok(read) => {
                self.bytes += read;
                match self.bytes < HELLO_BYTES {
                    true => Listened::More,
                    false => Hello::decode(&self.said).map_or(Listened::Nonsense, Listened::Hello),
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => Listened::More,
            Err(_) => Listened::Nonsense,
        }
    }

    /// Answers. The send buffer of a new connection has room for that.
    fn welcome(&self, answer: &Hello) -> Option<TcpStream> {
        let mut stream = self.stream.try_clone().ok()?;
        let sent = stream.write(&answer.encode()).ok()?;
        (sent == HELLO_BYTES).then_some(stream)
    }
}

/// The first thing said in each direction: magic, epoch, sender, recipient, and the secret of the recipient's offer.
#[derive(Debug, PartialEq, Eq)]
struct Hello {
    epoch: u64,
    from: u64,
    to: u64,
    nonce: [u64; 2],
}

impl Hello {
    fn new(epoch: u64, from: usize, to: usize, offers: &[TcpOffer]) -> Self {
        Self { epoch, from: from as u64, to: to as u64, nonce: offers[to].nonce }
    }

    /// Who says it, if it may come from a peer that dials this rank.
    fn sender(&self, epoch: u64, group: &Group, ours: &TcpOffer) -> Option<usize> {
        let from = (group.rank + 1..group.world).find(|peer| *peer as u64 == self.from)?;
        let for_us = self.epoch == epoch && self.to == group.rank as u64 && self.nonce == ours.nonce;
        for_us.then_some(from)
    }

    fn encode(&self) -> [u8; HELLO_BYTES] {
        let mut bytes = [0; HELLO_BYTES];
        let words = [MAGIC, self.epoch, self.from, self.to, self.nonce[0], self.nonce[1]];
        bytes.as_chunks_mut().0.iter_mut().zip(words).for_each(|(bytes, word)| *bytes = word.to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8; HELLO_BYTES]) -> Option<Self> {
        let words: Vec<u64> = bytes.as_chunks().0.iter().map(|bytes| u64::from_le_bytes(*bytes)).collect();
        match words[..] {
            [MAGIC, epoch, from, to, first, second] => Some(Self { epoch, from, to, nonce: [first, second] }),
            _ => None,
        }
    }
}
