use tandem_backend::{AttentionKind, Backend, BackendError, DenseFormat, ExpertsShape, ExpertsSource, KvShape};
use tandem_step::Capacity;

use super::layer::{Layer, Part, Pools};
use super::unembed::{Head, Unembedding};
use super::{Formats, ModelError};
use crate::layout::{LayerTensor, TensorId};
use crate::shard::{Shard, ShardStore};
use crate::weights::{self, WeightStore};
use crate::{Config, LayerKind};

/// Reads tensors onto the device.
pub(super) struct Loader<'a, B: Backend> {
    pub(super) backend: &'a B,
    pub(super) config: &'a Config,
    /// The shards to hold.
    pub(super) shards: &'a [Shard],
    /// Each one's weights.
    pub(super) stores: &'a [ShardStore<'a>],
    pub(super) formats: Formats,
}

impl<B: Backend> Loader<'_, B> {
    pub(super) fn matrix(
        &self,
        store: &ShardStore<'_>,
        id: TensorId,
        format: DenseFormat,
    ) -> Result<B::Matrix, ModelError> {
        let source = store.tensor(id)?;
        self.backend.matrix(source.as_ref(), format).map_err(|source| loading(id, source))
    }

    fn vector(&self, store: &ShardStore<'_>, id: TensorId) -> Result<B::Vector, ModelError> {
        let source = store.tensor(id)?;
        self.backend.vector(source.as_ref()).map_err(|source| loading(id, source))
    }

    /// The layer's own tensors once, the divided ones for every shard.
    pub(super) fn layer(&self, index: usize) -> Result<Layer<B>, ModelError> {
        use LayerTensor::{InputNorm, PostAttentionNorm, RouterBias, RouterWeight};
        let id = |tensor| TensorId::Layer(index, tensor);
        let (config, store) = (self.config, &self.stores[0]);
        let kinds = &config.layer_kinds;
        let parts = self.shards.iter().zip(self.stores).map(|(shard, store)| self.part(index, shard, store));
        Ok(Layer {
            kind: match kinds[index] {
                LayerKind::Full => AttentionKind::Full,
                LayerKind::Sliding => AttentionKind::Sliding { window: config.sliding_window },
            },
            kv_layer: kinds[..index].iter().filter(|&&earlier| earlier == kinds[index]).count(),
            input_norm: self.vector(store, id(InputNorm))?,
            post_norm: self.vector(store, id(PostAttentionNorm))?,
            router: self.matrix(store, id(RouterWeight), DenseFormat::Bf16)?,
            router_bias: self.vector(store, id(RouterBias))?,
            parts: parts.collect::<Result<_, _>>()?,
        })
    }

    fn part(&self, layer: usize, shard: &Shard, store: &ShardStore<'_>) -> Result<Part<B>, ModelError> {
        use LayerTensor::{OBias, OWeight, QBias, QWeight, Sinks};
        let (id, dense) = (|tensor| TensorId::Layer(layer, tensor), self.formats.dense);
        let qkv = weights::qkv_weight(store, layer)?;
        let qkv_bias = weights::qkv_bias(store, layer)?;
        Ok(Part {
            heads: shard.heads.len(),
            qkv: self.backend.matrix(&qkv, dense).map_err(|source| loading(id(QWeight), source))?,
            qkv_bias: self.backend.vector(&qkv_bias).map_err(|source| loading(id(QBias), source))?,
            sinks: self.vector(store, id(Sinks))?,
            out: self.matrix(store, id(OWeight), dense)?,
            out_bias: self.vector(store, id(OBias))?,
            experts: self.experts(layer, shard, store)?,
        })
    }

    fn experts(&self, layer: usize, shard: &Shard, store: &ShardStore<'_>) -> Result<B::Experts, ModelError> {
        let tensor = |tensor| store.tensor(TensorId::Layer(layer, tensor));
        let config = self.config;
        let shape = ExpertsShape {
            experts: shard.experts.len(),
            first: shard.experts.start,
            total: config.experts,
            hidden: config.hidden,
            intermediate: shard.units.len(),
            limit: config.swiglu_limit,
            alpha: config.swiglu_alpha,
        };
        let (gate_up_blocks, down_blocks) = (tensor(LayerTensor::GateUpBlocks)?, tensor(LayerTensor::DownBlocks)?);
        let (gate_up_scales, down_scales) = (tensor(LayerTensor::GateUpScales)?, tensor(LayerTensor::DownScales)?);
        let (gate_up_bias, down_bias) = (tensor(LayerTensor::GateUpBias)?, tensor(LayerTensor::DownBias)?);
        let source = ExpertsSource {
            gate_up_blocks: gate_up_blocks.as_ref(),
            gate_up_scales: gate_up_scales.as_ref(),
            gate_up_bias: gate_up_bias.as_ref(),
            down_blocks: down_blocks.as_ref(),
            down_scales: down_scales.as_ref(),
            down_bias: down_bias.as_ref(),
        };
        let first = TensorId::Layer(layer, LayerTensor::GateUpBlocks);
        self.backend.experts(shape, &source).map_err(|source| loading(first, source))
    }

    /// Final norm, every shard's rows of lm_head, and room for the logits of so many rows.
    pub(super) fn unembedding(&self, rows: usize) -> Result<Unembedding<B>, ModelError> {
        let mut heads = Vec::with_capacity(self.shards.len());
        for (shard, store) in self.shards.iter().zip(self.stores) {
            heads.push(Head {
                weight: self.matrix(store, TensorId::LmHead, self.formats.dense)?,
                logits: self.backend.buffer(rows, shard.vocab.len())?,
                vocab: shard.vocab.clone(),
            });
        }
        let norm = self.vector(&self.stores[0], TensorId::FinalNorm)?;
        Ok(Unembedding::new(self.backend, self.config, self.shards[0].plan, norm, heads, rows)?)
    }

    pub(super) fn pools(&self, shard: &Shard, capacity: Capacity) -> Result<Pools<B>, ModelError> {
        let pool = |kind: LayerKind, blocks: u32| {
            self.backend.kv(KvShape {
                layers: self.config.layers_of(kind),
                blocks: blocks as usize,
                block_tokens: capacity.block_tokens as usize,
                kv_heads: shard.kv_heads.len(),
                head_dim: self.config.head_dim,
                format: self.formats.kv,
            })
        };
        Ok(Pools {
            full: pool(LayerKind::Full, capacity.full_blocks)?,
            sliding: pool(LayerKind::Sliding, capacity.sliding_blocks)?,
        })
    }
}

fn loading(id: TensorId, source: BackendError) -> ModelError {
    ModelError::Backend { what: format!("loading {}", id.hub_name()), source }
}
