//! The Backend trait, the CPU implementation and the conformance suite.
