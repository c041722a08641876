//! Two nodes that talk about each other before they share a model, as `tandem doctor --peer` does.
//!
//! One connection, on which both have proved that they know the token as in `cluster.proto`, with proofs of their own, so
//! that none is of use there. What they say comes in frames: its length, four bytes, the lowest first, then that many bytes.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use crate::token::{Nonces, Side, is_nonce, random_bytes};
use crate::{Token, TokenError};

/// Longest frame.
const FRAME_BYTES_MAX: usize = 64 << 10;
/// Whoever connects has proved itself within this time, or is turned away.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// Pause before a peer that does not listen yet is dialled again.
const REDIAL: Duration = Duration::from_millis(200);
/// How often it is looked whether somebody has come.
const POLL: Duration = Duration::from_millis(20);

/// Why two nodes do not talk, or no longer.
#[derive(Debug, thiserror::Error)]
pub enum PairError {
    /// The operating system, or the other node's end.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// What went wrong.
        source: std::io::Error,
    },
    /// Nobody who knows the token was there in time.
    #[error("no other node within {waited:?}: {last}")]
    Nobody {
        /// How long was waited.
        waited: Duration,
        /// What stood in the way last.
        last: String,
    },
    /// Whoever is there cannot prove that it knows the token.
    #[error("the other node does not know the token: copy the token file from one to the other")]
    Token,
    /// It sent what no node sends.
    #[error("the other node does not keep to the protocol: {0}")]
    Protocol(String),
    /// No random bytes.
    #[error(transparent)]
    Random(#[from] TokenError),
}

/// A connection to the other node.
#[derive(Debug)]
pub struct Pair {
    stream: TcpStream,
    listened: bool,
    ours: IpAddr,
    theirs: IpAddr,
}

impl Pair {
    /// Waits until the other node dials and proves itself. Whoever cannot is turned away.
    ///
    /// # Errors
    ///
    /// [`PairError::Nobody`] after `wait`, with what became of the last one that tried.
    pub fn accept(listener: &TcpListener, token: &Token, wait: Duration) -> Result<Self, PairError> {
        let deadline = Instant::now() + wait;
        listener.set_nonblocking(true).map_err(system("listening"))?;
        let mut last = "nobody has dialled".to_owned();
        while Instant::now() < deadline {
            match listener.accept() {
                Ok((stream, from)) => match Self::welcome(stream, token) {
                    Ok(pair) => return Ok(pair),
                    Err(error) => last = format!("{} was turned away: {error}", from.ip()),
                },
                Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::sleep(POLL),
                Err(source) => return Err(PairError::System { doing: "accepting", source }),
            }
        }
        Err(PairError::Nobody { waited: wait, last })
    }

    /// Dials until the other node listens.
    ///
    /// # Errors
    ///
    /// [`PairError::Nobody`] after `wait`; whoever answers and does not know the token ends it at once.
    pub fn dial(address: &str, token: &Token, wait: Duration) -> Result<Self, PairError> {
        let deadline = Instant::now() + wait;
        loop {
            let last = match connect(address, deadline) {
                Ok(stream) => return Self::introduce(stream, token),
                Err(error) => format!("{address}: {error}"),
            };
            if Instant::now() + REDIAL > deadline {
                return Err(PairError::Nobody { waited: wait, last });
            }
            std::thread::sleep(REDIAL);
        }
    }

    /// Whether this is the node that was dialled.
    pub fn listened(&self) -> bool {
        self.listened
    }

    /// This node's address on the connection, and the other's.
    pub fn addresses(&self) -> (IpAddr, IpAddr) {
        (self.ours, self.theirs)
    }

    /// Says something, 64 KiB at most.
    pub fn send(&mut self, frame: &[u8], patience: Duration) -> Result<(), PairError> {
        if frame.len() > FRAME_BYTES_MAX {
            return Err(PairError::Protocol(format!("a frame of {} bytes", frame.len())));
        }
        self.stream.set_write_timeout(Some(patience)).map_err(system("talking to the other node"))?;
        let length = (frame.len() as u32).to_le_bytes();
        self.stream.write_all(&[&length, frame].concat()).map_err(system("talking to the other node"))
    }

    /// Hears what the other node says.
    pub fn hear(&mut self, patience: Duration) -> Result<Vec<u8>, PairError> {
        let deadline = Instant::now() + patience;
        let mut length = [0; 4];
        self.read(&mut length, deadline)?;
        let length = u32::from_le_bytes(length) as usize;
        if length > FRAME_BYTES_MAX {
            return Err(PairError::Protocol(format!("it announces {length} bytes")));
        }
        let mut frame = vec![0; length];
        self.read(&mut frame, deadline)?;
        Ok(frame)
    }

    /// Both say something at once.
    pub fn swap(&mut self, frame: &[u8], patience: Duration) -> Result<Vec<u8>, PairError> {
        self.send(frame, patience)?;
        self.hear(patience)
    }

    fn new(stream: TcpStream, listened: bool) -> Result<Self, PairError> {
        let talking = "talking to the other node";
        stream.set_nonblocking(false).map_err(system(talking))?;
        // Clocks are compared by how long an answer takes.
        stream.set_nodelay(true).map_err(system(talking))?;
        let ours = stream.local_addr().map_err(system(talking))?.ip();
        let theirs = stream.peer_addr().map_err(system(talking))?.ip();
        Ok(Self { stream, listened, ours, theirs })
    }

    /// The listener's side of the handshake: it proves itself first.
    fn welcome(stream: TcpStream, token: &Token) -> Result<Self, PairError> {
        let mut pair = Self::new(stream, true)?;
        let theirs = pair.hear(HANDSHAKE)?;
        if !is_nonce(&theirs) {
            return Err(PairError::Protocol("its nonce has a wrong length".into()));
        }
        let own = random_bytes()?;
        let nonces = Nonces { worker: &theirs, coordinator: &own };
        pair.send(&own, HANDSHAKE)?;
        pair.send(&token.proof(Side::Listener, &nonces), HANDSHAKE)?;
        let proof = pair.hear(HANDSHAKE)?;
        if !token.accepts(Side::Dialler, &nonces, &proof) {
            return Err(PairError::Token);
        }
        pair.send(&[], HANDSHAKE)?;
        Ok(pair)
    }

    /// The dialler's, which tells an impostor nothing.
    fn introduce(stream: TcpStream, token: &Token) -> Result<Self, PairError> {
        let mut pair = Self::new(stream, false)?;
        let own = random_bytes()?;
        pair.send(&own, HANDSHAKE)?;
        let theirs = pair.hear(HANDSHAKE)?;
        let nonces = Nonces { worker: &own, coordinator: &theirs };
        let proof = pair.hear(HANDSHAKE)?;
        if !is_nonce(&theirs) || !token.accepts(Side::Listener, &nonces, &proof) {
            return Err(PairError::Token);
        }
        pair.send(&token.proof(Side::Dialler, &nonces), HANDSHAKE)?;
        pair.hear(HANDSHAKE)?;
        Ok(pair)
    }

    fn read(&mut self, mut into: &mut [u8], deadline: Instant) -> Result<(), PairError> {
        let hearing = system("hearing from the other node");
        while !into.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(hearing(std::io::Error::new(ErrorKind::TimedOut, "it says nothing")));
            }
            self.stream.set_read_timeout(Some(left)).map_err(&hearing)?;
            match self.stream.read(into) {
                Ok(0) => return Err(hearing(std::io::Error::new(ErrorKind::UnexpectedEof, "it hung up"))),
                Ok(bytes) => into = &mut into[bytes..],
                // The clock decides.
                Err(error) if is_passing(error.kind()) => {}
                Err(error) => return Err(hearing(error)),
            }
        }
        Ok(())
    }
}

fn is_passing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

fn connect(address: &str, deadline: Instant) -> std::io::Result<TcpStream> {
    let mut last = std::io::Error::new(ErrorKind::NotFound, "no such address");
    for to in address.to_socket_addrs()?.collect::<Vec<SocketAddr>>() {
        // A connection attempt needs some time; the caller's deadline is not that exact.
        let left = deadline.saturating_duration_since(Instant::now()).clamp(POLL, HANDSHAKE);
        match TcpStream::connect_timeout(&to, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn system(doing: &'static str) -> impl Fn(std::io::Error) -> PairError {
    move |source| PairError::System { doing, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;
    use std::thread;

    const PATIENCE: Duration = Duration::from_secs(20);
    const BRIEF: Duration = Duration::from_millis(300);

    fn listener() -> (TcpListener, String) {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let address = listener.local_addr().expect("an address").to_string();
        (listener, address)
    }

    #[test]
    fn two_nodes_with_one_token_talk() {
        let ((listener, address), token) = (listener(), Token::random().expect("a token"));
        let other = token.clone();
        let dialler = thread::spawn(move || {
            let mut pair = Pair::dial(&address, &other, PATIENCE).expect("a pair");
            assert!(!pair.listened());
            pair.swap(b"from the dialler", PATIENCE).expect("an answer")
        });
        let mut pair = Pair::accept(&listener, &token, PATIENCE).expect("a pair");
        assert!(pair.listened());
        assert_eq!(pair.addresses().1, Ipv4Addr::LOCALHOST);
        assert_eq!(pair.swap(b"", PATIENCE).expect("an answer"), b"from the dialler");
        assert_eq!(dialler.join().expect("the dialler"), b"");
        let gone = pair.hear(PATIENCE).expect_err("it has ended").to_string();
        assert!(gone.contains("it hung up"), "{gone}");
        assert!(pair.send(&[0; FRAME_BYTES_MAX + 1], PATIENCE).is_err());
    }

    #[test]
    fn another_token_is_refused_on_both_sides_and_garbage_turned_away() {
        let ((listener, address), token) = (listener(), Token::random().expect("a token"));
        let strangers = thread::spawn(move || {
            for garbage in [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xFF; 100], &[3, 0, 0, 0, 1, 2, 3]] {
                // It may be turned away before all is sent.
                let _ = TcpStream::connect(&address).and_then(|mut stream| stream.write_all(garbage));
            }
            let other = Token::random().expect("a token");
            Pair::dial(&address, &other, PATIENCE).expect_err("another token")
        });
        let error = Pair::accept(&listener, &token, Duration::from_secs(2)).expect_err("nobody with the token");
        assert!(
            matches!(&error, PairError::Nobody { last, .. } if last.contains("127.0.0.1 was turned away")),
            "{error}"
        );
        assert!(matches!(strangers.join().expect("the strangers"), PairError::Token));
    }

    #[test]
    fn nobody_is_waited_for_forever() {
        let ((listener, address), token) = (listener(), Token::random().expect("a token"));
        let error = Pair::accept(&listener, &token, BRIEF).expect_err("nobody");
        assert!(error.to_string().contains("nobody has dialled"), "{error}");
        drop(listener);
        let error = Pair::dial(&address, &token, BRIEF).expect_err("nobody");
        assert!(error.to_string().contains(&address), "{error}");
        // Somebody who listens and says nothing.
        let (silent, address) = self::listener();
        let mut pair = Pair::new(TcpStream::connect(&address).expect("a connection"), false).expect("a pair");
        let error = pair.hear(BRIEF).expect_err("silence");
        assert!(error.to_string().contains("it says nothing"), "{error}");
        drop(silent);
    }
}
