use std::path::Path;

use super::json::Object;
use super::{Config, ConfigError};

const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 16;
const MAX_HEADS: usize = 1024;
const MAX_HEAD_DIM: usize = 512;
const MAX_EXPERTS: usize = 4096;
const MAX_TOP_K: usize = 64;
const MAX_VOCAB: usize = 1 << 22;
const MAX_CONTEXT: usize = 1 << 24;

/// What the keys of a [`Config`] are called in the file it was read from.
pub(super) struct Keys {
    pub experts: &'static str,
    pub top_k: &'static str,
    pub context: &'static str,
}

/// Checks that sizes are possible together and not absurd: no product of two tensor dimensions can overflow after this.
pub(super) fn check(config: &Config, file: &Path, keys: &Keys) -> Result<(), ConfigError> {
    let c = config;
    let sizes = [
        ("hidden_size", c.hidden, MAX_WIDTH),
        ("intermediate_size", c.intermediate, MAX_WIDTH),
        ("num_attention_heads", c.heads, MAX_HEADS),
        ("num_key_value_heads", c.kv_heads, MAX_HEADS),
        ("head_dim", c.head_dim, MAX_HEAD_DIM),
        (keys.experts, c.experts, MAX_EXPERTS),
        (keys.top_k, c.top_k, MAX_TOP_K),
        ("vocab_size", c.vocab, MAX_VOCAB),
        ("sliding_window", c.sliding_window, MAX_CONTEXT),
        (keys.context, c.max_context, MAX_CONTEXT),
    ];
    for (key, found, max) in sizes {
        ensure((1..=max).contains(&found), file, key, || format!("1 to {max}"), found)?;
    }
    for (key, found) in [("hidden_size", c.hidden), ("intermediate_size", c.intermediate)] {
        ensure(found.is_multiple_of(32), file, key, || "a multiple of 32, the MXFP4 group".into(), found)?;
    }
    ensure(c.head_dim.is_multiple_of(2), file, "head_dim", || "an even number, for rotary pairs".into(), c.head_dim)?;
    let divisor = || format!("a divisor of num_attention_heads, which is {}", c.heads);
    ensure(c.heads.is_multiple_of(c.kv_heads), file, "num_key_value_heads", divisor, c.kv_heads)?;
    let at_most = || format!("at most {}, which is {}", keys.experts, c.experts);
    ensure(c.top_k <= c.experts, file, keys.top_k, at_most, c.top_k)?;
    check_numbers(c, file)
}

fn check_numbers(c: &Config, file: &Path) -> Result<(), ConfigError> {
    let eps = c.rms_eps;
    ensure(eps > 0.0 && eps < 1.0, file, "rms_norm_eps", || "a number between 0 and 1".into(), eps)?;
    for (key, found) in [("swiglu_limit", c.swiglu_limit), ("swiglu_alpha", c.swiglu_alpha)] {
        ensure(found > 0.0 && found.is_finite(), file, key, || "a positive number".into(), found)?;
    }
    Ok(())
}

/// The number of layers, before a list of them is made.
pub(super) fn layers(root: &Object, key: &str) -> Result<usize, ConfigError> {
    let layers = root.size(key)?;
    ensure((1..=MAX_LAYERS).contains(&layers), root.file(), key, || format!("1 to {MAX_LAYERS}"), layers)?;
    Ok(layers)
}

pub(super) fn ensure(
    holds: bool,
    file: &Path,
    key: &str,
    expected: impl FnOnce() -> String,
    found: impl ToString,
) -> Result<(), ConfigError> {
    if holds { Ok(()) } else { Err(ConfigError::value(file, key, expected(), found)) }
}
