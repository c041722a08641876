//! Config, checkpoint reading, gpt-oss forward pass, KV cache, sampler.

mod config;

pub use config::{Config, ConfigError, LayerKind, RopeConfig};
