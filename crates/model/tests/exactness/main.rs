//! Exact mode against transformers, against itself, and as the yardstick of fast mode.

mod demo;
mod equalities;
mod formats;
mod golden;
mod harness;
#[path = "../sharded/links.rs"]
mod links;
mod sharded;
