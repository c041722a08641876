//! Somebody between a worker and its coordinator who carries bytes, until a seed says otherwise: what TCP may do to a connection
//! at any byte. It loses, repeats and reorders none of them singly.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::random::Random;

/// What happens in one direction of a connection, from some byte on.
#[derive(Clone, Copy, Debug)]
enum Trouble {
    /// The connection ends.
    Cut,
    /// Nothing comes through any more, and nobody is told.
    Hold,
    /// Nothing comes through for a while.
    Pause(Duration),
    /// Everything is late.
    Delay(Duration),
    /// Every byte travels by itself.
    Crumble,
}

/// How often a thread looks whether it should end.
const LOOK: Duration = Duration::from_millis(20);
/// Trouble comes within so many bytes, most often within the first of them.
const BYTES_MAX: u64 = 100_000;

/// The address to dial instead of `to`, until `stop` is set. While `calm` is set nothing new happens, and what passes then does not
/// count.
pub fn between(
    to: SocketAddr,
    seed: u64,
    wait_max: Duration,
    calm: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
) -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("an address");
    thread::spawn(move || {
        let mut connections = 0;
        while !stop.load(Ordering::Acquire) {
            let Ok((worker, _)) = listener.accept() else {
                thread::sleep(LOOK / 4);
                continue;
            };
            let Ok(coordinator) = TcpStream::connect(to) else { return };
            connections += 1;
            let random = Random::new(seed).fork(connections);
            for (way, from, to) in [(1, &worker, &coordinator), (2, &coordinator, &worker)] {
                let (from, to) = (from.try_clone().expect("a stream"), to.try_clone().expect("a stream"));
                let trouble = draw(&mut random.fork(way), wait_max);
                let (calm, stop) = (calm.clone(), stop.clone());
                thread::spawn(move || carry(from, to, trouble, &calm, &stop));
            }
        }
    });
    address
}

/// From which byte on there is which trouble.
fn draw(random: &mut Random, wait_max: Duration) -> Option<(usize, Trouble)> {
    let (most, limit) = (random.below(BYTES_MAX), random.below(BYTES_MAX));
    let at = random.below(1 + most.min(limit)) as usize;
    let wait = Duration::from_micros(random.below(wait_max.as_micros() as u64));
    let trouble = match random.below(7) {
        0 => Trouble::Cut,
        1 => Trouble::Hold,
        2 => Trouble::Pause(wait),
        3 => Trouble::Delay(wait / 20),
        4 => Trouble::Crumble,
        _ => return None,
    };
    Some((at, trouble))
}

fn carry(
    mut from: TcpStream,
    mut to: TcpStream,
    mut trouble: Option<(usize, Trouble)>,
    calm: &AtomicBool,
    stop: &AtomicBool,
) {
    let (mut buffer, mut carried) = (vec![0; 4096], 0);
    // Where this fails it is only slower.
    let _ = to.set_nodelay(true);
    // The listener's way of not waiting is no good here.
    from.set_nonblocking(false).and_then(|()| from.set_read_timeout(Some(LOOK))).expect("a socket");
    while !stop.load(Ordering::Acquire) {
        let read = match from.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => continue,
            Err(_) => break,
        };
        let place = match trouble {
            Some((at, _)) if !calm.load(Ordering::Acquire) => at.saturating_sub(carried).min(read),
            _ => read,
        };
        if !calm.load(Ordering::Acquire) {
            carried += read;
        }
        let (sound, rest) = buffer[..read].split_at(place);
        let sent = to.write_all(sound).and_then(|()| match trouble.filter(|_| !rest.is_empty()) {
            None => Ok(()),
            Some((_, Trouble::Cut)) => Err(ErrorKind::ConnectionReset.into()),
            Some((_, Trouble::Hold)) => {
                while !stop.load(Ordering::Acquire) {
                    thread::sleep(LOOK);
                }
                Ok(())
            }
            Some((_, Trouble::Pause(wait))) => {
                trouble = None;
                thread::sleep(wait);
                to.write_all(rest)
            }
            Some((_, Trouble::Delay(wait))) => {
                thread::sleep(wait);
                to.write_all(rest)
            }
            Some((_, Trouble::Crumble)) => rest.iter().try_for_each(|byte| to.write_all(&[*byte])),
        });
        if sent.is_err() {
            break;
        }
    }
    // They may be closed already.
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
