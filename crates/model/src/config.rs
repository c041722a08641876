mod check;
mod error;
mod hub;
mod json;
mod original;
mod rope;

use std::path::Path;

pub use error::ConfigError;
pub use rope::RopeConfig;

/// Everything about a model's shape that its tensors do not say themselves, resolved and checked.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// Attention pattern of every layer.
    pub layer_kinds: Vec<LayerKind>,
    /// Width of the residual stream, a multiple of 32.
    pub hidden: usize,
    /// Units of an expert, a multiple of 32.
    pub intermediate: usize,
    /// Query heads, a multiple of `kv_heads`.
    pub heads: usize,
    /// Key (and value) heads.
    pub kv_heads: usize,
    /// Width of a head, even.
    pub head_dim: usize,
    /// Experts per layer.
    pub experts: usize,
    /// Experts chosen per token.
    pub top_k: usize,
    /// Size of the vocabulary.
    pub vocab: usize,
    /// Window of the sliding layers in tokens, the query's own position included.
    pub sliding_window: usize,
    /// Epsilon of every RMSNorm.
    pub rms_eps: f32,
    /// Clamp of the experts' gate and up values.
    pub swiglu_limit: f32,
    /// Factor inside the experts' sigmoid.
    pub swiglu_alpha: f32,
    /// Rotary position embedding.
    pub rope: RopeConfig,
    /// Most positions the model was made for.
    pub max_context: usize,
    /// Tokens that end a reply.
    pub eos: Vec<u32>,
    /// Padding token, where the checkpoint names one.
    pub pad: Option<u32>,
}

/// Which earlier positions a layer attends to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerKind {
    /// The last `sliding_window`, the query's own included.
    Sliding,
    /// All.
    Full,
}

impl LayerKind {
    /// The pattern of `layers` layers that gpt-oss uses: even ones slide.
    pub fn alternating(layers: usize) -> Vec<LayerKind> {
        (0..layers).map(|layer| if layer % 2 == 0 { LayerKind::Sliding } else { LayerKind::Full }).collect()
    }
}

/// What ends a reply where a checkpoint does not say: `<|return|>`, `<|endoftext|>`, `<|call|>`.
const HARMONY_EOS: [u32; 3] = [200_002, 199_999, 200_012];

/// As many of them as a vocabulary has.
fn harmony_eos(vocab: usize) -> Vec<u32> {
    HARMONY_EOS.into_iter().filter(|&id| (id as usize) < vocab).collect()
}

/// `swiglu_alpha` of gpt-oss; files on the hub leave it out.
const SWIGLU_ALPHA: f32 = 1.702;

impl Config {
    /// Reads `config.json` as it is on the hub, in either spelling of the RoPE keys, and `generation_config.json` beside it.
    pub fn read_hub(path: &Path) -> Result<Self, ConfigError> {
        hub::read(path)
    }

    /// Reads `original/config.json`, which has keys of its own.
    pub fn read_original(path: &Path) -> Result<Self, ConfigError> {
        original::read(path)
    }

    /// The shape of gpt-oss-20b.
    pub fn gpt_oss_20b() -> Self {
        Self {
            layer_kinds: LayerKind::alternating(24),
            hidden: 2880,
            intermediate: 2880,
            heads: 64,
            kv_heads: 8,
            head_dim: 64,
            experts: 32,
            top_k: 4,
            vocab: 201_088,
            sliding_window: 128,
            rms_eps: 1e-5,
            swiglu_limit: 7.0,
            swiglu_alpha: SWIGLU_ALPHA,
            rope: RopeConfig::gpt_oss(),
            max_context: 131_072,
            eos: HARMONY_EOS.to_vec(),
            pad: Some(199_999),
        }
    }

    /// The shape of gpt-oss-120b.
    pub fn gpt_oss_120b() -> Self {
        Self { layer_kinds: LayerKind::alternating(36), experts: 128, ..Self::gpt_oss_20b() }
    }

    /// Number of layers.
    pub fn layers(&self) -> usize {
        self.layer_kinds.len()
    }

    /// Number of layers of a kind.
    pub fn layers_of(&self, kind: LayerKind) -> usize {
        self.layer_kinds.iter().filter(|&&layer| layer == kind).count()
    }

    /// Width of all query heads together.
    pub fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// Width of all key heads together; value heads likewise.
    pub fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// Width of q, k and v together: the rows of the fused projection.
    pub fn qkv_width(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// What a backend's working memory depends on.
    pub fn widths(&self) -> tandem_backend::Widths {
        tandem_backend::Widths {
            hidden: self.hidden,
            attended: self.q_width(),
            intermediate: self.intermediate,
            experts: self.experts,
            top_k: self.top_k,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            vocab: self.vocab,
        }
    }

    /// Rotary embedding as backends want it.
    pub fn rope(&self) -> tandem_backend::Rope {
        self.rope.resolve(self.head_dim)
    }
}

#[cfg(test)]
mod tests;
