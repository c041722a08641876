//! A server that is already running, as the terminal commands reach it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use ureq::Body;
use ureq::http::Response;
use ureq::tls::{Certificate, RootCerts, TlsConfig, parse_pem};

use crate::settings::ServerArgs;

/// Where `tandem serve` listens unless told otherwise.
pub const DEFAULT_URL: &str = "http://127.0.0.1:8000";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// A server that is asked how it is doing answers at once.
const GET_TIMEOUT: Duration = Duration::from_secs(10);
/// An answer may take long; a server that says nothing at all for so long is gone (it sends keep-alives).
const ANSWER_TIMEOUT: Duration = Duration::from_secs(3600);

/// A server's address, and what it takes to be let in.
pub struct Remote {
    agent: ureq::Agent,
    base: String,
    api_key: Option<String>,
}

/// An error in OpenAI's shape.
#[derive(Deserialize)]
struct ErrorResponse {
    error: ErrorBody,
}

#[derive(Deserialize)]
struct ErrorBody {
    message: String,
}

impl Remote {
    /// The server at `base`, like `http://127.0.0.1:8000`; a trailing `/v1` is fine.
    pub fn new(base: &str, args: &ServerArgs) -> Result<Self> {
        let base = base.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let mut tls = TlsConfig::builder();
        if let Some(file) = &args.ca_certificate {
            tls = tls.root_certs(RootCerts::new_with_certs(&certificates(file)?));
        }
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_body(Some(ANSWER_TIMEOUT))
            .tls_config(tls.build())
            .build();
        Ok(Self { agent: config.into(), base, api_key: args.api_key.clone() })
    }

    /// Its address.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// The JSON at a path. An error says what the server says, or that it does not answer.
    pub fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let url = format!("{}{path}", self.base);
        let mut request = self.agent.get(&url).config().timeout_global(Some(GET_TIMEOUT)).build();
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let mut response = checked(request.call(), &url)?;
        let body = response.body_mut().read_to_string().with_context(|| format!("reading {url}"))?;
        serde_json::from_str(&body).with_context(|| format!("{url} is not what Tandem would answer"))
    }

    /// Sends JSON to a path; the answer is a success whose body is still to be read.
    pub fn post(&self, path: &str, body: &[u8]) -> Result<Response<Body>> {
        let url = format!("{}{path}", self.base);
        let mut request = self.agent.post(&url).header("content-type", "application/json");
        if let Some(key) = &self.api_key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        checked(request.send(body), &url)
    }
}

fn checked(answer: Result<Response<Body>, ureq::Error>, url: &str) -> Result<Response<Body>> {
    let mut response = answer.with_context(|| format!("no answer from {url}"))?;
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body = response.body_mut().read_to_string().unwrap_or_default();
    let message = serde_json::from_str::<ErrorResponse>(&body).map_or(body, |body| body.error.message);
    let hint = if status.as_u16() == 401 { " (TANDEM_API_KEY or --api-key)" } else { "" };
    bail!("{status}: {message}{hint}")
}

fn certificates(file: &Path) -> Result<Vec<Certificate<'static>>> {
    let pem = std::fs::read(file).with_context(|| format!("reading {}", file.display()))?;
    let items = parse_pem(&pem).collect::<Result<Vec<_>, _>>().with_context(|| format!("in {}", file.display()))?;
    let certificates: Vec<_> = items
        .into_iter()
        .filter_map(|item| match item {
            ureq::tls::PemItem::Certificate(certificate) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        bail!("there is no certificate in {}", file.display());
    }
    Ok(certificates)
}
