use tandem_backend::{Precision, conformance};

use crate::backend;

#[test]
fn conforms() {
    if let Some(backend) = backend("the conformance suite", true) {
        conformance::run(&backend, Precision::Fast);
    }
}

/// What `tools/gpu-check sanitize` runs.
#[test]
fn small_cases_conform() {
    if let Some(backend) = backend("a small case of every kernel", true) {
        conformance::run_small(&backend, Precision::Fast);
    }
}

/// Every sum has a fixed order: not atomics, not the order in which blocks happen to end.
#[test]
fn gives_the_same_bits_twice() {
    let Some(backend) = backend("repeatability", true) else { return };
    let bits = || conformance::run(&backend, Precision::Fast).values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    assert!(bits() == bits(), "the conformance suite gave other bits the second time");
}
