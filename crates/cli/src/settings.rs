//! What was typed: flags, `TANDEM_*` variables and a settings file, in this order of precedence.
//!
//! A name nobody knows, wherever it was typed, refuses to start and names the nearest one that exists.

mod bench;
mod doctor;
mod nodes;
mod units;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Arg, ArgMatches, Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

pub use bench::{BenchArgs, LinkPeerArgs, PredictedCard};
pub use doctor::DoctorArgs;
pub use nodes::{LinkChoice, NodeArgs, WorkerArgs};
use units::{parse_duration, parse_size, parse_slice};

const VARIABLE_PREFIX: &str = "TANDEM_";

/// Serve gpt-oss-20b and gpt-oss-120b, from one machine or several in tandem, to anything that speaks the HTTP API of OpenAI, Anthropic or Ollama.
#[derive(Debug, Parser)]
#[command(name = "tandem", version, propagate_version = true, max_term_width = 100)]
#[command(after_help = "Every setting can also be given as an environment variable (--max-streams is \
    TANDEM_MAX_STREAMS) or in a file named by --config (max-streams = 8). Flags win over variables, variables over \
    the file. Misspelt names are refused.")]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub action: Action,
    /// How much to log: error, warn, info, debug, trace, or a tracing filter like tandem_engine=debug (default: info for
    /// serve, warn for the others).
    #[arg(long, global = true, env = "TANDEM_LOG", value_name = "LEVEL")]
    pub log: Option<String>,
    /// Read settings from this file (TOML, keys as the long flags).
    #[arg(long, global = true, env = "TANDEM_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum Action {
    /// Serve a model over HTTP.
    Serve(ServeArgs),
    /// Run one node's part of a model for a `tandem serve` on another machine.
    Worker(WorkerArgs),
    /// Talk to a model in the terminal.
    Chat(ChatArgs),
    /// Measure speed.
    Bench(BenchArgs),
    /// Say what is in a checkpoint and what it needs.
    Inspect(InspectArgs),
    /// Watch a running server: speed, queue, memory, latencies.
    Top(TopArgs),
    /// Look for what goes wrong in practice on this node, or with --peer between two, and say how to mend it.
    Doctor(DoctorArgs),
    /// Make, list and remove the API keys of a server.
    Key(KeyArgs),
    /// A rank of `bench --link`.
    #[command(hide = true)]
    LinkPeer(LinkPeerArgs),
}

/// Which model, and how it is run: shared by everything that loads one.
#[derive(Clone, Debug, Args)]
pub struct ModelArgs {
    /// Checkpoint folder as published on the hub, or its original/ layout. Without it, the built-in demonstration model.
    #[arg(value_name = "MODEL", env = "TANDEM_MODEL")]
    pub model: Option<PathBuf>,
    /// Deterministic random weights of this shape instead of a checkpoint.
    #[arg(long, value_enum, env = "TANDEM_SYNTHETIC", conflicts_with = "model")]
    pub synthetic: Option<SyntheticShape>,
    /// Where to compute.
    #[arg(long, value_enum, default_value = "auto", env = "TANDEM_DEVICE")]
    pub device: Device,
    /// Attention and lm_head weights: 8-bit in groups of 32 (default), BF16 as shipped (default with --exact), or MXFP4 like the
    /// experts, which is the fastest and the furthest from what was shipped.
    #[arg(long, value_enum, env = "TANDEM_DENSE")]
    pub dense: Option<Dense>,
    /// Cached keys and values (default bf16; f32 with --exact; fp8 takes half the memory of bf16).
    #[arg(long, value_enum, env = "TANDEM_KV")]
    pub kv: Option<Kv>,
    /// f32 throughout in one fixed summation order: the same bits in any batch, slower.
    #[arg(long, env = "TANDEM_EXACT")]
    pub exact: bool,
    /// Most tokens of a conversation, prompt and answer together (default: what memory allows, up to the model's own).
    #[arg(long, value_name = "TOKENS", env = "TANDEM_CONTEXT", value_parser = clap::value_parser!(u32).range(16..))]
    pub context: Option<u32>,
    /// Most memory to use, like 12G or 800M (default: what is available, less a share for everything else).
    #[arg(long, value_name = "SIZE", env = "TANDEM_MEMORY", value_parser = parse_size)]
    pub memory: Option<u64>,
    /// Most requests computed at once; more wait in the queue.
    #[arg(long, value_name = "N", default_value_t = 16, env = "TANDEM_MAX_STREAMS", value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_streams: u32,
    /// Most prompt tokens computed in one step, beside the running answers (default: 512 on a CPU, 4096 on a GPU).
    #[arg(long, value_name = "TOKENS", env = "TANDEM_PREFILL_CHUNK", value_parser = clap::value_parser!(u32).range(1..=8192))]
    pub prefill_chunk: Option<u32>,
    /// How long a step may spend on prompts while answers are running: longer chunks are run in slices of some layers, with a
    /// token for every answer in between. 0 runs chunks whole.
    #[arg(long, value_name = "TIME", default_value = "50ms", env = "TANDEM_PREFILL_SLICE", value_parser = parse_slice)]
    pub prefill_slice: Duration,
    /// CPU threads (default: one for each core this process may use).
    #[arg(long, value_name = "N", env = "TANDEM_THREADS", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub threads: Option<u16>,
    /// CPU instruction set (default: the best this machine has): scalar, avx2, avx512-vnni, neon-dotprod, neon-i8mm.
    #[arg(long, value_name = "NAME", env = "TANDEM_ISA")]
    pub isa: Option<String>,
    /// Most requests waiting; beyond that clients are told to come back (503).
    #[arg(long, value_name = "N", default_value_t = 256, env = "TANDEM_MAX_QUEUE", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub max_queue: u32,
    /// Launch GPU kernels one by one instead of as recorded steps: slower, for finding faults.
    #[arg(long, env = "TANDEM_EAGER")]
    pub eager: bool,
    /// What a GPU rounds activations of prompts to before they meet the experts' weights.
    #[arg(long, value_enum, default_value = "auto", env = "TANDEM_PREFILL_ACTIVATIONS")]
    pub prefill_activations: PrefillActivations,
    /// Which GPU.
    #[arg(skip)]
    pub gpu: usize,
    /// Steps handed to the worker before the first one's result is back (default: 1 on a CPU, 2 on a GPU).
    #[arg(long, value_name = "N", env = "TANDEM_PIPELINE_DEPTH", value_parser = clap::value_parser!(u8).range(1..=2))]
    pub pipeline_depth: Option<u8>,
}

/// `tandem serve`.
#[derive(Clone, Debug, Args)]
pub struct ServeArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Who computes it.
    #[command(flatten)]
    pub nodes: NodeArgs,
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1", env = "TANDEM_HOST")]
    pub host: String,
    /// Port to listen on; 0 takes any free one and prints it.
    #[arg(long, default_value_t = 8000, env = "TANDEM_PORT")]
    pub port: u16,
    /// Port of 127.0.0.1 where Ollama's clients look for a server; listened on as well if it is free. 0 turns it off.
    #[arg(long, value_name = "PORT", default_value_t = 11434, env = "TANDEM_OLLAMA_PORT")]
    pub ollama_port: u16,
    /// Serve gRPC as well, at this port of the same address; 0 takes any free one and prints it (default: no gRPC).
    #[arg(long, value_name = "PORT", env = "TANDEM_GRPC_PORT")]
    pub grpc_port: Option<u16>,
    /// The most that the model thinks, whatever a request asks for.
    #[arg(long, value_enum, default_value = "high", env = "TANDEM_MAX_EFFORT")]
    pub max_effort: Effort,
    /// Name that clients see (default: the folder's name). Further ones are aliases.
    #[arg(long, value_name = "NAME", env = "TANDEM_SERVED_MODEL_NAME", value_delimiter = ',')]
    pub served_model_name: Vec<String>,
    /// Longest time a request may take, queue included, like 600s or 10m.
    #[arg(long, value_name = "TIME", default_value = "60m", env = "TANDEM_REQUEST_TIMEOUT", value_parser = parse_duration)]
    pub request_timeout: Duration,
    /// Largest request body, like 32M.
    #[arg(long, value_name = "SIZE", default_value = "32M", env = "TANDEM_MAX_BODY", value_parser = parse_size)]
    pub max_body: u64,
    /// Most connections at a time; further ones wait to be accepted.
    #[arg(long, value_name = "N", default_value_t = 1024, env = "TANDEM_MAX_CONNECTIONS", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: u32,
    /// Only serve requests with one of the keys in this file, which `tandem key` writes (default: serve everybody).
    #[arg(long, value_name = "FILE", env = "TANDEM_API_KEYS")]
    pub api_keys: Option<PathBuf>,
    /// Let /metrics be read without a key.
    #[arg(long, env = "TANDEM_OPEN_METRICS")]
    pub open_metrics: bool,
    /// Web pages that may use the server from a browser, like `https://chat.example.com`, or * for all (default: only its own).
    #[arg(long, value_name = "ORIGIN", env = "TANDEM_CORS_ORIGIN", value_delimiter = ',')]
    pub cors_origin: Vec<String>,
    /// Serve HTTPS: file with the certificate and those that vouch for it (PEM).
    #[arg(long, value_name = "FILE", env = "TANDEM_TLS_CERTIFICATE", requires = "tls_key")]
    pub tls_certificate: Option<PathBuf>,
    /// File with the private key of the certificate (PEM).
    #[arg(long, value_name = "FILE", env = "TANDEM_TLS_KEY", requires = "tls_certificate")]
    pub tls_key: Option<PathBuf>,
}

/// How to reach a server that is already running.
#[derive(Clone, Debug, Default, Args)]
pub struct ServerArgs {
    /// API key, if the server wants one. A variable, unlike a flag, is not shown to other users of the machine.
    #[arg(long, value_name = "KEY", env = "TANDEM_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Certificate that vouches for the server's (PEM), for https URLs (default: the public authorities).
    #[arg(long, value_name = "FILE", env = "TANDEM_CA_CERTIFICATE")]
    pub ca_certificate: Option<PathBuf>,
}

/// `tandem top`.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// The server (default: http://127.0.0.1:8000).
    #[arg(long, value_name = "URL", env = "TANDEM_URL")]
    pub url: Option<String>,
    /// How to get in.
    #[command(flatten)]
    pub server: ServerArgs,
    /// Time between two looks, like 1s or 500ms.
    #[arg(long, value_name = "TIME", default_value = "1s", env = "TANDEM_INTERVAL", value_parser = parse_duration)]
    pub interval: Duration,
    /// Print once and end, as happens anyway where the output is no terminal.
    #[arg(long, env = "TANDEM_ONCE")]
    pub once: bool,
    /// Print /status.json as it is, once.
    #[arg(long, env = "TANDEM_JSON")]
    pub json: bool,
}

/// `tandem key`.
#[derive(Clone, Debug, Args)]
pub struct KeyArgs {
    /// File of the keys, as `tandem serve --api-keys` reads it. A running server sees changes within seconds.
    #[arg(long, value_name = "FILE", env = "TANDEM_API_KEYS", global = true)]
    pub api_keys: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub action: KeyAction,
}

/// The subcommands of `tandem key`.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyAction {
    /// Make a key and print it, this once.
    Add {
        /// Whose key it is, in logs.
        name: String,
        /// Most requests open at a time (default: no limit).
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        max_concurrent: Option<u32>,
        /// Most requests a minute (default: no limit).
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        requests_per_minute: Option<u32>,
    },
    /// List the keys' names and limits.
    List,
    /// Remove a key.
    Remove {
        /// Whose.
        name: String,
    },
}

/// `tandem chat`.
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Talk to a server that is already running instead of loading a model.
    #[arg(long, value_name = "URL", env = "TANDEM_URL", conflicts_with_all = ["model", "synthetic"])]
    pub url: Option<String>,
    /// That server.
    #[command(flatten)]
    pub server: ServerArgs,
    /// How long the model thinks.
    #[arg(long, value_enum, default_value = "medium", env = "TANDEM_EFFORT")]
    pub effort: Effort,
    /// Instructions for the whole conversation.
    #[arg(long, value_name = "TEXT", env = "TANDEM_SYSTEM")]
    pub system: Option<String>,
    /// Sampling temperature.
    #[arg(long, value_name = "T", default_value_t = 1.0, env = "TANDEM_TEMPERATURE")]
    pub temperature: f32,
    /// Do not show the model's reasoning.
    #[arg(long, env = "TANDEM_HIDE_REASONING")]
    pub hide_reasoning: bool,
}

/// `tandem inspect`.
#[derive(Clone, Debug, Args)]
pub struct InspectArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
}

/// Shapes of synthetic models.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SyntheticShape {
    /// Four narrow layers with the full vocabulary: for trying the machinery.
    Tiny,
    /// gpt-oss-20b.
    #[value(name = "20b")]
    Gpt20b,
    /// gpt-oss-120b.
    #[value(name = "120b")]
    Gpt120b,
}

/// Where to compute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Device {
    /// The best there is; the log says which and why.
    Auto,
    /// The CPU.
    Cpu,
    /// An NVIDIA GPU.
    Cuda,
}

/// Formats of attention and lm_head weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Dense {
    /// 8-bit in groups of 32.
    Q8,
    /// As shipped.
    Bf16,
    /// 4-bit in groups of 32.
    Mxfp4,
}

/// Formats of cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kv {
    /// 2 bytes a value.
    Bf16,
    /// 1 byte a value, E4M3: twice the context in the same memory.
    Fp8,
    /// 4 bytes a value.
    F32,
}

/// Formats of activations of prompts before the experts, on a GPU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PrefillActivations {
    /// MXFP8 on a GB10, whose tensor cores take it beside MXFP4 weights, F16 elsewhere; the log says which and why.
    Auto,
    /// 16 bits.
    F16,
    /// 8 bits, E4M3 in groups of 32 with a power of two each.
    Mxfp8,
    /// The same by plain 8-bit products, also where there are block-scaled ones.
    Mxfp8Plain,
}

/// Reasoning effort.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Effort {
    /// Brief.
    Low,
    /// The default.
    Medium,
    /// Long.
    High,
}

impl From<Effort> for tandem_harmony::Effort {
    fn from(effort: Effort) -> Self {
        match effort {
            Effort::Low => Self::Low,
            Effort::Medium => Self::Medium,
            Effort::High => Self::High,
        }
    }
}

impl Cli {
    /// Parses this process's arguments, variables and settings file. Exits with code 2 and a message where clap refuses.
    pub fn from_process() -> Result<Self> {
        refuse_unknown_variables(std::env::vars_os().map(|(name, _)| name))?;
        let args: Vec<OsString> = std::env::args_os().collect();
        let mut command = Self::command();
        if let Some(file) = config_path(&args) {
            let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            command = with_file(command, &args, &text).with_context(|| format!("in {}", file.display()))?;
        }
        let matches: ArgMatches = command.get_matches_from(args);
        Ok(Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit()))
    }
}

/// The settings file named by flag or variable: needed before clap parses, as its values become clap's defaults.
fn config_path(args: &[OsString]) -> Option<PathBuf> {
    for (i, arg) in args.iter().enumerate() {
        if arg == "--config" {
            return args.get(i + 1).map(PathBuf::from);
        }
        if let Some(path) = arg.to_str().and_then(|arg| arg.strip_prefix("--config=")) {
            return Some(path.into());
        }
    }
    std::env::var_os("TANDEM_CONFIG").map(PathBuf::from)
}

/// Makes the file's values the defaults of the subcommand that is about to run. Keys of other subcommands are fine;
/// keys of none are not. What has no variable is no setting, and has no key either: it says what to do this once.
fn with_file(mut command: Command, args: &[OsString], text: &str) -> Result<Command> {
    let table: toml::Table = text.parse()?;
    let known: Vec<String> = every_setting(&command);
    for (key, value) in table {
        if !known.contains(&key) {
            bail!("unknown setting {key}{}", nearest(&key, &known));
        }
        let value = match value {
            toml::Value::String(text) => text,
            toml::Value::Integer(number) => number.to_string(),
            toml::Value::Float(number) => number.to_string(),
            toml::Value::Boolean(yes) => yes.to_string(),
            _ => bail!("{key}: expected a string, number or boolean"),
        };
        for name in command.get_subcommands().map(|sub| sub.get_name().to_owned()).collect::<Vec<_>>() {
            if args.iter().any(|arg| arg.to_str() == Some(&name)) {
                command = command.mut_subcommand(name, |sub| with_default(sub, &key, &value));
            }
        }
        command = with_default(command, &key, &value);
    }
    Ok(command)
}

fn with_default(command: Command, key: &str, value: &str) -> Command {
    let id = settings(&command).find(|arg| key_of(arg) == key).map(|arg| arg.get_id().clone());
    match id {
        // What the file gives need not be typed.
        Some(id) => command.mut_arg(id, |arg| arg.required(false).default_value(value.to_owned())),
        None => command,
    }
}

/// Arguments that can also be given as a variable.
fn settings(command: &Command) -> impl Iterator<Item = &Arg> {
    command.get_arguments().filter(|arg| arg.get_env().is_some())
}

/// A setting's key in a file: its long flag, or, of what is given without one, its name.
fn key_of(arg: &Arg) -> &str {
    arg.get_long().unwrap_or(arg.get_id().as_str())
}

/// Keys of the settings of all subcommands.
fn every_setting(command: &Command) -> Vec<String> {
    let of = |command: &Command| settings(command).map(|arg| key_of(arg).to_owned()).collect();
    let mut names: Vec<String> = of(command);
    names.extend(command.get_subcommands().flat_map(|sub| -> Vec<String> { of(sub) }));
    names
}

fn refuse_unknown_variables(names: impl Iterator<Item = OsString>) -> Result<()> {
    let command = Cli::command();
    let of = |command: &Command| -> Vec<String> {
        command.get_arguments().filter_map(|arg| arg.get_env()?.to_str().map(str::to_owned)).collect()
    };
    let mut known = of(&command);
    known.extend(command.get_subcommands().flat_map(of));
    for name in names.filter_map(|name| name.into_string().ok()) {
        if name.starts_with(VARIABLE_PREFIX) && !known.contains(&name) {
            bail!("unknown environment variable {name}{}", nearest(&name, &known));
        }
    }
    Ok(())
}

/// ` (did you mean X?)` for the most similar name, if any is similar.
fn nearest(name: &str, known: &[String]) -> String {
    let best = known.iter().map(|other| (strsim::jaro_winkler(name, other), other)).max_by(|a, b| a.0.total_cmp(&b.0));
    match best {
        Some((similarity, other)) if similarity > 0.6 => format!(" (did you mean {other}?)"),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str], file: &str) -> Result<Cli> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let matches = with_file(Cli::command(), &args, file)?.try_get_matches_from(args)?;
        Ok(Cli::from_arg_matches(&matches)?)
    }

    fn serve(args: &[&str], file: &str) -> ServeArgs {
        match parse(args, file).unwrap().action {
            Action::Serve(serve) => serve,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn definitions_are_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_win_over_the_file_and_the_file_over_defaults() {
        let file = "port = 9000\nmax-streams = 3\nexact = true\nstreams = 7\n";
        let typed = serve(&["tandem", "serve", "--port", "9001"], file);
        assert_eq!((typed.port, typed.model.max_streams, typed.model.exact), (9001, 3, true));
        assert_eq!(serve(&["tandem", "serve"], "").port, 8000);
    }

    #[test]
    fn unknown_names_are_refused_and_the_nearest_named() {
        let error = |result: Result<Cli>| result.unwrap_err().to_string();
        assert!(error(parse(&["tandem", "serve"], "max-stream = 3")).contains("did you mean max-streams?"));
        assert!(error(parse(&["tandem", "serve", "--max-stream", "3"], "")).contains("--max-streams"));
        let variables = |name: &str| refuse_unknown_variables([OsString::from(name)].into_iter());
        assert!(variables("TANDEM_MAX_STREAMS").is_ok());
        assert!(variables("PATH").is_ok());
        let refused = variables("TANDEM_MAX_STREAM").unwrap_err().to_string();
        assert!(refused.contains("did you mean TANDEM_MAX_STREAMS?"), "{refused}");
    }

    #[test]
    fn a_file_holds_settings_and_no_tasks() {
        // `serve` has a setting of this name, `bench` a task.
        let Action::Bench(bench) = parse(&["tandem", "bench"], "link = \"tcp\"").unwrap().action else { panic!() };
        assert!(!bench.link);
        assert_eq!(serve(&["tandem", "serve"], "link = \"tcp\"").nodes.link, Some(LinkChoice::Tcp));
        assert!(parse(&["tandem", "bench"], "transport = \"tcp\"").is_err());
    }

    #[test]
    fn a_file_may_give_all_that_must_be_given() {
        let worker = |args: &[&str], file: &str| match parse(args, file).unwrap().action {
            Action::Worker(worker) => worker,
            other => panic!("{other:?}"),
        };
        let file = include_str!("../../../deploy/settings/worker.toml");
        let given = worker(&["tandem", "worker"], file);
        assert_eq!(given.join.to_string(), "192.168.177.1:7000");
        assert_eq!(worker(&["tandem", "worker", "--join", "spark-a:7000"], file).join.to_string(), "spark-a:7000");
        assert!(parse(&["tandem", "worker"], "").is_err());
    }

    #[test]
    fn the_settings_of_services_mean_what_they_say() {
        let file = include_str!("../../../deploy/settings/serve.toml");
        let given = serve(&["tandem", "serve"], file);
        assert_eq!(given.model.model, Some("/srv/models/gpt-oss-120b".into()));
        assert_eq!(serve(&["tandem", "serve", "/another"], file).model.model, Some("/another".into()));
        // And with what is only suggested there.
        let two = file.replace("# nodes", "nodes").replace("# listen", "listen").replace("# token-file", "token-file");
        let given = serve(&["tandem", "serve"], &two);
        assert_eq!((given.nodes.nodes, given.nodes.listen.as_deref()), (2, Some("192.168.177.1:7000")));
        assert_eq!(given.nodes.token_file, Some("/var/lib/tandem/join-token".into()));
    }
}
