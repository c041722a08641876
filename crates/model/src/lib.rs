//! Config, checkpoint reading, gpt-oss forward pass, KV cache, sampler.

pub mod checkpoint;
mod config;
pub mod inspect;
pub mod layout;
pub mod memory;
pub mod sources;
mod synthetic;
mod weights;

pub use checkpoint::{Checkpoint, CheckpointError};
pub use config::{Config, ConfigError, LayerKind, RopeConfig};
pub use synthetic::{Synthetic, SyntheticKind, UnknownKind};
pub use weights::{Counted, WeightStore, qkv_bias, qkv_weight};
