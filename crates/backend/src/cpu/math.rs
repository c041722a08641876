/// `e^x` to about 1e-7 relative; 0 below -87.3, and at most `e^88.3`.
///
/// Written in plain `mul` and `add` so that it vectorises and gives the same bits on every instruction set. Reduction to
/// `|r| <= ln 2 / 2` with a two-part `ln 2` (Cody and Waite), then the Taylor series to degree 7.
#[inline(always)]
pub(crate) fn exp(x: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it rounds to an integer in the low bits
    const LN2_HIGH: f32 = 0.693_359_4; // nine bits, so that n · LN2_HIGH is exact
    const LN2_LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > 88.3 { 88.3 } else { x };
    let clamped = if clamped < -87.3 { -87.3 } else { clamped };
    let rounded = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = rounded - ROUND;
    let r = (clamped - n * LN2_HIGH) - n * LN2_LOW;
    let mut p = 1.0 / 5040.0;
    p = p * r + 1.0 / 720.0;
    p = p * r + 1.0 / 120.0;
    p = p * r + 1.0 / 24.0;
    p = p * r + 1.0 / 6.0;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    let exponent = (rounded.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32).wrapping_add(127);
    let value = p * f32::from_bits((exponent as u32) << 23);
    if x < -87.3 { 0.0 } else { value }
}

/// gpt-oss's SwiGLU: `a · sigmoid(alpha · a) · (u + 1)`, `a = min(gate, limit)`, `u = clamp(up, -limit, limit)`.
#[inline(always)]
pub(crate) fn swiglu(gate: f32, up: f32, limit: f32, alpha: f32) -> f32 {
    let a = if gate > limit { limit } else { gate };
    // Not a clamp of the model: below this the product is under 1e-34, and far below it the exponential would overflow.
    let floor = -85.0 / alpha;
    let a = if a < floor { floor } else { a };
    let u = if up > limit { limit } else { up };
    let u = if u < -limit { -limit } else { u };
    a / (1.0 + exp(-alpha * a)) * (u + 1.0)
}

/// Sum of sixteen lanes in a fixed order.
#[inline(always)]
pub(crate) fn sum_lanes(v: &[f32; 16]) -> f32 {
    let mut t = *v;
    for width in [8, 4, 2, 1] {
        for l in 0..width {
            t[l] += t[l + width];
        }
    }
    t[0]
}

/// Rounds to BF16, ties to even; keeps NaN.
#[inline(always)]
pub(crate) fn to_bf16(x: f32) -> u16 {
    half::bf16::from_f32(x).to_bits()
}

/// Widens BF16.
#[inline(always)]
pub(crate) fn from_bf16(bits: u16) -> f32 {
    f32::from_bits(u32::from(bits) << 16)
}

/// Rounds to E4M3, ties to even; beyond 448 it saturates. NaN stays NaN.
#[inline(always)]
pub(crate) fn to_e4m3(x: f32) -> u8 {
    const LARGEST: u8 = 0x7e;
    const LEAST_NORMAL: f32 = 1.0 / 64.0;
    let (bits, magnitude) = (x.to_bits(), x.abs());
    let sign = (bits >> 24) as u8 & 0x80;
    let code = if x.is_nan() {
        0x7f
    } else if magnitude >= 448.0 {
        LARGEST
    } else if magnitude < LEAST_NORMAL {
        // In units of 2^-9; 8 of them are the least normal number, and so is the code 8.
        (magnitude * 512.0).round_ties_even() as u8
    } else {
        // Twenty bits of the mantissa go; the exponent's bias is 7, not 127.
        let rounded = (bits & 0x7fff_ffff) + 0x0007_ffff + (bits >> 20 & 1);
        ((rounded >> 20) - (120 << 3)).min(u32::from(LARGEST)) as u8
    };
    sign | code
}

/// Widens E4M3, subnormals included.
#[inline(always)]
pub(crate) fn from_e4m3(code: u8) -> f32 {
    const SCALE: f32 = f32::from_bits((127 + 120) << 23);
    if code & 0x7f == 0x7f {
        return f32::NAN;
    }
    f32::from_bits(u32::from(code & 0x80) << 24 | u32::from(code & 0x7f) << 20) * SCALE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn e4m3_rounds_to_the_nearest() {
        let values: Vec<f32> = (0..0x7f).map(from_e4m3).collect();
        assert_eq!((values[1], values[8], values[0x38], values[0x7e]), (2_f32.powi(-9), 2_f32.powi(-6), 1.0, 448.0));
        for (code, pair) in values.windows(2).enumerate() {
            let (low, high, middle) = (code as u8, code as u8 + 1, (pair[0] + pair[1]) / 2.0);
            assert!(pair[0] < pair[1]);
            assert_eq!(to_e4m3(pair[0]), low);
            assert_eq!(to_e4m3(middle), if low % 2 == 0 { low } else { high }, "tie after {low}");
            assert_eq!((to_e4m3(middle.next_down()), to_e4m3(-middle.next_up())), (low, high | 0x80));
        }
        assert_eq!([460.0, 1e30, f32::INFINITY].map(to_e4m3), [0x7e; 3]);
        assert!(from_e4m3(to_e4m3(f32::NAN)).is_nan());
    }

    #[test]
    fn exp_is_close_everywhere() {
        for i in -87_000..88_000 {
            let x = i as f32 * 1e-3;
            let want = f64::from(x).exp();
            let error = (f64::from(exp(x)) - want).abs() / want;
            assert!(error < 3e-7, "exp({x}): relative error {error}");
        }
        assert_eq!(exp(-200.0), 0.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert!(exp(f32::INFINITY).is_finite());
    }
}
