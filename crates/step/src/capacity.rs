use serde::{Deserialize, Serialize};

/// What a loaded model offers to the scheduler: the sizes of its KV pools and of a step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Tokens that one block of either pool holds.
    pub block_tokens: u32,
    /// Blocks in the pool of the full-attention layers. One block holds `block_tokens` positions of *all* those layers.
    pub full_blocks: u32,
    /// Blocks in the pool of the sliding-window layers, likewise.
    pub sliding_blocks: u32,
    /// Sliding window in tokens, the query's own position included. A query at position `t` reads keys in
    /// `t + 1 - window ..= t`.
    pub window: u32,
    /// Most positions one request may occupy, prompt and output together.
    pub context: u32,
    /// Requests that may be running at once: slots are `0..max_streams`.
    pub max_streams: u32,
    /// Most tokens, over all rows, that one step may carry.
    pub max_step_tokens: u32,
    /// Layers of the model: a pass may be divided among steps between any two of them.
    pub layers: u32,
    /// Size of the vocabulary: token ids are `0..vocab`.
    pub vocab: u32,
}
