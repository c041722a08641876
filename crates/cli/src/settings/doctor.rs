//! Settings of `tandem doctor`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::{ModelArgs, parse_duration};

/// `tandem doctor`.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// The model, whose files and memory plan are looked at where one is named.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Address that `tandem serve` is to listen on.
    #[arg(long, default_value = "127.0.0.1", env = "TANDEM_HOST")]
    pub host: String,
    /// Its port.
    #[arg(long, default_value_t = 8000, env = "TANDEM_PORT")]
    pub port: u16,
    /// Look at the pair of nodes instead: on one with --listen ADDRESS, on the other with the ADDRESS that it prints. Both tell
    /// what differs, and what the link between them reaches.
    #[arg(long, value_name = "ADDRESS")]
    pub peer: Option<Option<String>>,
    /// Where the other node dials, HOST:PORT; without --peer, where other nodes are to join.
    #[arg(long, value_name = "ADDRESS", env = "TANDEM_LISTEN")]
    pub listen: Option<String>,
    /// Secret that both nodes must know, the one with which they join (default: join-token in the folder of this user's
    /// settings).
    #[arg(long, value_name = "FILE", env = "TANDEM_TOKEN_FILE")]
    pub token_file: Option<PathBuf>,
    /// How long to wait for the other node, like 30s or 5m.
    #[arg(long, value_name = "TIME", default_value = "2m", env = "TANDEM_WAIT", value_parser = parse_duration)]
    pub wait: Duration,
    /// Print JSON instead of text.
    #[arg(long, env = "TANDEM_JSON")]
    pub json: bool,
}
