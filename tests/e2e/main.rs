//! Whole-program tests: the real binary, spoken to over HTTP.

mod access;
mod demo;
mod refusals;
mod server;
mod serving;
mod top;
