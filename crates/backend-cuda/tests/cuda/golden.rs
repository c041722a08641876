//! The forward pass against logits that transformers computed in f32 from the same checkpoints.

use std::path::Path;

use tandem_backend::{Batch, DenseFormat, KvFormat, Sequence};
use tandem_backend_cuda::{CudaBackend, CudaOptions, PrefillActivations};
use tandem_model::{Checkpoint, ExpertSplit, Formats, Model, WeightStore};
use tandem_step::Capacity;
use tandem_testkit::{CheckpointSpec, GoldenPrompt, golden, top};

use crate::backend_with;

/// Everything as wide as the GPU has it.
pub const BF16: Formats = Formats { dense: DenseFormat::Bf16, kv: KvFormat::Bf16 };
pub const FILES: [(&str, CheckpointSpec); 2] = [("a", CheckpointSpec::A), ("b", CheckpointSpec::B)];
const BLOCK_TOKENS: u32 = 16;
const CONTEXT: u32 = 512;
const STREAMS: u32 = 8;
/// Where the reference's first choice leads by more than this, the first choices must agree nearly always.
const CLEAR_MARGIN: f32 = 0.1;
const AGREEMENT_MIN: f64 = 0.99;

/// A model on the GPU and, for every sequence, scattered block tables.
pub struct Gpu {
    pub model: Model<CudaBackend>,
    pub tables: Vec<Vec<u32>>,
}

impl Gpu {
    /// Loads a checkpoint, with F16 activations into the experts of prompts; none where there is no GPU.
    pub fn open(what: &str, folder: &Path, formats: Formats, eager: bool) -> Option<Self> {
        Self::divided(what, folder, formats, eager, 1)
    }

    /// With the shards of so many ranks as parts, experts sliced.
    fn divided(what: &str, folder: &Path, formats: Formats, eager: bool, world: usize) -> Option<Self> {
        let prefill_activations = PrefillActivations::F16;
        let options = CudaOptions { eager, prefill_activations, ..CudaOptions::default() };
        Self::with(what, folder, formats, options, world)
    }

    /// With options of the device.
    pub fn with(what: &str, folder: &Path, formats: Formats, options: CudaOptions, world: usize) -> Option<Self> {
        let store = Checkpoint::open(folder).unwrap();
        let blocks = CONTEXT / BLOCK_TOKENS;
        let capacity = Capacity {
            block_tokens: BLOCK_TOKENS,
            full_blocks: STREAMS * blocks,
            sliding_blocks: STREAMS * blocks,
            window: store.config().sliding_window as u32,
            context: CONTEXT,
            max_streams: STREAMS,
            max_step_tokens: CONTEXT,
            layers: store.config().layers() as u32,
            vocab: store.config().vocab as u32,
        };
        let backend = backend_with(what, options)?;
        let model = Model::load_all(backend, &store, formats, capacity, world, ExpertSplit::Slice).unwrap();
        // 7 is prime to the number of blocks: every sequence's blocks lie scattered.
        let all = STREAMS * blocks;
        let tables = (0..STREAMS).map(|s| (0..blocks).map(|b| (s * blocks + b) * 7 % all).collect()).collect();
        Some(Self { model, tables })
    }

    /// Logits of `tokens` at `position` on, for each of the sequences 0, 1, ...
    pub fn step(&mut self, tokens: &[&[u32]], position: usize) -> Vec<Vec<f32>> {
        let all = tokens.concat();
        let mut first = 0;
        let mut sequences = Vec::new();
        for (some, table) in tokens.iter().zip(&self.tables) {
            let rows = first..first + some.len();
            first = rows.end;
            sequences.push(Sequence { rows, position: position as u32, full_blocks: table, sliding_blocks: table });
        }
        self.model.forward(&Batch { tokens: &all, sequences: &sequences }).unwrap();
        let mut logits = Vec::new();
        let rows: Vec<usize> = (0..all.len()).collect();
        self.model.logits(&rows, |_, row| logits.push(row.to_vec())).unwrap();
        logits
    }

    /// A prompt in chunks of so many tokens.
    pub fn prompt(&mut self, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
        let starts = (0..tokens.len()).step_by(chunk);
        starts.flat_map(|at| self.step(&[&tokens[at..tokens.len().min(at + chunk)]], at)).collect()
    }
}

/// A folder with a checkpoint of this kind.
pub fn checkpoint(spec: &CheckpointSpec) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    tandem_testkit::write_hub(folder.path(), spec).unwrap();
    folder
}

/// Error and agreement over all positions of a file's prompts.
#[derive(Default)]
pub struct Distance {
    difference: f64,
    norm: f64,
    clear: u32,
    agree: u32,
}

impl Distance {
    /// Of all prompts, each in chunks of so many tokens.
    pub fn measure(gpu: &mut Gpu, prompts: &[GoldenPrompt], chunk: usize) -> Self {
        let mut distance = Self::default();
        prompts.iter().for_each(|prompt| distance.add(prompt, &gpu.prompt(&prompt.tokens, chunk)));
        distance
    }

    /// Prints both, beside what transformers shows in bfloat16.
    pub fn print(&self, what: &str, bound: f64) {
        let (error, agreement) = (self.error(), self.agreement());
        println!("{what}: error {error:.2e}, bfloat16 {bound:.2e}, agreement {agreement:.4} of {}", self.clear);
    }

    /// Checks that neither is worse than allowed.
    pub fn hold(&self, what: &str, bound: f64) {
        let (error, agreement) = (self.error(), self.agreement());
        assert!(error <= bound, "{what}: {error:.3e} > {bound:.3e}");
        assert!(agreement >= AGREEMENT_MIN, "{what}: agreement {agreement}");
    }

    fn add(&mut self, prompt: &GoldenPrompt, got: &[Vec<f32>]) {
        assert_eq!(got.len(), prompt.tokens.len());
        for (position, got) in got.iter().enumerate() {
            let want = prompt.logits_at(position);
            self.difference += got.iter().zip(want).map(|(g, w)| f64::from(g - w).powi(2)).sum::<f64>();
            self.norm += want.iter().map(|w| f64::from(*w).powi(2)).sum::<f64>();
            let (first, margin) = top(want);
            if margin > CLEAR_MARGIN {
                self.clear += 1;
                self.agree += u32::from(top(got).0 == first);
            }
        }
    }

    fn error(&self) -> f64 {
        (self.difference / self.norm).sqrt()
    }

    fn agreement(&self) -> f64 {
        f64::from(self.agree) / f64::from(self.clear)
    }
}

/// What transformers shows in bfloat16, over all positions of a file.
pub fn bf16_error(prompts: &[GoldenPrompt]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for prompt in prompts {
        let square: f64 = prompt.logits.iter().map(|l| f64::from(*l).powi(2)).sum();
        difference += square * f64::from(prompt.err_bf16).powi(2);
        norm += square;
    }
    (difference / norm).sqrt()
}

#[test]
fn goldens_are_matched_as_well_as_in_bfloat16() {
    for (name, spec) in FILES {
        let folder = checkpoint(&spec);
        let prompts = golden(name).unwrap();
        let bound = bf16_error(&prompts);
        // Whole, in chunks, and token by token: the last goes through the decode kernels and recorded steps.
        // Two shards have five groups of 32 units as 3 + 2.
        for (how, chunk, world) in
            [("whole", 512, 1), ("chunks of 50", 50, 1), ("one by one", 1, 1), ("whole", 512, 2), ("one by one", 1, 2)]
        {
            let what = format!("golden {name}, BF16, {how}, shards: {world}");
            let Some(mut gpu) = Gpu::divided(&what, folder.path(), BF16, false, world) else { return };
            let distance = Distance::measure(&mut gpu, &prompts, chunk);
            distance.print(&what, bound);
            distance.hold(&what, bound);
        }
    }
}

#[test]
fn recorded_steps_give_the_bits_of_eager_ones() {
    let folder = checkpoint(&CheckpointSpec::A);
    let prompts = golden("a").unwrap();
    let tokens = &prompts[2].tokens;
    let run = |formats: Formats, eager: bool| -> Option<Vec<Vec<f32>>> {
        let mut gpu = Gpu::open("recorded steps", folder.path(), formats, eager)?;
        // One sequence, then three beside each other.
        let mut logits = gpu.prompt(tokens, 1);
        for position in 0..20 {
            let token = &tokens[position..position + 1];
            logits.extend(gpu.step(&[token, token, token], position));
        }
        Some(logits)
    };
    for (dense, kv) in [(DenseFormat::Q8, KvFormat::Bf16), (DenseFormat::Mxfp4, KvFormat::Fp8)] {
        let formats = Formats { dense, kv };
        let (Some(eager), Some(recorded)) = (run(formats, true), run(formats, false)) else { return };
        assert!(eager == recorded, "{formats:?}: a recorded step gave other bits");
        assert_eq!(eager.len(), tokens.len() + 60);
    }
}
