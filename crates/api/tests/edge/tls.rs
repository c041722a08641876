//! Connections over TLS.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tandem_api::{Listening, Tls, TlsError, serve};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

use crate::edge::Edge;

/// A certificate for `localhost` that vouches for itself, written to `cert.pem` and `key.pem`.
fn certify(folder: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["localhost".to_string()]).unwrap();
    std::fs::write(folder.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(folder.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().clone()
}

fn open(folder: &Path) -> Result<Tls, TlsError> {
    Tls::open(&folder.join("cert.pem"), &folder.join("key.pem"))
}

/// The answer to a GET from a server that proves to be what `trusted` says.
async fn get(address: std::net::SocketAddr, path: &str, trusted: &CertificateDer<'static>) -> std::io::Result<String> {
    let mut roots = RootCertStore::empty();
    roots.add(trusted.clone()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let connector = TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()));
    let stream = TcpStream::connect(address).await?;
    let mut stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await?;
    let request = format!("GET {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

#[tokio::test]
async fn requests_over_tls_and_a_certificate_that_is_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let first = certify(folder.path());
    let tls = open(folder.path()).unwrap();
    let edge = Edge::start();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let running =
        tokio::spawn(serve(Listening::with_tls(listener, tls.clone()), edge.state.clone(), std::future::pending()));
    let following = tokio::spawn(tls.follow());

    let answer = get(address, "/ready", &first).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("gpt-oss-test"), "{answer}");

    let mut plain = TcpStream::connect(address).await.unwrap();
    plain.write_all(b"GET /ready HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1"), "plain HTTP is not answered");

    let second = certify(folder.path());
    let started = Instant::now();
    while get(address, "/ready", &second).await.is_err() {
        assert!(started.elapsed() < Duration::from_secs(60), "the new certificate is not used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(get(address, "/ready", &first).await.is_err());
    running.abort();
    following.abort();
}

#[test]
fn what_is_no_certificate_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |folder: &Path| open(folder).err().expect("it is refused").to_string();
    assert!(refused(folder.path()).contains("cert.pem"));
    certify(folder.path());
    assert!(open(folder.path()).is_ok());
    let other = tempfile::tempdir().unwrap();
    certify(other.path());
    std::fs::copy(other.path().join("key.pem"), folder.path().join("key.pem")).unwrap();
    assert!(refused(folder.path()).contains("cert.pem"), "certificate and key do not fit");
    std::fs::write(folder.path().join("key.pem"), "nonsense").unwrap();
    assert!(refused(folder.path()).contains("key.pem"));
}
