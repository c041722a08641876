//! Whole-program tests: the real binary, spoken to over HTTP.

mod refusals;
mod server;
mod serving;
