//! What a running request gives to the prefix cache.

use tandem_step::{BlockAssignment, Pool};

use crate::cache::NodeId;
use crate::record::{ChunkWindow, Record, Run};
use crate::store::BlockStore;

/// Windows at chunk ends that one request keeps for others at a time; the oldest is dropped for a new one.
const CHUNK_WINDOWS: usize = 2;

/// How long the sliding window before a published position is kept.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// Until evicted: the end of a prompt or of a generation, where the conversation will go on.
    UntilEvicted,
    /// Until the request has come two chunks further, unless somebody used it.
    WhileRecent,
}

impl BlockStore {
    /// Enters all that a running request has computed into the cache, and keeps the sliding window before its end.
    ///
    /// Only positions whose step has returned count, so no token is entered that is not known yet.
    pub(crate) fn publish(&mut self, record: &mut Record, block_tokens: u32, window: u32, keep: Keep) {
        let Some(run) = record.run.as_mut().filter(|run| run.computed > 0) else { return };
        let tail = self.enter_blocks(run, &record.tokens, block_tokens as usize);
        let stamp = self.cache.tick();
        for index in window_blocks(run.computed, block_tokens, window) {
            let Some(node) = run.path.get(index as usize).copied().or(tail) else { continue };
            let Some(block) = index.checked_sub(run.sliding_first).and_then(|i| run.sliding.get(i as usize)) else {
                continue;
            };
            let valid = (run.computed - index * block_tokens).min(block_tokens);
            let used = match self.cache.sliding_used(node) {
                Some(used) if keep == Keep::WhileRecent && !run.is_chunk_stamp(used) => used,
                _ => stamp,
            };
            self.cache.keep_sliding(node, *block, valid as usize, used, &mut self.pools);
            self.cache.touch_sliding(node, used);
        }
        if keep == Keep::WhileRecent {
            run.chunk_windows.push_back(ChunkWindow { end: run.computed, stamp });
            self.drop_old_window(run, block_tokens, window);
        }
    }

    /// Enters the computed blocks that are new. A whole block that the cache has already replaces the request's own, which
    /// saves memory and makes requests hold the blocks of their whole path. Returns the node of the last, partial block.
    fn enter_blocks(&mut self, run: &mut Run, tokens: &[u32], block_tokens: usize) -> Option<NodeId> {
        let computed = &tokens[..run.computed as usize];
        while let Some(block) = computed.get(run.path.len() * block_tokens..(run.path.len() + 1) * block_tokens) {
            let index = run.path.len();
            let own = run.full[index];
            let node = self.cache.enter(run.path.last().copied(), block, own, &mut self.pools);
            let shared = self.cache.full(node);
            if shared != own {
                self.pools.full.hold(shared);
                self.release(Pool::Full, own);
                run.full[index] = shared;
                run.assignments.push(BlockAssignment { pool: Pool::Full, index: index as u32, block: shared });
            }
            run.path.push(node);
        }
        let tail = &computed[run.path.len() * block_tokens..];
        let own = *run.full.get(run.path.len()).filter(|_| !tail.is_empty())?;
        Some(self.cache.enter(run.path.last().copied(), tail, own, &mut self.pools))
    }

    fn drop_old_window(&mut self, run: &mut Run, block_tokens: u32, window: u32) {
        if run.chunk_windows.len() <= CHUNK_WINDOWS {
            return;
        }
        let Some(old) = run.chunk_windows.pop_front() else { return };
        for index in window_blocks(old.end, block_tokens, window) {
            let Some(&node) = run.path.get(index as usize) else { return };
            if self.cache.sliding_used(node) == Some(old.stamp) {
                self.cache.drop_sliding(node, &mut self.pools);
            }
        }
    }
}

impl Run {
    fn is_chunk_stamp(&self, used: u64) -> bool {
        self.chunk_windows.iter().any(|chunk| chunk.stamp == used)
    }
}

/// Blocks with the `window` positions before `end`. That is one position more than the query at `end` reads, so that a
/// later prompt may also go on from `end - 1`: the same prompt again recomputes its last token.
fn window_blocks(end: u32, block_tokens: u32, window: u32) -> std::ops::Range<u32> {
    end.saturating_sub(window) / block_tokens..end.div_ceil(block_tokens)
}
