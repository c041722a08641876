//! Settings of several nodes: of the one that serves, and of those that work for it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use tandem_cluster::Address;
use tandem_model::ExpertSplit;

use super::{Device, parse_duration, parse_size};

/// How `tandem serve` divides the model.
#[derive(Clone, Debug, Default, Args)]
pub struct NodeArgs {
    /// Nodes that share the model: each holds a shard, and all compute every token together. More than one needs
    /// --local-workers or --listen.
    #[arg(long, value_name = "N", default_value_t = 1, env = "TANDEM_NODES", value_parser = clap::value_parser!(u8).range(1..=4))]
    pub nodes: u8,
    /// Run all nodes on this machine, each as a process of its own: to try several nodes on one machine, or, with one, so
    /// that a fault of the device ends a process that is started again instead of the server.
    #[arg(long, env = "TANDEM_LOCAL_WORKERS", conflicts_with = "listen")]
    pub local_workers: bool,
    /// Let the other nodes join at this address, HOST:PORT: this machine is the first node, and each other one runs the
    /// `tandem worker` line that is printed. Nothing listens for them otherwise.
    #[arg(long, value_name = "ADDRESS", env = "TANDEM_LISTEN")]
    pub listen: Option<String>,
    /// Secret that the other nodes must know, made on first use (default: join-token in the folder of this user's settings).
    #[arg(long, value_name = "FILE", env = "TANDEM_TOKEN_FILE", requires = "listen")]
    pub token_file: Option<PathBuf>,
    /// When the other nodes are lost, or do not come, serve from this one alone if the model fits, until all are there again.
    #[arg(long, env = "TANDEM_DEGRADE")]
    pub degrade: bool,
    /// How long the other nodes may be missing before that, like 10s or 2m (default: 10s).
    #[arg(long, value_name = "TIME", env = "TANDEM_DEGRADE_AFTER", value_parser = parse_duration)]
    pub degrade_after: Option<Duration>,
    /// Encrypt what nodes tell each other: file with the certificate for the address of --listen and those that vouch for it
    /// (PEM). What travels on the link stays as it is.
    #[arg(long, value_name = "FILE", env = "TANDEM_CLUSTER_TLS_CERTIFICATE")]
    pub cluster_tls_certificate: Option<PathBuf>,
    /// File with the private key of that certificate (PEM).
    #[arg(long, value_name = "FILE", env = "TANDEM_CLUSTER_TLS_KEY")]
    pub cluster_tls_key: Option<PathBuf>,
    /// How nodes share the experts: a slice of each, which is even whatever the router chooses (default), or some of them
    /// whole.
    #[arg(long, value_enum, env = "TANDEM_EXPERTS")]
    pub experts: Option<Experts>,
    /// How nodes exchange activations: what is named is used or refused, auto takes the best and says why (default: auto).
    #[arg(long, value_enum, env = "TANDEM_LINK")]
    pub link: Option<LinkChoice>,
}

/// `tandem worker`.
#[derive(Clone, Debug, Args)]
pub struct WorkerArgs {
    /// Where the coordinator listens: HOST:PORT, as `tandem serve --listen` prints it.
    #[arg(long, value_name = "ADDRESS", env = "TANDEM_JOIN")]
    pub join: Address,
    /// File with the secret that the coordinator made, copied from there; only its owner may be able to read it.
    #[arg(long, value_name = "FILE", env = "TANDEM_TOKEN_FILE")]
    pub token_file: PathBuf,
    /// Checkpoint folder on this machine (default: the path that the coordinator has it at).
    #[arg(long, value_name = "DIR", env = "TANDEM_MODEL")]
    pub model: Option<PathBuf>,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto", env = "TANDEM_DEVICE")]
    pub device: Device,
    /// Which of several NVIDIA GPUs; no two ranks share one.
    #[arg(long, value_name = "N", default_value_t = 0, env = "TANDEM_GPU")]
    pub gpu: usize,
    /// Most memory to use, like 12G or 800M (default: what is available, less a share for everything else).
    #[arg(long, value_name = "SIZE", env = "TANDEM_MEMORY", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// CPU threads (default: one for each core this process may use).
    #[arg(long, value_name = "N", env = "TANDEM_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// CPU instruction set (default: the best this machine has).
    #[arg(long, value_name = "NAME", env = "TANDEM_ISA")]
    pub isa: Option<String>,
    /// Speak TLS with a coordinator that one of the certificates in this file (PEM) vouches for; its own will do.
    #[arg(long, value_name = "FILE", env = "TANDEM_CLUSTER_CA_CERTIFICATE")]
    pub cluster_ca_certificate: Option<PathBuf>,
    /// The process that started this one and whose end ends it: for `tandem serve`'s own workers.
    #[arg(long, value_name = "PID", hide = true)]
    pub child_of: Option<u32>,
}

/// How experts are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Experts {
    /// A slice of every expert on every node.
    Slice,
    /// Every expert whole on one node.
    Whole,
}

/// How activations travel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LinkChoice {
    /// The best there is; the log says which and why.
    Auto,
    /// Memory that processes of one machine share.
    Shm,
    /// TCP: works everywhere, adds some ten microseconds to each of a token's exchanges.
    Tcp,
    /// RDMA writes over RoCE v2, as between two DGX Sparks.
    Rdma,
}

impl From<Experts> for ExpertSplit {
    fn from(experts: Experts) -> Self {
        match experts {
            Experts::Slice => Self::Slice,
            Experts::Whole => Self::Whole,
        }
    }
}
