//! Settings of `tandem bench`.

use clap::{Args, ValueEnum};

use super::{LinkChoice, ModelArgs};

/// `tandem bench`.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// The model.
    #[command(flatten)]
    pub model: ModelArgs,
    /// Prompt tokens of each run.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, env = "TANDEM_PROMPT_TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub prompt_tokens: u32,
    /// Tokens generated in each run.
    #[arg(long, value_name = "TOKENS", default_value_t = 64, env = "TANDEM_OUTPUT_TOKENS", value_parser = clap::value_parser!(u32).range(2..))]
    pub output_tokens: u32,
    /// Requests at a time, each with a prompt of its own.
    #[arg(long, value_name = "N", default_value_t = 1, env = "TANDEM_STREAMS", value_parser = clap::value_parser!(u32).range(1..))]
    pub streams: u32,
    /// Measured runs.
    #[arg(long, value_name = "N", default_value_t = 3, env = "TANDEM_RUNS", value_parser = clap::value_parser!(u32).range(1..))]
    pub runs: u32,
    /// Runs before those, not counted.
    #[arg(long, value_name = "N", default_value_t = 1, env = "TANDEM_WARM_UP")]
    pub warm_up: u32,
    /// Also run under a JSON schema, in turns with the others, to see what constrained output costs.
    #[arg(long, env = "TANDEM_CONSTRAINED")]
    pub constrained: bool,
    /// Measure instead how long running answers wait for their next token while a prompt of so many tokens comes in. Compare
    /// with --prefill-slice 0.
    #[arg(long, value_name = "TOKENS", env = "TANDEM_INTERRUPT", value_parser = clap::value_parser!(u32).range(1..=131_070),
        conflicts_with_all = ["output_tokens", "constrained", "compare_model", "predict"])]
    pub interrupt: Option<u32>,
    /// Measure the exchange between two ranks on this machine instead of a model: of the host and, where there are two GPUs, of their
    /// kernels, beside NCCL where it is installed.
    #[arg(long, conflicts_with_all = ["ModelArgs", "prompt_tokens", "output_tokens", "streams", "runs", "warm_up", "constrained", "interrupt"])]
    pub link: bool,
    /// How the ranks exchange (default: each way that works here).
    #[arg(long, value_enum, requires = "link")]
    pub transport: Option<LinkChoice>,
    /// Print beside each figure what a model of the card predicts, from bytes, arithmetic and launches.
    #[arg(long, env = "TANDEM_COMPARE_MODEL", conflicts_with = "constrained")]
    pub compare_model: bool,
    /// Load and run nothing: print what the model predicts for this card.
    #[arg(long, value_enum, value_name = "CARD", env = "TANDEM_PREDICT", conflicts_with_all = ["compare_model", "constrained", "json"])]
    pub predict: Option<PredictedCard>,
    /// Print JSON instead of a table.
    #[arg(long, env = "TANDEM_JSON")]
    pub json: bool,
}

/// `tandem link-peer`, which `tandem bench --link` starts.
#[derive(Clone, Debug, Args)]
pub struct LinkPeerArgs {
    /// The transport.
    pub transport: String,
    /// Measure kernels of this GPU instead, whose number is the rank's.
    #[arg(long, value_name = "NUMBER")]
    pub gpu: Option<usize>,
    /// NCCL's instead of ours.
    #[arg(long, requires = "gpu")]
    pub nccl: bool,
}

/// Cards that have a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PredictedCard {
    /// A DGX Spark.
    Gb10,
    /// Two of them, sharing every layer.
    #[value(name = "gb10x2")]
    TwoGb10,
    /// An H100.
    H100,
    /// An H200.
    H200,
}
