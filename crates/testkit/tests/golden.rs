//! The checkpoints behind the golden logits are the ones that the logits were made from.

use std::fs;

use sha2::{Digest, Sha256};
use tandem_testkit::{CheckpointSpec, golden, write_hub};

fn sha256_of(spec: &CheckpointSpec) -> String {
    let dir = tempfile::tempdir().unwrap();
    write_hub(dir.path(), spec).unwrap();
    let digest = Sha256::digest(fs::read(dir.path().join("model.safetensors")).unwrap());
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn checkpoints_are_the_same_bytes_as_the_ones_the_logits_were_made_from() {
    assert_eq!(sha256_of(&CheckpointSpec::A), "2dfe39247cf6bdfde9c57711f5e7e296dfd1f9aefe8cec0edfc560d527ff2947");
    assert_eq!(sha256_of(&CheckpointSpec::B), "62cb98e764e1635c94ea4aad6830aea66794354709538df2d9f04ac81f60a441");
}

#[test]
fn golden_prompts_have_the_lengths_and_vocabulary_of_their_specs() {
    for (name, spec) in [("a", CheckpointSpec::A), ("b", CheckpointSpec::B)] {
        let prompts = golden(name).unwrap();
        let lengths: Vec<usize> = prompts.iter().map(|prompt| prompt.tokens.len()).collect();
        assert_eq!(lengths, [1, 17, 96, 420]);
        for prompt in &prompts {
            assert!(prompt.tokens.iter().all(|&token| (token as usize) < spec.vocab));
            assert_eq!(prompt.logits_at(prompt.tokens.len() - 1).len(), spec.vocab);
            assert!((0.001..0.1).contains(&prompt.err_bf16));
        }
    }
}
