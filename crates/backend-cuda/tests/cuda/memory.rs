//! Working memory: planned to the byte, allocated up front, never again.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tandem_backend::{Backend, Batch, DenseFormat, Draw, KvFormat, Sequence, StepLimits};
use tandem_backend_cuda::working_bytes;
use tandem_model::memory::{Computing, MemoryRequest, plan_memory};
use tandem_model::{Config, Formats, Model, ShardPlan, Synthetic, SyntheticKind};

use crate::backend;

const STREAMS: u32 = 32;
const CHUNK: u32 = 300;

#[test]
fn what_is_reserved_is_what_was_planned() {
    let config = Config::gpt_oss_120b();
    for (rows, sequences, blocks) in [(1, 1, 4), (9, 8, 700), (4112, 16, 8192)] {
        let Some(backend) = backend("reserved bytes", false) else { return };
        let limits = StepLimits { rows, sequences, blocks, widths: config.widths() };
        let allocated = backend.device().allocated();
        backend.reserve(limits).unwrap();
        // Everything there is but weights, caches and the model's buffers, which are not here.
        assert_eq!(allocated.load(Ordering::Relaxed), working_bytes(&limits), "{limits:?}");
    }
}

#[test]
fn nothing_is_allocated_by_steps_and_too_large_ones_fail() {
    let Some(backend) = backend("no allocation after loading", false) else { return };
    let allocated = Arc::clone(backend.device().allocated());
    let store = Synthetic::new(SyntheticKind::Tiny);
    let request = MemoryRequest {
        dense: DenseFormat::Q8,
        kv: KvFormat::Bf16,
        computing: Computing::Cuda(working_bytes),
        context: Some(512),
        max_streams: STREAMS,
        prefill_chunk: CHUNK,
        block_tokens: 16,
        budget_bytes: 4_000_000_000,
        shard: ShardPlan::UNDIVIDED,
    };
    let capacity = plan_memory(&SyntheticKind::Tiny.config(), &request).unwrap().capacity;
    let formats = Formats { dense: request.dense, kv: request.kv };
    let mut model = Model::load(backend, &store, formats, capacity, ShardPlan::UNDIVIDED).unwrap();
    let loaded = allocated.load(Ordering::Relaxed);
    model.prepare(|_, _| {}).unwrap();
    for rows in [1, 2, 3, 7, 8, 9, 31, 32] {
        steps(&mut model, rows, 1);
    }
    for rows in [2, 8, 9, 100, 129, 332] {
        steps(&mut model, 1, rows);
    }
    slices(&mut model);
    assert_eq!(allocated.load(Ordering::Relaxed), loaded, "steps allocated memory");
    let table: Vec<u32> = (0..32).collect();
    let tokens = vec![1; 400];
    let sequences = [Sequence { rows: 0..400, position: 0, full_blocks: &table, sliding_blocks: &table }];
    let error = model.forward(&Batch { tokens: &tokens, sequences: &sequences }).unwrap_err().to_string();
    assert!(error.contains("more than was reserved"), "{error}");
}

/// A pass layer by layer, with a step in between.
fn slices(model: &mut Model<tandem_backend_cuda::CudaBackend>) {
    let (tokens, table): (Vec<u32>, Vec<u32>) = ((0..300).collect(), (0..19).collect());
    let sequences = [Sequence { rows: 0..300, position: 0, full_blocks: &table, sliding_blocks: &table }];
    for layer in 0..model.config().layers() {
        model.forward_slice(&Batch { tokens: &tokens, sequences: &sequences }, layer..layer + 1).unwrap();
        let beside = [Sequence { rows: 0..1, position: 0, full_blocks: &[20], sliding_blocks: &[20] }];
        model.forward(&Batch { tokens: &[1], sequences: &beside }).unwrap();
    }
}

/// Twice a step of `count` sequences of `rows` rows, with draws, masked and not.
fn steps(model: &mut Model<tandem_backend_cuda::CudaBackend>, count: usize, rows: usize) {
    let blocks = rows.div_ceil(16) as u32;
    let tables: Vec<Vec<u32>> = (0..count as u32).map(|i| (i * blocks..(i + 1) * blocks).collect()).collect();
    let tokens: Vec<u32> = (0..(count * rows) as u32).collect();
    let of_rows = |i| i * rows..(i + 1) * rows;
    let sequences: Vec<Sequence<'_>> = tables
        .iter()
        .enumerate()
        .map(|(i, table)| Sequence { rows: of_rows(i), position: 0, full_blocks: table, sliding_blocks: table })
        .collect();
    let mask: Arc<[u32]> = vec![u32::MAX; model.config().vocab.div_ceil(32)].into();
    for _ in 0..2 {
        model.forward(&Batch { tokens: &tokens, sequences: &sequences }).unwrap();
        let draw =
            |i: usize| Draw { temperature: 1.0, uniform: 0.5, mask: i.is_multiple_of(2).then(|| Arc::clone(&mask)) };
        let draws: Vec<(usize, Draw)> = (0..count).map(|i| ((i + 1) * rows - 1, draw(i))).collect();
        model.draw(&draws).unwrap();
    }
}
