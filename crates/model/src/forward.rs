//! The gpt-oss forward pass over any [`Backend`].

mod candidates;
mod layer;
mod load;
mod residuals;
mod unembed;

use std::ops::Range;
use std::time::{Duration, Instant};

use tandem_backend::{
    Backend, BackendError, Batch, DenseFormat, Draw, ExpertCount, KvFormat, NO_TOKEN, Rope, StepLimits,
};
use tandem_step::{Capacity, Pool};

use self::layer::{Layer, Pass, Pools, Ranks, Scratch};
use self::load::Loader;
use self::residuals::{Residual, Residuals};
use self::unembed::Unembedding;
use crate::layout::TensorId;
use crate::shard::{Exchange, ExchangeError, ExpertSplit, Shard, ShardError, ShardPlan, ShardStore};
use crate::weights::WeightStore;
use crate::{CheckpointError, Config};

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
    /// The model cannot be divided as asked.
    #[error(transparent)]
    Shard(#[from] ShardError),
    /// The device refused.
    #[error("{what}: {source}")]
    Backend {
        /// What was being done.
        what: String,
        /// What went wrong.
        #[source]
        source: BackendError,
    },
    /// Another rank could not be reached.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
    /// A plan that contradicts the worker's state: a bug of whoever made it.
    #[error("bad plan: {0}")]
    Plan(String),
}

impl From<BackendError> for ModelError {
    fn from(source: BackendError) -> Self {
        ModelError::Backend { what: "forward pass".into(), source }
    }
}

/// A loaded model with its KV pools and working memory: everything it will ever allocate.
///
/// It holds the whole model, or one rank's shard of it, or the shards of all ranks as parts beside each other. The last
/// two compute the same bits: a rank adds its part to the others' through an [`Exchange`], in the order in which one
/// worker adds its parts.
pub struct Model<B: Backend> {
    backend: B,
    config: Config,
    capacity: Capacity,
    shards: Vec<ShardPlan>,
    exchange: Option<Box<dyn Exchange>>,
    /// Whether the device exchanges sums by itself instead of leaving that to the host.
    device_exchanges: bool,
    rope: Rope,
    embedding: B::Matrix,
    layers: Vec<Layer<B>>,
    unembedding: Unembedding<B>,
    /// One of each for every part.
    pools: Vec<Pools<B>>,
    residuals: Residuals<B>,
    scratch: Scratch<B>,
    allocation_time: Duration,
}

impl<B: Backend> Model<B> {
    /// Reads the weights of one shard from `store` and allocates caches and working memory for `capacity`.
    /// [`ShardPlan::UNDIVIDED`] is the whole model; any other needs [`Model::with_exchange`] before it runs.
    pub fn load(
        backend: B,
        store: &dyn WeightStore,
        formats: Formats,
        capacity: Capacity,
        shard: ShardPlan,
    ) -> Result<Self, ModelError> {
        Self::load_shards(backend, store, formats, capacity, vec![shard])
    }

    /// Reads the shards of all ranks of a world, to compute alone, bit by bit, what these do together.
    pub fn load_all(
        backend: B,
        store: &dyn WeightStore,
        formats: Formats,
        capacity: Capacity,
        world: usize,
        experts: ExpertSplit,
    ) -> Result<Self, ModelError> {
        Self::load_shards(backend, store, formats, capacity, ShardPlan::all(world, experts))
    }

    fn load_shards(
        backend: B,
        store: &dyn WeightStore,
        formats: Formats,
        capacity: Capacity,
        plans: Vec<ShardPlan>,
    ) -> Result<Self, ModelError> {
        let config = store.config().clone();
        let shards = plans.iter().map(|plan| plan.shard(&config)).collect::<Result<Vec<Shard>, _>>()?;
        let stores: Vec<ShardStore<'_>> = shards.iter().map(|shard| ShardStore::new(store, shard)).collect();
        let loader = Loader { backend: &backend, config: &config, stores: &stores, shards: &shards, formats };
        let embedding = loader.matrix(&stores[0], TensorId::Embedding, DenseFormat::Bf16)?;
        let layers = (0..config.layers()).map(|index| loader.layer(index)).collect::<Result<Vec<_>, _>>()?;
        let rows = capacity.max_step_tokens as usize;
        let unembedding = loader.unembedding(LOGIT_ROWS.min(rows))?;
        let loaded = Instant::now();
        let pools = shards.iter().map(|shard| loader.pools(shard, capacity)).collect::<Result<Vec<_>, _>>()?;
        let few = rows.min(capacity.max_streams as usize);
        let residuals = Residuals::new(&backend, &config, few, rows)?;
        let scratch = Scratch::new(&backend, &config, &shards, rows)?;
        let rope = config.rope();
        backend.reserve(StepLimits {
            rows,
            sequences: capacity.max_streams as usize,
            blocks: capacity.context.div_ceil(capacity.block_tokens) as usize,
            widths: shards[0].widths(&config),
        })?;
        let allocation_time = loaded.elapsed();
        Ok(Self {
            backend,
            config,
            capacity,
            shards: plans,
            exchange: None,
            device_exchanges: false,
            allocation_time,
            rope,
            embedding,
            layers,
            unembedding,
            pools,
            residuals,
            scratch,
        })
    }

    /// The same model, connected to the other ranks; an earlier connection is dropped. Fails unless the exchange is that of
    /// this rank.
    pub fn with_exchange(self, exchange: Box<dyn Exchange>) -> Result<Self, ModelError> {
        let (theirs, ours) = ((exchange.rank(), exchange.world()), self.place());
        if ours != Some(theirs) {
            let what = format!("an exchange of rank {} of {} for {:?}", theirs.0, theirs.1, self.shards);
            return Err(ExchangeError::new(what).into());
        }
        // The device lets go of the earlier one's memory first.
        self.backend.join(None)?;
        let memory = exchange.memory();
        let device_exchanges = memory.is_some() && self.backend.join(memory.as_ref())?;
        Ok(Self { exchange: Some(exchange), device_exchanges, ..self })
    }

    /// The model's configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Sizes of its pools and of a step.
    pub fn capacity(&self) -> Capacity {
        self.capacity
    }

    /// Whether its device rounds activations of prompts to 8 bits before the experts.
    pub fn eight_bit_prompts(&self) -> bool {
        self.backend.eight_bit_prompts()
    }

    /// The device it runs on, for the log.
    pub fn describe(&self) -> String {
        self.backend.describe()
    }

    /// How long allocating caches and working memory took.
    pub fn allocation_time(&self) -> Duration {
        self.allocation_time
    }

    /// The device.
    pub(crate) fn backend(&self) -> &B {
        &self.backend
    }

    /// Whether the experts that steps of single rows read are counted from now on.
    pub fn count_experts(&self, on: bool) -> Result<(), ModelError> {
        Ok(self.backend.count_experts(on)?)
    }

    /// What was counted since the last call.
    pub fn experts_counted(&self) -> Result<ExpertCount, ModelError> {
        Ok(self.backend.experts_counted()?)
    }

    /// Copies KV blocks, `(from, to)`.
    pub fn copy_blocks(&mut self, pool: Pool, pairs: &[(u32, u32)]) -> Result<(), ModelError> {
        for pools in &mut self.pools {
            self.backend.copy_blocks(pools.of(pool), pairs)?;
        }
        Ok(())
    }

    /// Runs every row through all layers, storing keys and values. The residual stream stays in working memory for
    /// [`Model::logits`].
    pub fn forward(&mut self, batch: &Batch<'_>) -> Result<(), ModelError> {
        let place = self.residuals.place(batch.tokens.len());
        self.pass(batch, 0..self.layers.len(), place)
    }

    /// The same through some layers, and on from there with the next call for the same batch. In between,
    /// [`Model::forward`] may run as many rows as there are streams.
    pub fn forward_slice(&mut self, batch: &Batch<'_>, layers: Range<usize>) -> Result<(), ModelError> {
        self.pass(batch, layers, Residual::Many)
    }

    /// Waits until the device is through with all of that.
    pub fn wait(&self) -> Result<(), ModelError> {
        Ok(self.backend.wait()?)
    }

    fn pass(&mut self, batch: &Batch<'_>, range: Range<usize>, place: Residual) -> Result<(), ModelError> {
        self.check_connected()?;
        let Self { backend, scratch, residuals, config, embedding, layers, rope, pools, exchange, .. } = self;
        let (is_whole, begins) = (range.len() == layers.len(), range.start == 0);
        let is_usual_place = place == residuals.place(batch.tokens.len());
        let residual = residuals.take(place);
        let some = layers.get(range).ok_or_else(|| ModelError::Plan("there are fewer layers".into()))?;
        backend.begin(batch)?;
        let bytes = batch.tokens.len() * config.hidden * size_of::<f32>();
        let mut ranks = match exchange.as_deref_mut() {
            None => Ranks::Alone,
            Some(exchange) if self.device_exchanges => {
                backend.number_exchanges(exchange.number_for_device()?)?;
                Ranks::OnDevice
            }
            Some(exchange) => Ranks::OnHost(exchange),
        };
        // What was recorded is of all layers, in the usual place, and would be repeated without the host's part in it.
        let repeats = is_whole && is_usual_place && !matches!(ranks, Ranks::OnHost(_));
        let on_device = matches!(ranks, Ranks::OnDevice);
        let pass = Pass { backend: &*backend, config, rope, batch };
        let mut run = || -> Result<(), ModelError> {
            if begins {
                backend.embed(embedding, batch, residual)?;
            }
            for layer in some {
                layer.forward(&pass, pools, ranks.reborrow(), residual, scratch)?;
            }
            Ok(())
        };
        if repeats { backend.repeat(batch, &mut run) } else { run() }?;
        if let Some(exchange) = exchange.as_deref_mut().filter(|_| on_device) {
            // After attention and after the experts.
            exchange.relay(2 * some.len() as u64, bytes)?;
        }
        Ok(())
    }

    /// Logits of the given rows of the last pass through the last layer, handed to `each` one row at a time with its index in
    /// `rows`; the slice holds `vocab` values and may be changed. Every rank gets all of them.
    pub fn logits(&mut self, rows: &[usize], mut each: impl FnMut(usize, &mut [f32])) -> Result<(), ModelError> {
        self.check_connected()?;
        let Self { backend, residuals, unembedding, exchange, .. } = self;
        for (chunk, some) in rows.chunks(LOGIT_ROWS).enumerate() {
            unembedding.compute(backend, residuals.last(), some)?;
            unembedding.bring(backend, some.len(), exchange.as_deref_mut())?;
            unembedding.each_row(some.len(), |i, logits| each(chunk * LOGIT_ROWS + i, logits));
        }
        Ok(())
    }

    /// Whether [`Model::draw`] works: on a device that draws, or among ranks, who draw what one would on the host.
    pub fn draws(&self) -> bool {
        self.exchange.is_some() || B::DRAWS && self.shards[0].world == 1
    }

    /// Tokens chosen from the logits of the given rows of the last pass, without bringing all of these to the host, or
    /// without exchanging them; [`NO_TOKEN`](tandem_backend::NO_TOKEN) where no logit is a finite number.
    pub fn draw(&mut self, rows: &[(usize, Draw)]) -> Result<Vec<u32>, ModelError> {
        let mut tokens = Vec::with_capacity(rows.len());
        for some in rows.chunks(LOGIT_ROWS) {
            let indices: Vec<usize> = some.iter().map(|(row, _)| *row).collect();
            self.unembed(&indices)?;
            let draws: Vec<(usize, Draw)> = some.iter().map(|(_, draw)| draw.clone()).enumerate().collect();
            tokens.extend(self.draw_unembedded(&draws)?);
        }
        Ok(tokens)
    }

    /// Computes logits of the given rows of the last pass, at most [`LOGIT_ROWS`], to draw from.
    pub fn unembed(&mut self, rows: &[usize]) -> Result<(), ModelError> {
        Ok(self.unembedding.compute(&self.backend, self.residuals.last(), rows)?)
    }

    /// The same as [`Model::draw`], from rows of the last [`Model::unembed`], each as often as one likes.
    pub fn draw_unembedded(&mut self, draws: &[(usize, Draw)]) -> Result<Vec<u32>, ModelError> {
        let mut tokens = vec![NO_TOKEN; draws.len()];
        self.unembedding.draw(&self.backend, draws, self.exchange.as_deref_mut(), &mut tokens)?;
        Ok(tokens)
    }

    /// How long ranks wait for one another at the most, where there are any.
    pub fn exchange_deadline(&self) -> Option<Duration> {
        self.exchange.as_ref().map(|exchange| exchange.deadline())
    }

    /// Replaces each flag by whether any rank has set it. One that is alone keeps its own.
    pub fn any_rank(&mut self, flags: &mut [bool]) -> Result<(), ModelError> {
        let Some(exchange) = self.exchange.as_deref_mut().filter(|_| !flags.is_empty()) else { return Ok(()) };
        let mine: Vec<u8> = flags.iter().map(|flag| u8::from(*flag)).collect();
        let mut all = vec![0; mine.len() * exchange.world()];
        exchange.all_gather(&mine, &mut all)?;
        for theirs in all.chunks_exact(mine.len()) {
            flags.iter_mut().zip(theirs).for_each(|(flag, theirs)| *flag |= *theirs != 0);
        }
        Ok(())
    }

    /// Rank and world, where this is one rank's shard of several.
    fn place(&self) -> Option<(usize, usize)> {
        match self.shards[..] {
            [ShardPlan { rank, world, .. }] if world > 1 => Some((rank, world)),
            _ => None,
        }
    }

    fn check_connected(&self) -> Result<(), ModelError> {
        match (self.place(), &self.exchange) {
            (Some((rank, world)), None) => {
                Err(ExchangeError::new(format!("rank {rank} of {world} is not connected to them")).into())
            }
            _ => Ok(()),
        }
    }
}
