//! Somebody between two ranks on TCP: carries what they say, until it does not.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

/// What happens to what the dialling rank says, from the byte `at` on.
#[derive(Clone, Copy, Debug)]
pub enum Mischief {
    /// One bit is flipped.
    Garble,
    /// The connection ends.
    Cut,
    /// Nothing comes through any more, and nobody is told.
    Hold,
    /// Bytes are lost, and what comes after them arrives.
    Lose(usize),
    /// Every byte travels by itself.
    Crumble,
}

/// The address to dial instead of `to`. Serves one connection.
pub fn between(to: SocketAddr, at: usize, mischief: Mischief) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        let Ok((dialling, _)) = listener.accept() else { return };
        let Ok(listening) = TcpStream::connect(to) else { return };
        let (back, forth) = (listening.try_clone().expect("a stream"), dialling.try_clone().expect("a stream"));
        thread::spawn(move || carry(back, forth, usize::MAX, Mischief::Crumble));
        carry(dialling, listening, at, mischief);
    });
    address
}

fn carry(mut from: TcpStream, mut to: TcpStream, at: usize, mischief: Mischief) {
    let (mut buffer, mut carried) = (vec![0; 4096], 0);
    let _ = to.set_nodelay(true);
    while let Ok(read @ 1..) = from.read(&mut buffer) {
        let place = at.saturating_sub(carried);
        carried += read;
        let bytes = &mut buffer[..read];
        let sent = match mischief {
            _ if place >= read => to.write_all(bytes),
            Mischief::Garble => {
                // Only once.
                bytes[place] ^= if at + read >= carried { 1 << (at % 8) } else { 0 };
                to.write_all(bytes)
            }
            Mischief::Cut => to.write_all(&bytes[..place]).and_then(|()| to.shutdown(Shutdown::Both)),
            Mischief::Hold => {
                let _ = to.write_all(&bytes[..place]);
                return thread::sleep(Duration::from_secs(5));
            }
            Mischief::Lose(count) if at + read >= carried => to
                .write_all(&bytes[..place])
                .and_then(|()| to.write_all(bytes.get(place + count..).unwrap_or_default())),
            Mischief::Lose(_) => to.write_all(bytes),
            Mischief::Crumble => bytes.iter().try_for_each(|byte| to.write_all(&[*byte])),
        };
        if sent.is_err() {
            break;
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}
