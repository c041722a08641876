//! Somebody between a worker and its coordinator who speaks HTTP/2 with both, and loses, delays, repeats, shortens and reorders
//! the messages that pass, or pauses. A seed decides all of it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use h2::client::SendRequest;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use hyper::{Request, Response};
use prost::bytes::{Buf, Bytes, BytesMut};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, sleep_until};

use crate::random::Random;

/// What may happen to a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It never arrives.
    Drop,
    /// It arrives later, and what is sent after it later still.
    Delay,
    /// It arrives twice, the second time later.
    Duplicate,
    /// It arrives shorter than it was.
    Truncate,
    /// It arrives after what was sent after it.
    Reorder,
    /// Nothing is taken or sent for a while.
    Pause,
}

impl Fault {
    /// All there are.
    pub const ALL: [Self; 6] = [Self::Drop, Self::Delay, Self::Duplicate, Self::Truncate, Self::Reorder, Self::Pause];
}

/// Which faults a connection has, and how often.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Decides when which fault happens.
    pub seed: u64,
    /// One fault in so many messages, on average.
    pub one_in: u64,
    /// The kinds to choose from.
    pub kinds: Vec<Fault>,
    /// Longest delay and pause.
    pub wait_max: Duration,
    /// While it is set there are none.
    pub calm: Arc<AtomicBool>,
}

/// Length of what precedes a message in a gRPC stream: a flag and the message's length.
const PREFIX_BYTES: usize = 5;

/// The address to dial instead of `to`, while the runtime lives that this is called in.
pub fn between(to: SocketAddr, faults: Faults) -> SocketAddr {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a port");
    listener.set_nonblocking(true).expect("a socket");
    let address = listener.local_addr().expect("an address");
    let listener = TcpListener::from_std(listener).expect("a socket");
    tokio::spawn(async move {
        for connection in 0.. {
            let Ok((io, _)) = listener.accept().await else { return };
            let random = Random::new(faults.seed).fork(connection);
            tokio::spawn(serve(
                io,
                to,
                Layer::new(faults.clone(), random.fork(1)),
                Layer::new(faults.clone(), random.fork(2)),
            ));
        }
    });
    address
}

/// One connection. Whatever ends it at one side ends it at the other.
async fn serve(worker: TcpStream, to: SocketAddr, up: Layer, down: Layer) -> Result<(), h2::Error> {
    let mut below = h2::server::handshake(worker).await?;
    let Ok(coordinator) = TcpStream::connect(to).await else { return Ok(()) };
    let (above, driver) = h2::client::handshake(coordinator).await?;
    let driver = tokio::spawn(driver);
    let mut layers = Some((up, down));
    // The membership is the one call on it; accepting further ones drives the connection.
    while let Some(Ok((request, respond))) = below.accept().await {
        if let Some((up, down)) = layers.take() {
            tokio::spawn(call(request, respond, above.clone(), up, down));
        }
    }
    driver.abort();
    Ok(())
}

async fn call(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    above: SendRequest<Bytes>,
    up: Layer,
    down: Layer,
) -> Result<(), h2::Error> {
    let (head, reports) = request.into_parts();
    let (answer, coordinator) = above.ready().await?.send_request(Request::from_parts(head, ()), false)?;
    let reporting = tokio::spawn(up.carry(reports, coordinator));
    let (head, commands) = answer.await?.into_parts();
    let worker = respond.send_response(Response::from_parts(head, ()), false)?;
    let carried = down.carry(commands, worker).await;
    reporting.abort();
    carried
}

/// One direction of a call.
struct Layer {
    faults: Faults,
    random: Random,
    held: VecDeque<Held>,
}

struct Held {
    message: Bytes,
    until: Until,
    /// What is sent after it waits for it.
    blocks: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Until {
    At(Instant),
    NextMessage,
}

impl Layer {
    fn new(faults: Faults, random: Random) -> Self {
        Self { faults, random, held: VecDeque::new() }
    }

    async fn carry(mut self, mut from: RecvStream, mut to: SendStream<Bytes>) -> Result<(), h2::Error> {
        let mut arrived = BytesMut::new();
        loop {
            let due = self.held.iter().filter_map(|held| held.due()).min();
            tokio::select! {
                data = from.data() => match data {
                    Some(Ok(data)) => {
                        from.flow_control().release_capacity(data.len())?;
                        arrived.extend_from_slice(&data);
                        while let Some(message) = take_message(&mut arrived) {
                            self.send(message, &mut to).await?;
                        }
                    }
                    Some(Err(error)) => {
                        to.send_reset(Reason::CANCEL);
                        return Err(error);
                    }
                    None => break,
                },
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let now = Instant::now();
                    self.release(&mut to, |until| matches!(until, Until::At(due) if due <= now))?;
                }
            }
        }
        // Late is late, not lost.
        self.release(&mut to, |_| true)?;
        match from.trailers().await? {
            Some(trailers) => to.send_trailers(trailers),
            None => to.send_data(Bytes::new(), true),
        }
    }

    fn draw(&mut self) -> Option<Fault> {
        let kinds = self.faults.kinds.len() as u64;
        if self.random.below(self.faults.one_in) != 0 || self.faults.calm.load(Ordering::Acquire) {
            return None;
        }
        Some(self.faults.kinds[self.random.below(kinds) as usize])
    }

    fn wait(&mut self) -> Duration {
        Duration::from_micros(1 + self.random.below(self.faults.wait_max.as_micros() as u64))
    }

    async fn send(&mut self, message: Bytes, to: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
        match self.draw() {
            None => self.pass(message, to)?,
            Some(Fault::Drop) => {}
            Some(Fault::Delay) => {
                let latest = self.held.iter().filter(|held| held.blocks).map(|held| held.until).max();
                let later = Until::At(Instant::now() + self.wait());
                let until = latest.map_or(later, |latest| latest.max(later));
                self.held.push_back(Held { message, until, blocks: true });
            }
            Some(Fault::Duplicate) => {
                self.pass(message.clone(), to)?;
                let until = Until::At(Instant::now() + self.wait());
                self.held.push_back(Held { message, until, blocks: false });
            }
            Some(Fault::Truncate) => {
                let shorter = self.shorten(&message);
                self.pass(shorter, to)?;
            }
            Some(Fault::Reorder) => {
                // Not after itself, should another be held already.
                self.release(to, |until| until == Until::NextMessage)?;
                self.held.push_back(Held { message, until: Until::NextMessage, blocks: false });
                return Ok(());
            }
            Some(Fault::Pause) => {
                let pause = self.wait();
                sleep(pause).await;
                self.pass(message, to)?;
            }
        }
        self.release(to, |until| until == Until::NextMessage)
    }

    /// A message of fewer bytes, which says so: one that only stopped would take what follows for its end, and TCP does
    /// not lose bytes in the middle.
    fn shorten(&mut self, message: &Bytes) -> Bytes {
        let bytes = message.len() - PREFIX_BYTES;
        let fewer = self.random.below(bytes.max(1) as u64) as usize;
        let mut shorter = BytesMut::from(&message[..PREFIX_BYTES + fewer]);
        shorter[1..PREFIX_BYTES].copy_from_slice(&(fewer as u32).to_be_bytes());
        shorter.freeze()
    }

    /// Sends it as it should be, unless something before it is late.
    fn pass(&mut self, message: Bytes, to: &mut SendStream<Bytes>) -> Result<(), h2::Error> {
        match self.held.iter().rev().find(|held| held.blocks) {
            Some(&Held { until, .. }) => self.held.push_back(Held { message, until, blocks: true }),
            None => to.send_data(message, false)?,
        }
        Ok(())
    }

    fn release(&mut self, to: &mut SendStream<Bytes>, due: impl Fn(Until) -> bool) -> Result<(), h2::Error> {
        for _ in 0..self.held.len() {
            let Some(held) = self.held.pop_front() else { break };
            match due(held.until) {
                true => to.send_data(held.message, false)?,
                false => self.held.push_back(held),
            }
        }
        Ok(())
    }
}

impl Held {
    fn due(&self) -> Option<Instant> {
        match self.until {
            Until::At(due) => Some(due),
            Until::NextMessage => None,
        }
    }
}

/// The first message that has arrived whole, with what precedes it.
fn take_message(arrived: &mut BytesMut) -> Option<Bytes> {
    let length = arrived.get(1..PREFIX_BYTES)?.get_u32() as usize;
    (arrived.len() >= PREFIX_BYTES + length).then(|| arrived.split_to(PREFIX_BYTES + length).freeze())
}
