//! The edge from the outside: requests in, answers out, with a real engine behind it that runs a scripted worker.

mod anthropic;
mod chat;
mod completions;
mod connections;
mod edge;
mod errors;
mod others;
mod responses;
mod tools;
mod worker;
