//! The [`Backend`] trait, the CPU implementation and the conformance suite every backend must pass.
//!
//! A backend speaks in whole model operations, about a dozen, not in tensor algebra. It knows shapes and number formats,
//! and nothing of requests, checkpoints or text.

use std::sync::Arc;

mod batch;
pub mod conformance;
mod count;
pub mod cpu;
mod error;
mod exchange;
mod formats;
mod source;

pub use batch::{Batch, Sequence};
pub use count::ExpertCount;
pub use error::BackendError;
pub use exchange::{ExchangeMemory, PacketMemory, Passage, PeerMemory, RelayMemory};
pub use formats::{DenseFormat, KvFormat, Precision};
pub use source::{ExpertsShape, ExpertsSource, RowSource};

/// Shape of one pool of KV blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KvShape {
    /// Layers that share the pool; a block holds `block_tokens` positions of every one of them.
    pub layers: usize,
    /// Blocks.
    pub blocks: usize,
    /// Positions a block holds.
    pub block_tokens: usize,
    /// Key (and value) heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number format.
    pub format: KvFormat,
}

/// Parameters of rotary position embedding, already resolved: the angle of pair `j` at position `p` is `p * inv_freq[j]`
/// (an f32 product), and both cosine and sine are multiplied by `scale`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rope {
    /// `head_dim / 2` inverse frequencies.
    pub inv_freq: Vec<f32>,
    /// YaRN's concentration, multiplied into q and k both.
    pub scale: f32,
}

/// Which attention pattern a layer has, and so which block table of a [`Sequence`] it uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AttentionKind {
    /// All earlier positions.
    Full,
    /// The last `window` positions, the query's own included.
    Sliding {
        /// Window in tokens.
        window: usize,
    },
}

/// Everything an attention operation reads beside its activations.
#[derive(Debug)]
pub struct AttentionContext<'a> {
    /// The sequences in this step.
    pub batch: &'a Batch<'a>,
    /// The pattern.
    pub kind: AttentionKind,
    /// The layer's index within its pool.
    pub layer: usize,
    /// Query heads of this shard. Query head `h` reads key head `h / (heads / kv_heads)`.
    pub heads: usize,
}

/// Most that one step brings: what a device makes room for ahead of time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows of a batch.
    pub rows: usize,
    /// Sequences of a batch.
    pub sequences: usize,
    /// Entries of a sequence's block table.
    pub blocks: usize,
    /// Shape of the model, or of the shard that is held.
    pub widths: Widths,
}

/// Sizes of a model, or of the shard that is held, that working memory depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Widths {
    /// Residual stream.
    pub hidden: usize,
    /// All query heads together.
    pub attended: usize,
    /// Units of an expert.
    pub intermediate: usize,
    /// Experts that the router chooses among.
    pub experts: usize,
    /// Experts chosen per row.
    pub top_k: usize,
    /// Key heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Logits.
    pub vocab: usize,
}

/// How a token is chosen from a row of logits, where nothing but a temperature and a mask have a say.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// 0 takes the likeliest token, lowest id on a tie.
    pub temperature: f32,
    /// A random number in [0, 1): the inverse of the cumulative distribution is taken there, in order of token id.
    pub uniform: f64,
    /// Which tokens may be chosen, one bit per token id, 32 to a word, lowest bit first, at least one set;
    /// ids beyond its end may not. `None`: any.
    pub mask: Option<Arc<[u32]>>,
}

/// What a draw gives where the largest logit that may be chosen is not finite.
pub const NO_TOKEN: u32 = u32::MAX;

/// Logits of some tokens of the vocabulary: those that one of several ranks has.
#[derive(Debug)]
pub struct LogitsPart<'a, Buffer> {
    /// `[rows, tokens]`.
    pub logits: &'a Buffer,
    /// The first of these tokens.
    pub first: usize,
}

/// A token with its logit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Candidate {
    /// Its logit.
    pub logit: f32,
    /// Its number in the whole vocabulary.
    pub token: u32,
}

/// A device that runs gpt-oss, operation by operation, in the order called.
///
/// Activations are row-major `f32` buffers `[rows, width]`; an operation reads and writes the first `n` rows, where `n`
/// is the number of rows named in its arguments. With [`Precision::Exact`] every output row depends on its own input row
/// (and its own sequence's cache) alone, to the bit: not on other rows, the number of threads, or the instruction set.
pub trait Backend: Send {
    /// Activations in device memory.
    type Buffer: Send;
    /// A weight matrix `[rows, cols]`.
    type Matrix: Send;
    /// A vector of f32 parameters: biases, norm weights, sinks.
    type Vector: Send;
    /// The experts of one layer.
    type Experts: Send;
    /// A pool of KV blocks.
    type Kv: Send;
    /// Chosen experts and their weights, for every row.
    type Routing: Send;

    /// Device, code path and precision, for the log: `cpu avx512-vnni, 2 threads, activations int8 twice over`.
    fn describe(&self) -> String;
    /// Whether activations of prompts are rounded to 8 bits before the experts, which shows in what a model computes.
    fn eight_bit_prompts(&self) -> bool {
        false
    }

    // ---- memory ----

    /// A zeroed buffer.
    fn buffer(&self, rows: usize, width: usize) -> Result<Self::Buffer, BackendError>;
    /// Space for the routing of `rows` rows.
    fn routing(&self, rows: usize, top_k: usize) -> Result<Self::Routing, BackendError>;
    /// A pool of KV blocks.
    fn kv(&self, shape: KvShape) -> Result<Self::Kv, BackendError>;
    /// Copies a vector of BF16 values to the device.
    fn vector(&self, source: &dyn RowSource) -> Result<Self::Vector, BackendError>;
    /// Reads a BF16 matrix from `source`, converting to `format` on the way; never holds it twice.
    fn matrix(&self, source: &dyn RowSource, format: DenseFormat) -> Result<Self::Matrix, BackendError>;
    /// Reads a layer's experts from `source`, repacking on the way; never holds them twice.
    fn experts(&self, shape: ExpertsShape, source: &ExpertsSource<'_>) -> Result<Self::Experts, BackendError>;
    /// Copies rows of a buffer to the host: `out` holds `n * width` values from row `first` on.
    fn download(&self, buffer: &Self::Buffer, first: usize, out: &mut [f32]) -> Result<(), BackendError>;
    /// Copies values from the host into rows of a buffer.
    fn upload(&self, buffer: &mut Self::Buffer, first: usize, values: &[f32]) -> Result<(), BackendError>;
    /// Lets `change` work on the first `values` values of a buffer where the host can reach them.
    fn on_host<E: From<BackendError>>(
        &self,
        buffer: &mut Self::Buffer,
        values: usize,
        change: &mut dyn FnMut(&mut [f32]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut host = vec![0.0; values];
        self.download(buffer, 0, &mut host)?;
        change(&mut host)?;
        Ok(self.upload(buffer, 0, &host)?)
    }

    // ---- exchanges with other ranks ----

    /// Takes memory for exchanges into use, or lets go of what it had. `false`: this device leaves them to the host.
    fn join(&self, _memory: Option<&ExchangeMemory>) -> Result<bool, BackendError> {
        Ok(false)
    }
    /// The number of the first message of the step that begins now. The last step has been waited for.
    fn number_exchanges(&self, _first: u64) -> Result<(), BackendError> {
        Err(BackendError::Unsupported("this device leaves exchanges to the host".into()))
    }
    /// `into += Σ part`, over all ranks in their order, for the first `n` rows: the step's next messages, as many as that takes.
    fn exchange_add(&self, _part: &Self::Buffer, _n: usize, _into: &mut Self::Buffer) -> Result<(), BackendError> {
        Err(BackendError::Unsupported("this device leaves exchanges to the host".into()))
    }

    // ---- steps ----

    /// Everything is loaded: makes room for steps within these limits, so that no step allocates. Larger ones fail from then on.
    fn reserve(&self, _limits: StepLimits) -> Result<(), BackendError> {
        Ok(())
    }
    /// Tells the device of the rows that the operations from here on are about; these are given the same batch. A device of
    /// its own memory copies positions and block tables once here instead of in every layer.
    fn begin(&self, _batch: &Batch<'_>) -> Result<(), BackendError> {
        Ok(())
    }
    /// Calls `run`, which does nothing but call operations on `batch`, or does what it did the last time for a batch of the
    /// same shape: a device may record the operations and replay them.
    fn repeat<E: From<BackendError>>(
        &self,
        _batch: &Batch<'_>,
        run: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        run()
    }

    /// Waits until all that was called is done, on a device that computes by itself.
    fn wait(&self) -> Result<(), BackendError> {
        Ok(())
    }

    /// Numbers of single rows whose steps are best run twice before the first request, as a device may record them then. With
    /// other numbers that happens on first use.
    fn worth_recording(&self) -> Vec<usize> {
        Vec::new()
    }

    /// From now on counts how many different experts each [`Backend::moe`] of a step of single rows chose from, or no longer.
    /// Costs time: for measuring. A device that cannot count refuses.
    fn count_experts(&self, _on: bool) -> Result<(), BackendError> {
        Err(BackendError::Unsupported("this device does not count experts".into()))
    }
    /// What was counted since the last call.
    fn experts_counted(&self) -> Result<ExpertCount, BackendError> {
        Ok(ExpertCount::default())
    }

    // ---- operations ----

    /// Copies KV blocks onto others of the same pool, all layers: `(from, to)` pairs.
    fn copy_blocks(&self, kv: &mut Self::Kv, pairs: &[(u32, u32)]) -> Result<(), BackendError>;
    /// `out[i] = table[batch.tokens[i]]`; the table is in [`DenseFormat::Bf16`].
    fn embed(&self, table: &Self::Matrix, batch: &Batch<'_>, out: &mut Self::Buffer) -> Result<(), BackendError>;
    /// `out = x * rsqrt(mean(x^2) + eps) * weight`, for the first `n` rows.
    fn rms_norm(
        &self,
        x: &Self::Buffer,
        n: usize,
        weight: &Self::Vector,
        eps: f32,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError>;
    /// `out = x · weightᵀ + bias`, for the first `n` rows.
    fn linear(
        &self,
        x: &Self::Buffer,
        n: usize,
        weight: &Self::Matrix,
        bias: Option<&Self::Vector>,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError>;
    /// Rotates the q and k parts of `qkv` (each row: `heads` q heads, then `kv_heads` k heads, then v heads) in place and
    /// stores k and v of every row in its sequence's blocks. Half-split (NeoX) rotation.
    fn rope_store(
        &self,
        qkv: &mut Self::Buffer,
        rope: &Rope,
        context: &AttentionContext<'_>,
        kv: &mut Self::Kv,
    ) -> Result<(), BackendError>;
    /// Attention of every row over its sequence's cached keys and values, scores times `1 / sqrt(head_dim)`, with one sink logit
    /// per query head in the denominator. Reads the q part of `qkv`; `out` is `[n, heads * head_dim]`.
    fn attention(
        &self,
        qkv: &Self::Buffer,
        sinks: &Self::Vector,
        context: &AttentionContext<'_>,
        kv: &Self::Kv,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError>;
    /// Router: logits `x · weightᵀ + bias` in f32, the `top_k` largest (lowest index on a tie), softmax over those.
    fn route(
        &self,
        x: &Self::Buffer,
        n: usize,
        weight: &Self::Matrix,
        bias: &Self::Vector,
        out: &mut Self::Routing,
    ) -> Result<(), BackendError>;
    /// `out[i] = Σ_e w_e · (down_e · swiglu(gate_up_e · x[i] + b1_e) + b2_e)` over the row's chosen experts, summed in
    /// ascending order of rank in the routing. `swiglu`: `a · sigmoid(alpha · a) · (u + 1)` with `a = min(gate, limit)`,
    /// `u = clamp(up, -limit, limit)`. Chosen experts that are not held (see [`ExpertsShape`]) are left out of the sum.
    fn moe(
        &self,
        x: &Self::Buffer,
        n: usize,
        routing: &Self::Routing,
        experts: &Self::Experts,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError>;
    /// `x += y`, for the first `n` rows.
    fn add(&self, x: &mut Self::Buffer, n: usize, y: &Self::Buffer) -> Result<(), BackendError>;
    /// `out[i] = x[rows[i]]`.
    fn gather(&self, x: &Self::Buffer, rows: &[usize], out: &mut Self::Buffer) -> Result<(), BackendError>;

    /// Whether [`Backend::draw`] and the three after it work. Where they do not, logits are brought to the host.
    const DRAWS: bool = false;
    /// Chooses `tokens[i]` as `draws[i]` says: from which row of `logits`, and how; [`NO_TOKEN`] where that cannot be.
    fn draw(&self, _logits: &Self::Buffer, _draws: &[(usize, Draw)], _tokens: &mut [u32]) -> Result<(), BackendError> {
        Err(BackendError::Unsupported("this device draws no tokens".into()))
    }
    /// A rank's share in a draw among ranks: the likeliest token that `draws[i]` allows of its row, the lowest of equals; where there
    /// is none the logit is minus infinity.
    fn likeliest(
        &self,
        _part: &LogitsPart<'_, Self::Buffer>,
        _draws: &[(usize, Draw)],
        _best: &mut [Candidate],
    ) -> Result<(), BackendError> {
        Err(BackendError::Unsupported("this device draws no tokens".into()))
    }
    /// The sum of the weights `exp((logit - largest[i]) / temperature)` of tokens that `draws[i]` allows of its row, each rounded to
    /// whole units of 2^-44; `largest[i]` is that of all ranks. 0 where the likeliest is taken, or `largest[i]` is not finite.
    fn weigh(
        &self,
        _part: &LogitsPart<'_, Self::Buffer>,
        _draws: &[(usize, Draw)],
        _largest: &[f32],
        _sums: &mut [u64],
    ) -> Result<(), BackendError> {
        Err(BackendError::Unsupported("this device draws no tokens".into()))
    }
    /// The token at which the sum of those weights, in order of tokens, first exceeds `targets[i]`; none without a target.
    fn find(
        &self,
        _part: &LogitsPart<'_, Self::Buffer>,
        _draws: &[(usize, Draw)],
        _largest: &[f32],
        _targets: &[Option<u64>],
        _tokens: &mut [Option<u32>],
    ) -> Result<(), BackendError> {
        Err(BackendError::Unsupported("this device draws no tokens".into()))
    }

    // ---- operations that follow one another, as one: devices for which a launch or a pass over memory is dear do better ----

    /// [`Backend::rms_norm`], given weight and eps, then [`Backend::linear`]. `normed` may be used for what is in between.
    #[allow(clippy::too_many_arguments)]
    fn norm_linear(
        &self,
        x: &Self::Buffer,
        n: usize,
        (norm, eps): (&Self::Vector, f32),
        weight: &Self::Matrix,
        bias: Option<&Self::Vector>,
        normed: &mut Self::Buffer,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        self.rms_norm(x, n, norm, eps, normed)?;
        self.linear(normed, n, weight, bias, out)
    }
    /// [`Backend::linear`], then [`Backend::add`] to `into`. `update` may be used for what is in between.
    fn linear_add(
        &self,
        x: &Self::Buffer,
        n: usize,
        weight: &Self::Matrix,
        bias: Option<&Self::Vector>,
        update: &mut Self::Buffer,
        into: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        self.linear(x, n, weight, bias, update)?;
        self.add(into, n, update)
    }
    /// [`Backend::rope_store`], then [`Backend::attention`]. What `qkv` holds afterwards is undefined.
    fn rope_attention(
        &self,
        qkv: &mut Self::Buffer,
        rope: &Rope,
        sinks: &Self::Vector,
        context: &AttentionContext<'_>,
        kv: &mut Self::Kv,
        out: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        self.rope_store(qkv, rope, context, kv)?;
        self.attention(qkv, sinks, context, kv, out)
    }
    /// [`Backend::rms_norm`] to `normed`, then [`Backend::route`].
    #[allow(clippy::too_many_arguments)]
    fn norm_route(
        &self,
        x: &Self::Buffer,
        n: usize,
        (norm, eps): (&Self::Vector, f32),
        weight: &Self::Matrix,
        bias: &Self::Vector,
        normed: &mut Self::Buffer,
        out: &mut Self::Routing,
    ) -> Result<(), BackendError> {
        self.rms_norm(x, n, norm, eps, normed)?;
        self.route(normed, n, weight, bias, out)
    }
    /// [`Backend::moe`], then [`Backend::add`] to `into`. `update` may be used for what is in between.
    fn moe_add(
        &self,
        x: &Self::Buffer,
        n: usize,
        routing: &Self::Routing,
        experts: &Self::Experts,
        update: &mut Self::Buffer,
        into: &mut Self::Buffer,
    ) -> Result<(), BackendError> {
        self.moe(x, n, routing, experts, update)?;
        self.add(into, n, update)
    }
}
