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

#[cfg(test)]
mod tests {
    use super::*;

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
