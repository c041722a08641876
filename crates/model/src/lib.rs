//! Config, checkpoint reading, gpt-oss forward pass, KV cache, sampler.

pub mod checkpoint;
mod config;
mod draw;
mod forward;
pub mod inspect;
pub mod layout;
pub mod memory;
mod prepare;
mod runner;
mod sampler;
pub mod selftest;
mod shard;
pub mod sources;
mod synthetic;
mod tally;
mod weights;
mod worker;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use config::{Config, ConfigError, LayerKind, RopeConfig};
pub use forward::{Formats, LOGIT_ROWS, Model, ModelError};
pub use runner::Runner;
pub use shard::{Exchange, ExchangeError, ExpertSplit, Shard, ShardError, ShardPlan, ShardStore};
pub use synthetic::{Synthetic, SyntheticKind, UnknownKind};
pub use tally::ExpertTally;
pub use weights::{Counted, WeightStore, qkv_bias, qkv_weight};
pub use worker::LocalWorker;
