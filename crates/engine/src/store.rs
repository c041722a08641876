use std::collections::VecDeque;

use tandem_step::{Capacity, Pool};

use crate::cache::PrefixCache;
use crate::pool::{BlockPool, Pools};

/// One block in so many of a pool is evicted at a time, if the pool has that many.
const EVICTED_AT_ONCE: u32 = 256;

/// All KV blocks: the pools, the prefix cache that keeps what may be wanted again, and blocks that steps in flight still
/// use although their request let go of them.
pub(crate) struct BlockStore {
    pub(crate) pools: Pools,
    pub(crate) cache: PrefixCache,
    /// Blocks let go of, each batch with the step after whose result they are released.
    returning: VecDeque<(u64, Vec<(Pool, u32)>)>,
    /// The latest step whose result is outstanding.
    in_flight: Option<u64>,
}

impl BlockStore {
    pub(crate) fn new(capacity: &Capacity) -> Self {
        Self {
            pools: Pools {
                full: BlockPool::new(capacity.full_blocks),
                sliding: BlockPool::new(capacity.sliding_blocks),
            },
            cache: PrefixCache::new(capacity.block_tokens, capacity.window),
            returning: VecDeque::new(),
            in_flight: None,
        }
    }

    /// Makes sure that `blocks` are free, evicting from the cache if need be; `false` if that cannot be done.
    pub(crate) fn secure(&mut self, pool: Pool, blocks: u32) -> bool {
        let books = self.pools.of(pool);
        if books.available() < blocks {
            return false;
        }
        let missing = blocks.saturating_sub(books.free());
        if missing > 0 {
            // Eviction looks at the whole cache, so in a large one it makes room for a while.
            let wanted = missing.max(books.total() / EVICTED_AT_ONCE);
            match pool {
                Pool::Full => self.cache.evict_full(wanted, &mut self.pools),
                Pool::Sliding => self.cache.evict_sliding(wanted, &mut self.pools),
            }
        }
        self.pools.of(pool).free() >= blocks
    }

    /// Takes a block that [`Self::secure`] promised.
    pub(crate) fn take(&mut self, pool: Pool) -> u32 {
        self.pools.of_mut(pool).take().expect("blocks are secured before they are taken")
    }

    /// Lets go of a block, at once or when the steps in flight have returned.
    pub(crate) fn release(&mut self, pool: Pool, block: u32) {
        let Some(step) = self.in_flight else { return self.pools.of_mut(pool).release(block) };
        match self.returning.back_mut().filter(|(until, _)| *until == step) {
            Some((_, blocks)) => blocks.push((pool, block)),
            None => self.returning.push_back((step, vec![(pool, block)])),
        }
    }

    /// A step has been sent out.
    pub(crate) fn step_issued(&mut self, step: u64) {
        self.in_flight = Some(step);
    }

    /// The result of a step, and thus of all before, is back.
    pub(crate) fn step_returned(&mut self, step: u64) {
        self.in_flight = self.in_flight.filter(|latest| *latest > step);
        while self.returning.front().is_some_and(|(until, _)| *until <= step) {
            for (pool, block) in self.returning.pop_front().into_iter().flat_map(|(_, blocks)| blocks) {
                self.pools.of_mut(pool).release(block);
            }
        }
    }

    /// Checks the books, given how often requests hold each block.
    pub(crate) fn audit(&self, mut full: Vec<u32>, mut sliding: Vec<u32>) -> Result<(), String> {
        for (pool, block) in self.returning.iter().flat_map(|(_, blocks)| blocks) {
            match pool {
                Pool::Full => full[*block as usize] += 1,
                Pool::Sliding => sliding[*block as usize] += 1,
            }
        }
        let mut full_kept = vec![0; full.len()];
        let mut sliding_kept = vec![0; sliding.len()];
        self.cache.audit(&mut full_kept, &mut sliding_kept)?;
        self.pools.full.audit(Pool::Full, &full, &full_kept)?;
        self.pools.sliding.audit(Pool::Sliding, &sliding, &sliding_kept)
    }
}
