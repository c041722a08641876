use std::path::Path;

use serde_json::{Value, json};

use super::check::{self, Keys};
use super::json::Object;
use super::{Config, ConfigError, LayerKind, RopeConfig, SWIGLU_ALPHA, harmony_eos};

const LAYERS: &str = "num_hidden_layers";

const KEYS: Keys =
    Keys { experts: "num_local_experts", top_k: "num_experts_per_tok", context: "max_position_embeddings" };

pub(super) fn read(path: &Path) -> Result<Config, ConfigError> {
    let root = Object::read(path)?;
    check_architecture(&root)?;
    let vocab = root.size("vocab_size")?;
    let config = Config {
        layer_kinds: layer_kinds(&root)?,
        hidden: root.size("hidden_size")?,
        intermediate: root.size("intermediate_size")?,
        heads: root.size("num_attention_heads")?,
        kv_heads: root.size("num_key_value_heads")?,
        head_dim: root.size("head_dim")?,
        experts: root.size(KEYS.experts)?,
        top_k: top_k(&root)?,
        vocab,
        sliding_window: root.size("sliding_window")?,
        rms_eps: root.number("rms_norm_eps")? as f32,
        swiglu_limit: root.number("swiglu_limit")? as f32,
        swiglu_alpha: root.optional_number("swiglu_alpha")?.map_or(SWIGLU_ALPHA, |alpha| alpha as f32),
        rope: rope(&root)?,
        max_context: root.size(KEYS.context)?,
        eos: eos(&root, vocab)?,
        pad: root.tokens("pad_token_id", vocab)?.and_then(|ids| ids.first().copied()),
    };
    check::check(&config, path, &KEYS)?;
    Ok(config)
}

/// Refuses what has other tensors or another forward pass than gpt-oss.
fn check_architecture(root: &Object) -> Result<(), ConfigError> {
    if root.get("model_type") != Some(&json!("gpt_oss")) {
        return Err(root.wrong("model_type", r#""gpt_oss""#));
    }
    root.must_be("architectures", &json!(["GptOssForCausalLM"]))?;
    root.must_be("attention_bias", &json!(true))?;
    root.must_be("hidden_act", &json!("silu"))?;
    root.must_be("tie_word_embeddings", &json!(false))?;
    match root.object("quantization_config")? {
        Some(quantization) if quantization.get("quant_method") == Some(&json!("mxfp4")) => Ok(()),
        Some(quantization) => Err(quantization.wrong("quant_method", r#""mxfp4""#)),
        None => Err(root.wrong("quantization_config", r#"an object with quant_method "mxfp4""#)),
    }
}

/// Without `layer_types`, transformers alternates, and so do we.
fn layer_kinds(root: &Object) -> Result<Vec<LayerKind>, ConfigError> {
    let layers = check::layers(root, LAYERS)?;
    let kinds = match root.get("layer_types") {
        None => return Ok(LayerKind::alternating(layers)),
        Some(Value::Array(kinds)) => kinds,
        Some(_) => return Err(root.wrong("layer_types", "a list")),
    };
    if kinds.len() != layers {
        let expected = format!("one for each of num_hidden_layers, which is {layers}");
        return Err(ConfigError::value(root.file(), "layer_types", expected, format!("{} of them", kinds.len())));
    }
    let kind = |(layer, value): (usize, &Value)| match value.as_str() {
        Some("sliding_attention") => Ok(LayerKind::Sliding),
        Some("full_attention") => Ok(LayerKind::Full),
        _ => {
            let expected = r#""sliding_attention" or "full_attention""#;
            Err(ConfigError::value(root.file(), &format!("layer_types[{layer}]"), expected, value))
        }
    };
    kinds.iter().enumerate().map(kind).collect()
}

/// The key has two spellings, and files on the hub carry both.
fn top_k(root: &Object) -> Result<usize, ConfigError> {
    const OTHER: &str = "experts_per_token";
    match (root.optional_size(KEYS.top_k)?, root.optional_size(OTHER)?) {
        (Some(one), Some(other)) if one != other => {
            Err(root.wrong(OTHER, format!("the same as {}, which is {one}", KEYS.top_k)))
        }
        (Some(top_k), _) | (None, Some(top_k)) => Ok(top_k),
        (None, None) => Err(root.wrong(KEYS.top_k, "a whole number")),
    }
}

/// `rope_scaling` beside `rope_theta` up to transformers 4, `rope_parameters` with everything inside from 5 on.
fn rope(root: &Object) -> Result<RopeConfig, ConfigError> {
    let mut found = Vec::new();
    for key in ["rope_parameters", "rope_scaling"] {
        if let Some(scaling) = root.object(key)? {
            found.push((key, one_rope(root, &scaling, key)?));
        }
    }
    match found[..] {
        [] => Err(root.wrong("rope_scaling", "an object, here or as rope_parameters")),
        [(_, first), (key, second)] if first != second => Err(root.wrong(key, "the same as rope_parameters")),
        [(_, first), ..] => Ok(first),
    }
}

fn one_rope(root: &Object, scaling: &Object, key: &str) -> Result<RopeConfig, ConfigError> {
    let kind = if scaling.get("rope_type").is_none() && scaling.get("type").is_some() { "type" } else { "rope_type" };
    if scaling.get(kind) != Some(&json!("yarn")) {
        return Err(scaling.wrong(kind, r#""yarn""#));
    }
    for unsupported in ["attention_factor", "mscale", "mscale_all_dim"] {
        if scaling.get(unsupported).is_some() {
            return Err(scaling.wrong(unsupported, "nothing: gpt-oss has no such key"));
        }
    }
    let theta = match scaling.get("rope_theta") {
        Some(_) => scaling.number("rope_theta")?,
        None => root.number("rope_theta")?,
    };
    let rope = RopeConfig {
        theta,
        factor: scaling.number("factor")?,
        beta_fast: scaling.optional_number("beta_fast")?.unwrap_or(32.0),
        beta_slow: scaling.optional_number("beta_slow")?.unwrap_or(1.0),
        original_context: original_context(root, scaling)?,
        // transformers rounds unless told not to, and checkpoints are trained with it.
        truncate: scaling.optional_bool("truncate")?.unwrap_or(true),
    };
    rope.check(root.file(), &format!("{key}."))?;
    Ok(rope)
}

fn original_context(root: &Object, scaling: &Object) -> Result<usize, ConfigError> {
    const KEY: &str = "original_max_position_embeddings";
    match (scaling.optional_size(KEY)?, root.optional_size("initial_context_length")?) {
        (Some(one), Some(other)) if one != other => {
            Err(root.wrong("initial_context_length", format!("the same as {KEY}, which is {one}")))
        }
        (Some(context), _) | (None, Some(context)) => Ok(context),
        (None, None) => Err(scaling.wrong(KEY, "a whole number")),
    }
}

/// `generation_config.json` has the longer list: it also ends at tool calls.
fn eos(root: &Object, vocab: usize) -> Result<Vec<u32>, ConfigError> {
    let generation = root.file().with_file_name("generation_config.json");
    if generation.exists()
        && let Some(eos) = Object::read(&generation)?.tokens("eos_token_id", vocab)?
    {
        return Ok(eos);
    }
    Ok(root.tokens("eos_token_id", vocab)?.unwrap_or_else(|| harmony_eos(vocab)))
}
