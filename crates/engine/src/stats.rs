/// A snapshot of what the engine is doing, and counts since it started.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct EngineStats {
    /// Requests that hold a slot.
    pub running: usize,
    /// Requests in the queue.
    pub waiting: usize,
    /// Share of all KV blocks of the full pool that running requests hold, 0 to 1. Cached blocks that could be evicted
    /// do not count.
    pub kv_usage: f64,
    /// Prompt tokens looked up in the prefix cache, ever.
    pub prefix_queries: u64,
    /// Prompt tokens found there, ever.
    pub prefix_hits: u64,
    /// Prompt tokens computed, ever (cached ones excluded).
    pub prompt_tokens: u64,
    /// Tokens generated, ever.
    pub generated_tokens: u64,
    /// Requests preempted for want of blocks, ever.
    pub preemptions: u64,
    /// Steps run, ever.
    pub steps: u64,
}
