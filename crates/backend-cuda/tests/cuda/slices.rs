//! A pass in slices, with recorded steps of other sequences in between: the bits of the whole pass, and of the steps alone.

use std::ops::Range;

use tandem_backend::{Batch, DenseFormat, KvFormat, Sequence};
use tandem_model::Formats;
use tandem_testkit::{CheckpointSpec, golden};

use crate::golden::{Gpu, checkpoint};

impl Gpu {
    /// Runs a prompt through some layers, as sequence 1 and a short one beside it as sequence 2.
    fn pass(&mut self, tokens: &[u32], layers: Option<Range<usize>>) {
        let (long, table) = (tokens.len() - 3, &self.tables);
        let sequence = |rows, index: usize| Sequence {
            rows,
            position: 0,
            full_blocks: &table[index],
            sliding_blocks: &table[index],
        };
        let sequences = [sequence(0..long, 1), sequence(long..tokens.len(), 2)];
        let batch = Batch { tokens, sequences: &sequences };
        match layers {
            None => self.model.forward(&batch).unwrap(),
            Some(layers) => {
                self.model.forward_slice(&batch, layers).unwrap();
                self.model.wait().unwrap();
            }
        }
    }

    fn logits(&mut self, rows: usize) -> Vec<Vec<f32>> {
        let mut logits = Vec::new();
        self.model.logits(&(0..rows).collect::<Vec<_>>(), |_, row| logits.push(row.to_vec())).unwrap();
        logits
    }
}

#[test]
fn slices_between_recorded_steps_give_the_bits_of_a_whole_pass() {
    let folder = checkpoint(&CheckpointSpec::A);
    let tokens = golden("a").unwrap().pop().unwrap().tokens;
    let layers = CheckpointSpec::A.layers;
    for (dense, kv) in [(DenseFormat::Q8, KvFormat::Bf16), (DenseFormat::Mxfp4, KvFormat::Fp8)] {
        // More rows than decode kernels take, and as few as a step of single rows may have.
        for length in [200, 7] {
            let (formats, prompt) = (Formats { dense, kv }, &tokens[..length]);
            let open = || {
                let mut gpu = Gpu::open("passes in slices", folder.path(), formats, false)?;
                // Recorded from the second on.
                (0..3).for_each(|at| drop(gpu.step(&[&tokens[at..=at]], at)));
                Some(gpu)
            };
            let (Some(mut whole), Some(mut sliced)) = (open(), open()) else { return };
            whole.pass(prompt, None);
            let want = whole.logits(length);
            let steps: Vec<_> = (3..3 + layers).map(|at| whole.step(&[&tokens[at..=at]], at)).collect();
            for (layer, beside) in steps.iter().enumerate() {
                sliced.pass(prompt, Some(layer..layer + 1));
                if layer + 1 == layers {
                    assert!(sliced.logits(length) == want, "{formats:?}, {length} tokens: other bits in slices");
                }
                let at = 3 + layer;
                let step = sliced.step(&[&tokens[at..=at]], at);
                assert!(step == *beside, "{formats:?}, {length} tokens: other bits beside slice {layer}");
            }
        }
    }
}
