//! The gpt-oss forward pass over any [`Backend`].

use tandem_backend::{
    AttentionContext, AttentionKind, Backend, BackendError, Batch, DenseFormat, Draw, ExpertsShape, ExpertsSource,
    KvFormat, KvShape, Rope, StepLimits,
};
use tandem_step::{Capacity, Pool};

use crate::layout::{LayerTensor, TensorId};
use crate::weights::{self, WeightStore};
use crate::{CheckpointError, Config, LayerKind};

/// Rows of logits computed at a time; bounds the logits buffer at 64 x vocab x 4 bytes (51 MB for gpt-oss).
pub const LOGIT_ROWS: usize = 64;

/// Number formats of a loaded model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Formats {
    /// Attention and lm_head weights.
    pub dense: DenseFormat,
    /// Cached keys and values.
    pub kv: KvFormat,
}

/// Why a model could not be loaded or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The weights could not be had.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// The device refused.
    #[error("{what}: {source}")]
    Backend {
        /// What was being done.
        what: String,
        /// What went wrong.
        #[source]
        source: BackendError,
    },
    /// A plan that contradicts the worker's state: a bug of whoever made it.
    #[error("bad plan: {0}")]
    Plan(String),
}

impl From<BackendError> for ModelError {
    fn from(source: BackendError) -> Self {
        ModelError::Backend { what: "forward pass".into(), source }
    }
}

struct Layer<B: Backend> {
    kind: AttentionKind,
    /// Index among the layers of its kind, which is its place in the KV pool.
    kv_layer: usize,
    input_norm: B::Vector,
    qkv: B::Matrix,
    qkv_bias: B::Vector,
    sinks: B::Vector,
    out: B::Matrix,
    out_bias: B::Vector,
    post_norm: B::Vector,
    router: B::Matrix,
    router_bias: B::Vector,
    experts: B::Experts,
}

/// Activations of one step, allocated once.
struct Scratch<B: Backend> {
    residual: B::Buffer,
    normed: B::Buffer,
    qkv: B::Buffer,
    attended: B::Buffer,
    update: B::Buffer,
    routing: B::Routing,
    last: B::Buffer,
    last_normed: B::Buffer,
    logits: B::Buffer,
    /// Host copy of `logits`.
    host_logits: Vec<f32>,
}

/// A loaded model with its KV pools and working memory: everything it will ever allocate.
pub struct Model<B: Backend> {
    backend: B,
    config: Config,
    capacity: Capacity,
    rope: Rope,
    embedding: B::Matrix,
    layers: Vec<Layer<B>>,
    final_norm: B::Vector,
    lm_head: B::Matrix,
    full: B::Kv,
    sliding: B::Kv,
    scratch: Scratch<B>,
}

impl<B: Backend> Model<B> {
    /// Reads all weights from `store` and allocates caches and working memory for `capacity`.
    pub fn load(backend: B, store: &dyn WeightStore, formats: Formats, capacity: Capacity) -> Result<Self, ModelError> {
        let config = store.config().clone();
        let loader = Loader { backend: &backend, store, dense: formats.dense };
        let embedding = loader.matrix(TensorId::Embedding, DenseFormat::Bf16)?;
        let mut layers = Vec::with_capacity(config.layers());
        for (index, &kind) in config.layer_kinds.iter().enumerate() {
            let kv_layer = config.layer_kinds[..index].iter().filter(|&&earlier| earlier == kind).count();
            layers.push(loader.layer(&config, index, kind, kv_layer)?);
        }
        let final_norm = loader.vector(TensorId::FinalNorm)?;
        let lm_head = loader.matrix(TensorId::LmHead, formats.dense)?;
        let pool = |layers: usize, blocks: u32| {
            backend.kv(KvShape {
                layers,
                blocks: blocks as usize,
                block_tokens: capacity.block_tokens as usize,
                kv_heads: config.kv_heads,
                head_dim: config.head_dim,
                format: formats.kv,
            })
        };
        let full = pool(config.layers_of(LayerKind::Full), capacity.full_blocks)?;
        let sliding = pool(config.layers_of(LayerKind::Sliding), capacity.sliding_blocks)?;
        let scratch = Scratch::new(&backend, &config, capacity.max_step_tokens as usize)?;
        let rope = config.rope();
        backend.reserve(StepLimits {
            rows: capacity.max_step_tokens as usize,
            sequences: capacity.max_streams as usize,
            blocks: capacity.context.div_ceil(capacity.block_tokens) as usize,
        })?;
        Ok(Self { backend, config, capacity, rope, embedding, layers, final_norm, lm_head, full, sliding, scratch })
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Sizes of its pools and of a step.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// The device it runs on, for the log.
    pub fn describe(&self) -> String {
        self.backend.describe()
    }

    /// Copies KV blocks, `(from, to)`.
    pub fn copy_blocks(&mut self, pool: Pool, pairs: &[(u32, u32)]) -> Result<(), ModelError> {
        let kv = match pool {
            Pool::Full => &mut self.full,
            Pool::Sliding => &mut self.sliding,
        };
        Ok(self.backend.copy_blocks(kv, pairs)?)
    }

    /// Runs every row through all layers, storing keys and values. The residual stream stays in working memory for
    /// [`Model::logits`].
    pub fn forward(&mut self, batch: &Batch<'_>) -> Result<(), ModelError> {
        let Self { backend, scratch, config, embedding, layers, rope, full, sliding, .. } = self;
        backend.begin(batch)?;
        backend.repeat(batch, &mut || {
            backend.embed(embedding, batch, &mut scratch.residual)?;
            for layer in &*layers {
                let kv = match layer.kind {
                    AttentionKind::Full => &mut *full,
                    AttentionKind::Sliding { .. } => &mut *sliding,
                };
                layer.forward(backend, config, rope, batch, kv, scratch)?;
            }
            Ok(())
        })
    }

    /// Logits of the given rows of the last [`Model::forward`], handed to `each` one row at a time with its index in
    /// `rows`; the slice holds `vocab` values and may be changed.
    pub fn logits(&mut self, rows: &[usize], mut each: impl FnMut(usize, &mut [f32])) -> Result<(), ModelError> {
        for (chunk, some) in rows.chunks(LOGIT_ROWS).enumerate() {
            self.unembed(some)?;
            let Self { backend, scratch: s, config, .. } = self;
            let host = &mut s.host_logits[..some.len() * config.vocab];
            backend.download(&s.logits, 0, host)?;
            for (i, logits) in host.chunks_exact_mut(config.vocab).enumerate() {
                each(chunk * LOGIT_ROWS + i, logits);
            }
        }
        Ok(())
    }

    /// Whether [`Model::draw`] works on this device.
    pub fn draws(&self) -> bool {
        B::DRAWS
    }

    /// Tokens chosen on the device from the logits of the given rows of the last [`Model::forward`].
    pub fn draw(&mut self, rows: &[(usize, Draw)]) -> Result<Vec<u32>, ModelError> {
        let mut tokens = vec![0; rows.len()];
        for (some, tokens) in rows.chunks(LOGIT_ROWS).zip(tokens.chunks_mut(LOGIT_ROWS)) {
            let (indices, draws): (Vec<usize>, Vec<Draw>) = some.iter().cloned().unzip();
            self.unembed(&indices)?;
            self.backend.draw(&self.scratch.logits, &draws, tokens)?;
        }
        Ok(tokens)
    }

    /// Logits of at most [`LOGIT_ROWS`] rows, on the device.
    fn unembed(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        let Self { backend, scratch: s, config, .. } = self;
        backend.gather(&s.residual, rows, &mut s.last)?;
        let norm = (&self.final_norm, config.rms_eps);
        backend.norm_linear(&s.last, rows.len(), norm, &self.lm_head, None, &mut s.last_normed, &mut s.logits)?;
        Ok(())
    }
}

impl<B: Backend> Layer<B> {
    /// `x += attention(norm(x)); x += experts(norm(x))`, x being the residual stream.
    fn forward(
        &self,
        backend: &B,
        config: &Config,
        rope: &Rope,
        batch: &Batch<'_>,
        kv: &mut B::Kv,
        s: &mut Scratch<B>,
    ) -> Result<(), ModelError> {
        let (n, eps) = (batch.tokens.len(), config.rms_eps);
        let context = AttentionContext { batch, kind: self.kind, layer: self.kv_layer, heads: config.heads };
        let (residual, normed, update) = (&mut s.residual, &mut s.normed, &mut s.update);
        backend.norm_linear(
            residual,
            n,
            (&self.input_norm, eps),
            &self.qkv,
            Some(&self.qkv_bias),
            normed,
            &mut s.qkv,
        )?;
        backend.rope_attention(&mut s.qkv, rope, &self.sinks, &context, kv, &mut s.attended)?;
        backend.linear_add(&s.attended, n, &self.out, Some(&self.out_bias), update, residual)?;
        let (router, bias) = (&self.router, &self.router_bias);
        backend.norm_route(residual, n, (&self.post_norm, eps), router, bias, normed, &mut s.routing)?;
        backend.moe_add(normed, n, &s.routing, &self.experts, update, residual)?;
        Ok(())
    }
}

impl<B: Backend> Scratch<B> {
    fn new(backend: &B, config: &Config, rows: usize) -> Result<Self, BackendError> {
        let logit_rows = LOGIT_ROWS.min(rows);
        Ok(Self {
            residual: backend.buffer(rows, config.hidden)?,
            normed: backend.buffer(rows, config.hidden)?,
            qkv: backend.buffer(rows, config.qkv_width())?,
            attended: backend.buffer(rows, config.q_width())?,
            update: backend.buffer(rows, config.hidden)?,
            routing: backend.routing(rows, config.top_k)?,
            last: backend.buffer(logit_rows, config.hidden)?,
            last_normed: backend.buffer(logit_rows, config.hidden)?,
            logits: backend.buffer(logit_rows, config.vocab)?,
            host_logits: vec![0.0; logit_rows * config.vocab],
        })
    }
}

/// Reads tensors onto the device.
struct Loader<'a, B: Backend> {
    backend: &'a B,
    store: &'a dyn WeightStore,
    dense: DenseFormat,
}

impl<B: Backend> Loader<'_, B> {
    fn matrix(&self, id: TensorId, format: DenseFormat) -> Result<B::Matrix, ModelError> {
        let source = self.store.tensor(id)?;
        self.backend.matrix(source.as_ref(), format).map_err(|source| loading(id, source))
    }

    fn vector(&self, id: TensorId) -> Result<B::Vector, ModelError> {
        let source = self.store.tensor(id)?;
        self.backend.vector(source.as_ref()).map_err(|source| loading(id, source))
    }

    fn layer(&self, config: &Config, index: usize, kind: LayerKind, kv_layer: usize) -> Result<Layer<B>, ModelError> {
        use LayerTensor::*;
        let id = |tensor| TensorId::Layer(index, tensor);
        let kind = match kind {
            LayerKind::Full => AttentionKind::Full,
            LayerKind::Sliding => AttentionKind::Sliding { window: config.sliding_window },
        };
        let qkv = weights::qkv_weight(self.store, index)?;
        let qkv_bias = weights::qkv_bias(self.store, index)?;
        Ok(Layer {
            kind,
            kv_layer,
            input_norm: self.vector(id(InputNorm))?,
            qkv: self.backend.matrix(&qkv, self.dense).map_err(|source| loading(id(QWeight), source))?,
            qkv_bias: self.backend.vector(&qkv_bias).map_err(|source| loading(id(QBias), source))?,
            sinks: self.vector(id(Sinks))?,
            out: self.matrix(id(OWeight), self.dense)?,
            out_bias: self.vector(id(OBias))?,
            post_norm: self.vector(id(PostAttentionNorm))?,
            router: self.matrix(id(RouterWeight), DenseFormat::Bf16)?,
            router_bias: self.vector(id(RouterBias))?,
            experts: self.experts(config, index)?,
        })
    }

    fn experts(&self, config: &Config, layer: usize) -> Result<B::Experts, ModelError> {
        let tensor = |tensor| self.store.tensor(TensorId::Layer(layer, tensor));
        let shape = ExpertsShape {
            experts: config.experts,
            hidden: config.hidden,
            intermediate: config.intermediate,
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
}

fn loading(id: TensorId, source: BackendError) -> ModelError {
    ModelError::Backend { what: format!("loading {}", id.hub_name()), source }
}
