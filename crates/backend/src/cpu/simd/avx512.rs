use std::arch::x86_64::*;

use super::{FP4_DOUBLED_PLUS_12, Kernel, Simd};

/// AVX-512 with VNNI: a vector is one register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// Runs a kernel compiled for AVX-512 VNNI.
///
/// # Safety
/// The machine must have the features named, and the kernel's own conditions must hold.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma")]
pub(crate) unsafe fn run<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the caller's.
    unsafe { kernel.run::<Avx512>() }
}

#[inline(always)]
unsafe fn broadcast_four(x: *const i8) -> __m512i {
    // SAFETY: the caller guarantees four bytes.
    unsafe { _mm512_set1_epi32(x.cast::<i32>().read_unaligned()) }
}

// SAFETY of all blocks below: `Simd`'s contract (instruction set present, pointers valid for the bytes named).
impl Simd for Avx512 {
    type F = __m512;
    type I = __m512i;
    type B = __m512i;
    const Q8_BIAS: i32 = 128;
    const FP4_BIAS: i32 = 12;
    const ROW_BLOCK: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_set1_ps(x) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_loadu_ps(p) }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: see above.
        unsafe { _mm512_storeu_ps(p, v) }
    }

    #[inline(always)]
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_add_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_mul_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::F, b: Self::F, c: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }

    #[inline(always)]
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_max_ps(a, b) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let raw = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(raw))
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F) {
        // SAFETY: see above.
        unsafe {
            let raw = _mm512_loadu_si512(p.cast());
            let high = _mm512_and_si512(raw, _mm512_set1_epi32(0xffff_0000_u32 as i32));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(raw)), _mm512_castsi512_ps(high))
        }
    }

    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let bytes = _mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()));
            // Byte 0 is 2^-127, a subnormal.
            let bits = _mm512_max_epi32(_mm512_slli_epi32::<23>(bytes), _mm512_set1_epi32(0x0040_0000));
            _mm512_castsi512_ps(bits)
        }
    }

    #[inline(always)]
    unsafe fn splat_int(x: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_set1_epi32(x) }
    }

    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { _mm512_cvtepi32_ps(v) }
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: see above.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn dot_q8(acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        // SAFETY: see above.
        unsafe { _mm512_dpbusd_epi32(acc, w, broadcast_four(x)) }
    }

    #[inline(always)]
    unsafe fn load_fp4(p: *const u8) -> (Self::B, Self::B) {
        // SAFETY: see above.
        unsafe {
            let table = _mm512_broadcast_i32x4(_mm_loadu_si128(FP4_DOUBLED_PLUS_12.as_ptr().cast()));
            let raw = _mm512_loadu_si512(p.cast());
            let mask = _mm512_set1_epi8(15);
            let low = _mm512_and_si512(raw, mask);
            let high = _mm512_and_si512(_mm512_srli_epi16::<4>(raw), mask);
            (_mm512_shuffle_epi8(table, low), _mm512_shuffle_epi8(table, high))
        }
    }

    #[inline(always)]
    unsafe fn dot_fp4(acc: Self::I, w: (Self::B, Self::B), x: *const i8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let acc = _mm512_dpbusd_epi32(acc, w.0, broadcast_four(x));
            _mm512_dpbusd_epi32(acc, w.1, broadcast_four(x.add(4)))
        }
    }

    #[inline(always)]
    unsafe fn column<const J: u32>(w: Self::B) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let shifted = match J {
                0 => w,
                1 => _mm512_srli_epi32::<8>(w),
                2 => _mm512_srli_epi32::<16>(w),
                _ => _mm512_srli_epi32::<24>(w),
            };
            _mm512_cvtepi32_ps(_mm512_and_si512(shifted, _mm512_set1_epi32(255)))
        }
    }

    #[inline(always)]
    unsafe fn column_fp4<const J: u32>(w: Self::B) -> Self::F {
        // SAFETY: see above. Small integers: the subtraction is exact.
        unsafe { _mm512_sub_ps(Self::column::<J>(w), _mm512_set1_ps(12.0)) }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
}
