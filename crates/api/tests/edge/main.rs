//! The edge from the outside: requests in, answers out, with a real engine behind it that runs a scripted worker.

mod access;
mod anthropic;
mod chat;
mod completions;
mod connections;
mod edge;
mod errors;
mod grpc;
mod ollama;
mod openapi;
mod others;
mod responses;
mod status;
mod tls;
mod tools;
mod worker;
