//! A worker whose "model" is a hash, but whose KV pools are real: it checks at every row that each position a query reads
//! holds what this very sequence wrote. What it samples depends on the whole sequence, so that one wrong block shows in
//! the output, and [`expected`] says what a request must get whatever else is running.

#![allow(dead_code, unused_imports, reason = "each test program uses its own part")]

mod run;
mod worker;

pub use run::Simulation;
pub use worker::{HashWorker, LAYER_TOKEN_US, expected};

use tandem_engine::{EngineSettings, Request};
use tandem_step::{Capacity, Sampling};

/// Ample pools: context 256, blocks of 4, window 16, eight streams, six layers, a vocabulary of 1000.
pub fn roomy() -> Capacity {
    Capacity {
        block_tokens: 4,
        full_blocks: 512,
        sliding_blocks: 256,
        window: 16,
        context: 256,
        max_streams: 8,
        max_step_tokens: 64,
        layers: 6,
        vocab: 1000,
    }
}

/// Chunks are run whole.
pub fn settings(prefill_chunk: u32, pipeline_depth: u32) -> EngineSettings {
    EngineSettings { prefill_chunk, pipeline_depth, prefill_slice: None, ..EngineSettings::default() }
}

/// A request with seed 7 and no stop tokens.
pub fn request(prompt: Vec<u32>, max_tokens: u32) -> Request {
    let sampling = Sampling { seed: 7, ..Sampling::default() };
    Request { prompt, max_tokens, sampling, stop_tokens: Vec::new(), prompt_logprobs: None, constraint: None }
}

/// Seeded random numbers (splitmix64, by Steele, Lea and Flood).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0)
    }

    /// A number in `low..=high`.
    pub fn within(&mut self, low: u32, high: u32) -> u32 {
        low + (self.next() % u64::from(high - low + 1)) as u32
    }

    pub fn chance(&mut self, percent: u32) -> bool {
        self.within(1, 100) <= percent
    }

    pub fn tokens(&mut self, count: u32, vocab: u32) -> Vec<u32> {
        (0..count).map(|_| self.within(0, vocab - 1)).collect()
    }
}

pub fn mix(value: u64) -> u64 {
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}
