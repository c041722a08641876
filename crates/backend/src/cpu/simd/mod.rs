//! One small vocabulary of 16-lane operations, implemented for every instruction set; kernels are written once in it.
//!
//! All vectors have sixteen lanes on every machine (one AVX-512 register, two AVX2, four NEON), because weight tiles have
//! sixteen rows: a lane is an output row, so no kernel ever sums across lanes. `mul` and `add` round like scalar `f32`
//! everywhere, which is what makes exact mode the same bits on every instruction set; `mul_add` may or may not fuse and
//! is for fast mode only.

#[cfg(target_arch = "x86_64")]
pub(crate) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
#[cfg(target_arch = "aarch64")]
pub(crate) mod neon;
pub(crate) mod scalar;

/// Lanes of a vector, and rows of a weight tile.
pub(crate) const LANES: usize = 16;

/// Work that can be compiled for any instruction set.
pub(crate) trait Kernel {
    /// What it returns.
    type Out;
    /// Does the work. Implementations are `#[inline(always)]`, so that they are compiled with the features of `S`, and
    /// contain no closures, which would not be.
    ///
    /// # Safety
    /// The machine must have what `S` needs, and pointers inside the kernel must be valid as it documents.
    unsafe fn run<S: Simd>(self) -> Self::Out;
}

/// Doubled E2M1 values by nibble: `2 · {0, 0.5, 1, 1.5, 2, 3, 4, 6}` and their negatives.
pub(crate) const FP4_DOUBLED: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// The same plus 12, for instructions that want one operand unsigned.
#[allow(dead_code, reason = "used by some instruction sets")]
pub(crate) const FP4_DOUBLED_PLUS_12: [u8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

/// Sixteen-lane operations of one instruction set.
///
/// All are unsafe for two reasons: the machine must have the instruction set, and pointers must be valid for the bytes
/// named. No alignment is needed.
pub(crate) trait Simd: Copy {
    /// 16 `f32`.
    type F: Copy;
    /// 16 `i32`.
    type I: Copy;
    /// 16 lanes of four bytes: four consecutive columns of 16 rows.
    type B: Copy;
    /// What `dot_q8` adds to every weight: its result is `Σ (w + Q8_BIAS) · x`.
    const Q8_BIAS: i32;
    /// What `dot_fp4` adds to every (doubled) weight.
    const FP4_BIAS: i32;
    /// Activation rows (1, 2, 4 or 8) whose sums over a tile fit the registers.
    const ROW_BLOCK: usize;

    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::F;
    /// Reads 16 values.
    unsafe fn load(p: *const f32) -> Self::F;
    /// Writes 16 values.
    unsafe fn store(p: *mut f32, v: Self::F);
    /// Lane-wise sum.
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    /// Lane-wise product.
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, fused where that is faster.
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// Lane-wise maximum (no NaN expected).
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// Reads 16 BF16 values.
    unsafe fn load_bf16(p: *const u16) -> Self::F;
    /// Reads 16 pairs of BF16 values: all firsts, all seconds.
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F);
    /// Reads 16 E8M0 scales: `2^(byte - 127)`.
    unsafe fn load_e8m0(p: *const u8) -> Self::F;
    /// All lanes `x`.
    unsafe fn splat_int(x: i32) -> Self::I;
    /// Converts to `f32`.
    unsafe fn to_f32(v: Self::I) -> Self::F;
    /// Reads 64 bytes.
    unsafe fn load_bytes(p: *const u8) -> Self::B;
    /// `acc + Σ_j (w[j] + Q8_BIAS) · x[j]` over the four columns of every lane. Weights are stored plus 128.
    unsafe fn dot_q8(acc: Self::I, w: Self::B, x: *const i8) -> Self::I;
    /// Reads 64 bytes of nibbles, unpacked: columns 0..4 from the low nibbles, 4..8 from the high ones.
    unsafe fn load_fp4(p: *const u8) -> (Self::B, Self::B);
    /// `acc + Σ_j (w[j] + FP4_BIAS) · x[j]` over eight columns; `w` from `load_fp4`.
    unsafe fn dot_fp4(acc: Self::I, w: (Self::B, Self::B), x: *const i8) -> Self::I;
    /// Column `j` (0..4) of bytes from `load_bytes`, as stored (0..256).
    unsafe fn column<const J: u32>(w: Self::B) -> Self::F;
    /// Column `j` of bytes from `load_fp4`: the doubled weight.
    unsafe fn column_fp4<const J: u32>(w: Self::B) -> Self::F;
    /// Asks for the cache line at `p`, which need not be mapped.
    unsafe fn prefetch(p: *const u8);
}
