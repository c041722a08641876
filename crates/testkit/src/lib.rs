//! Checkpoints and golden logits for tests: random gpt-oss checkpoints that are the same bytes on every machine, written
//! in every layout that the hub knows, and the logits that transformers computes from two of them.

mod demo;
mod distance;
mod golden;
mod layouts;
mod philox;
mod repository;
mod spec;
mod tensors;

pub use demo::{Conversation, demo_conversations, write_demo};
pub use distance::{Distance, top};
pub use golden::{GoldenPrompt, golden, golden_file};
pub use layouts::{safetensors_bytes, write_hub, write_hub_sharded, write_original, write_safetensors};
pub use philox::Philox;
pub use spec::CheckpointSpec;
pub use tensors::{Tensor, tensors};
