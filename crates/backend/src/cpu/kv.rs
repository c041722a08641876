use super::{
    math::{from_e4m3, to_bf16, to_e4m3},
    pages::{Pages, Plain, Shared},
    simd::{LANES, Simd},
};
use crate::{BackendError, KvFormat, KvShape};

/// A pool of KV blocks: `[block][layer][kv head][keys, values]`.
///
/// Keys are stored column by column, `[head_dim][tokens]`, so that sixteen positions are sixteen lanes of a score; values
/// row by row, `[tokens][head_dim]`, so that sixteen dimensions are. Tokens of a block are padded to a multiple of sixteen.
pub struct CpuKv {
    pub(crate) shape: KvShape,
    pub(crate) store: KvStore,
}

pub(crate) enum KvStore {
    F32(Pages<f32>),
    Bf16(Pages<u16>),
    /// E4M3.
    Fp8(Pages<u8>),
}

/// Where things are within the pool, in elements.
#[derive(Clone, Copy)]
pub(crate) struct KvLayout {
    /// Positions a block has room for.
    pub(crate) tokens: usize,
    pub(crate) head_dim: usize,
    kv_heads: usize,
    layers: usize,
}

impl CpuKv {
    /// A zeroed pool.
    pub(crate) fn new(shape: KvShape) -> Result<Self, BackendError> {
        if shape.head_dim == 0 || !shape.head_dim.is_multiple_of(LANES) || shape.block_tokens == 0 {
            let KvShape { head_dim, block_tokens, .. } = shape;
            return Err(BackendError::Shape(format!("KV of head width {head_dim}, {block_tokens} tokens a block")));
        }
        let len = shape.blocks * KvLayout::of(&shape).block_len();
        let store = match shape.format {
            KvFormat::F32 => KvStore::F32(Pages::zeroed(len, "the KV cache")?),
            KvFormat::Bf16 => KvStore::Bf16(Pages::zeroed(len, "the KV cache")?),
            KvFormat::Fp8 => KvStore::Fp8(Pages::zeroed(len, "the KV cache")?),
        };
        Ok(Self { shape, store })
    }

    /// Copies whole blocks, pair by pair.
    pub(crate) fn copy_blocks(&mut self, pairs: &[(u32, u32)]) -> Result<(), BackendError> {
        let len = KvLayout::of(&self.shape).block_len();
        for (from, to) in pairs.iter().map(|(from, to)| (*from as usize, *to as usize)) {
            if from.max(to) >= self.shape.blocks {
                return Err(BackendError::Shape(format!("copy of block {from} to {to} of {}", self.shape.blocks)));
            }
            match &mut self.store {
                KvStore::F32(values) => values.copy_within(from * len..(from + 1) * len, to * len),
                KvStore::Bf16(values) => values.copy_within(from * len..(from + 1) * len, to * len),
                KvStore::Fp8(values) => values.copy_within(from * len..(from + 1) * len, to * len),
            }
        }
        Ok(())
    }
}

impl KvLayout {
    pub(crate) fn of(shape: &KvShape) -> Self {
        Self {
            tokens: shape.block_tokens.next_multiple_of(LANES),
            head_dim: shape.head_dim,
            kv_heads: shape.kv_heads,
            layers: shape.layers,
        }
    }

    /// Elements of a block.
    pub(crate) fn block_len(self) -> usize {
        self.layers * self.kv_heads * 2 * self.head_dim * self.tokens
    }

    /// First key element of a head.
    #[inline(always)]
    pub(crate) fn keys(self, block: usize, layer: usize, head: usize) -> usize {
        ((block * self.layers + layer) * self.kv_heads + head) * 2 * self.head_dim * self.tokens
    }

    /// First value element of a head.
    #[inline(always)]
    pub(crate) fn values(self, block: usize, layer: usize, head: usize) -> usize {
        self.keys(block, layer, head) + self.head_dim * self.tokens
    }

    /// Stores one token's key and value of a head.
    ///
    /// # Safety
    /// `block`, `layer`, `head` and `token` exist, and no other thread touches that token.
    pub(crate) unsafe fn store<T: KvElement>(
        self,
        pool: Shared<T>,
        [block, layer, head, token]: [usize; 4],
        key: &[f32],
        value: &[f32],
    ) {
        let keys = self.keys(block, layer, head);
        let values = self.values(block, layer, head) + token * self.head_dim;
        for d in 0..self.head_dim {
            // SAFETY: in bounds and ours, by contract.
            unsafe {
                *pool.at(keys + d * self.tokens + token) = T::from_f32(key[d]);
                *pool.at(values + d) = T::from_f32(value[d]);
            }
        }
    }
}

/// A number format of cached keys and values.
pub(crate) trait KvElement: Plain {
    /// Rounds to the format.
    fn from_f32(x: f32) -> Self;
    /// Reads 16 values.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn load<S: Simd>(p: *const Self) -> S::F;
}

impl KvElement for f32 {
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load(p) }
    }
}

impl KvElement for u16 {
    fn from_f32(x: f32) -> Self {
        to_bf16(x)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::F {
        // SAFETY: the caller's.
        unsafe { S::load_bf16(p) }
    }
}

/// E4M3.
impl KvElement for u8 {
    fn from_f32(x: f32) -> Self {
        to_e4m3(x)
    }

    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::F {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller guarantees 16 values.
        let codes = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
        for l in 0..LANES {
            lanes[l] = from_e4m3(codes[l]);
        }
        // SAFETY: there are 16.
        unsafe { S::load(lanes.as_ptr()) }
    }
}
