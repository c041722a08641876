//! The messages and services of `proto/tandem/v1/inference.proto`, which says what they mean.

/// Version 1 of the protocol.
#[expect(missing_docs, reason = "generated; what has no comment in the definition needs none")]
#[allow(clippy::large_enum_variant, reason = "generated: a conversation beside a text")]
pub mod v1 {
    tonic::include_proto!("tandem.v1");

    /// The definition itself, as an encoded `FileDescriptorSet`: what reflection answers from.
    pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/inference.bin"));
}
