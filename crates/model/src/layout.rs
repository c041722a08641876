//! Names, shapes and number formats of the tensors of a gpt-oss model.

use std::fmt;

use crate::Config;

/// One tensor of a gpt-oss model, as the hub layout divides it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TensorId {
    /// Token embedding `[vocab, hidden]`.
    Embedding,
    /// Norm before the lm_head, `[hidden]`.
    FinalNorm,
    /// Unembedding `[vocab, hidden]`.
    LmHead,
    /// A tensor of a layer.
    Layer(usize, LayerTensor),
}

/// A tensor that every layer has. Weights are `[out, in]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum LayerTensor {
    /// Norm before attention, `[hidden]`.
    InputNorm,
    /// `[heads * head_dim, hidden]`.
    QWeight,
    /// `[heads * head_dim]`.
    QBias,
    /// `[kv_heads * head_dim, hidden]`.
    KWeight,
    /// `[kv_heads * head_dim]`.
    KBias,
    /// `[kv_heads * head_dim, hidden]`.
    VWeight,
    /// `[kv_heads * head_dim]`.
    VBias,
    /// `[hidden, heads * head_dim]`.
    OWeight,
    /// `[hidden]`.
    OBias,
    /// One logit per query head.
    Sinks,
    /// Norm before the experts, `[hidden]`.
    PostAttentionNorm,
    /// `[experts, hidden]`.
    RouterWeight,
    /// `[experts]`.
    RouterBias,
    /// MXFP4 codes `[experts, 2 * intermediate, hidden / 32, 16]`; gate and up rows alternate.
    GateUpBlocks,
    /// E8M0 scales `[experts, 2 * intermediate, hidden / 32]`.
    GateUpScales,
    /// `[experts, 2 * intermediate]`.
    GateUpBias,
    /// MXFP4 codes `[experts, hidden, intermediate / 32, 16]`.
    DownBlocks,
    /// E8M0 scales `[experts, hidden, intermediate / 32]`.
    DownScales,
    /// `[experts, hidden]`.
    DownBias,
}

impl LayerTensor {
    /// All of them, in the order of a forward pass.
    pub const ALL: [LayerTensor; 19] = [
        LayerTensor::InputNorm,
        LayerTensor::QWeight,
        LayerTensor::QBias,
        LayerTensor::KWeight,
        LayerTensor::KBias,
        LayerTensor::VWeight,
        LayerTensor::VBias,
        LayerTensor::OWeight,
        LayerTensor::OBias,
        LayerTensor::Sinks,
        LayerTensor::PostAttentionNorm,
        LayerTensor::RouterWeight,
        LayerTensor::RouterBias,
        LayerTensor::GateUpBlocks,
        LayerTensor::GateUpScales,
        LayerTensor::GateUpBias,
        LayerTensor::DownBlocks,
        LayerTensor::DownScales,
        LayerTensor::DownBias,
    ];

    fn hub_name(self) -> &'static str {
        match self {
            LayerTensor::InputNorm => "input_layernorm.weight",
            LayerTensor::QWeight => "self_attn.q_proj.weight",
            LayerTensor::QBias => "self_attn.q_proj.bias",
            LayerTensor::KWeight => "self_attn.k_proj.weight",
            LayerTensor::KBias => "self_attn.k_proj.bias",
            LayerTensor::VWeight => "self_attn.v_proj.weight",
            LayerTensor::VBias => "self_attn.v_proj.bias",
            LayerTensor::OWeight => "self_attn.o_proj.weight",
            LayerTensor::OBias => "self_attn.o_proj.bias",
            LayerTensor::Sinks => "self_attn.sinks",
            LayerTensor::PostAttentionNorm => "post_attention_layernorm.weight",
            LayerTensor::RouterWeight => "mlp.router.weight",
            LayerTensor::RouterBias => "mlp.router.bias",
            LayerTensor::GateUpBlocks => "mlp.experts.gate_up_proj_blocks",
            LayerTensor::GateUpScales => "mlp.experts.gate_up_proj_scales",
            LayerTensor::GateUpBias => "mlp.experts.gate_up_proj_bias",
            LayerTensor::DownBlocks => "mlp.experts.down_proj_blocks",
            LayerTensor::DownScales => "mlp.experts.down_proj_scales",
            LayerTensor::DownBias => "mlp.experts.down_proj_bias",
        }
    }

    /// q, k and v share a name: they are one tensor there, in this order.
    fn original_name(self) -> &'static str {
        match self {
            LayerTensor::InputNorm => "attn.norm.scale",
            LayerTensor::QWeight | LayerTensor::KWeight | LayerTensor::VWeight => "attn.qkv.weight",
            LayerTensor::QBias | LayerTensor::KBias | LayerTensor::VBias => "attn.qkv.bias",
            LayerTensor::OWeight => "attn.out.weight",
            LayerTensor::OBias => "attn.out.bias",
            LayerTensor::Sinks => "attn.sinks",
            LayerTensor::PostAttentionNorm => "mlp.norm.scale",
            LayerTensor::RouterWeight => "mlp.gate.weight",
            LayerTensor::RouterBias => "mlp.gate.bias",
            LayerTensor::GateUpBlocks => "mlp.mlp1_weight.blocks",
            LayerTensor::GateUpScales => "mlp.mlp1_weight.scales",
            LayerTensor::GateUpBias => "mlp.mlp1_bias",
            LayerTensor::DownBlocks => "mlp.mlp2_weight.blocks",
            LayerTensor::DownScales => "mlp.mlp2_weight.scales",
            LayerTensor::DownBias => "mlp.mlp2_bias",
        }
    }
}

impl TensorId {
    /// Its name on the hub.
    pub fn hub_name(self) -> String {
        match self {
            TensorId::Embedding => "model.embed_tokens.weight".to_owned(),
            TensorId::FinalNorm => "model.norm.weight".to_owned(),
            TensorId::LmHead => "lm_head.weight".to_owned(),
            TensorId::Layer(layer, tensor) => format!("model.layers.{layer}.{}", tensor.hub_name()),
        }
    }

    /// The name, in the `original/` layout, of the tensor that it is or is part of.
    pub fn original_name(self) -> String {
        match self {
            TensorId::Embedding => "embedding.weight".to_owned(),
            TensorId::FinalNorm => "norm.scale".to_owned(),
            TensorId::LmHead => "unembedding.weight".to_owned(),
            TensorId::Layer(layer, tensor) => format!("block.{layer}.{}", tensor.original_name()),
        }
    }

    /// What it is for.
    pub fn kind(self) -> TensorKind {
        use LayerTensor::*;
        match self {
            TensorId::Embedding => TensorKind::Embedding,
            TensorId::LmHead => TensorKind::LmHead,
            TensorId::FinalNorm | TensorId::Layer(_, InputNorm | PostAttentionNorm) => TensorKind::Norm,
            TensorId::Layer(_, RouterWeight | RouterBias) => TensorKind::Router,
            TensorId::Layer(_, GateUpBlocks | GateUpScales | GateUpBias | DownBlocks | DownScales | DownBias) => {
                TensorKind::Experts
            }
            TensorId::Layer(..) => TensorKind::Attention,
        }
    }
}

/// Tensors by purpose.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TensorKind {
    /// Token embedding.
    Embedding,
    /// Projections, their biases, and sinks.
    Attention,
    /// Expert matrices and biases.
    Experts,
    /// Routers.
    Router,
    /// Norm weights.
    Norm,
    /// Unembedding.
    LmHead,
}

impl TensorKind {
    /// All of them, in the order of a forward pass.
    pub const ALL: [TensorKind; 6] = [
        TensorKind::Embedding,
        TensorKind::Attention,
        TensorKind::Experts,
        TensorKind::Router,
        TensorKind::Norm,
        TensorKind::LmHead,
    ];
}

impl fmt::Display for TensorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TensorKind::Embedding => "embedding",
            TensorKind::Attention => "attention",
            TensorKind::Experts => "experts",
            TensorKind::Router => "router",
            TensorKind::Norm => "norms",
            TensorKind::LmHead => "lm_head",
        })
    }
}

/// Number format of a tensor in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Dtype {
    /// bfloat16, little-endian.
    Bf16,
    /// Bytes: MXFP4 codes and scales.
    U8,
}

impl Dtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Dtype::Bf16 => 2,
            Dtype::U8 => 1,
        }
    }
}

impl fmt::Display for Dtype {
    /// As safetensors spells it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Dtype::Bf16 => "BF16",
            Dtype::U8 => "U8",
        })
    }
}

/// What a tensor of a given model looks like.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorSpec {
    /// Which one.
    pub id: TensorId,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Number format.
    pub dtype: Dtype,
}

impl TensorSpec {
    /// What `id` looks like in a model of this config.
    pub fn new(config: &Config, id: TensorId) -> Self {
        let (hidden, inner, experts) = (config.hidden, config.intermediate, config.experts);
        let shape = match id {
            TensorId::Embedding | TensorId::LmHead => vec![config.vocab, hidden],
            TensorId::FinalNorm => vec![hidden],
            TensorId::Layer(_, tensor) => match tensor {
                LayerTensor::InputNorm | LayerTensor::PostAttentionNorm | LayerTensor::OBias => vec![hidden],
                LayerTensor::QWeight => vec![config.q_width(), hidden],
                LayerTensor::QBias => vec![config.q_width()],
                LayerTensor::KWeight | LayerTensor::VWeight => vec![config.kv_width(), hidden],
                LayerTensor::KBias | LayerTensor::VBias => vec![config.kv_width()],
                LayerTensor::OWeight => vec![hidden, config.q_width()],
                LayerTensor::Sinks => vec![config.heads],
                LayerTensor::RouterWeight => vec![experts, hidden],
                LayerTensor::RouterBias => vec![experts],
                LayerTensor::GateUpBlocks => vec![experts, 2 * inner, hidden / 32, 16],
                LayerTensor::GateUpScales => vec![experts, 2 * inner, hidden / 32],
                LayerTensor::GateUpBias => vec![experts, 2 * inner],
                LayerTensor::DownBlocks => vec![experts, hidden, inner / 32, 16],
                LayerTensor::DownScales => vec![experts, hidden, inner / 32],
                LayerTensor::DownBias => vec![experts, hidden],
            },
        };
        let dtype = match id {
            TensorId::Layer(_, tensor) if tensor.is_mxfp4() => Dtype::U8,
            _ => Dtype::Bf16,
        };
        Self { id, shape, dtype }
    }

    /// Bytes of the whole tensor.
    pub fn bytes(&self) -> u64 {
        self.shape.iter().product::<usize>() as u64 * self.dtype.bytes() as u64
    }

    /// Rows as a [`tandem_backend::RowSource`] counts them: a vector has one per element (so that a bias is cut like the
    /// matrix it belongs to), MXFP4 codes one per 16 bytes of every group of a matrix row.
    pub fn rows(&self) -> usize {
        let row_dims = match self.shape.len() {
            1 | 2 => 1,
            _ => 2,
        };
        self.shape[..row_dims].iter().product()
    }

    /// Bytes of one row.
    pub fn row_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() / self.rows() * self.dtype.bytes()
    }

    /// Model parameters it holds: two per byte of MXFP4 codes, none in scales.
    pub fn parameters(&self) -> u64 {
        let elements = self.shape.iter().product::<usize>() as u64;
        match self.id {
            TensorId::Layer(_, LayerTensor::GateUpBlocks | LayerTensor::DownBlocks) => 2 * elements,
            TensorId::Layer(_, LayerTensor::GateUpScales | LayerTensor::DownScales) => 0,
            _ => elements,
        }
    }
}

impl LayerTensor {
    /// Whether it holds MXFP4 codes or scales.
    fn is_mxfp4(self) -> bool {
        use LayerTensor::*;
        matches!(self, GateUpBlocks | GateUpScales | DownBlocks | DownScales)
    }

    /// Whether it holds E8M0 scales.
    pub(crate) fn is_scales(self) -> bool {
        matches!(self, LayerTensor::GateUpScales | LayerTensor::DownScales)
    }
}

/// All tensors of a model, in the order of a forward pass.
pub fn tensors(config: &Config) -> impl Iterator<Item = TensorSpec> {
    let in_layer = |layer| LayerTensor::ALL.into_iter().map(move |tensor| TensorId::Layer(layer, tensor));
    let ids = std::iter::once(TensorId::Embedding).chain((0..config.layers()).flat_map(in_layer));
    let ids = ids.chain([TensorId::FinalNorm, TensorId::LmHead]);
    ids.map(|id| TensorSpec::new(config, id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count_and_bytes(config: &Config) -> (usize, u64) {
        (tensors(config).count(), tensors(config).map(|tensor| tensor.bytes()).sum())
    }

    /// Number of tensors and `total_size` of the published indices.
    #[test]
    fn the_released_models_have_their_published_sizes() {
        assert_eq!(count_and_bytes(&Config::gpt_oss_20b()), (459, 13_761_264_768));
        assert_eq!(count_and_bytes(&Config::gpt_oss_120b()), (687, 65_248_815_744));
    }

    #[test]
    fn rows_flatten_what_leads() {
        let config = Config::gpt_oss_20b();
        let shape = |tensor| {
            let spec = TensorSpec::new(&config, TensorId::Layer(0, tensor));
            (spec.rows(), spec.row_bytes())
        };
        assert_eq!(shape(LayerTensor::QBias), (4096, 2));
        assert_eq!(shape(LayerTensor::QWeight), (4096, 5760));
        assert_eq!(shape(LayerTensor::GateUpBias), (32, 11520));
        assert_eq!(shape(LayerTensor::GateUpBlocks), (32 * 5760, 1440));
        assert_eq!(shape(LayerTensor::GateUpScales), (32 * 5760, 90));
    }
}
