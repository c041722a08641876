//! The port where other nodes join.

use std::net::{TcpListener, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, anyhow};
use tandem_api::Tls;
use tandem_cluster::{Acceptors, Remote, Supervisor, Token};
use tracing::{info, warn};

use crate::settings::{NodeArgs, ServeArgs};

/// The port where other nodes join, if one was asked for.
pub(super) fn remote(args: &NodeArgs) -> Result<Option<Remote>> {
    let Some(address) = &args.listen else { return Ok(None) };
    let file = token_file(args.token_file.as_deref());
    let token = open_token(&file)?;
    let mut found = address.to_socket_addrs().with_context(|| format!("--listen {address}"))?;
    let at = found.next().ok_or_else(|| anyhow!("--listen {address}: no such address"))?;
    let listener = TcpListener::bind(at).with_context(|| format!("listening on {at} for the other nodes"))?;
    let tls = open_tls(args)?;
    if tls.is_none() && !at.ip().is_loopback() {
        warn!(
            "nodes join at {at} without TLS: whoever can read on the way reads all tokens (--cluster-tls-certificate). \
             The cable between two nodes needs none"
        );
    }
    Ok(Some(Remote { count: usize::from(args.nodes) - 1, listener, token, tls }))
}

/// What encrypts the connections there. Files that are replaced are read again, as long as the server runs.
fn open_tls(args: &NodeArgs) -> Result<Option<Acceptors>> {
    let (Some(certificate), Some(key)) = (&args.cluster_tls_certificate, &args.cluster_tls_key) else {
        return Ok(None);
    };
    let tls = Tls::open(certificate, key).context("--cluster-tls-certificate")?;
    tokio::spawn(tls.clone().follow());
    Ok(Some(Arc::new(move || tls.grpc_acceptor())))
}

/// Says how the other nodes join.
pub(super) fn invite(args: &ServeArgs, supervisor: &Supervisor) -> Result<()> {
    let Some(address) = supervisor.address() else { return Ok(()) };
    let file = token_file(args.nodes.token_file.as_deref());
    let file = file.canonicalize().unwrap_or(file);
    let (also, trust) = match args.nodes.cluster_tls_certificate {
        Some(_) => (" and what vouches for the certificate", " --cluster-ca-certificate FILE"),
        None => ("", ""),
    };
    info!(
        "copy {} to each other node (readable by its owner alone){also}, and run there:\n    \
         tandem worker --join {address} --token-file join-token{trust}",
        file.display()
    );
    Ok(())
}

/// The secret in this file, made where there is none yet.
pub fn open_token(file: &Path) -> Result<Token> {
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    Ok(Token::open_or_create(file)?)
}

/// Where the secret is kept: as told, or among this user's settings.
pub fn token_file(told: Option<&Path>) -> PathBuf {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".config"));
    let settings = || std::env::var_os("XDG_CONFIG_HOME").map(PathBuf::from).or_else(home);
    let default = || settings().unwrap_or_else(|| PathBuf::from(".")).join("tandem").join("join-token");
    told.map_or_else(default, Path::to_owned)
}
