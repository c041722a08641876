//! Links between threads of this process.

use std::net::Ipv4Addr;
use std::time::Duration;

use tandem_link::{Endpoint, RdmaChoice, Settings, TransportKind};
use tandem_model::Exchange;

/// Longer than any step on a busy machine, also an emulated one.
const PATIENCE: Duration = Duration::from_secs(600);

/// All ranks' ends of a group.
pub fn links(kind: TransportKind, world: usize) -> Vec<Box<dyn Exchange>> {
    let settings = Settings { deadline: PATIENCE, ..Settings::default() };
    let endpoint = |_| match kind {
        TransportKind::Shm => Endpoint::shm(&settings).unwrap(),
        TransportKind::Tcp => Endpoint::tcp(&settings, Ipv4Addr::LOCALHOST.into()).unwrap(),
        TransportKind::Rdma => Endpoint::rdma(&settings, &RdmaChoice::default()).unwrap(),
    };
    let endpoints: Vec<Endpoint> = (0..world).map(endpoint).collect();
    let offers: &Vec<Vec<u8>> = &endpoints.iter().map(Endpoint::offer).collect();
    std::thread::scope(|scope| {
        let connect = |(rank, endpoint): (usize, Endpoint)| {
            scope.spawn(move || endpoint.connect(rank, world, offers, PATIENCE).unwrap())
        };
        let connecting: Vec<_> = endpoints.into_iter().enumerate().map(connect).collect();
        connecting.into_iter().map(|link| Box::new(link.join().unwrap()) as Box<dyn Exchange>).collect()
    })
}
