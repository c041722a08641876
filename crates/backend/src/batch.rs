use std::ops::Range;

/// The rows of one forward pass: every row is one token of some sequence.
#[derive(Clone, Debug)]
pub struct Batch<'a> {
    /// The token of each row.
    pub tokens: &'a [u32],
    /// The sequences; their `rows` follow one another and cover all rows.
    pub sequences: &'a [Sequence<'a>],
}

/// Consecutive positions of one sequence within a batch.
#[derive(Clone, Debug)]
pub struct Sequence<'a> {
    /// Its rows in the batch, at least one.
    pub rows: Range<usize>,
    /// Position of the first row.
    pub position: u32,
    /// Block table of the full-attention layers: entry `p / block_tokens` holds position `p`.
    pub full_blocks: &'a [u32],
    /// Block table of the sliding layers, indexed alike; entries wholly before the window of the first row are stale and
    /// must not be read.
    pub sliding_blocks: &'a [u32],
}
