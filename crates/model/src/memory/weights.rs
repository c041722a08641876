use tandem_backend::DenseFormat;

use crate::Config;
use crate::shard::Shard;

/// Bytes of weights, by purpose.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct WeightBytes {
    pub embedding: u64,
    pub attention: u64,
    pub experts: u64,
    /// Routers, norms, biases and sinks.
    pub small: u64,
    pub lm_head: u64,
    /// Scales of attention and lm_head weights, where their format has them.
    pub dense_scales: u64,
}

/// How much of a model is counted, and in which formats.
#[derive(Clone, Copy, Debug)]
pub(super) struct Counting<'a> {
    pub dense: DenseFormat,
    /// Experts per layer.
    pub experts: usize,
    /// Whose weights.
    pub shard: &'a Shard,
    /// Bytes of a value of a bias or norm.
    pub vector_bytes: u64,
}

/// Weights of one rank. Zeroes in place of another rank's bias count like the bias.
pub(super) fn weight_bytes(config: &Config, counting: Counting<'_>) -> WeightBytes {
    let Counting { dense, experts, shard, vector_bytes } = counting;
    let layers = config.layers() as u64;
    let (hidden, experts) = (config.hidden as u64, experts as u64);
    let (heads, q) = (shard.heads.len() as u64, shard.q_width(config) as u64);
    let qkv = shard.qkv_width(config) as u64;
    let units = shard.units.len() as u64;

    let attention = layers * (qkv + q) * hidden;
    let lm_head = shard.vocab.len() as u64 * hidden;
    let all_experts = config.experts as u64;
    let attention_vectors = qkv + hidden + heads;
    let expert_vectors = experts * (2 * units + hidden);
    let norms = 2 * hidden;
    let router = all_experts * hidden * 2 + all_experts * vector_bytes;
    WeightBytes {
        embedding: config.vocab as u64 * hidden * 2,
        attention: dense_bytes(dense, attention),
        experts: layers * experts * mxfp4_bytes(3 * units * hidden),
        small: layers * (router + (attention_vectors + expert_vectors + norms) * vector_bytes) + hidden * vector_bytes,
        lm_head: dense_bytes(dense, lm_head),
        dense_scales: match dense {
            DenseFormat::Bf16 => 0,
            DenseFormat::Q8 => (attention + lm_head) / 32 * 2,
            DenseFormat::Mxfp4 => (attention + lm_head) / 32,
        },
    }
}

/// Bytes of so many weights, scales not counted.
fn dense_bytes(format: DenseFormat, weights: u64) -> u64 {
    match format {
        DenseFormat::Bf16 => 2 * weights,
        DenseFormat::Q8 => weights,
        DenseFormat::Mxfp4 => weights / 2,
    }
}

/// Half a byte each and a scale per 32.
fn mxfp4_bytes(weights: u64) -> u64 {
    weights / 2 + weights / 32
}

/// Bytes of weights that one rank reads to decode one token alone, with nothing in the KV cache yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BytesPerToken {
    /// The chosen experts' matrices.
    pub experts: u64,
    /// Attention matrices, their scales not counted.
    pub attention: u64,
    /// Unembedding, its scales not counted.
    pub lm_head: u64,
    /// Scales of the two.
    pub dense_scales: u64,
    /// Routers, norms, biases and sinks, as shipped.
    pub small: u64,
}

impl BytesPerToken {
    /// Everything.
    pub fn total(&self) -> u64 {
        self.experts + self.attention + self.lm_head + self.dense_scales + self.small
    }
}

/// What a decoded token reads with attention and lm_head in this format, on one rank. Of whole experts it is what a rank
/// reads whose share of the chosen ones is as large as its share of all, rounded up; the router may choose otherwise.
pub fn bytes_per_token(config: &Config, dense: DenseFormat, shard: &Shard) -> BytesPerToken {
    let experts = (config.top_k * shard.experts.len()).div_ceil(config.experts);
    let counted = weight_bytes(config, Counting { dense, experts, shard, vector_bytes: 2 });
    let WeightBytes { attention, experts, small, lm_head, dense_scales, .. } = counted;
    BytesPerToken { experts, attention, lm_head, dense_scales, small }
}
