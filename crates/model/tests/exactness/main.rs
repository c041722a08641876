//! Exact mode against transformers, against itself, and as the yardstick of fast mode.

mod demo;
mod equalities;
mod golden;
mod harness;
mod sharded;
#[path = "../sharded/threads.rs"]
mod threads;
