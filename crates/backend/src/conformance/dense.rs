//! Matrix products, and how weights are held.

use super::{
    Suite, assert_close,
    data::{Random, Rows, multiply, widen},
};
use crate::{Backend, DenseFormat};

pub(super) fn run<B: Backend>(suite: &mut Suite<'_, B>) {
    for format in DenseFormat::ALL {
        for (features, cols) in [(1, 32), (16, 64), (17, 96), (777, 320), (512, 256), (24, 1440)] {
            linear(suite, format, features, cols, &[1, 2, 3, 5, 8, 9, 33]);
        }
        linear(suite, format, 33, 32, &[4096]);
        zeroes(suite, format);
    }
}

/// Numbers of rows on either side of where other kernels or tiles begin; columns for more steps than a pipeline holds; rows
/// enough for the kernels of lm_head.
pub(super) fn small<B: Backend>(suite: &mut Suite<'_, B>) {
    for format in DenseFormat::ALL {
        linear(suite, format, 33, 416, &[1, 3, 9, 33, 100, 130]);
        linear(suite, format, 32_770, 32, &[1, 3]);
    }
}

/// The weights as the backend holds them: its product with the identity. A few rows at a time: where a backend rounds
/// weights once more to multiply many rows, that is not how it holds them.
fn held<B: Backend>(suite: &mut Suite<'_, B>, matrix: &B::Matrix, features: usize, cols: usize) -> Vec<f64> {
    const ROWS: usize = 8;
    let mut identity = vec![0.0; cols * cols];
    (0..cols).for_each(|i| identity[i * cols + i] = 1.0);
    let mut out = suite.backend.buffer(ROWS, features).unwrap();
    let mut transposed = Vec::with_capacity(cols * features);
    for rows in identity.chunks(ROWS * cols) {
        let x = suite.upload(rows, cols);
        suite.backend.linear(&x, rows.len() / cols, matrix, None, &mut out).unwrap();
        transposed.extend(suite.download(&out, rows.len() / cols, features));
    }
    (0..features * cols).map(|i| f64::from(transposed[i % cols * features + i / cols])).collect()
}

fn linear<B: Backend>(suite: &mut Suite<'_, B>, format: DenseFormat, features: usize, cols: usize, batches: &[usize]) {
    let mut random = Random(features as u64);
    let (source, weight) = Rows::bf16(&random.normals(features * cols, 0.05), cols);
    let matrix = suite.backend.matrix(&source, format).unwrap();
    let weight = round_trip(suite, &matrix, &weight, format, cols);
    let (bias_source, bias) = Rows::bf16(&random.normals(features, 0.1), features);
    let bias_vector = suite.backend.vector(&bias_source).unwrap();
    for &n in batches {
        let what = format!("linear {format:?} [{features}, {cols}], {n} rows");
        let x = random.normals(n * cols, 1.0);
        let buffer = suite.upload(&x, cols);
        let mut out = suite.backend.buffer(n + 1, features).unwrap();
        // A lone output may happen to be close to zero, so those are judged together and less strictly.
        let (width, tolerance) =
            if features == 1 { (n, 4.0 * suite.tolerance.linear) } else { (features, suite.tolerance.linear) };
        for with_bias in [false, true] {
            suite.backend.linear(&buffer, n, &matrix, with_bias.then_some(&bias_vector), &mut out).unwrap();
            let want = multiply(&widen(&x), &weight, with_bias.then_some(&bias[..]), cols);
            let got = suite.download(&out, n, features);
            assert_close(&what, &got, &want, width, tolerance);
        }
        let mut after = vec![0.0; features];
        suite.backend.download(&out, n, &mut after).unwrap();
        assert!(after.iter().all(|v| *v == 0.0), "{what}: the row after the last was written to");
    }
}

/// Checks that every weight is held within half a quantisation step, and gives back what is held.
fn round_trip<B: Backend>(
    suite: &mut Suite<'_, B>,
    matrix: &B::Matrix,
    weight: &[f64],
    format: DenseFormat,
    cols: usize,
) -> Vec<f64> {
    let held = held(suite, matrix, weight.len() / cols, cols);
    for (held, weight) in held.chunks(32).zip(weight.chunks(32)) {
        let largest = weight.iter().fold(0.0_f64, |m, w| m.max(w.abs()));
        let step = match format {
            DenseFormat::Bf16 => 0.0,
            // A scale may be rounded to BF16, upwards: a step grows by 2^-7 at most.
            DenseFormat::Q8 => largest / 127.0 * (1.0 + 1.0 / 128.0),
            // Codes 4 and 6, where 4 is at most the largest magnitude; what lies above 6 is as close.
            DenseFormat::Mxfp4 => {
                best_mxfp4(held, weight, largest);
                largest / 2.0
            }
        };
        for (held, weight) in held.iter().zip(weight) {
            let error = (held - weight).abs();
            assert!(error <= 0.5 * step + 1e-6 * largest, "{format:?}: {weight} held as {held}, step {step}");
        }
    }
    held
}

/// Checks that a group's squared error is the smaller one of its two scales.
fn best_mxfp4(held: &[f64], weight: &[f64], largest: f64) {
    const MAGNITUDES: [f64; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
    let nearest = |scale: f64, w: &f64| {
        let errors = MAGNITUDES.iter().map(|m| (m * scale - w.abs()).powi(2));
        errors.fold(f64::INFINITY, f64::min)
    };
    let error = |scale: f64| weight.iter().map(|w| nearest(scale, w)).sum::<f64>();
    let scale = largest.log2().floor().exp2() / 4.0;
    let best = error(scale).min(error(2.0 * scale));
    let found: f64 = held.iter().zip(weight).map(|(h, w)| (h - w).powi(2)).sum();
    assert!((found - best).abs() <= 1e-5 * best, "MXFP4: squared error {found:e} where {best:e} is to be had");
}

/// All-zero groups, of weights and of activations, give zeroes and not NaN.
fn zeroes<B: Backend>(suite: &mut Suite<'_, B>, format: DenseFormat) {
    let (source, _) = Rows::bf16(&[0.0; 16 * 64], 64);
    let matrix = suite.backend.matrix(&source, format).unwrap();
    let mut out = suite.backend.buffer(2, 16).unwrap();
    let x = suite.upload(&[vec![0.0; 64], vec![1.0; 64]].concat(), 64);
    suite.backend.linear(&x, 2, &matrix, None, &mut out).unwrap();
    assert_eq!(suite.download(&out, 2, 16), [0.0; 32], "{format:?}: zeroes");
}
