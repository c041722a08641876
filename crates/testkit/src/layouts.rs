use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use serde_json::{Value, json};

use crate::{CheckpointSpec, Tensor, tensors};

/// Writes `config.json` and one `model.safetensors` into `dir`, which must exist.
pub fn write_hub(dir: &Path, spec: &CheckpointSpec) -> io::Result<()> {
    write_json(&dir.join("config.json"), &spec.hub_config())?;
    write_safetensors(&dir.join("model.safetensors"), &tensors(spec))
}

/// Writes `config.json`, `shards` shards and their index into `dir`, numbered as on the hub: from zero, and "of" names
/// the last one.
pub fn write_hub_sharded(dir: &Path, spec: &CheckpointSpec, shards: usize) -> io::Result<()> {
    write_json(&dir.join("config.json"), &spec.hub_config())?;
    let all = tensors(spec);
    let total: usize = all.iter().map(|tensor| tensor.bytes.len()).sum();
    let mut weight_map = BTreeMap::new();
    for (number, part) in all.chunks(all.len().div_ceil(shards)).enumerate() {
        let file = format!("model-{number:05}-of-{:05}.safetensors", shards - 1);
        weight_map.extend(part.iter().map(|tensor| (tensor.name.clone(), file.clone())));
        write_safetensors(&dir.join(&file), part)?;
    }
    let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
    write_json(&dir.join("model.safetensors.index.json"), &index)
}

/// Writes the `original/` layout into `dir` itself: its own config, its own names, q, k and v fused.
pub fn write_original(dir: &Path, spec: &CheckpointSpec) -> io::Result<()> {
    write_json(&dir.join("config.json"), &spec.original_config())?;
    write_safetensors(&dir.join("model.safetensors"), &original(tensors(spec)))
}

/// Writes one safetensors file.
pub fn write_safetensors(path: &Path, tensors: &[Tensor]) -> io::Result<()> {
    fs::write(path, safetensors_bytes(tensors))
}

/// The bytes of one safetensors file: length of the header, header padded to 8 bytes, tensors in the order given.
pub fn safetensors_bytes(tensors: &[Tensor]) -> Vec<u8> {
    let mut entries = Vec::new();
    let mut at = 0;
    for tensor in tensors {
        let (name, shape) = (Value::from(tensor.name.as_str()), Value::from(tensor.shape.clone()).to_string());
        let (dtype, end) = (tensor.dtype, at + tensor.bytes.len());
        let shape = shape.replace(',', ", ");
        entries.push(format!(r#"{name}: {{"dtype": "{dtype}", "shape": {shape}, "data_offsets": [{at}, {end}]}}"#));
        at = end;
    }
    let mut header = format!("{{{}}}", entries.join(", "));
    header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(8) - header.len()));
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    tensors.iter().for_each(|tensor| bytes.extend(&tensor.bytes));
    bytes
}

fn write_json(path: &Path, value: &Value) -> io::Result<()> {
    fs::write(path, serde_json::to_vec_pretty(value)?)
}

fn original(all: Vec<Tensor>) -> Vec<Tensor> {
    let mut renamed: Vec<Tensor> = Vec::new();
    for mut tensor in all {
        tensor.name = original_name(&tensor.name);
        match renamed.iter_mut().find(|earlier| earlier.name == tensor.name) {
            Some(fused) => {
                fused.shape[0] += tensor.shape[0];
                fused.bytes.extend(tensor.bytes);
            }
            None => renamed.push(tensor),
        }
    }
    renamed
}

/// The name in the `original/` layout; q, k and v share one.
fn original_name(hub: &str) -> String {
    const NAMES: [(&str, &str); 22] = [
        ("model.embed_tokens.weight", "embedding.weight"),
        ("lm_head.weight", "unembedding.weight"),
        ("model.norm.weight", "norm.scale"),
        ("input_layernorm.weight", "attn.norm.scale"),
        ("self_attn.q_proj.weight", "attn.qkv.weight"),
        ("self_attn.k_proj.weight", "attn.qkv.weight"),
        ("self_attn.v_proj.weight", "attn.qkv.weight"),
        ("self_attn.q_proj.bias", "attn.qkv.bias"),
        ("self_attn.k_proj.bias", "attn.qkv.bias"),
        ("self_attn.v_proj.bias", "attn.qkv.bias"),
        ("self_attn.o_proj.weight", "attn.out.weight"),
        ("self_attn.o_proj.bias", "attn.out.bias"),
        ("self_attn.sinks", "attn.sinks"),
        ("post_attention_layernorm.weight", "mlp.norm.scale"),
        ("mlp.router.weight", "mlp.gate.weight"),
        ("mlp.router.bias", "mlp.gate.bias"),
        ("mlp.experts.gate_up_proj_blocks", "mlp.mlp1_weight.blocks"),
        ("mlp.experts.gate_up_proj_scales", "mlp.mlp1_weight.scales"),
        ("mlp.experts.gate_up_proj_bias", "mlp.mlp1_bias"),
        ("mlp.experts.down_proj_blocks", "mlp.mlp2_weight.blocks"),
        ("mlp.experts.down_proj_scales", "mlp.mlp2_weight.scales"),
        ("mlp.experts.down_proj_bias", "mlp.mlp2_bias"),
    ];
    let (prefix, rest) = match hub.strip_prefix("model.layers.").and_then(|rest| rest.split_once('.')) {
        Some((layer, rest)) => (format!("block.{layer}."), rest),
        None => (String::new(), hub),
    };
    let renamed = NAMES.iter().find(|(from, _)| *from == rest).map_or(rest, |(_, to)| to);
    format!("{prefix}{renamed}")
}
