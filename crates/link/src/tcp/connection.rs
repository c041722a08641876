use std::io::{self, ErrorKind, IoSlice, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::Ordering;
use std::time::Duration;

use crate::error::LinkError;
use crate::flag::Flag;
use crate::region::Region;
use crate::transport::Gone;

use super::frame::{HEADER_BYTES, Header, Kind};

/// One peer's connection, never blocking: a reader that remembers how far it got in a frame, and a writer.
pub(super) struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    peer: usize,
    epoch: u64,
    head: [u8; HEADER_BYTES],
    /// Bytes of the frame that have come, header included.
    come: usize,
    /// The header, once it is complete.
    header: Option<Header>,
    /// The number of the message that must come next.
    next_seq: u64,
    /// Part of a frame was sent: nothing else may be.
    mid_frame: bool,
    end: Option<Gone>,
}

impl Connection {
    pub(super) fn new(stream: TcpStream, peer: usize, epoch: u64) -> Result<Self, LinkError> {
        let failed = |source| LinkError::system(format!("setting up the connection to rank {peer}"), source);
        stream.set_nodelay(true).map_err(failed)?;
        stream.set_nonblocking(true).map_err(failed)?;
        let address = stream.peer_addr().map_err(failed)?;
        Ok(Self {
            stream,
            address,
            peer,
            epoch,
            head: [0; HEADER_BYTES],
            come: 0,
            header: None,
            next_seq: 1,
            mid_frame: false,
            end: None,
        })
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn end(&self) -> Option<&Gone> {
        self.end.as_ref()
    }

    /// Sends what follows the first `done` bytes of header and payload, as much as there is room for: 0 if there is none.
    pub(super) fn send(&mut self, head: &[u8], payload: &[u8], done: usize) -> Result<usize, LinkError> {
        if let Some(gone) = &self.end {
            return Err(LinkError::PeerGone { peer: self.peer, reason: gone.reason.clone() });
        }
        let rest =
            [IoSlice::new(&head[done.min(head.len())..]), IoSlice::new(&payload[done.saturating_sub(head.len())..])];
        match self.stream.write_vectored(&rest) {
            Ok(sent) => {
                self.mid_frame = done + sent < head.len() + payload.len();
                Ok(sent)
            }
            Err(error) if is_later(&error) => Ok(0),
            Err(error) => Err(LinkError::PeerGone { peer: self.peer, reason: error.to_string() }),
        }
    }

    /// Takes what has come, up to the end of a frame, without waiting. The end of the connection is remembered, not an error.
    pub(super) fn pull(&mut self, region: &mut Region) -> Result<(), LinkError> {
        while self.end.is_none() {
            match self.read(region) {
                Ok(0) => {
                    self.end = Some(Gone::failed(if self.come == 0 {
                        "it ended the connection"
                    } else {
                        "it ended the connection within a message"
                    }))
                }
                Ok(read) => {
                    self.come += read;
                    if self.advance(region)? {
                        return Ok(());
                    }
                }
                Err(error) if is_later(&error) => return Ok(()),
                Err(error) => self.end = Some(Gone::failed(error.to_string())),
            }
        }
        Ok(())
    }

    /// Tells the peer that this is the end, if there is room to, and lets it read all that was sent.
    pub(super) fn close(&mut self, region: &mut Region, farewell: &[u8]) {
        // What is still unread would make the system reset the connection, and what the peer has not read yet with it.
        while let (true, Ok(())) = (self.end.is_none() && self.has_more(), self.pull(region)) {}
        if !self.mid_frame {
            let _ = self.stream.write(farewell);
        }
        let _ = self.stream.shutdown(Shutdown::Write);
    }

    fn has_more(&self) -> bool {
        matches!(self.stream.peek(&mut [0]), Ok(1..))
    }

    fn read(&mut self, region: &mut Region) -> io::Result<usize> {
        match &self.header {
            None => self.stream.read(&mut self.head[self.come..]),
            Some(header) => {
                let flag = Flag(header.word);
                let landing = region.landing(self.peer, flag.slot(), flag.bytes());
                self.stream.read(&mut landing[self.come - HEADER_BYTES..])
            }
        }
    }

    /// Whether a frame is complete and was dealt with.
    fn advance(&mut self, region: &mut Region) -> Result<bool, LinkError> {
        if self.come < HEADER_BYTES {
            return Ok(false);
        }
        let header = match self.header.take() {
            Some(header) => header,
            None => self.understand(region.slot_bytes())?,
        };
        if self.come < HEADER_BYTES + header.payload_bytes() {
            self.header = Some(header);
            return Ok(false);
        }
        self.come = 0;
        self.deliver(region, &header)?;
        Ok(true)
    }

    fn understand(&self, slot_bytes: usize) -> Result<Header, LinkError> {
        let header = Header::decode(&self.head).map_err(|what| self.broken(what))?;
        if header.from != self.peer || header.epoch != self.epoch {
            return Err(self.broken(format!("a frame of rank {} and epoch {}", header.from, header.epoch)));
        }
        let flag = Flag(header.word);
        if header.kind == Kind::Message && flag.seq() != self.next_seq {
            return Err(self.broken(format!("{flag} where number {} was due", self.next_seq)));
        }
        if header.payload_bytes() > slot_bytes {
            return Err(self.broken(format!("{flag} is longer than a slot")));
        }
        Ok(header)
    }

    fn deliver(&mut self, region: &mut Region, header: &Header) -> Result<(), LinkError> {
        match header.kind {
            Kind::Message => {
                let flag = Flag(header.word);
                if crc32fast::hash(region.taken(self.peer, flag.slot(), flag.bytes())) != header.checksum {
                    return Err(self.broken(format!("the checksum of {flag} is wrong")));
                }
                self.next_seq += 1;
                region.flag(self.peer, flag.slot(), 0).store(flag.0, Ordering::Release);
            }
            Kind::Credit => region.credit(self.peer).store(header.word, Ordering::Release),
            Kind::Closed => self.end = Some(Gone::closed()),
            Kind::Failed => self.end = Some(Gone::failed("its link failed")),
        }
        Ok(())
    }

    fn broken(&self, what: impl Into<String>) -> LinkError {
        LinkError::Protocol { peer: self.peer, what: what.into() }
    }
}

fn is_later(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

/// Sleeps until something comes in on any connection, or `writable`'s takes more, for `at_most` at most.
pub(super) fn wait_for_any(peers: &[Option<Connection>], writable: Option<usize>, at_most: Duration) {
    let open = peers.iter().flatten().filter(|connection| connection.end.is_none());
    let mut polls: Vec<libc::pollfd> = open
        .map(|connection| {
            let write = if writable == Some(connection.peer) { libc::POLLOUT } else { 0 };
            libc::pollfd { fd: connection.stream.as_raw_fd(), events: libc::POLLIN | write, revents: 0 }
        })
        .collect();
    let timeout = libc::timespec { tv_sec: at_most.as_secs() as _, tv_nsec: at_most.subsec_nanos() as _ };
    // SAFETY: as many valid entries as said. Whatever comes back, the connections are looked at next.
    unsafe { libc::ppoll(polls.as_mut_ptr(), polls.len() as _, &raw const timeout, std::ptr::null()) };
}
