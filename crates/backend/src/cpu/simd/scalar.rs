use super::{FP4_DOUBLED, LANES, Simd};

/// Plain Rust: the yardstick of the others, and the path of machines none of them fits.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

impl Simd for Scalar {
    type F = [f32; LANES];
    type I = [i32; LANES];
    type B = [[u8; 4]; LANES];
    const Q8_BIAS: i32 = 0;
    const FP4_BIAS: i32 = 0;
    const ROW_BLOCK: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::F {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::F {
        // SAFETY: the caller guarantees 16 values.
        unsafe { p.cast::<Self::F>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::F) {
        // SAFETY: the caller guarantees 16 values.
        unsafe { p.cast::<Self::F>().write_unaligned(v) }
    }

    #[inline(always)]
    unsafe fn add(mut a: Self::F, b: Self::F) -> Self::F {
        for l in 0..LANES {
            a[l] += b[l];
        }
        a
    }

    #[inline(always)]
    unsafe fn mul(mut a: Self::F, b: Self::F) -> Self::F {
        for l in 0..LANES {
            a[l] *= b[l];
        }
        a
    }

    #[inline(always)]
    unsafe fn mul_add(a: Self::F, b: Self::F, mut c: Self::F) -> Self::F {
        for l in 0..LANES {
            c[l] += a[l] * b[l];
        }
        c
    }

    #[inline(always)]
    unsafe fn max(mut a: Self::F, b: Self::F) -> Self::F {
        for l in 0..LANES {
            a[l] = if a[l] > b[l] { a[l] } else { b[l] };
        }
        a
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self::F {
        // SAFETY: the caller guarantees 16 values.
        let raw = unsafe { p.cast::<[u16; LANES]>().read_unaligned() };
        let mut out = [0.0; LANES];
        for l in 0..LANES {
            out[l] = f32::from_bits(u32::from(raw[l]) << 16);
        }
        out
    }

    #[inline(always)]
    unsafe fn load_bf16_pairs(p: *const u16) -> (Self::F, Self::F) {
        // SAFETY: the caller guarantees 16 pairs.
        let raw = unsafe { p.cast::<[[u16; 2]; LANES]>().read_unaligned() };
        let mut out = ([0.0; LANES], [0.0; LANES]);
        for l in 0..LANES {
            out.0[l] = f32::from_bits(u32::from(raw[l][0]) << 16);
            out.1[l] = f32::from_bits(u32::from(raw[l][1]) << 16);
        }
        out
    }

    #[inline(always)]
    unsafe fn load_e8m0(p: *const u8) -> Self::F {
        // SAFETY: the caller guarantees 16 bytes.
        let raw = unsafe { p.cast::<[u8; LANES]>().read_unaligned() };
        let mut out = [0.0; LANES];
        for l in 0..LANES {
            // Byte 0 is 2^-127, a subnormal.
            out[l] = f32::from_bits((u32::from(raw[l]) << 23).max(0x0040_0000));
        }
        out
    }

    #[inline(always)]
    unsafe fn splat_int(x: i32) -> Self::I {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn to_f32(v: Self::I) -> Self::F {
        let mut out = [0.0; LANES];
        for l in 0..LANES {
            out[l] = v[l] as f32;
        }
        out
    }

    #[inline(always)]
    unsafe fn load_bytes(p: *const u8) -> Self::B {
        // SAFETY: the caller guarantees 64 bytes.
        unsafe { p.cast::<Self::B>().read_unaligned() }
    }

    #[inline(always)]
    unsafe fn dot_q8(mut acc: Self::I, w: Self::B, x: *const i8) -> Self::I {
        // SAFETY: the caller guarantees four activations.
        let x = unsafe { x.cast::<[i8; 4]>().read_unaligned() };
        for l in 0..LANES {
            for j in 0..4 {
                acc[l] += (i32::from(w[l][j]) - 128) * i32::from(x[j]);
            }
        }
        acc
    }

    #[inline(always)]
    unsafe fn load_fp4(p: *const u8) -> (Self::B, Self::B) {
        // SAFETY: the caller guarantees 64 bytes.
        let raw = unsafe { Self::load_bytes(p) };
        let mut out = ([[0; 4]; LANES], [[0; 4]; LANES]);
        for l in 0..LANES {
            for j in 0..4 {
                out.0[l][j] = FP4_DOUBLED[usize::from(raw[l][j] & 15)] as u8;
                out.1[l][j] = FP4_DOUBLED[usize::from(raw[l][j] >> 4)] as u8;
            }
        }
        out
    }

    #[inline(always)]
    unsafe fn dot_fp4(mut acc: Self::I, w: (Self::B, Self::B), x: *const i8) -> Self::I {
        // SAFETY: the caller guarantees eight activations.
        let x = unsafe { x.cast::<[i8; 8]>().read_unaligned() };
        for l in 0..LANES {
            for j in 0..4 {
                acc[l] += i32::from(w.0[l][j] as i8) * i32::from(x[j]);
                acc[l] += i32::from(w.1[l][j] as i8) * i32::from(x[j + 4]);
            }
        }
        acc
    }

    #[inline(always)]
    unsafe fn column<const J: u32>(w: Self::B) -> Self::F {
        let mut out = [0.0; LANES];
        for l in 0..LANES {
            out[l] = f32::from(w[l][J as usize]);
        }
        out
    }

    #[inline(always)]
    unsafe fn column_fp4<const J: u32>(w: Self::B) -> Self::F {
        let mut out = [0.0; LANES];
        for l in 0..LANES {
            out[l] = f32::from(w[l][J as usize] as i8);
        }
        out
    }

    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
}
