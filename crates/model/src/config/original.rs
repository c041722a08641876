use std::path::Path;

use super::check::{self, Keys};
use super::json::Object;
use super::{Config, ConfigError, LayerKind, RopeConfig, SWIGLU_ALPHA, harmony_eos};

const KEYS: Keys = Keys {
    experts: "num_experts",
    top_k: "experts_per_token",
    context: "initial_context_length * rope_scaling_factor",
};

/// What the file leaves out (norm epsilon, layer pattern, unrounded YaRN bounds) is fixed in OpenAI's reference.
pub(super) fn read(path: &Path) -> Result<Config, ConfigError> {
    let root = Object::read(path)?;
    let rope = RopeConfig {
        theta: root.number("rope_theta")?,
        factor: root.number("rope_scaling_factor")?,
        beta_fast: root.number("rope_ntk_beta")?,
        beta_slow: root.number("rope_ntk_alpha")?,
        original_context: root.size("initial_context_length")?,
        truncate: false,
    };
    rope.check(path, "rope_")?;
    let vocab = root.size("vocab_size")?;
    let config = Config {
        layer_kinds: LayerKind::alternating(check::layers(&root, "num_hidden_layers")?),
        hidden: root.size("hidden_size")?,
        intermediate: root.size("intermediate_size")?,
        heads: root.size("num_attention_heads")?,
        kv_heads: root.size("num_key_value_heads")?,
        head_dim: root.size("head_dim")?,
        experts: root.size(KEYS.experts)?,
        top_k: root.size(KEYS.top_k)?,
        vocab,
        sliding_window: root.size("sliding_window")?,
        rms_eps: 1e-5,
        swiglu_limit: root.number("swiglu_limit")? as f32,
        swiglu_alpha: SWIGLU_ALPHA,
        rope,
        max_context: (rope.original_context as f64 * rope.factor) as usize,
        eos: harmony_eos(vocab),
        pad: None,
    };
    check::check(&config, path, &KEYS)?;
    Ok(config)
}
