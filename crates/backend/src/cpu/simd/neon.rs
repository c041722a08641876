use std::arch::{aarch64::*, asm};

use super::{FP4_DOUBLED, Kernel, Simd};

/// NEON with the dot product extension, or also with int8 matrix multiplication: a vector is four registers.
#[derive(Clone, Copy)]
pub(crate) struct Neon<const I8MM: bool>;

/// Runs a kernel compiled for NEON with dot products.
///
/// # Safety
/// The machine must have the features named, and the kernel's own conditions must hold.
#[target_feature(enable = "neon,dotprod")]
pub(crate) unsafe fn run_dotprod<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the caller's.
    unsafe { kernel.run::<Neon<false>>() }
}

/// Runs a kernel compiled for NEON with dot products and int8 matrix multiplication.
///
/// # Safety
/// The machine must have the features named, and the kernel's own conditions must hold.
#[target_feature(enable = "neon,dotprod,i8mm")]
pub(crate) unsafe fn run_i8mm<K: Kernel>(kernel: K) -> K::Out {
    // SAFETY: the caller's.
    unsafe { kernel.run::<Neon<true>>() }
}

/// `acc + Σ w · x` over four signed bytes per lane. The intrinsic is not stable in Rust yet.
#[inline(always)]
unsafe fn sdot(mut acc: int32x4_t, w: int8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: registers only; the instruction is there by the caller's promise.
    unsafe {
        asm!(
            "sdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

/// `acc + Σ w · x`, `w` unsigned.
#[inline(always)]
unsafe fn usdot(mut acc: int32x4_t, w: uint8x16_t, x: int8x16_t) -> int32x4_t {
    // SAFETY: as above.
    unsafe {
        asm!(
            "usdot {acc:v}.4s, {w:v}.16b, {x:v}.16b",
            acc = inout(vreg) acc, w = in(vreg) w, x = in(vreg) x,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    acc
}

#[inline(always)]
unsafe fn broadcast_four(x: *const i8) -> int8x16_t {
    // SAFETY: the caller guarantees four bytes.
    unsafe { vreinterpretq_s8_s32(vdupq_n_s32(x.cast::<i32>().read_unaligned())) }
}

// SAFETY of all blocks below: `Simd`'s contract (instruction set present, pointers valid for the bytes named).
impl<const I8MM: bool> Simd for Neon<I8MM> {
    type F = [float32x4_t; 4];
    type I = [int32x4_t; 4];
    type B = [uint8x16_t; 4];
    const Q8_BIAS: i32 = if I8MM { 128 } else { 0 };
    const FP4_BIAS: i32 = 0;
    const ROW_BLOCK: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        // SAFETY: see above.
        unsafe { [vdupq_n_f32(x); 4] }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: see above.
        unsafe { [vld1q_f32(p), vld1q_f32(p.add(4)), vld1q_f32(p.add(8)), vld1q_f32(p.add(12))] }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        for (i, v) in v.into_iter().enumerate() {
            // SAFETY: see above.
            unsafe { vst1q_f32(p.add(4 * i), v) };
        }
    }

    #[inline(always)]
    unsafe fn add(mut a: Self::F, b: Self::F) -> Self::F {
        for i in 0..4 {
            // SAFETY: see above.
            a[i] = unsafe { vaddq_f32(a[i], b[i]) };
        }
        a
    }

    #[inline(always)]
    unsafe fn mul(mut a: Self::F, b: Self::F) -> Self::F {
        for i in 0..4 {
            // SAFETY: see above.
            a[i] = unsafe { vmulq_f32(a[i], b[i]) };
        }
        a
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::F, b: Self::F, mut c: Self::F) -> Self::F {
        for i in 0..4 {
            // SAFETY: see above.
            c[i] = unsafe { vfmaq_f32(c[i], a[i], b[i]) };
        }
        c
    }

    #[inline(always)]
    unsafe fn max(mut a: Self::F, b: Self::F) -> Self::F {
        for i in 0..4 {
            // SAFETY: see above.
            a[i] = unsafe { vmaxq_f32(a[i], b[i]) };
        }
        a
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let mut out = Self::splat(0.0);
            for i in 0..4 {
                out[i] = vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(4 * i))));
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F) {
        // SAFETY: see above.
        unsafe {
            let mut out = (Self::splat(0.0), Self::splat(0.0));
            for i in 0..4 {
                let raw = vreinterpretq_u32_u16(vld1q_u16(p.add(8 * i)));
                out.0[i] = vreinterpretq_f32_u32(vshlq_n_u32::<16>(raw));
                out.1[i] = vreinterpretq_f32_u32(vandq_u32(raw, vdupq_n_u32(0xffff_0000)));
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let bytes = vld1q_u8(p);
            let (low, high) = (vmovl_u8(vget_low_u8(bytes)), vmovl_u8(vget_high_u8(bytes)));
            let words = [
                vmovl_u16(vget_low_u16(low)),
                vmovl_u16(vget_high_u16(low)),
                vmovl_u16(vget_low_u16(high)),
                vmovl_u16(vget_high_u16(high)),
            ];
            let mut out = Self::splat(0.0);
            for i in 0..4 {
                // Byte 0 is 2^-127, a subnormal.
                let bits = vmaxq_u32(vshlq_n_u32::<23>(words[i]), vdupq_n_u32(0x0040_0000));
                out[i] = vreinterpretq_f32_u32(bits);
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn splat_int(x: i32) -> Self::I {
        // SAFETY: see above.
        unsafe { [vdupq_n_s32(x); 4] }
    }

    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::F {
        // SAFETY: see above.
        unsafe { [vcvtq_f32_s32(v[0]), vcvtq_f32_s32(v[1]), vcvtq_f32_s32(v[2]), vcvtq_f32_s32(v[3])] }
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: see above.
        unsafe { [vld1q_u8(p), vld1q_u8(p.add(16)), vld1q_u8(p.add(32)), vld1q_u8(p.add(48))] }
    }

    #[inline(always)]
    unsafe fn dot_q8(mut acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let x = broadcast_four(x);
            for i in 0..4 {
                acc[i] = if I8MM {
                    usdot(acc[i], w[i], x)
                } else {
                    sdot(acc[i], vreinterpretq_s8_u8(veorq_u8(w[i], vdupq_n_u8(128))), x)
                };
            }
            acc
        }
    }

    #[inline(always)]
    unsafe fn load_fp4(p: *const u8) -> (Self::B, Self::B) {
        // SAFETY: see above.
        unsafe {
            let table = vreinterpretq_u8_s8(vld1q_s8(FP4_DOUBLED.as_ptr()));
            let mut out = (Self::load_bytes(p), Self::load_bytes(p));
            for i in 0..4 {
                out.0[i] = vqtbl1q_u8(table, vandq_u8(out.0[i], vdupq_n_u8(15)));
                out.1[i] = vqtbl1q_u8(table, vshrq_n_u8::<4>(out.1[i]));
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn dot_fp4(mut acc: Self::I, w: (Self::B, Self::B), x: *const i8) -> Self::I {
        // SAFETY: see above.
        unsafe {
            let (low, high) = (broadcast_four(x), broadcast_four(x.add(4)));
            for i in 0..4 {
                acc[i] = sdot(acc[i], vreinterpretq_s8_u8(w.0[i]), low);
                acc[i] = sdot(acc[i], vreinterpretq_s8_u8(w.1[i]), high);
            }
            acc
        }
    }

    #[inline(always)]
    unsafe fn column<const J: u32>(w: Self::B) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let mut out = Self::splat(0.0);
            for i in 0..4 {
                let words = vshlq_u32(vreinterpretq_u32_u8(w[i]), vdupq_n_s32(-8 * J as i32));
                out[i] = vcvtq_f32_u32(vandq_u32(words, vdupq_n_u32(255)));
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn column_fp4<const J: u32>(w: Self::B) -> Self::F {
        // SAFETY: see above.
        unsafe {
            let mut out = Self::splat(0.0);
            for i in 0..4 {
                // The byte to the top, then back with its sign.
                let words = vshlq_s32(vreinterpretq_s32_u8(w[i]), vdupq_n_s32(24 - 8 * J as i32));
                out[i] = vcvtq_f32_s32(vshrq_n_s32::<24>(words));
            }
            out
        }
    }

    #[inline(always)]
    unsafe fn prefetch(p: *const u8) {
        // SAFETY: a prefetch never faults.
        unsafe { asm!("prfm pldl1keep, [{p}]", p = in(reg) p, options(readonly, nostack, preserves_flags)) }
    }
}
