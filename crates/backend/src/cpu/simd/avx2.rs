use std::arch::x86_64::*;

use super::{FP4_DOUBLED_PLUS_12, Kernel, Simd};

/// AVX2 with FMA: a vector is two registers, lanes 0..8 and 8..16.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// Runs a kernel compiled for AVX2.
///
/// # Safety
/// The machine must have the features named, and the kernel's own conditions must hold.
#[target_feature(enable = "avx2,fma")]
pub(crate) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the caller's.
    unsafe { kernel.run::<Avx2>() }
}

#[inline(always)]
unsafe fn broadcast_four(x: *const i8) -> __m256i {
    // SAFETY: the caller guarantees four bytes.
    unsafe { _mm256_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

/// `acc + Σ_j (w[j] - 128) · x[j]` for eight rows. VPMADDUBSW wants one operand unsigned and saturates at 16 bits, so the
/// sign of `x` moves to `w`: 2 · 127 · 127 fits.
#[inline(always)]
unsafe fn dot_q8_half(acc: __m256i, w: __m256i, x: __m256i) -> __m256i {
    // SAFETY: as `Simd`.
    unsafe {
        let signed = _mm256_sign_epi8(_mm256_xor_si256(w, _mm256_set1_epi8(-128)), x);
        let pairs = _mm256_maddubs_epi16(_mm256_abs_epi8(x), signed);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

/// Eight columns of eight rows; four products of at most 24 · 127 fit 16 bits.
#[inline(always)]
unsafe fn dot_fp4_half(acc: __m256i, low: __m256i, high: __m256i, x: *const i8) -> __m256i {
    // SAFETY: as `Simd`.
    unsafe {
        let low = _mm256_maddubs_epi16(low, broadcast_four(x));
        let high = _mm256_maddubs_epi16(high, broadcast_four(x.add(4)));
        let pairs = _mm256_add_epi16(low, high);
        _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))
    }
}

#[inline(always)]
unsafe fn fp4_half(p: *const u8) -> (__m256i, __m256i) {
    // SAFETY: the caller guarantees 32 bytes.
    unsafe {
        let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(FP4_DOUBLED_PLUS_12.as_ptr().cast()));
        let raw = _mm256_loadu_si256(p.cast());
        let mask = _mm256_set1_epi8(15);
        let low = _mm256_and_si256(raw, mask);
        let high = _mm256_and_si256(_mm256_srli_epi16::<4>(raw), mask);
        (_mm256_shuffle_epi8(table, low), _mm256_shuffle_epi8(table, high))
    }
}

#[inline(always)]
unsafe fn column_half<const J: u32>(w: __m256i) -> __m256 {
    // SAFETY: as `Simd`.
    unsafe {
        let shifted = match J {
            0 => w,
            1 => _mm256_srli_epi32::<8>(w),
            2 => _mm256_srli_epi32::<16>(w),
            _ => _mm256_srli_epi32::<24>(w),
        };
        _mm256_cvtepi32_ps(_mm256_and_si256(shifted, _mm256_set1_epi32(255)))
    }
}

#[inline(always)]
unsafe fn bf16_half(p: *const u16) -> __m256 {
    // SAFETY: the caller guarantees eight values.
    unsafe {
        let raw = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast()));
        _mm256_castsi256_ps(_mm256_slli_epi32::<16>(raw))
    }
}

#[inline(always)]
unsafe fn bf16_pairs_half(p: *const u16) -> (__m256, __m256) {
    // SAFETY: the caller guarantees eight pairs.
    unsafe {
        let raw = _mm256_loadu_si256(p.cast());
        let high = _mm256_and_si256(raw, _mm256_set1_epi32(0xffff_0000_u32 as i32));
        (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(raw)), _mm256_castsi256_ps(high))
    }
}

#[inline(always)]
unsafe fn e8m0_half(p: *const u8) -> __m256 {
    // SAFETY: the caller guarantees eight bytes.
    unsafe {
        let bytes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()));
        // Byte 0 is 2^-127, a subnormal.
        let bits = _mm256_max_epi32(_mm256_slli_epi32::<23>(bytes), _mm256_set1_epi32(0x0040_0000));
        _mm256_castsi256_ps(bits)
    }
}

// SAFETY of all blocks below: `Simd`'s contract (instruction set present, pointers valid for the bytes named).
impl Simd for Avx2 {
    type F = (__m256, __m256);
    type I = (__m256i, __m256i);
    type B = (__m256i, __m256i);
    const Q8_BIAS: i32 = 0;
    const FP4_BIAS: i32 = 12;
    const ROW_BLOCK: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_set1_ps(x), _mm256_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: see above.
        unsafe {
            _mm256_storeu_ps(p, v.0);
            _mm256_storeu_ps(p.add(8), v.1);
        }
    }

    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_add_ps(a.0, b.0), _mm256_add_ps(a.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_mul_ps(a.0, b.0), _mm256_mul_ps(a.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_fmadd_ps(a.0, b.0, c.0), _mm256_fmadd_ps(a.1, b.1, c.1)) }
    }

    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_max_ps(a.0, b.0), _mm256_max_ps(a.1, b.1)) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: see above.
        unsafe { (bf16_half(p), bf16_half(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F) {
        // SAFETY: see above.
        unsafe {
            let (a, b) = (bf16_pairs_half(p), bf16_pairs_half(p.add(16)));
            ((a.0, b.0), (a.1, b.1))
        }
    }

    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> Self::F {
        // SAFETY: see above.
        unsafe { (e8m0_half(p), e8m0_half(p.add(8))) }
    }

    #[inline(always)]
    unsafe fn splat_int(x: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { (_mm256_set1_epi32(x), _mm256_set1_epi32(x)) }
    }

    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { (_mm256_cvtepi32_ps(v.0), _mm256_cvtepi32_ps(v.1)) }
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: see above.
        unsafe { (_mm256_loadu_si256(p.cast()), _mm256_loadu_si256(p.add(32).cast())) }
    }

    #[inline(always)]
    unsafe fn dot_q8(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let x = broadcast_four(x);
            (dot_q8_half(acc.0, w.0, x), dot_q8_half(acc.1, w.1, x))
        }
    }

    #[inline(always)]
    unsafe fn load_fp4(p: *const u8) -> (Self::B, Self::B) {
        // SAFETY: see above.
        unsafe {
            let (a, b) = (fp4_half(p), fp4_half(p.add(32)));
            ((a.0, b.0), (a.1, b.1))
        }
    }

    #[inline(always)]
    unsafe fn dot_fp4(acc: Self::I, w: (Self::B, Self::B), x: *const i8) -> Self::I {
        // SAFETY: see above.
        unsafe { (dot_fp4_half(acc.0, w.0.0, w.1.0, x), dot_fp4_half(acc.1, w.0.1, w.1.1, x)) }
    }

    #[inline(always)]
    unsafe fn column<const J: u32>(w: Self::B) -> Self::F {
        // SAFETY: see above.
        unsafe { (column_half::<J>(w.0), column_half::<J>(w.1)) }
    }

    #[inline(always)]
    unsafe fn column_fp4<const J: u32>(w: Self::B) -> Self::F {
        // SAFETY: see above. Small integers: the subtraction is exact.
        unsafe {
            let twelve = _mm256_set1_ps(12.0);
            let column = Self::column::<J>(w);
            (_mm256_sub_ps(column.0, twelve), _mm256_sub_ps(column.1, twelve))
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
