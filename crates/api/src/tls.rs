//! TLS: a certificate and its key from files, read again whenever these change.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem};
use tokio_rustls::TlsAcceptor;

use crate::file_watch;
use crate::serve::Wire;

/// What a server proves its name with; shared by its clones.
#[derive(Clone)]
pub struct Tls(Arc<Inner>);

struct Inner {
    certificate: PathBuf,
    key: PathBuf,
    acceptors: RwLock<Acceptors>,
}

/// For each protocol that can be agreed upon.
struct Acceptors {
    http1: TlsAcceptor,
    http2: TlsAcceptor,
}

/// Why TLS cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("reading {} as PEM: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: pem::Error,
    },
    /// The files do not fit each other.
    #[error("{} with {}: {error}", certificate.display(), key.display())]
    Pair {
        /// The file with the certificate and those that vouch for it.
        certificate: PathBuf,
        /// The file with its private key.
        key: PathBuf,
        /// What is wrong.
        error: rustls::Error,
    },
}

impl Tls {
    /// Reads a chain of certificates, the server's own first, and the private key, all as PEM.
    pub fn open(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let acceptors = RwLock::new(Acceptors::open(certificate, key)?);
        Ok(Self(Arc::new(Inner { certificate: certificate.into(), key: key.into(), acceptors })))
    }

    /// Reads both files again. If they cannot be used everything stays as it was.
    pub fn reload(&self) -> Result<(), TlsError> {
        let fresh = Acceptors::open(&self.0.certificate, &self.0.key)?;
        *self.0.acceptors.write().unwrap_or_else(PoisonError::into_inner) = fresh;
        Ok(())
    }

    /// Reads the files again whenever they change, for ever.
    pub async fn follow(self) {
        file_watch::follow(&[&self.0.certificate, &self.0.key], || match self.reload() {
            Ok(()) => tracing::debug!("read {} again", self.0.certificate.display()),
            Err(error) => tracing::error!("the certificate stays as it was: {error}"),
        })
        .await;
    }

    /// For the next connection to a gRPC service that others than this crate offer.
    pub fn grpc_acceptor(&self) -> TlsAcceptor {
        self.acceptor(Wire::Http2)
    }

    /// For the next connection.
    pub(crate) fn acceptor(&self, wire: Wire) -> TlsAcceptor {
        let acceptors = self.0.acceptors.read().unwrap_or_else(PoisonError::into_inner);
        match wire {
            Wire::Http1 => acceptors.http1.clone(),
            Wire::Http2 => acceptors.http2.clone(),
        }
    }
}

impl Acceptors {
    fn open(certificate: &Path, key: &Path) -> Result<Self, TlsError> {
        let config = config(certificate, key)?;
        let speaking = |protocol: &[u8]| {
            let mut config = config.clone();
            config.alpn_protocols = vec![protocol.to_vec()];
            TlsAcceptor::from(Arc::new(config))
        };
        Ok(Self { http1: speaking(b"http/1.1"), http2: speaking(b"h2") })
    }
}

fn config(certificate: &Path, key: &Path) -> Result<ServerConfig, TlsError> {
    let unreadable = |path: &Path| {
        let path = path.to_owned();
        |error| TlsError::Read { path, error }
    };
    let chain: Result<Vec<_>, _> =
        CertificateDer::pem_file_iter(certificate).and_then(|certificates| certificates.collect());
    let chain = chain.map_err(unreadable(certificate))?;
    let secret = PrivateKeyDer::from_pem_file(key).map_err(unreadable(key))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| builder.with_no_client_auth().with_single_cert(chain, secret));
    config.map_err(|error| TlsError::Pair { certificate: certificate.into(), key: key.into(), error })
}
