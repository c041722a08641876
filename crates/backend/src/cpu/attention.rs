//! RoPE and attention.
//!
//! One piece of work is one row and one kv head with all its query heads. Scores of all visible positions are kept, so
//! that softmax is the plain two-pass one and every sum runs over absolute positions: exact mode's bits depend neither on
//! chunking nor on where the blocks lie. Lane `l` of the sum of exponentials takes the positions congruent `l` modulo 16.

use std::{cell::RefCell, ops::Range};

use super::{
    isa::Isa,
    kv::{CpuKv, KvElement, KvLayout, KvStore},
    math::{exp, sum_lanes},
    pages::Shared,
    pool::{Claims, Pool},
    simd::{Kernel, LANES, Simd},
};
use crate::{AttentionContext, AttentionKind, BackendError, Rope, Sequence};

/// Query heads whose sums are held in registers at once.
const HEAD_BLOCK: usize = 8;
/// Visible positions times rows below which other threads are not worth waking.
const WORTH_SHARING: usize = 96;

/// A row of the batch: where it is and what it sees.
struct RowPlace<'a> {
    row: usize,
    position: usize,
    blocks: &'a [u32],
}

/// Rows of the batch with their sequences, after checking every block they touch.
fn places<'a>(context: &'a AttentionContext<'_>, kv: &CpuKv) -> Result<Vec<RowPlace<'a>>, BackendError> {
    let shape = &kv.shape;
    if context.heads == 0 || !context.heads.is_multiple_of(shape.kv_heads) || context.layer >= shape.layers {
        let AttentionContext { heads, layer, .. } = context;
        return Err(BackendError::Shape(format!("{heads} query heads, layer {layer}, over a pool of {shape:?}")));
    }
    let mut places = Vec::new();
    for sequence in context.batch.sequences {
        let blocks = table(sequence, context.kind);
        let last = sequence.position as usize + sequence.rows.len();
        let first = visible(sequence.position as usize, context.kind).start;
        let wanted = first / shape.block_tokens..last.div_ceil(shape.block_tokens);
        let known = blocks.get(wanted.clone()).is_some_and(|b| b.iter().all(|b| (*b as usize) < shape.blocks));
        if !known {
            let (have, pool) = (blocks.len(), shape.blocks);
            return Err(BackendError::Shape(format!("blocks {wanted:?} of a table of {have} into a pool of {pool}")));
        }
        let rows = sequence.rows.clone().enumerate();
        places.extend(rows.map(|(i, row)| RowPlace { row, position: sequence.position as usize + i, blocks }));
    }
    Ok(places)
}

fn table<'a>(sequence: &'a Sequence<'_>, kind: AttentionKind) -> &'a [u32] {
    match kind {
        AttentionKind::Full => sequence.full_blocks,
        AttentionKind::Sliding { .. } => sequence.sliding_blocks,
    }
}

/// Positions a query at `position` attends to.
fn visible(position: usize, kind: AttentionKind) -> Range<usize> {
    match kind {
        AttentionKind::Full => 0..position + 1,
        AttentionKind::Sliding { window } => (position + 1).saturating_sub(window)..position + 1,
    }
}

/// Rotates q and k of every row in place and stores k and v.
pub(crate) fn rope_store(
    pool: &Pool,
    qkv: Shared<f32>,
    width: usize,
    rope: &Rope,
    context: &AttentionContext<'_>,
    kv: &mut CpuKv,
) -> Result<(), BackendError> {
    let places = places(context, kv)?;
    let layout = KvLayout::of(&kv.shape);
    let (heads, kv_heads, dim) = (context.heads, kv.shape.kv_heads, kv.shape.head_dim);
    if width != (heads + 2 * kv_heads) * dim || rope.inv_freq.len() * 2 != dim {
        return Err(BackendError::Shape(format!("rows of {width} for {heads}+2*{kv_heads} heads of {dim}")));
    }
    let tokens = kv.shape.block_tokens;
    let store = match &mut kv.store {
        KvStore::F32(values) => SharedKv::F32(Shared::new(values)),
        KvStore::Bf16(values) => SharedKv::Bf16(Shared::new(values)),
        KvStore::Fp8(values) => SharedKv::Fp8(Shared::new(values)),
    };
    let one_row = |index: usize| {
        let place = &places[index];
        // SAFETY: every row is one thread's.
        let row = unsafe { qkv.slice(place.row * width, width) };
        let (cos_sin, rotated) = (angles(rope, place.position), (heads + kv_heads) * dim);
        row[..rotated].chunks_exact_mut(dim).for_each(|head| rotate(head, &cos_sin));
        let (keys, values) = row[heads * dim..].split_at(kv_heads * dim);
        let (block, token) = (place.blocks[place.position / tokens] as usize, place.position % tokens);
        for (head, (key, value)) in keys.chunks_exact(dim).zip(values.chunks_exact(dim)).enumerate() {
            let at = [block, context.layer, head, token];
            // SAFETY: the block was checked, and every position of every sequence has a place of its own.
            unsafe {
                match store {
                    SharedKv::F32(pool) => layout.store(pool, at, key, value),
                    SharedKv::Bf16(pool) => layout.store(pool, at, key, value),
                    SharedKv::Fp8(pool) => layout.store(pool, at, key, value),
                }
            }
        }
    };
    if places.len() < 8 {
        (0..places.len()).for_each(one_row);
    } else {
        pool.for_each(places.len(), &one_row);
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum SharedKv {
    F32(Shared<f32>),
    Bf16(Shared<u16>),
    Fp8(Shared<u8>),
}

/// Cosine and sine of every pair, times the concentration. The angle is an f32 product, as in the references; its cosine is
/// taken in f64, because arguments reach 131,071 radians.
fn angles(rope: &Rope, position: usize) -> Vec<(f32, f32)> {
    let one = |inv_freq: &f32| {
        let (sin, cos) = f64::from(position as f32 * inv_freq).sin_cos();
        let scale = f64::from(rope.scale);
        ((cos * scale) as f32, (sin * scale) as f32)
    };
    rope.inv_freq.iter().map(one).collect()
}

fn rotate(head: &mut [f32], cos_sin: &[(f32, f32)]) {
    let (low, high) = head.split_at_mut(cos_sin.len());
    for ((a, b), (cos, sin)) in low.iter_mut().zip(high).zip(cos_sin) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

/// The inputs and output of an attention operation.
pub(crate) struct Attention<'a> {
    pub(crate) qkv: &'a [f32],
    /// Width of a row of `qkv`.
    pub(crate) width: usize,
    pub(crate) sinks: &'a [f32],
    pub(crate) context: &'a AttentionContext<'a>,
    pub(crate) kv: &'a CpuKv,
    /// `[rows, heads * head_dim]`.
    pub(crate) out: Shared<f32>,
    /// Width of a row of `out`.
    pub(crate) out_width: usize,
    /// No fused multiply-add.
    pub(crate) exact: bool,
}

impl Attention<'_> {
    /// Runs it on the pool.
    pub(crate) fn run(&self, pool: &Pool, isa: Isa) -> Result<(), BackendError> {
        let places = places(self.context, self.kv)?;
        let kv_heads = self.kv.shape.kv_heads;
        let positions: usize = places.iter().map(|p| visible(p.position, self.context.kind).len()).sum();
        if positions < WORTH_SHARING {
            (0..places.len() * kv_heads).for_each(|item| self.one(isa, &places[item / kv_heads], item % kv_heads));
            return Ok(());
        }
        let claims = Claims::default();
        pool.run(&|_| {
            while let Some(item) = claims.next(places.len() * kv_heads) {
                // Neighbouring rows of one head follow each other, so that its keys stay in cache.
                self.one(isa, &places[item % places.len()], item / places.len());
            }
        });
        Ok(())
    }

    fn one(&self, isa: Isa, place: &RowPlace<'_>, head: usize) {
        match &self.kv.store {
            KvStore::F32(kv) => self.one_of(isa, place, head, kv),
            KvStore::Bf16(kv) => self.one_of(isa, place, head, kv),
            KvStore::Fp8(kv) => self.one_of(isa, place, head, kv),
        }
    }

    fn one_of<T: KvElement>(&self, isa: Isa, place: &RowPlace<'_>, kv_head: usize, kv: &[T]) {
        let shape = &self.kv.shape;
        let group = self.context.heads / shape.kv_heads;
        let seen = visible(place.position, self.context.kind);
        let mut first = 0;
        while first < group {
            let heads = HEAD_BLOCK.min(group - first);
            let head = kv_head * group + first;
            let task = HeadGroup {
                q: &self.qkv[place.row * self.width + head * shape.head_dim..][..heads * shape.head_dim],
                sinks: &self.sinks[head..head + heads],
                kv,
                layout: KvLayout::of(shape),
                block_tokens: shape.block_tokens,
                blocks: place.blocks,
                layer: self.context.layer,
                kv_head,
                seen: seen.clone(),
                // SAFETY: the row and its heads exist.
                out: unsafe { self.out.offset(place.row * self.out_width + head * shape.head_dim) },
            };
            // SAFETY: the instruction set was checked when the backend was made, blocks in `places`.
            unsafe {
                match (heads, self.exact) {
                    (8, true) => isa.run(Heads::<T, 8, true>(task)),
                    (8, false) => isa.run(Heads::<T, 8, false>(task)),
                    (_, exact) => {
                        for h in 0..heads {
                            one_head(isa, task.head(h), exact);
                        }
                    }
                }
            }
            first += heads;
        }
    }
}

/// # Safety
/// As [`Isa::run`].
unsafe fn one_head<T: KvElement>(isa: Isa, task: HeadGroup<'_, T>, exact: bool) {
    // SAFETY: the caller's.
    unsafe { if exact { isa.run(Heads::<T, 1, true>(task)) } else { isa.run(Heads::<T, 1, false>(task)) } }
}

/// One row's query heads that share a kv head.
struct HeadGroup<'a, T> {
    /// `[heads, head_dim]`.
    q: &'a [f32],
    sinks: &'a [f32],
    kv: &'a [T],
    layout: KvLayout,
    block_tokens: usize,
    blocks: &'a [u32],
    layer: usize,
    kv_head: usize,
    seen: Range<usize>,
    /// `[heads, head_dim]`, this task's own.
    out: Shared<f32>,
}

impl<T> HeadGroup<'_, T> {
    /// Its head `h` alone.
    fn head(&self, h: usize) -> HeadGroup<'_, T> {
        let dim = self.layout.head_dim;
        HeadGroup {
            q: &self.q[h * dim..][..dim],
            sinks: &self.sinks[h..=h],
            // SAFETY: the head exists.
            out: unsafe { self.out.offset(h * dim) },
            seen: self.seen.clone(),
            ..*self
        }
    }

    /// The part of the visible positions from `position` on that lies in one block and one multiple of sixteen tokens of
    /// it: block, first token, number.
    #[inline(always)]
    fn chunk(&self, position: usize) -> (usize, usize, usize) {
        let token = position % self.block_tokens;
        let end = self.block_tokens.min((token / LANES + 1) * LANES);
        (self.blocks[position / self.block_tokens] as usize, token, (end - token).min(self.seen.end - position))
    }
}

thread_local! {
    /// Scores of one piece of work.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

struct Heads<'a, T, const H: usize, const EXACT: bool>(HeadGroup<'a, T>);

impl<T: KvElement, const H: usize, const EXACT: bool> Kernel for Heads<'_, T, H, EXACT> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let task = self.0;
        // Index 0 of the scores is a multiple of sixteen, so that lanes follow absolute positions.
        let base = task.seen.start / LANES * LANES;
        let stride = (task.seen.end - base).next_multiple_of(LANES);
        let mut scores = SCORES.take();
        scores.clear();
        scores.resize(H * stride, f32::NEG_INFINITY);
        // SAFETY: `places` checked every block; the scores have `stride` entries for each head.
        unsafe {
            dot_keys::<S, T, H, EXACT>(&task, base, stride, &mut scores);
            let mut totals = [0.0; H];
            for h in 0..H {
                totals[h] = softmax(&mut scores[h * stride..][..stride], task.sinks[h]);
            }
            weigh_values::<S, T, H, EXACT>(&task, base, stride, &scores, &totals);
        }
        SCORES.set(scores);
    }
}

/// `a * b + c`, rounded twice in exact mode.
#[inline(always)]
unsafe fn multiply_add<S: Simd, const EXACT: bool>(a: S::F, b: S::F, c: S::F) -> S::F {
    // SAFETY: the caller's.
    unsafe { if EXACT { S::add(c, S::mul(a, b)) } else { S::mul_add(a, b, c) } }
}

#[inline(always)]
unsafe fn dot_keys<S: Simd, T: KvElement, const H: usize, const EXACT: bool>(
    task: &HeadGroup<'_, T>,
    base: usize,
    stride: usize,
    scores: &mut [f32],
) {
    let dim = task.layout.head_dim;
    let scale = 1.0 / (dim as f32).sqrt();
    let mut position = task.seen.start;
    while position < task.seen.end {
        let (block, token, count) = task.chunk(position);
        let lane = token % LANES;
        let keys = task.layout.keys(block, task.layer, task.kv_head) + token - lane;
        // SAFETY: block, layer and head exist; keys of a block are padded to whole vectors.
        unsafe {
            let mut sums = [S::splat(0.0); H];
            let keys = task.kv.as_ptr().add(keys);
            for d in 0..dim {
                let key = T::load::<S>(keys.add(d * task.layout.tokens));
                for h in 0..H {
                    let q = S::splat(*task.q.as_ptr().add(h * dim + d));
                    sums[h] = multiply_add::<S, EXACT>(key, q, sums[h]);
                }
            }
            let mut lanes = [0.0; LANES];
            for h in 0..H {
                S::store(lanes.as_mut_ptr(), S::mul(sums[h], S::splat(scale)));
                scores[h * stride + position - base..][..count].copy_from_slice(&lanes[lane..lane + count]);
            }
        }
        position += count;
    }
}

/// Scores to exponentials; returns their sum, the sink's included. `scores` is whole vectors long.
#[inline(always)]
fn softmax(scores: &mut [f32], sink: f32) -> f32 {
    let mut most = [sink; LANES];
    for lanes in scores.chunks_exact(LANES) {
        for l in 0..LANES {
            most[l] = if lanes[l] > most[l] { lanes[l] } else { most[l] };
        }
    }
    let mut max = sink;
    for m in most {
        max = if m > max { m } else { max };
    }
    let mut sums = [0.0; LANES];
    for lanes in scores.chunks_exact_mut(LANES) {
        for l in 0..LANES {
            lanes[l] = exp(lanes[l] - max);
            sums[l] += lanes[l];
        }
    }
    sum_lanes(&sums) + exp(sink - max)
}

#[inline(always)]
unsafe fn weigh_values<S: Simd, T: KvElement, const H: usize, const EXACT: bool>(
    task: &HeadGroup<'_, T>,
    base: usize,
    stride: usize,
    scores: &[f32],
    totals: &[f32; H],
) {
    let dim = task.layout.head_dim;
    let mut sixteen = 0;
    while sixteen < dim {
        let mut position = task.seen.start;
        // SAFETY: block, layer, head and token exist; `head_dim` is a multiple of sixteen.
        unsafe {
            let mut sums = [S::splat(0.0); H];
            while position < task.seen.end {
                let (block, token, count) = task.chunk(position);
                let values = task.layout.values(block, task.layer, task.kv_head) + token * dim + sixteen;
                let values = task.kv.as_ptr().add(values);
                let weights = scores.as_ptr().add(position - base);
                for t in 0..count {
                    let value = T::load::<S>(values.add(t * dim));
                    for h in 0..H {
                        let weight = S::splat(*weights.add(h * stride + t));
                        sums[h] = multiply_add::<S, EXACT>(value, weight, sums[h]);
                    }
                }
                position += count;
            }
            for h in 0..H {
                S::store(task.out.at(h * dim + sixteen), S::mul(sums[h], S::splat(1.0 / totals[h])));
            }
        }
        sixteen += LANES;
    }
}
