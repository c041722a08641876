//! Whole-program tests: the real binary, spoken to over HTTP.

mod access;
mod bench_interrupt;
mod bench_link;
mod degraded;
mod demo;
mod doctor;
mod failures;
mod grpc;
mod joining;
mod machines;
mod mixed;
mod mixed_protocols;
mod model;
mod namespaces;
mod refusals;
mod server;
mod serving;
mod structured;
mod top;
mod workers;
