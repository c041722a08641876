//! The Rust SDK of Tandem's gRPC service.
