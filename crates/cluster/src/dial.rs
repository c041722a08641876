//! The way to a coordinator.

use std::io;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint, Error};
use tower::service_fn;

use crate::{Address, Trust};

/// A connection to the coordinator at `address`; over the network it speaks TLS where somebody vouches for the coordinator.
pub(crate) async fn dial(address: &Address, trust: Option<&Trust>, patience: Duration) -> Result<Channel, Error> {
    match (address, trust) {
        (Address::Unix(path), _) => dial_unix(path, patience).await,
        (Address::Tcp(address), None) => {
            let endpoint = Endpoint::from_shared(format!("http://{address}"))?;
            endpoint.tcp_nodelay(true).connect_timeout(patience).connect().await
        }
        (Address::Tcp(address), Some(trust)) => dial_tls(address, trust, patience).await,
    }
}

async fn dial_unix(path: &Path, patience: Duration) -> Result<Channel, Error> {
    let path = path.to_owned();
    let connector = service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    named_by_nobody().connect_timeout(patience).connect_with_connector(connector).await
}

async fn dial_tls(address: &str, trust: &Trust, patience: Duration) -> Result<Channel, Error> {
    let (address, trust) = (address.to_owned(), trust.clone());
    let connector = service_fn(move |_| {
        let (address, trust) = (address.clone(), trust.clone());
        async move {
            let stream = TcpStream::connect(&address).await?;
            stream.set_nodelay(true)?;
            let host = address.rsplit_once(':').map_or(address.as_str(), |(host, _)| host);
            io::Result::Ok(TokioIo::new(trust.connect(host, stream).await?))
        }
    });
    named_by_nobody().connect_timeout(patience).connect_with_connector(connector).await
}

/// The name only fills a header; TLS has checked the real one.
fn named_by_nobody() -> Endpoint {
    Endpoint::from_static("http://coordinator.local")
}
