//! What a step should take: bytes, arithmetic, launches and exchanges of every kernel, against the limits of a card.

mod card;
mod compare;

use tandem_model::memory::bytes_per_token;
use tandem_model::{Config, ExpertSplit, Formats, LayerKind, Shard, ShardError, ShardPlan};

pub use card::Card;
pub use compare::{Figure, print_figures, print_prediction};

/// Steps of up to so many rows run on kernels that fuse norms, sums and rotation.
const FEW_ROWS: u32 = 8;
/// Rows up to which the router is one launch.
const ROUTE_ROWS: u32 = 128;
const F32: f64 = 4.0;
const F16: f64 = 2.0;

/// What is run: a model, as one of so many nodes has it.
#[derive(Clone, Debug)]
pub struct Subject<'a> {
    config: &'a Config,
    formats: Formats,
    shard: Shard,
}

/// One step.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// Rows: tokens computed together.
    pub rows: u32,
    /// Rows whose logits are wanted.
    pub logits: u32,
    /// Sequences.
    pub sequences: u32,
    /// Positions that a row of a full-attention layer looks at, on the average.
    pub depth: f64,
    /// Different experts that a layer reads; `None`: as many as independent, equally likely choices give.
    pub experts: Option<f64>,
}

impl Load {
    /// Whether no sequence has more than one row: answers are written, no prompt is read.
    fn decodes(&self) -> bool {
        self.rows == self.sequences
    }
}

/// What is asked of the card by all launches of a kind in a step.
#[derive(Clone, Copy, Debug)]
pub struct Kernel {
    /// What it does.
    pub name: &'static str,
    /// Launches.
    pub launches: f64,
    /// Bytes of weights, or of keys and values.
    pub bytes: f64,
    /// Bytes of activations, which kernels of many rows write and read again.
    pub activations: f64,
    /// Products, FLOP.
    pub products: f64,
    /// Products of prompts with experts, FLOP: some cards have 8-bit ones for these.
    pub prompt_experts: f64,
    /// Attention of prompts, FLOP.
    pub attention: f64,
    /// Exchanges between nodes.
    pub exchanges: f64,
    /// Bytes a node sends in them.
    pub sent: f64,
}

impl Kernel {
    /// Seconds: reading or arithmetic, whichever is longer; moving activations; launches; exchanges. `None` where the card's
    /// rates are not known and matter.
    pub fn seconds(&self, card: &Card) -> Option<f64> {
        let arithmetic = |flop: f64, rate: Option<f64>| if flop > 0.0 { Some(flop / rate?) } else { Some(0.0) };
        let products = arithmetic(self.products, card.products)?
            + arithmetic(self.prompt_experts, card.prompt_experts)?
            + arithmetic(self.attention, card.attention)?;
        let moved = self.activations / card.read;
        let fixed = self.launches * card.launch + self.exchanges * card.exchange;
        Some((self.bytes / card.read).max(products) + moved + fixed + self.sent / card.link)
    }
}

/// Seconds of a whole step.
pub fn seconds(kernels: &[Kernel], card: &Card) -> Option<f64> {
    kernels.iter().map(|kernel| kernel.seconds(card)).sum()
}

impl<'a> Subject<'a> {
    /// A model of these formats, spread over so many nodes.
    pub fn new(config: &'a Config, formats: Formats, nodes: usize) -> Result<Self, ShardError> {
        let plan = ShardPlan { rank: 0, world: nodes, experts: ExpertSplit::Slice };
        Ok(Self { config, formats, shard: plan.shard(config)? })
    }

    /// Every kernel of a step on one node.
    pub fn step(&self, load: Load) -> Vec<Kernel> {
        let Self { config, formats, shard } = self;
        let nodes = shard.plan.world;
        let (world, rows) = (nodes as f64, f64::from(load.rows));
        let few = load.rows <= FEW_ROWS;
        let layers = config.layers() as f64;
        let bytes = bytes_per_token(config, formats.dense, shard);
        let scales = bytes.dense_scales as f64 / (bytes.attention + bytes.lm_head) as f64;
        let scaled = |bytes: u64| bytes as f64 * (1.0 + scales);
        let (hidden, inner) = (config.hidden as f64, config.intermediate as f64 / world);
        let (q, qkv) = (config.q_width() as f64 / world, config.qkv_width() as f64 / world);
        let attention = scaled(bytes.attention);
        let (experts_read, top_k) = (self.experts_read(load), config.top_k as f64);
        let expert_bytes = bytes.experts as f64 / top_k * experts_read;
        let moved = |values: f64| if few { 0.0 } else { layers * rows * values };
        let times = |launches_few: f64, launches_many: f64| layers * if few { launches_few } else { launches_many };
        let kernel = |name, launches, bytes, activations, products| Kernel {
            name,
            launches,
            bytes,
            activations,
            products,
            prompt_experts: 0.0,
            attention: 0.0,
            exchanges: 0.0,
            sent: 0.0,
        };
        let prompts = |kernel: Kernel| match load.decodes() {
            true => kernel,
            false => Kernel { prompt_experts: kernel.products, products: 0.0, ..kernel },
        };
        let exchanges = if nodes > 1 { layers } else { 0.0 };
        let sent = exchanges * rows * hidden * F32;
        let mut kernels = vec![
            kernel(
                "norm, qkv",
                times(1.0, 2.0),
                attention * qkv / (qkv + q),
                moved(hidden * (F32 + 2.0 * F16) + qkv * F32),
                2.0 * layers * rows * hidden * qkv,
            ),
            Kernel {
                exchanges,
                sent,
                ..kernel(
                    "o_proj, sum",
                    times(1.0, 2.0),
                    attention * q / (qkv + q),
                    moved(q * (F32 + 2.0 * F16) + 2.0 * hidden * F32),
                    2.0 * layers * rows * hidden * q,
                )
            },
            kernel(
                "norm, router",
                layers * if load.rows <= ROUTE_ROWS { 1.0 } else { 5.0 },
                bytes.small as f64,
                moved(hidden * (2.0 * F32 + 4.0 * F16)),
                2.0 * layers * rows * hidden * config.experts as f64,
            ),
            prompts(kernel(
                "gate-up, SwiGLU",
                times(1.0, 3.0),
                expert_bytes * 2.0 / 3.0,
                moved(hidden * (F32 + F16) + top_k * (hidden + inner) * F16),
                2.0 * layers * rows * top_k * hidden * 2.0 * inner,
            )),
            Kernel {
                exchanges,
                sent,
                ..prompts(kernel(
                    "down, sum",
                    times(1.0, 2.0),
                    expert_bytes / 3.0,
                    moved(top_k * (inner * F16 + 2.0 * hidden * F32) + 2.0 * hidden * F32),
                    2.0 * layers * rows * top_k * hidden * inner,
                ))
            },
            kernel(
                "lm_head, draw, embedding",
                if load.logits == 0 { 1.0 } else { 4.0 },
                if load.logits == 0 { 0.0 } else { scaled(bytes.lm_head) },
                0.0,
                2.0 * f64::from(load.logits) * hidden * config.vocab as f64 / world,
            ),
        ];
        kernels.extend([LayerKind::Full, LayerKind::Sliding].map(|kind| self.attention(load, kind)));
        kernels
    }

    /// Attention of one kind of layers. Single rows are bound by reading keys and values, a prompt's by arithmetic.
    fn attention(&self, load: Load, kind: LayerKind) -> Kernel {
        let Self { config, formats, shard } = self;
        let world = shard.plan.world as f64;
        let layers = config.layers_of(kind) as f64;
        let (name, depth) = match kind {
            LayerKind::Full => ("attention, full", load.depth),
            LayerKind::Sliding => ("attention, sliding", load.depth.min(config.sliding_window as f64)),
        };
        let position = 2.0 * (config.kv_width() * formats.kv.bytes()) as f64 / world;
        let single = load.decodes();
        let (q, qkv) = (config.q_width() as f64 / world, config.qkv_width() as f64 / world);
        let rows = f64::from(load.rows);
        Kernel {
            name,
            launches: layers * if single { 1.0 } else { 2.0 },
            bytes: layers * f64::from(load.sequences) * depth * position,
            activations: if single { 0.0 } else { layers * rows * (2.0 * qkv + q) * F32 },
            products: 0.0,
            prompt_experts: 0.0,
            attention: if single { 0.0 } else { layers * rows * depth * 4.0 * q },
            exchanges: 0.0,
            sent: 0.0,
        }
    }

    fn experts_read(&self, load: Load) -> f64 {
        let (all, top_k) = (self.config.experts as f64, self.config.top_k as f64);
        load.experts.unwrap_or_else(|| all * (1.0 - (1.0 - top_k / all).powf(f64::from(load.rows))))
    }

    /// Decoding: so many streams, each with `depth` positions behind it.
    pub fn decode(streams: u32, depth: f64, experts: Option<f64>) -> Load {
        Load { rows: streams, logits: streams, sequences: streams, depth, experts }
    }

    /// The step in the middle of prompts of so many tokens, in chunks.
    pub fn chunk(prompt: u32, chunk: u32) -> Load {
        Load { rows: chunk.min(prompt), logits: 0, sequences: 1, depth: f64::from(prompt) / 2.0, experts: None }
    }

    /// Decoded tokens per second, all streams.
    pub fn decode_rate(&self, card: &Card, load: Load) -> Option<f64> {
        Some(f64::from(load.rows) / seconds(&self.step(load), card)?)
    }

    /// Seconds until prompts of `streams` requests are computed, chunk after chunk, and the first token of each is drawn.
    pub fn prefill_seconds(&self, card: &Card, prompt: u32, chunk: u32, streams: u32) -> Option<f64> {
        let load = Self::chunk(prompt, chunk);
        let chunks = f64::from(prompt) / f64::from(load.rows);
        let last = Load { logits: 1, ..load };
        let (each, last) = (seconds(&self.step(load), card)?, seconds(&self.step(last), card)?);
        Some(f64::from(streams) * ((chunks - 1.0) * each + last))
    }

    /// Bytes that a decode step reads on a node, everything counted once.
    pub fn decode_bytes(&self, load: Load) -> f64 {
        self.step(load).iter().map(|kernel| kernel.bytes).sum()
    }
}

#[cfg(test)]
mod tests;
