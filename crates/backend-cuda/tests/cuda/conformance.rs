use tandem_backend::{Backend, Precision, conformance};
use tandem_backend_cuda::{CudaOptions, PrefillActivations};

use crate::backend_with;

#[test]
fn conforms() {
    if let Some(backend) = backend_with("the conformance suite", exact_prompts(false)) {
        conformance::run(&backend, Precision::Fast);
    }
}

/// What `tools/gpu-check sanitize` runs.
#[test]
fn small_cases_conform() {
    if let Some(backend) = backend_with("a small case of every kernel", exact_prompts(false)) {
        conformance::run_small(&backend, Precision::Fast);
    }
}

/// Tiles, stages, placement of codes and shared memory of a GB10; on a GB10 this is the same again.
#[test]
fn conforms_as_a_gb10() {
    if let Some(backend) = backend_with("the conformance suite with a GB10's kernels", exact_prompts(true)) {
        conformance::run(&backend, Precision::Fast);
    }
}

/// F16 into the experts of prompts, whatever the device would choose: the suite's bounds are for that.
fn exact_prompts(as_gb10: bool) -> CudaOptions {
    CudaOptions { prefill_activations: PrefillActivations::F16, eager: true, as_gb10, ..CudaOptions::default() }
}

/// By plain 8-bit products, which every device has, with either placement of codes.
#[test]
fn experts_of_prompts_conform_in_mxfp8() {
    for as_gb10 in [false, true] {
        let what = format!("MXFP8 by plain products, as a GB10: {as_gb10}");
        let prefill_activations = PrefillActivations::Mxfp8Plain;
        let options = CudaOptions { prefill_activations, eager: true, as_gb10, ..CudaOptions::default() };
        let Some(backend) = backend_with(&what, options) else { return };
        assert!(backend.eight_bit_prompts(), "{}", backend.describe());
        assert!(backend.describe().contains("plain 8-bit products"), "{}", backend.describe());
        conformance::mxfp8_prompts(&backend);
    }
}

/// A GB10's own choice: block-scaled products, after their probe. On a Hopper a twin stands for the one instruction that it
/// lacks, with the same operands in the same lanes; probe and products around it are those of a GB10.
#[test]
fn a_gb10_chooses_block_scaled_products_and_they_conform() {
    let options = CudaOptions { eager: true, as_gb10: true, ..CudaOptions::default() };
    let Some(backend) = backend_with("block-scaled products", options) else { return };
    assert!(backend.eight_bit_prompts(), "{}", backend.describe());
    assert!(backend.describe().contains("block-scaled products"), "the probe failed: {}", backend.describe());
    conformance::mxfp8_prompts(&backend);
}

/// Every sum has a fixed order: not atomics, not the order in which blocks happen to end.
#[test]
fn gives_the_same_bits_twice() {
    let Some(backend) = backend_with("repeatability", exact_prompts(false)) else { return };
    let bits = || conformance::run(&backend, Precision::Fast).values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(bits() == bits(), "the conformance suite gave other bits the second time");
}
