use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

/// Who vouches for a coordinator that speaks TLS.
#[derive(Clone)]
pub struct Trust(TlsConnector);

/// Why nobody can.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The file cannot be read.
    #[error("reading {} as PEM: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// There is none in it.
    #[error("there is no certificate in {}", .0.display())]
    Empty(PathBuf),
    /// What is in it vouches for nobody.
    #[error("a certificate in {}: {error}", path.display())]
    Certificate {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
}

impl Trust {
    /// The certificates in a PEM file: authorities', or the coordinator's own.
    pub fn open(path: &Path) -> Result<Self, TrustError> {
        let unreadable = |error| TrustError::Read { path: path.into(), error };
        let mut roots = RootCertStore::empty();
        for certificate in CertificateDer::pem_file_iter(path).map_err(unreadable)? {
            let added = roots.add(certificate.map_err(unreadable)?);
            added.map_err(|error| TrustError::Certificate { path: path.into(), error })?;
        }
        if roots.is_empty() {
            return Err(TrustError::Empty(path.into()));
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let config = config.map_err(|error| TrustError::Certificate { path: path.into(), error })?;
        let mut config = config.with_root_certificates(roots).with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self(TlsConnector::from(Arc::new(config))))
    }

    /// Speaks TLS with whoever proves to be `host`, a name or an address.
    pub(crate) async fn connect(&self, host: &str, stream: TcpStream) -> std::io::Result<TlsStream<TcpStream>> {
        let bare = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(bare).map_err(std::io::Error::other)?;
        self.0.connect(name, stream).await
    }
}

impl std::fmt::Debug for Trust {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trust")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_vouch_for_nobody_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        assert!(matches!(Trust::open(&path), Err(TrustError::Read { .. })));
        std::fs::write(&path, "no certificate").unwrap();
        assert!(matches!(Trust::open(&path), Err(TrustError::Empty(_))));
        let garbage = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        std::fs::write(&path, garbage).unwrap();
        assert!(matches!(Trust::open(&path), Err(TrustError::Certificate { .. })));
    }
}
