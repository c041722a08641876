//! A golden checkpoint on the CPU backend, driven directly.

use std::ops::Range;
use std::path::Path;

use tandem_backend::cpu::{CpuBackend, CpuOptions};
use tandem_backend::{Batch, DenseFormat, KvFormat, Precision, Sequence};
use tandem_model::{Checkpoint, Formats, Model, ModelError, ShardPlan, WeightStore};
use tandem_step::Capacity;
use tandem_testkit::CheckpointSpec;

/// Sequences that fit into the pools beside each other.
pub const SEQUENCES_MAX: u32 = 6;
const BLOCK_TOKENS: u32 = 16;
const CONTEXT: u32 = 512;
/// Blocks of one sequence.
const BLOCKS: u32 = CONTEXT / BLOCK_TOKENS;

/// A loaded model and, for every sequence, block tables scattered over the pools.
pub struct Harness {
    pub model: Model<CpuBackend>,
    tables: Vec<Vec<u32>>,
}

/// Consecutive tokens of a sequence to run.
#[derive(Clone)]
pub struct Part<'a> {
    pub sequence: usize,
    pub tokens: &'a [u32],
    pub range: Range<usize>,
}

impl Harness {
    pub fn exact(spec: &CheckpointSpec) -> Self {
        Self::new(spec, Precision::Exact, DenseFormat::Bf16, KvFormat::F32)
    }

    pub fn new(spec: &CheckpointSpec, precision: Precision, dense: DenseFormat, kv: KvFormat) -> Self {
        let folder = tempfile::tempdir().unwrap();
        tandem_testkit::write_hub(folder.path(), spec).unwrap();
        Self::open(folder.path(), precision, dense, kv)
    }

    pub fn open(folder: &Path, precision: Precision, dense: DenseFormat, kv: KvFormat) -> Self {
        Self::load(folder, precision, Formats { dense, kv }, |backend, store, formats, capacity| {
            Model::load(backend, store, formats, capacity, ShardPlan::UNDIVIDED)
        })
    }

    /// With a model that is loaded by `load`.
    pub fn load(
        folder: &Path,
        precision: Precision,
        formats: Formats,
        load: impl FnOnce(CpuBackend, &dyn WeightStore, Formats, Capacity) -> Result<Model<CpuBackend>, ModelError>,
    ) -> Self {
        let store = Checkpoint::open(folder).unwrap();
        let config = store.config();
        let capacity = Capacity {
            block_tokens: BLOCK_TOKENS,
            full_blocks: SEQUENCES_MAX * BLOCKS,
            sliding_blocks: SEQUENCES_MAX * BLOCKS,
            window: config.sliding_window as u32,
            context: CONTEXT,
            max_streams: SEQUENCES_MAX,
            max_step_tokens: CONTEXT * SEQUENCES_MAX,
            layers: config.layers() as u32,
            vocab: config.vocab as u32,
        };
        let backend = CpuBackend::new(CpuOptions { precision, threads: Some(2), isa: None }).unwrap();
        let model = load(backend, &store, formats, capacity).unwrap();
        // 7 is prime to the number of blocks: every sequence's blocks lie scattered.
        let all = SEQUENCES_MAX * BLOCKS;
        let tables = (0..SEQUENCES_MAX).map(|s| (0..BLOCKS).map(|b| (s * BLOCKS + b) * 7 % all).collect()).collect();
        Self { model, tables }
    }

    /// Runs the parts as one batch; the logits of every row.
    pub fn run(&mut self, parts: &[Part<'_>]) -> Vec<Vec<f32>> {
        let tokens: Vec<u32> = parts.iter().flat_map(|part| &part.tokens[part.range.clone()]).copied().collect();
        let mut sequences = Vec::new();
        let mut first = 0;
        for part in parts {
            let rows = first..first + part.range.len();
            first = rows.end;
            let table = &self.tables[part.sequence];
            let position = part.range.start as u32;
            sequences.push(Sequence { rows, position, full_blocks: table, sliding_blocks: table });
        }
        self.model.forward(&Batch { tokens: &tokens, sequences: &sequences }).unwrap();
        let rows: Vec<usize> = (0..tokens.len()).collect();
        let mut logits = Vec::new();
        self.model.logits(&rows, |_, row| logits.push(row.to_vec())).unwrap();
        logits
    }

    /// Runs one whole prompt.
    pub fn prompt(&mut self, sequence: usize, tokens: &[u32]) -> Vec<Vec<f32>> {
        self.run(&[Part { sequence, tokens, range: 0..tokens.len() }])
    }
}

/// Relative error `‖got − want‖ / ‖want‖`.
pub fn relative_error(got: &[f32], want: &[f32]) -> f64 {
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = got.iter().zip(want).map(|(g, w)| square(g - w)).sum();
    (difference / want.iter().map(|w| square(*w)).sum::<f64>()).sqrt()
}
