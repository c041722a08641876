use tandem_backend::DenseFormat;

use crate::Config;

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
pub(super) struct Counting {
    pub dense: DenseFormat,
    /// Experts per layer.
    pub experts: usize,
    /// Nodes that the model is spread over; counted is what the first one has, which has most.
    pub world: usize,
    /// Bytes of a value of a bias or norm.
    pub vector_bytes: u64,
}

/// Weights of one node. Attention is divided by heads, experts by groups of 32 units, lm_head by rows; the rest is on all.
pub(super) fn weight_bytes(config: &Config, counting: Counting) -> WeightBytes {
    let Counting { dense, experts, world, vector_bytes } = counting;
    let layers = config.layers() as u64;
    let (hidden, experts) = (config.hidden as u64, experts as u64);
    let (heads, q) = ((config.heads / world) as u64, (config.q_width() / world) as u64);
    let qkv = (config.qkv_width() / world) as u64;
    let units = (config.intermediate / 32).div_ceil(world) as u64 * 32;

    let attention = layers * (qkv + q) * hidden;
    let lm_head = config.vocab.div_ceil(world) as u64 * hidden;
    let all_experts = config.experts as u64;
    let attention_vectors = qkv + hidden + heads;
    let expert_vectors = experts * (2 * units + hidden);
    let norms = 2 * hidden;
    let router = all_experts * hidden * 2 + all_experts * vector_bytes;
    WeightBytes {
        embedding: config.vocab as u64 * hidden * 2,
        attention: attention * dense_bytes(dense),
        experts: layers * experts * mxfp4_bytes(3 * units * hidden),
        small: layers * (router + (attention_vectors + expert_vectors + norms) * vector_bytes) + hidden * vector_bytes,
        lm_head: lm_head * dense_bytes(dense),
        dense_scales: match dense {
            DenseFormat::Bf16 => 0,
            DenseFormat::Q8 => (attention + lm_head) / 32 * 2,
        },
    }
}

/// Bytes of a weight, scales not counted.
fn dense_bytes(format: DenseFormat) -> u64 {
    match format {
        DenseFormat::Bf16 => 2,
        DenseFormat::Q8 => 1,
    }
}

/// Half a byte each and a scale per 32.
fn mxfp4_bytes(weights: u64) -> u64 {
    weights / 2 + weights / 32
}

/// Bytes of weights that one node reads to decode one token alone, with nothing in the KV cache yet.
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

/// What a decoded token reads with attention and lm_head in this format, on the first of `world` nodes.
pub fn bytes_per_token(config: &Config, dense: DenseFormat, world: usize) -> BytesPerToken {
    let counted = weight_bytes(config, Counting { dense, experts: config.top_k, world, vector_bytes: 2 });
    let WeightBytes { attention, experts, small, lm_head, dense_scales, .. } = counted;
    BytesPerToken { experts, attention, lm_head, dense_scales, small }
}
