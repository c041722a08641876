//! Two machines with a rank each. Whoever starts the test on both says in variables who is who: `TANDEM_TEST_LINK_RANK`,
//! `TANDEM_TEST_LINK_ADDRESS` of this one and `TANDEM_TEST_LINK_PEER` of the other.

use std::env;
use std::io::{Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tandem_link::{Endpoint, Link, LinkError, Settings};

use super::{PATIENCE, gather_and_compare, reduce_and_compare, settings};

/// Where offers are swapped.
const PORT: u16 = 47_100;
/// The other machine may still be starting.
const STARTING: Duration = Duration::from_secs(120);

pub struct Machines {
    pub rank: usize,
    pub address: IpAddr,
    peer: IpAddr,
}

impl Machines {
    /// None, and a word about it, where the variables are not set.
    pub fn from_environment() -> Option<Self> {
        let variable = |name: &str| env::var(format!("TANDEM_TEST_LINK_{name}")).ok();
        let Some(rank) = variable("RANK") else {
            eprintln!("skipped: TANDEM_TEST_LINK_RANK is not set, so this is no test of two machines");
            return None;
        };
        let address = |name| variable(name).and_then(|text| text.parse().ok()).expect("an address");
        Some(Self { rank: rank.parse().expect("a rank"), address: address("ADDRESS"), peer: address("PEER") })
    }

    /// Exchanges of one message and of many, compared to the bit.
    pub fn exchange(&self, make: impl FnOnce(&Settings) -> Result<Endpoint, LinkError>) {
        let mut link = self.connect(make(&settings(64 << 10)).expect("an endpoint"));
        println!("{link:?}");
        for salt in 0..20 {
            reduce_and_compare(&mut link, 2880, salt);
            gather_and_compare(&mut link, 1000, salt);
        }
        reduce_and_compare(&mut link, 100_000, 99);
    }

    pub fn connect(&self, endpoint: Endpoint) -> Link {
        let ours = endpoint.offer();
        let theirs = self.swap(&ours);
        let offers = if self.rank == 0 { [ours, theirs] } else { [theirs, ours] };
        endpoint.connect(self.rank, 2, &offers, PATIENCE).expect("a link")
    }

    fn swap(&self, ours: &[u8]) -> Vec<u8> {
        let mut stream = match self.rank {
            0 => TcpListener::bind((self.address, PORT)).and_then(|listener| listener.accept()).expect("the peer").0,
            _ => self.dial(),
        };
        stream.write_all(ours).expect("telling the peer");
        stream.shutdown(Shutdown::Write).expect("telling the peer");
        let mut theirs = Vec::new();
        stream.read_to_end(&mut theirs).expect("the peer's offer");
        theirs
    }

    fn dial(&self) -> TcpStream {
        let started = Instant::now();
        loop {
            match TcpStream::connect_timeout(&(self.peer, PORT).into(), PATIENCE) {
                Ok(stream) => return stream,
                Err(error) => assert!(started.elapsed() < STARTING, "{error}"),
            }
            thread::sleep(Duration::from_millis(50));
        }
    }
}
