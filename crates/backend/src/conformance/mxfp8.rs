//! Experts of prompts whose activations are rounded to MXFP8, against a reference that rounds them alike.

use super::{
    Tolerance, assert_close,
    data::{Random, widen},
    experts::Layer,
};
use crate::{Backend, Batch, Sequence};

/// For a backend whose [`Backend::eight_bit_prompts`] holds: from more rows than its decode kernels take to 4,096, partial
/// tiles, all rows on one expert, scales at both ends of their range, activations from end to end of f32. Steps that decode
/// are not rounded so.
pub fn mxfp8_prompts<B: Backend>(backend: &B) {
    assert!(backend.eight_bit_prompts(), "{}: prompts are not in 8 bits", backend.describe());
    for (experts, hidden, intermediate) in [(4, 32, 32), (8, 96, 64), (32, 256, 192), (5, 320, 160)] {
        let layer = Layer::random(experts, hidden, intermediate);
        for n in [9, 16, 33, 64, 65, 130, 300] {
            let x = Random(n as u64).normals(n * hidden, 1.0);
            check(backend, &layer, &x, experts.min(4), &format!("{experts} x {hidden} x {intermediate}, {n} rows"));
        }
    }
    let layer = Layer::random(4, 64, 64).with_one_expert(2);
    for n in [9, 70, 500] {
        check(backend, &layer, &Random(7).normals(n * 64, 1.0), 1, &format!("all {n} rows on one expert"));
    }
    check(backend, &Layer::random(4, 32, 32), &Random(8).normals(4096 * 32, 1.0), 2, "4096 rows");
    for n in [40, 200] {
        for (layer, x, what) in Layer::with_extreme_scales(n) {
            check(backend, &layer, &x, 1, &format!("{what}, {n} rows"));
        }
    }
    uneven_groups(backend);
    decoding(backend);
}

fn check<B: Backend>(backend: &B, layer: &Layer, x: &[f32], top_k: usize, what: &str) {
    let want = layer.reference_rounding(&widen(x), top_k, &round, &round_twice);
    compare(backend, layer, x, top_k, &want, (&format!("MXFP8 experts, {what}"), Tolerance::MXFP8_MOE));
}

fn compare<B: Backend>(
    backend: &B,
    layer: &Layer,
    x: &[f32],
    top_k: usize,
    want: &[f64],
    (what, tolerance): (&str, f64),
) {
    let hidden = layer.hidden();
    let n = x.len() / hidden;
    let mut buffer = backend.buffer(n, hidden).unwrap();
    backend.upload(&mut buffer, 0, x).unwrap();
    let out = layer.forward(backend, &buffer, n, top_k);
    let mut got = vec![0.0; n * hidden];
    backend.download(&out, 0, &mut got).unwrap();
    assert_close(what, &got, want, hidden, tolerance);
}

/// Groups of a row with scales far apart: each has its own.
fn uneven_groups<B: Backend>(backend: &B) {
    let mut layer = Layer::random(4, 256, 192).with_one_expert(3);
    layer.without_router();
    let mut x = Random(11).normals(50 * 256, 1.0);
    for (group, values) in x.chunks_mut(32).enumerate() {
        let factor = 2.0_f32.powi([0, -20, 3, -60, -3, 2, -126, 0][group % 8]);
        values.iter_mut().for_each(|value| *value *= factor);
    }
    x[32 * 5..32 * 6].fill(0.0);
    check(backend, &layer, &x, 1, "groups of unlike size");
}

/// Rows of a step in which every sequence has one keep the precision of decoding.
fn decoding<B: Backend>(backend: &B) {
    const N: usize = 40;
    let layer = Layer::random(8, 96, 64);
    let sequence = |i| Sequence { rows: i..i + 1, position: 0, full_blocks: &[], sliding_blocks: &[] };
    let sequences: Vec<Sequence<'_>> = (0..N).map(sequence).collect();
    backend.begin(&Batch { tokens: &[0; N], sequences: &sequences }).unwrap();
    let x = Random(12).normals(N * 96, 1.0);
    let want = layer.reference(&widen(&x), 4);
    compare(backend, &layer, &x, 4, &want, ("experts of 40 rows that decode", Tolerance::FAST.moe));
}

/// To E4M3 in groups of 32, each with the smallest power of two that brings its largest value to at most 448.
fn round(values: &mut [f64]) {
    const E4M3_MAX: f32 = 448.0;
    for group in values.chunks_mut(32) {
        let largest = group.iter().fold(0.0_f32, |most, value| most.max(value.abs() as f32));
        let exponent = (((largest * (1.0 / E4M3_MAX)).to_bits() + 0x7f_ffff) >> 23).max(1);
        let scale = 2.0_f64.powi(exponent as i32 - 127);
        group.iter_mut().for_each(|value| *value = e4m3(*value / scale) * scale);
    }
}

/// To F16 first, as which values between the two products pass through shared memory: near a tie between two E4M3 values that
/// decides, and one step of E4M3 is a sixteenth of the value.
fn round_twice(values: &mut [f64]) {
    values.iter_mut().for_each(|value| *value = nearest(*value, -14, 10));
    round(values);
}

/// The nearest E4M3 value, ties to even, subnormal below 2^-6.
fn e4m3(value: f64) -> f64 {
    nearest(value, -6, 3)
}

/// The nearest value of a format with so many bits of mantissa, ties to even, subnormal below 2^`least`.
fn nearest(value: f64, least: i32, mantissa: i32) -> f64 {
    let exponent = (value.to_bits() >> 52 & 0x7ff) as i32 - 1023;
    let unit = 2.0_f64.powi(exponent.max(least) - mantissa);
    (value / unit).round_ties_even() * unit
}
