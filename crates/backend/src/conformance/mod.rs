//! What every backend must do, operation by operation: each against an independent reference in f64 on random data, and
//! the edges named in the model's specification.
//!
//! The functions here are test bodies: they panic with the operation, the case and the error where a backend is wrong.

mod attention;
mod data;
mod dense;
mod draw;
mod equalities;
mod experts;
mod fused;
mod mxfp8;
mod simple;

pub use equalities::equalities;
pub use mxfp8::mxfp8_prompts;

use crate::{Backend, DenseFormat, KvFormat, Precision};

/// What formats may cost a model, on any device: mean divergence from BF16 throughout, about twice what they do
/// (`docs/numerics.md`).
pub fn divergence_max(dense: DenseFormat, kv: KvFormat) -> f64 {
    let dense = match dense {
        DenseFormat::Bf16 => 0.0,
        DenseFormat::Q8 => 1e-2,
        DenseFormat::Mxfp4 => 0.6,
    };
    let kv = match kv {
        KvFormat::F32 | KvFormat::Bf16 => 2e-3,
        KvFormat::Fp8 => 8e-2,
    };
    dense + kv
}

/// What MXFP8 activations into the experts of prompts may cost beside that.
pub const MXFP8_DIVERGENCE_MAX: f64 = 8e-2;

/// Bounds on the relative error of an output (Euclidean norm of the difference over that of the reference).
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// One matrix product; weights are compared as the backend holds them.
    pub linear: f64,
    /// Gate-up, SwiGLU, down and the weighted sum.
    pub moe: f64,
    /// Attention over an f32 cache. Activations stay f32 in both modes.
    pub attention_f32: f64,
    /// Attention over a BF16 cache. The reference rounds keys and values too, but from f64: now and then one falls on
    /// the other side of a tie, which is half a unit of the last place, 2^-9. FP8 has the same bound: its ties are rarer.
    pub attention_bf16: f64,
    /// Everything that only rounds to f32.
    pub f32: f64,
}

impl Tolerance {
    /// Exact mode: f32 rounding of sums of a few thousand terms.
    pub const EXACT: Tolerance =
        Tolerance { linear: 3e-6, moe: 1e-5, attention_f32: 2e-5, attention_bf16: 4e-3, f32: 1e-6 };

    /// Fast mode: activations keep at least the eight bits of BF16, whose rounding is up to 2^-9 of a value and about
    /// 1e-3 of a product's norm.
    pub const FAST: Tolerance =
        Tolerance { linear: 3e-3, moe: 3e-3, attention_f32: 2e-5, attention_bf16: 4e-3, f32: 1e-6 };

    /// Experts with MXFP8 activations, against a reference that rounds them alike. On their way activations are F16 once, and
    /// sums of 8-bit tensor cores may be narrower than f32: now and then a value falls to the other side of a tie, which is
    /// 2^-4 of it. Without rounding alike the error is about 4e-2.
    pub const MXFP8_MOE: f64 = 1e-2;

    /// That of a precision.
    pub fn of(precision: Precision) -> Tolerance {
        match precision {
            Precision::Exact => Tolerance::EXACT,
            Precision::Fast => Tolerance::FAST,
        }
    }
}

/// All outputs of a run, so that callers can compare two backends (one thread and several, scalar code and vectors).
#[derive(Clone, Debug)]
pub struct Outputs {
    /// In the order of the cases.
    pub values: Vec<f32>,
    /// Which of them are the experts'.
    pub experts: std::ops::Range<usize>,
}

/// Runs every operation through its cases.
pub fn run<B: Backend>(backend: &B, precision: Precision) -> Outputs {
    let mut suite = Suite { backend, tolerance: Tolerance::of(precision), outputs: Vec::new() };
    simple::run(&mut suite);
    dense::run(&mut suite);
    attention::run(&mut suite);
    let first = suite.outputs.len();
    experts::run(&mut suite);
    let experts = first..suite.outputs.len();
    draw::run(&mut suite);
    fused::run(&mut suite);
    Outputs { values: suite.outputs, experts }
}

/// A small case of every kernel that the operations come down to, in seconds where [`run`] takes minutes: for tools that
/// watch each access to memory, such as compute-sanitizer, which slow a device down a thousandfold.
pub fn run_small<B: Backend>(backend: &B, precision: Precision) {
    let mut suite = Suite { backend, tolerance: Tolerance::of(precision), outputs: Vec::new() };
    simple::small(&mut suite);
    dense::small(&mut suite);
    attention::small(&mut suite);
    experts::small(&mut suite);
    draw::small(&mut suite);
    fused::small(&mut suite);
}

/// A backend under test.
struct Suite<'a, B: Backend> {
    backend: &'a B,
    tolerance: Tolerance,
    outputs: Vec<f32>,
}

impl<B: Backend> Suite<'_, B> {
    /// A buffer holding `values`.
    fn upload(&self, values: &[f32], width: usize) -> B::Buffer {
        let mut buffer = self.backend.buffer(values.len() / width, width).unwrap();
        self.backend.upload(&mut buffer, 0, values).unwrap();
        buffer
    }

    /// The first `rows` rows of a buffer, also noted as output.
    fn download(&mut self, buffer: &B::Buffer, rows: usize, width: usize) -> Vec<f32> {
        let values = self.read(buffer, rows, width);
        self.outputs.extend(&values);
        values
    }

    /// The first `rows` rows of a buffer. For what follows from several operations: where a sum's last bit decides how a
    /// value is quantised next, two instruction sets part further than one operation lets them.
    fn read(&self, buffer: &B::Buffer, rows: usize, width: usize) -> Vec<f32> {
        let mut values = vec![0.0; rows * width];
        self.backend.download(buffer, 0, &mut values).unwrap();
        values
    }
}

/// A row may exceed the tolerance by so much: of thousands of short rows one lies far out.
const WORST_ROW: f64 = 5.0;

/// Compares all rows together, and each.
fn assert_close(what: &str, got: &[f32], want: &[f64], width: usize, tolerance: f64) {
    assert_eq!(got.len(), want.len(), "{what}: number of values");
    let error = relative_error(got, want);
    assert!(error <= tolerance, "{what}: relative error {error:.3e} > {tolerance:.1e}");
    for (row, (got, want)) in got.chunks(width).zip(want.chunks(width)).enumerate() {
        let error = relative_error(got, want);
        let bound = WORST_ROW * tolerance;
        assert!(error <= bound, "{what}: row {row}: relative error {error:.3e} > {bound:.1e}");
    }
}

/// Norm of the difference over the norm of the reference.
fn relative_error(got: &[f32], want: &[f64]) -> f64 {
    let difference: f64 = got.iter().zip(want).map(|(g, w)| (f64::from(*g) - w).powi(2)).sum();
    let norm: f64 = want.iter().map(|w| w * w).sum();
    if difference == 0.0 { 0.0 } else { (difference / norm).sqrt() }
}
