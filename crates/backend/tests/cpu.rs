//! The CPU backend against the conformance suite, on every instruction set this machine has.

use tandem_backend::{
    Backend, DenseFormat, Precision, RowSource, conformance,
    cpu::{CpuBackend, CpuOptions, Isa},
};

fn backend(precision: Precision, isa: Isa, threads: usize) -> CpuBackend {
    CpuBackend::new(CpuOptions { precision, threads: Some(threads), isa: Some(isa) }).unwrap()
}

fn bits(outputs: &[f32]) -> Vec<u32> {
    outputs.iter().map(|v| v.to_bits()).collect()
}

#[test]
fn exact_conforms_with_the_same_bits_on_every_isa_and_any_threads() {
    let scalar = conformance::run(&backend(Precision::Exact, Isa::Scalar, 1), Precision::Exact).values;
    for isa in Isa::all_available() {
        for threads in [1, 3] {
            if (isa, threads) == (Isa::Scalar, 1) {
                continue;
            }
            let outputs = conformance::run(&backend(Precision::Exact, isa, threads), Precision::Exact).values;
            let different = bits(&outputs).iter().zip(bits(&scalar)).position(|(a, b)| *a != b);
            assert_eq!(different, None, "{isa} with {threads} threads differs from scalar");
        }
    }
}

#[test]
fn exact_equalities_hold_on_every_isa() {
    for isa in Isa::all_available() {
        conformance::equalities(&backend(Precision::Exact, isa, 2));
    }
}

/// Integer sums are the same on every instruction set; only the order and fusing of f32 sums over groups differ.
const FAST_ACROSS_ISAS: f32 = 1e-4;
/// Between the experts' two products values are quantised twice, to 2^-14 of their group's largest, and the last bit of an
/// f32 sum decides now and then which way: one of their outputs alone moves by a few such steps,
const EXPERTS_ACROSS_ISAS: f32 = 1e-3;
/// and all outputs together stay this close.
const ALL_ACROSS_ISAS: f64 = 1e-5;

#[test]
fn fast_conforms_and_agrees_with_scalar_on_every_isa() {
    let scalar = conformance::run(&backend(Precision::Fast, Isa::Scalar, 2), Precision::Fast);
    let norm: f64 = scalar.values.iter().map(|b| f64::from(*b).powi(2)).sum();
    for isa in Isa::all_available().filter(|isa| *isa != Isa::Scalar) {
        let outputs = conformance::run(&backend(Precision::Fast, isa, 2), Precision::Fast).values;
        assert_eq!(outputs.len(), scalar.values.len());
        let mut difference = 0.0;
        for (i, (a, b)) in outputs.iter().zip(&scalar.values).enumerate() {
            let share = if scalar.experts.contains(&i) { EXPERTS_ACROSS_ISAS } else { FAST_ACROSS_ISAS };
            assert!((a - b).abs() <= share * (1.0 + b.abs()), "{isa}: output {i} is {a}, scalar {b}");
            difference += f64::from(a - b).powi(2);
        }
        let error = (difference / norm).sqrt();
        assert!(error <= ALL_ACROSS_ISAS, "{isa}: relative error {error:.2e} against scalar");
    }
}

#[test]
fn missing_instruction_sets_are_refused() {
    for isa in Isa::ALL.into_iter().filter(|isa| !isa.available()) {
        assert!(CpuBackend::new(CpuOptions { precision: Precision::Fast, threads: Some(1), isa: Some(isa) }).is_err());
    }
}

#[test]
fn names_of_instruction_sets_parse_back() {
    for isa in Isa::ALL {
        assert_eq!(isa.name().parse::<Isa>().unwrap(), isa);
    }
    let error = "avx1024".parse::<Isa>().unwrap_err().to_string();
    assert!(error.contains("avx1024") && error.contains("avx2"), "{error}");
}

#[test]
fn small_cases_conform() {
    for precision in [Precision::Exact, Precision::Fast] {
        conformance::run_small(&backend(precision, Isa::Scalar, 2), precision);
    }
}

/// A matrix of ones in BF16.
struct Ones {
    rows: usize,
    cols: usize,
}

impl RowSource for Ones {
    fn rows(&self) -> usize {
        self.rows
    }

    fn row_bytes(&self) -> usize {
        2 * self.cols
    }

    fn read(&self, _first: usize, out: &mut [u8]) -> std::io::Result<()> {
        let one = half::bf16::ONE.to_bits().to_le_bytes();
        out.chunks_exact_mut(2).for_each(|value| value.copy_from_slice(&one));
        Ok(())
    }
}

/// An activation that is no finite number makes its row's products no numbers, and changes no other row.
#[test]
fn what_is_no_number_stays_none_and_in_its_row() {
    const COLS: usize = 64;
    let rows =
        [(None, true), (Some(f32::NAN), false), (Some(-f32::NAN), false), (Some(f32::INFINITY), false), (None, true)];
    for (isa, precision) in Isa::all_available().flat_map(|isa| [(isa, Precision::Exact), (isa, Precision::Fast)]) {
        let backend = backend(precision, isa, 1);
        for format in [DenseFormat::Bf16, DenseFormat::Q8, DenseFormat::Mxfp4] {
            let matrix = backend.matrix(&Ones { rows: 16, cols: COLS }, format).unwrap();
            let mut x = backend.buffer(rows.len(), COLS).unwrap();
            for (row, (odd, _)) in rows.iter().enumerate() {
                let mut values = [0.5; COLS];
                values[40] = odd.unwrap_or(0.5);
                backend.upload(&mut x, row, &values).unwrap();
            }
            let mut out = backend.buffer(rows.len(), 16).unwrap();
            backend.linear(&x, rows.len(), &matrix, None, &mut out).unwrap();
            let mut products = [0.0; 16];
            for (row, (_, finite)) in rows.iter().enumerate() {
                backend.download(&out, row, &mut products).unwrap();
                let right = |product: &f32| if *finite { (product - 32.0).abs() < 0.1 } else { !product.is_finite() };
                assert!(products.iter().all(right), "{isa}, {precision:?}, {format:?}, row {row}: {products:?}");
            }
        }
    }
}
