//! Whole-program tests: the real binary, spoken to over HTTP.

mod demo;
mod refusals;
mod server;
mod serving;
