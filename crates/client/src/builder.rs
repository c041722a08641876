//! How a server is reached.

use std::time::Duration;

use tandem_proto::v1::inference_client::InferenceClient;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::service::interceptor::InterceptedService;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};

use crate::{Client, Error, Retry};

/// Longest wait for a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A silent connection is checked so often, and given up when there is no answer for as long.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// Largest reply, in bytes: log-probabilities of a long prompt are many.
const REPLY_BYTES_MAX: usize = 256 << 20;

/// The service behind a connection that sends the key along.
pub(crate) type Inference = InferenceClient<InterceptedService<Channel, Key>>;

/// Settings of a [`Client`].
#[derive(Clone, Debug)]
pub struct ClientBuilder {
    url: String,
    key: Option<String>,
    ca_certificate: Option<Vec<u8>>,
    timeout: Option<Duration>,
    retry: Retry,
}

impl ClientBuilder {
    pub(crate) fn new(url: &str) -> Self {
        Self { url: url.to_string(), key: None, ca_certificate: None, timeout: None, retry: Retry::default() }
    }

    /// Sends this API key with every call.
    pub fn api_key(mut self, key: impl Into<String>) -> Self {
        self.key = Some(key.into());
        self
    }

    /// Trusts this certificate (PEM), instead of the public authorities, to vouch for an `https` server.
    pub fn ca_certificate(mut self, pem: impl Into<Vec<u8>>) -> Self {
        self.ca_certificate = Some(pem.into());
        self
    }

    /// Longest time that a call may take, all attempts and the whole stream included, unless it says otherwise itself.
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout);
        self
    }

    /// Which failures are tried again, and when. [`Retry::never`] turns it off.
    pub fn retry(mut self, retry: Retry) -> Self {
        self.retry = retry;
        self
    }

    /// The client. It connects when it is first used, and again whenever it has to; it must be made within a tokio
    /// runtime.
    ///
    /// # Errors
    /// [`Error::Setup`] where the URL, the key or the certificate cannot be used.
    pub fn build(self) -> Result<Client, Error> {
        let channel = self.endpoint()?.connect_lazy();
        let inference = InferenceClient::with_interceptor(channel, Key::new(self.key.as_deref())?);
        let inference = inference.max_decoding_message_size(REPLY_BYTES_MAX);
        Ok(Client::with(inference, self.timeout, self.retry))
    }

    fn endpoint(&self) -> Result<Endpoint, Error> {
        let wrong = |error: tonic::transport::Error| Error::setup(format!("the server's URL {}", self.url), error);
        let mut endpoint = Endpoint::from_shared(self.url.clone()).map_err(wrong)?;
        if self.url.starts_with("https:") {
            let tls = match &self.ca_certificate {
                Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
                None => ClientTlsConfig::new().with_webpki_roots(),
            };
            endpoint = endpoint.tls_config(tls).map_err(wrong)?;
        }
        Ok(endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_INTERVAL))
    }
}

/// The key as metadata.
#[derive(Clone)]
pub(crate) struct Key(Option<MetadataValue<Ascii>>);

impl Key {
    fn new(key: Option<&str>) -> Result<Self, Error> {
        let value = key.map(|key| format!("Bearer {key}").parse::<MetadataValue<Ascii>>()).transpose();
        let mut value = value.map_err(|error| Error::setup("the API key".into(), error))?;
        if let Some(value) = &mut value {
            value.set_sensitive(true);
        }
        Ok(Self(value))
    }
}

impl Interceptor for Key {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(key) = &self.0 {
            request.metadata_mut().insert("authorization", key.clone());
        }
        Ok(request)
    }
}
