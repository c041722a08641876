//! Which part of a model each of several ranks holds.
//!
//! Attention is divided by key heads, each with its query heads and their sinks; experts by groups of 32 of their units or by
//! whole experts; the unembedding by rows of the vocabulary. Embedding, norms and routers are on every rank. The output
//! projection and the experts' second matrix are so cut along their input: each rank has a partial sum of their output,
//! and the sum over all ranks, in rank order, is what a [`crate::Exchange`] makes of it. Their biases are in it once.

mod cut;
mod exchange;
mod store;

use std::ops::Range;

pub use exchange::{Exchange, ExchangeError};
pub use store::ShardStore;

use tandem_backend::Widths;

use crate::Config;

/// How experts are divided.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExpertSplit {
    /// Every rank has a part of every expert's units: work is even whatever the router chooses.
    Slice,
    /// Every rank has some of the experts, whole.
    Whole,
}

/// One rank's place among all. Plain data: what it means for a model says [`ShardPlan::shard`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShardPlan {
    /// Which rank, from 0.
    pub rank: usize,
    /// How many there are.
    pub world: usize,
    /// How experts are divided.
    pub experts: ExpertSplit,
}

impl ShardPlan {
    /// One rank that holds everything.
    pub const UNDIVIDED: ShardPlan = ShardPlan { rank: 0, world: 1, experts: ExpertSplit::Slice };

    /// The plans of all ranks of a world, in order.
    pub fn all(world: usize, experts: ExpertSplit) -> Vec<ShardPlan> {
        (0..world).map(|rank| ShardPlan { rank, world, experts }).collect()
    }

    /// What this rank holds of a model, or why the model cannot be divided so.
    pub fn shard(&self, config: &Config) -> Result<Shard, ShardError> {
        check(self, config)?;
        Ok(self.divide(config))
    }

    fn divide(&self, config: &Config) -> Shard {
        let &Self { rank, world, experts } = self;
        let share = |count| share(count, rank, world);
        let kv_heads = share(config.kv_heads);
        let group = config.heads / config.kv_heads;
        let groups = share(config.intermediate / GROUP);
        let (units, experts) = match experts {
            ExpertSplit::Slice => (groups.start * GROUP..groups.end * GROUP, 0..config.experts),
            ExpertSplit::Whole => (0..config.intermediate, share(config.experts)),
        };
        Shard {
            plan: *self,
            heads: kv_heads.start * group..kv_heads.end * group,
            kv_heads,
            units,
            experts,
            vocab: share(config.vocab),
        }
    }
}

/// What one rank holds of a model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shard {
    /// Whose it is.
    pub plan: ShardPlan,
    /// Query heads, and their sinks.
    pub heads: Range<usize>,
    /// Key and value heads.
    pub kv_heads: Range<usize>,
    /// Units between the two matrices of every expert it has.
    pub units: Range<usize>,
    /// Experts.
    pub experts: Range<usize>,
    /// Rows of the unembedding.
    pub vocab: Range<usize>,
}

impl Shard {
    /// The whole model on one rank.
    pub fn undivided(config: &Config) -> Self {
        ShardPlan::UNDIVIDED.divide(config)
    }

    /// Whether this rank adds the bias of the output projection, and of experts whose units are divided.
    pub fn adds_biases(&self) -> bool {
        self.plan.rank == 0
    }

    /// Width of its query heads together.
    pub fn q_width(&self, config: &Config) -> usize {
        self.heads.len() * config.head_dim
    }

    /// What a backend's working memory for it depends on.
    pub fn widths(&self, config: &Config) -> Widths {
        Widths {
            attended: self.q_width(config),
            intermediate: self.units.len(),
            kv_heads: self.kv_heads.len(),
            vocab: self.vocab.len(),
            ..config.widths()
        }
    }

    /// Width of its q, k and v together.
    pub fn qkv_width(&self, config: &Config) -> usize {
        (self.heads.len() + 2 * self.kv_heads.len()) * config.head_dim
    }

    /// Rows of the unembedding on the rank that has most.
    pub fn vocab_max(&self, config: &Config) -> usize {
        share(config.vocab, 0, self.plan.world).len()
    }
}

/// Weights along an input dimension that share a scale: no cut may part them.
const GROUP: usize = 32;

/// Rank `rank`'s part of `count` things that keep their order: as even as can be, the first ranks having one more.
pub fn share(count: usize, rank: usize, world: usize) -> Range<usize> {
    let (each, more) = (count / world, count % world);
    let start = rank * each + rank.min(more);
    start..start + each + usize::from(rank < more)
}

/// Why a model cannot be divided as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ShardError {
    /// A rank that is not there.
    #[error("there is no rank {rank} of {world}")]
    Rank {
        /// Asked for.
        rank: usize,
        /// Ranks there are.
        world: usize,
    },
    /// Attention is divided evenly or not at all: every layer waits for the rank with most heads.
    #[error("{kv_heads} key heads, each with its query heads, cannot be shared out evenly among {world} ranks")]
    Heads {
        /// Key heads.
        kv_heads: usize,
        /// Ranks.
        world: usize,
    },
    /// The output projection would be cut within a group of 32 inputs.
    #[error("the query heads of one of {world} ranks are {width} values wide, which is no multiple of 32")]
    Width {
        /// Width of a rank's query heads.
        width: usize,
        /// Ranks.
        world: usize,
    },
    /// Fewer things than ranks.
    #[error("{count} {what} are too few for {world} ranks")]
    TooFew {
        /// Of what.
        what: &'static str,
        /// How many.
        count: usize,
        /// Ranks.
        world: usize,
    },
}

fn check(plan: &ShardPlan, config: &Config) -> Result<(), ShardError> {
    let &ShardPlan { rank, world, experts } = plan;
    if rank >= world {
        return Err(ShardError::Rank { rank, world });
    }
    if world == 1 {
        return Ok(());
    }
    if !config.kv_heads.is_multiple_of(world) {
        return Err(ShardError::Heads { kv_heads: config.kv_heads, world });
    }
    let width = config.q_width() / world;
    if !width.is_multiple_of(GROUP) {
        return Err(ShardError::Width { width, world });
    }
    let (what, count) = match experts {
        ExpertSplit::Slice => ("groups of 32 units in an expert", config.intermediate / GROUP),
        ExpertSplit::Whole => ("experts", config.experts),
    };
    let enough = |what, count| if count < world { Err(ShardError::TooFew { what, count, world }) } else { Ok(()) };
    enough(what, count)?;
    enough("tokens of the vocabulary", config.vocab)
}

#[cfg(test)]
mod tests;
