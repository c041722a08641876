//! How much working memory steps take. What [`Sizes`] reserves and what operations ask for come from the same functions.

use tandem_backend::{StepLimits, Widths};

use crate::few::{
    DOWN_BLOCKS, DRAW_CHUNKS, DRAWS_MAX, ROUTE_ROWS_MAX, ROUTER_PARTS, SUM_BYTES, TOKENS, split_records_max,
    staged_stride,
};
use crate::kernels::TILES;
use crate::rows::StepShape;

const F16: usize = 2;
const F32: usize = 4;

/// Counters: of the router, and of 8 decoding rows' attention.
pub(crate) const COUNTER_BYTES: usize = 4096;
/// Multiprocessors of the largest device there are kernels for: attention is split over no more.
pub(crate) const MULTIPROCESSORS_MAX: usize = 132;

/// Bytes of page-locked and of device memory that a backend takes, beside the model's own buffers, for steps within `limits`
/// on any device there are kernels for.
pub fn working_bytes(limits: &StepLimits) -> u64 {
    let StepLimits { rows, sequences, blocks, widths } = *limits;
    let (changes, masks) = (StepShape { rows, sequences, blocks }.bytes(), masks(mask_words(widths.vocab)));
    let pinned = changes.pinned + masks + chosen();
    let device = changes.device + masks + rope(&widths) + TALLY_BYTES;
    (Sizes::new(limits).total() + pinned + device) as u64
}

/// Bytes of the count of experts.
pub(crate) const TALLY_BYTES: usize = 16;

/// Bytes of each part of [`crate::backend::Scratch`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub(crate) inner: usize,
    pub(crate) partial: usize,
    pub(crate) staged: usize,
    pub(crate) logits: usize,
    pub(crate) splits: usize,
    pub(crate) narrow: usize,
    pub(crate) rest: usize,
    pub(crate) results: usize,
    pub(crate) groups: usize,
    pub(crate) chunks: usize,
    pub(crate) arrived: usize,
}

impl Sizes {
    /// The most that any step within the limits asks for.
    pub(crate) fn new(limits: &StepLimits) -> Self {
        let StepLimits { rows, sequences, widths, .. } = *limits;
        let Widths { hidden, attended, intermediate, experts, top_k, kv_heads, .. } = widths;
        let widest = hidden.max(attended).next_multiple_of(64);
        let (few, routed) = (rows.min(TOKENS), rows.min(ROUTE_ROWS_MAX));
        // Kernels of many rows come into play with the row after the last of few.
        let many = if rows > TOKENS { rows } else { 0 };
        let pairs = many * top_k;
        let router = routed_logits(routed + TOKENS - 1, experts);
        Self {
            inner: inner(rows.max(TOKENS) * top_k, intermediate),
            partial: down_partial(hidden.div_ceil(16)),
            staged: staged(few, 2, widest).max(staged(routed, 2, hidden)),
            logits: router.max(if rows > ROUTE_ROWS_MAX { many_logits(rows, experts) } else { 0 }),
            splits: split_records_max(sequences.min(rows), kv_heads),
            narrow: narrow(many, widest),
            rest: if rows > ROUTE_ROWS_MAX { narrow(rows, hidden) } else { 0 },
            results: results(pairs, hidden),
            groups: if many > 0 { groups(pairs, experts, TILES[0]) } else { 0 },
            chunks: chunks(),
            arrived: arrived(sequences.min(rows), kv_heads).max(arrived_down(hidden.div_ceil(16))),
        }
    }

    fn total(&self) -> usize {
        let Self { inner, partial, staged, logits, splits, narrow, rest, results, groups, chunks, arrived } = *self;
        inner + partial + staged + logits + splits + narrow + rest + results + groups + chunks + arrived
    }
}

/// Inner activations of (row, expert) pairs.
pub(crate) fn inner(pairs: usize, intermediate: usize) -> usize {
    pairs * intermediate * F16
}

/// Rows staged for decode kernels, in so many parts, and their factors.
pub(crate) fn staged(rows: usize, parts: usize, padded: usize) -> usize {
    rows * (parts * staged_stride(padded) + F32)
}

/// Router logits by part of k; rows rounded up to whole launches.
pub(crate) fn routed_logits(rows: usize, experts: usize) -> usize {
    ROUTER_PARTS * rows * experts * F32
}

/// Router logits of many rows.
pub(crate) fn many_logits(rows: usize, experts: usize) -> usize {
    rows * experts * F32
}

/// Rows in 16 bits.
pub(crate) fn narrow(rows: usize, width: usize) -> usize {
    rows * width * F16
}

/// Experts' results of (row, expert) pairs.
pub(crate) fn results(pairs: usize, hidden: usize) -> usize {
    pairs * hidden * F32
}

/// Tiles of four numbers; then where experts begin, the pairs by expert, and the number of tiles.
pub(crate) fn groups(pairs: usize, experts: usize, tile: usize) -> usize {
    16 * (experts + pairs.div_ceil(tile)) + 4 * (experts + 1 + pairs + 1)
}

/// Maxima and sums of chunks of logits.
pub(crate) fn chunks() -> usize {
    DRAWS_MAX * DRAW_CHUNKS * 12
}

/// Counters of blocks that have arrived, for attention of so many single rows.
pub(crate) fn arrived(rows: usize, kv_heads: usize) -> usize {
    COUNTER_BYTES.max(rows * kv_heads * 4)
}

/// Sums that blocks sharing a row tile of the experts' second product leave for one another.
pub(crate) fn down_partial(tiles: usize) -> usize {
    DOWN_BLOCKS * tiles * SUM_BYTES / 8
}

/// Counters of those blocks.
pub(crate) fn arrived_down(tiles: usize) -> usize {
    COUNTER_BYTES.max(4 * tiles)
}

/// Words of a mask of so many tokens, the first of which may be any of a word's.
pub(crate) fn mask_words(vocab: usize) -> usize {
    vocab.div_ceil(32) + 1
}

/// Masks of one launch of draws.
pub(crate) fn masks(words: usize) -> usize {
    DRAWS_MAX * words * 4
}

/// What one launch of draws says of each row: a token, a candidate or a sum.
pub(crate) fn chosen() -> usize {
    DRAWS_MAX * 8
}

/// Frequencies of the rotation.
pub(crate) fn rope(widths: &Widths) -> usize {
    widths.head_dim / 2 * F32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::few::{split_records, splits};

    const WIDTHS: Widths = Widths {
        hidden: 2880,
        attended: 4096,
        intermediate: 2880,
        experts: 128,
        top_k: 4,
        kv_heads: 8,
        head_dim: 64,
        vocab: 201_088,
    };

    fn limits(rows: usize, sequences: usize) -> StepLimits {
        StepLimits { rows, sequences, blocks: 100, widths: WIDTHS }
    }

    /// What operations on `n` rows ask for, as `few.rs` and `many.rs` do.
    #[test]
    fn every_step_within_the_limits_fits() {
        let Widths { hidden, attended, intermediate, experts, top_k, kv_heads, .. } = WIDTHS;
        for (rows, sequences) in [(1, 1), (2, 1), (8, 8), (9, 1), (40, 16), (128, 64), (129, 2), (4112, 16), (8256, 64)]
        {
            let most = Sizes::new(&limits(rows, sequences));
            for n in 1..=rows {
                if n <= TOKENS {
                    assert!(inner(TOKENS * top_k, intermediate) <= most.inner);
                    assert!(down_partial(hidden / 16) <= most.partial && arrived_down(hidden / 16) <= most.arrived);
                    [hidden, attended].iter().for_each(|width| assert!(staged(n, 2, *width) <= most.staged));
                } else {
                    let pairs = n * top_k;
                    assert!(inner(pairs, intermediate) <= most.inner && results(pairs, hidden) <= most.results);
                    assert!(narrow(n, attended) <= most.narrow && narrow(n, hidden) <= most.narrow);
                    TILES.iter().for_each(|tile| assert!(groups(pairs, experts, *tile) <= most.groups));
                }
                if n <= ROUTE_ROWS_MAX {
                    assert!(staged(n, 2, hidden) <= most.staged);
                    let launches = (1..=TOKENS).map(|tokens| n.div_ceil(tokens) * tokens);
                    launches.for_each(|rows| assert!(routed_logits(rows, experts) <= most.logits));
                } else {
                    assert!(many_logits(n, experts) <= most.logits && narrow(n, hidden) <= most.rest);
                }
                if n <= sequences {
                    for multiprocessors in [48, 132] {
                        let splits = splits(n, kv_heads, 0, multiprocessors);
                        assert!(split_records(n, kv_heads, splits) <= most.splits);
                    }
                    assert!(arrived(n, kv_heads) <= most.arrived);
                }
            }
        }
    }

    #[test]
    fn single_streams_of_short_steps_take_little() {
        let (small, large) = (working_bytes(&limits(2, 1)), working_bytes(&limits(4112, 16)));
        assert!(small < 10_000_000, "{small}");
        // Per row: 16-bit inputs twice, inner activations and results of four experts, logits.
        let per_row = (2 * 4096 + 2 * 2880 + 4 * 2880 * 2 + 4 * 2880 * 4 + 128 * 4) as u64;
        assert!((4112 * per_row..4112 * per_row * 21 / 20 + 10_000_000).contains(&large), "{large}");
    }
}
