use tandem_backend::{DenseFormat, KvFormat};
use tandem_step::Capacity;

use super::table::{MemoryLine, MemoryTable, human};
use super::weights::{Counting, WeightBytes, weight_bytes};
use super::working::{DeviceWork, device_bytes};
use crate::forward::LOGIT_ROWS;
use crate::shard::{Shard, ShardError, ShardPlan};
use crate::{Config, LayerKind};

/// What a model is to be loaded with.
#[derive(Clone, Copy, Debug)]
pub struct MemoryRequest {
    /// Format of attention and lm_head weights.
    pub dense: DenseFormat,
    /// Format of cached keys and values.
    pub kv: KvFormat,
    /// Where and how the model is computed, which decides what it needs to work.
    pub computing: Computing,
    /// Most positions of a request; `None` for as many as fit, up to the model's.
    pub context: Option<u32>,
    /// Requests that may run at once.
    pub max_streams: u32,
    /// Most prompt tokens of a step.
    pub prefill_chunk: u32,
    /// Positions of a KV block.
    pub block_tokens: u32,
    /// Bytes that one node may use in all.
    pub budget_bytes: u64,
    /// What the node holds of the model. Of several, rank 0 needs most: what fits there with the least budget of all fits
    /// everywhere.
    pub shard: ShardPlan,
}

/// How memory is divided on one node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemoryPlan {
    /// What the node holds of the model.
    pub shard: ShardPlan,
    /// What asks for how much.
    pub table: MemoryTable,
    /// Sizes of the KV pools and of a step.
    pub capacity: Capacity,
    /// What every token of context costs in keys and values of the full layers.
    pub full_kv_bytes_per_token: u64,
    /// What every token in the window costs in those of the sliding layers.
    pub sliding_kv_bytes_per_token: u64,
}

/// Why there is no plan.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemoryError {
    /// The model or the context asked for needs more than there may be.
    #[error("a context of {context} tokens needs {} and only {} may be used:\n{table}",
        human(table.total_bytes()), human(table.budget_bytes))]
    DoesNotFit {
        /// The context asked for, or the least that is worth starting with.
        context: u32,
        /// What it would take.
        table: MemoryTable,
    },
    /// The model was not made for so many positions.
    #[error("the model has a context of {max} tokens, not {asked}")]
    ContextTooLong {
        /// Asked for.
        asked: u32,
        /// The model's own.
        max: u32,
    },
    /// A number that must not be 0 is.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// The model cannot be divided so.
    #[error(transparent)]
    Shard(#[from] ShardError),
}

/// The least context that is chosen without being asked for.
const MIN_CONTEXT: u32 = 1024;

/// The full pool has room for one request of the whole context, and for this many tokens of every other stream.
const TOKENS_PER_STREAM: u32 = 8192;

/// Windows of the sliding layers that the prefix cache may keep: some per stream, and some for conversations that pause.
const WINDOWS_PER_STREAM: u32 = 2;
const WINDOWS_BESIDE: u32 = 16;

/// Code, the tokenizer's tables, thread stacks and requests under way: an estimate, with room to spare.
const PROGRAM_BYTES: u64 = 100_000_000;

/// Divides the budget: weights, working memory and the sliding layers' pool first, the rest to the full layers' pool.
pub fn plan_memory(config: &Config, request: &MemoryRequest) -> Result<MemoryPlan, MemoryError> {
    check(config, request)?;
    let shard = request.shard.shard(config)?;
    let max = config.max_context as u32;
    // Tables of blocks are planned for the longest context first, then for the one that fits.
    let sizes = Sizes::new(config, request, &shard, request.context.unwrap_or(max));
    let context = match request.context {
        Some(asked) => asked,
        None => sizes.blocks_that_fit().saturating_mul(request.block_tokens).clamp(MIN_CONTEXT.min(max), max),
    };
    let sizes = Sizes::new(config, request, &shard, context);
    let least = context.div_ceil(request.block_tokens);
    let full_blocks = sizes.blocks_that_fit().min(sizes.blocks_wanted(context)).max(least);
    let table = sizes.table(full_blocks);
    if table.total_bytes() > request.budget_bytes {
        return Err(MemoryError::DoesNotFit { context, table });
    }
    Ok(MemoryPlan {
        shard: request.shard,
        table,
        capacity: Capacity {
            block_tokens: request.block_tokens,
            full_blocks,
            sliding_blocks: sizes.sliding_blocks,
            window: config.sliding_window as u32,
            context,
            max_streams: request.max_streams,
            max_step_tokens: sizes.step_tokens,
            layers: config.layers() as u32,
            vocab: config.vocab as u32,
        },
        full_kv_bytes_per_token: sizes.full_token_bytes,
        sliding_kv_bytes_per_token: sizes.sliding_token_bytes,
    })
}

fn check(config: &Config, request: &MemoryRequest) -> Result<(), MemoryError> {
    let numbers = [
        ("the context", request.context.unwrap_or(1)),
        ("the number of streams", request.max_streams),
        ("the prefill chunk", request.prefill_chunk),
        ("the tokens per block", request.block_tokens),
    ];
    if let Some((what, _)) = numbers.iter().find(|(_, number)| *number == 0) {
        return Err(MemoryError::Zero(what));
    }
    let max = config.max_context as u32;
    if let Some(asked) = request.context.filter(|&asked| asked > max) {
        return Err(MemoryError::ContextTooLong { asked, max });
    }
    Ok(())
}

/// Where and how a model is computed.
#[derive(Clone, Copy, Debug)]
pub enum Computing {
    /// On the CPU in f32.
    CpuExact,
    /// On the CPU with quantised activations.
    CpuFast,
    /// On an NVIDIA GPU, whose backend takes so much for a step.
    Cuda(DeviceWork),
}

/// What things cost, and all counts that do not depend on the budget.
struct Sizes<'a> {
    request: &'a MemoryRequest,
    weights: WeightBytes,
    activations: u64,
    full_token_bytes: u64,
    sliding_token_bytes: u64,
    sliding_blocks: u32,
    step_tokens: u32,
}

impl<'a> Sizes<'a> {
    fn new(config: &Config, request: &'a MemoryRequest, shard: &Shard, context: u32) -> Self {
        let step_tokens = request.prefill_chunk.saturating_add(request.max_streams);
        let counting = Counting {
            dense: request.dense,
            experts: shard.experts.len(),
            shard,
            vector_bytes: size_of::<f32>() as u64,
        };
        let layer_token = 2 * (shard.kv_heads.len() * config.head_dim * request.kv.bytes()) as u64;
        Self {
            request,
            weights: weight_bytes(config, counting),
            activations: match request.computing {
                Computing::Cuda(work) => device_bytes(config, request, shard, (step_tokens, context), work),
                Computing::CpuExact => cpu_bytes(config, request, shard, step_tokens, false),
                Computing::CpuFast => cpu_bytes(config, request, shard, step_tokens, true),
            },
            full_token_bytes: layer_token * config.layers_of(LayerKind::Full) as u64,
            sliding_token_bytes: layer_token * config.layers_of(LayerKind::Sliding) as u64,
            sliding_blocks: sliding_blocks(config, request),
            step_tokens,
        }
    }

    fn block_bytes(&self, token_bytes: u64) -> u64 {
        token_bytes * u64::from(self.request.block_tokens)
    }

    /// Blocks of the full pool that the budget has room for. A model without full layers needs no bytes for them.
    fn blocks_that_fit(&self) -> u32 {
        let left = self.request.budget_bytes.saturating_sub(self.table(0).total_bytes());
        let blocks = left.checked_div(self.block_bytes(self.full_token_bytes)).unwrap_or(u64::MAX);
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }

    /// Blocks of the full pool that are of use.
    fn blocks_wanted(&self, context: u32) -> u32 {
        let others = u64::from(self.request.max_streams - 1) * u64::from(context.min(TOKENS_PER_STREAM));
        let blocks = (u64::from(context) + others).div_ceil(u64::from(self.request.block_tokens));
        u32::try_from(blocks).unwrap_or(u32::MAX)
    }

    fn table(&self, full_blocks: u32) -> MemoryTable {
        let (weights, request) = (&self.weights, self.request);
        let dense = match request.dense {
            DenseFormat::Bf16 => "BF16",
            DenseFormat::Q8 => "8-bit, scales included",
            DenseFormat::Mxfp4 => "MXFP4",
        };
        let attention_and_head = weights.attention + weights.lm_head;
        let attention_scales = weights.dense_scales * weights.attention / attention_and_head.max(1);
        let kv = match request.kv {
            KvFormat::F32 => "F32",
            KvFormat::Bf16 => "BF16",
            KvFormat::Fp8 => "FP8",
        };
        let pool = |blocks: u32| format!("{kv}, {} tokens", u64::from(blocks) * u64::from(request.block_tokens));
        let line = |what, bytes, note: String| MemoryLine { what, bytes, note };
        let full_bytes = self.block_bytes(self.full_token_bytes) * u64::from(full_blocks);
        let sliding_bytes = self.block_bytes(self.sliding_token_bytes) * u64::from(self.sliding_blocks);
        let lines = vec![
            line("experts", weights.experts, "MXFP4".into()),
            line("attention", weights.attention + attention_scales, dense.into()),
            line("lm_head", weights.lm_head + weights.dense_scales - attention_scales, dense.into()),
            line("embedding", weights.embedding, "BF16".into()),
            line("router, norms, biases", weights.small, "BF16 and F32".into()),
            line("KV, full layers", full_bytes, pool(full_blocks)),
            line("KV, sliding layers", sliding_bytes, pool(self.sliding_blocks)),
            line("activations", self.activations, format!("{} tokens a step", self.step_tokens)),
            line("program", PROGRAM_BYTES, "tokenizer, threads, requests".into()),
        ];
        MemoryTable { lines, budget_bytes: request.budget_bytes }
    }
}

/// Blocks of the sliding layers' pool: every stream's window, which with a step under way and one planned ahead is wider
/// by two positions, wherever it lies relative to block borders; a chunk of prompt in each of those two steps; and the
/// windows kept for the prefix cache.
fn sliding_blocks(config: &Config, request: &MemoryRequest) -> u32 {
    let spanned = |tokens: u64| (tokens - 1).div_ceil(u64::from(request.block_tokens)) + 1;
    let (window, streams) = (config.sliding_window as u64, u64::from(request.max_streams));
    let chunk = u64::from(request.prefill_chunk.min(config.max_context as u32));
    let windows = streams * u64::from(WINDOWS_PER_STREAM) + u64::from(WINDOWS_BESIDE);
    let blocks = streams * spanned(window + 2) + 2 * spanned(chunk) + windows * spanned(window);
    u32::try_from(blocks).unwrap_or(u32::MAX)
}

/// Working memory on a CPU: per token of a step the residual stream, its norm, an update, q, k, v and attention's result in f32, and
/// the chosen experts' inner activations; a second residual stream for a token of every request; logits of some rows, on the
/// device and on the host; a chunk's input quantised.
fn cpu_bytes(config: &Config, request: &MemoryRequest, shard: &Shard, step_tokens: u32, fast: bool) -> u64 {
    const F32: usize = size_of::<f32>();
    let heads = shard.qkv_width(config) + shard.q_width(config);
    let inner = config.top_k * shard.units.len();
    let widest = config.hidden.max(shard.q_width(config));
    let quantised = |values: usize| values + values / 32 * 2 * F32;
    let temporary = if fast {
        // Each twice over.
        2 * (quantised(inner) + quantised(config.hidden) + quantised(widest))
    } else {
        inner * F32
    };
    let per_token = (3 * config.hidden + heads + config.experts) * F32 + temporary;
    let logits = LOGIT_ROWS * (2 * config.hidden + logits_per_row(config, shard)) * F32;
    let beside = request.max_streams as usize * config.hidden * F32;
    u64::from(step_tokens) * per_token as u64 + (beside + logits) as u64
}

/// Values kept for a row of logits: this rank's on the device, those of all ranks on the host, and with several ranks
/// this one's there before they are exchanged.
pub(super) fn logits_per_row(config: &Config, shard: &Shard) -> usize {
    let (world, most) = (shard.plan.world, shard.vocab_max(config));
    shard.vocab.len() + world * most + if world > 1 { most } else { 0 }
}
