//! Rows of MXFP4: into tiles, and from BF16.

use super::{
    dot::{GROUP, mxfp4_scale_bytes},
    matrix::widened,
    simd::LANES,
};

/// Puts a row into its lane of a tile of `cols` columns: a scale byte a group, and two codes a byte, the first in the low
/// nibble.
pub(crate) fn pack_row(nibbles: &[u8], exponents: &[u8], lane: usize, cols: usize, tile: &mut [u8]) {
    let (scales, data) = tile.split_at_mut(mxfp4_scale_bytes(cols));
    for (group, exponent) in exponents[..cols / GROUP].iter().enumerate() {
        scales[group * LANES + lane] = *exponent;
    }
    for (eight, bytes) in nibbles[..cols / 2].chunks_exact(4).enumerate() {
        let packed = shuffle_nibbles(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]));
        data[eight * 64 + lane * 4..][..4].copy_from_slice(&packed.to_le_bytes());
    }
}

/// The same for a row of BF16 values.
pub(crate) fn quantise_row(row: &[u8], lane: usize, cols: usize, tile: &mut [u8]) {
    let mut nibbles = vec![0; cols / 2];
    let mut exponents = vec![0; cols / GROUP];
    for (group, bytes) in row.chunks_exact(GROUP * 2).enumerate() {
        let (exponent, codes) = quantise_group(&widened(bytes));
        exponents[group] = exponent;
        for (byte, two) in nibbles[group * GROUP / 2..].iter_mut().zip(codes.chunks_exact(2)) {
            *byte = two[0] | two[1] << 4;
        }
    }
    pack_row(&nibbles, &exponents, lane, cols, tile);
}

/// A group's E8M0 scale and its codes. Of the power of two with which the largest magnitude lies in [4, 8), where what
/// exceeds 6 saturates, and the one with which it lies in [2, 4), the one that leaves the smaller squared error; the first
/// where both leave the same. `kernels/pack.cu` gives the same bits.
fn quantise_group(values: &[f32; GROUP]) -> (u8, [u8; GROUP]) {
    let mut largest = 0.0_f32;
    for v in values {
        largest = if v.abs() > largest { v.abs() } else { largest };
    }
    let lower = (largest.to_bits() >> 23).saturating_sub(2);
    let (fine, fine_error) = codes(values, lower);
    let (coarse, coarse_error) = codes(values, lower + 1);
    // Each error is in units of its own scale squared.
    if 4.0 * coarse_error < fine_error { (lower as u8 + 1, coarse) } else { (lower as u8, fine) }
}

/// Codes at a scale of `2^(exponent - 127)`, at most 2^126, and their squared error in units of its square. A BF16 value's
/// distance from a code has at most eight bits, so every square is exact, fused or not; the order of the sums is fixed.
fn codes(values: &[f32; GROUP], exponent: u32) -> ([u8; GROUP], f32) {
    let inverse = f32::from_bits((254 - exponent) << 23);
    let mut codes = [0; GROUP];
    let mut errors = [0.0_f32; 4];
    for (i, v) in values.iter().enumerate() {
        let scaled = v.abs() * inverse;
        let code = nearest(scaled);
        codes[i] = code | if v.is_sign_negative() { 8 } else { 0 };
        let distance = scaled - MAGNITUDES[usize::from(code)];
        errors[i / 8] += distance * distance;
    }
    (codes, (errors[0] + errors[1]) + (errors[2] + errors[3]))
}

/// What the codes without a sign stand for.
const MAGNITUDES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

/// The nearest magnitude's code, ties to the even one.
fn nearest(x: f32) -> u8 {
    let passed = [x > 0.25, x >= 0.75, x > 1.25, x >= 1.75, x > 2.5, x >= 3.5, x > 5.0];
    passed.into_iter().map(u8::from).sum()
}

/// Columns 0..8 in ascending nibbles to columns 0..4 in low and 4..8 in high nibbles: a perfect shuffle.
fn shuffle_nibbles(x: u32) -> u32 {
    let t = (x ^ (x >> 8)) & 0x0000_ff00;
    let x = x ^ t ^ (t << 8);
    let t = (x ^ (x >> 4)) & 0x00f0_00f0;
    x ^ t ^ (t << 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nibbles_shuffle() {
        assert_eq!(shuffle_nibbles(0x7654_3210), 0x7362_5140);
    }

    fn group(values: &[f32]) -> [f32; GROUP] {
        let mut group = [0.0; GROUP];
        group[..values.len()].copy_from_slice(values);
        group
    }

    /// The largest magnitude at 4 .. 8 of the finer scale, at 2 .. 4 of the coarser.
    #[test]
    fn the_scale_is_the_one_with_the_smaller_error() {
        // All exact at a scale of 1.
        let (exponent, codes) = quantise_group(&group(&[6.0, -0.5, 1.5, -3.0, 4.0]));
        assert_eq!((exponent, &codes[..5]), (127, &[7, 9, 3, 13, 6][..]));
        // 7.75 would saturate; halved it is nearly 4.
        assert_eq!(quantise_group(&group(&[7.75, 4.0])).0, 128);
        // 6.5 saturates too, but the many small ones need the finer scale.
        let mut values = [0.5; GROUP];
        values[0] = 6.5;
        let (exponent, codes) = quantise_group(&values);
        assert_eq!((exponent, codes[0], codes[1]), (127, 7, 1));
    }

    #[test]
    fn ties_go_to_the_even_code() {
        let ties = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0].map(nearest);
        assert_eq!(ties, [0, 2, 2, 4, 4, 6, 6]);
    }

    /// Zeroes take the least scale, so that they never raise a row's largest; the extremes of BF16 keep within E8M0.
    #[test]
    fn extremes_have_scales() {
        assert_eq!(quantise_group(&[0.0; GROUP]), (0, [0; GROUP]));
        assert_eq!(quantise_group(&group(&[1e-40])).0, 0);
        let (exponent, codes) = quantise_group(&group(&[f32::from_bits(0x7f7f_0000)]));
        assert_eq!((exponent, codes[0]), (253, 6));
    }
}
