//! Every rank reads and holds its own shard, and as much as was planned for it.

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use tandem_backend::{DenseFormat, KvFormat};
use tandem_model::memory::{Computing, MemoryPlan, MemoryRequest, plan_memory};
use tandem_model::{
    Checkpoint, Counted, ExpertSplit, Formats, Model, ShardPlan, Synthetic, SyntheticKind, WeightStore,
};
use tandem_testkit::CheckpointSpec;

use crate::holding::{Held, Holding};

const SPLITS: [ExpertSplit; 2] = [ExpertSplit::Slice, ExpertSplit::Whole];

/// Loads one shard as planned for it: the plan, what was held, and how many bytes were read.
fn load(store: &dyn WeightStore, dense: DenseFormat, shard: ShardPlan, reads: bool) -> (MemoryPlan, Held, u64) {
    let request = MemoryRequest {
        dense,
        kv: KvFormat::Bf16,
        computing: Computing::CpuExact,
        context: Some(512),
        max_streams: 4,
        prefill_chunk: 64,
        block_tokens: 16,
        budget_bytes: 100_000_000_000,
        shard,
    };
    let plan = plan_memory(store.config(), &request).unwrap();
    let (held, read) = (Mutex::default(), AtomicU64::new(0));
    let backend = Holding { held: &held, reads };
    let store = Counted::new(store, &read);
    Model::load(backend, &store, Formats { dense, kv: request.kv }, plan.capacity, shard).unwrap();
    (plan, held.into_inner().unwrap(), read.into_inner())
}

/// Bytes that the plan's table has for what these names begin with.
fn planned(plan: &MemoryPlan, names: &[&str]) -> u64 {
    let lines = plan.table.lines.iter().filter(|line| names.iter().any(|name| line.what.starts_with(name)));
    lines.map(|line| line.bytes).sum()
}

#[test]
fn a_rank_holds_what_was_planned_for_it() {
    for kind in SyntheticKind::ALL {
        let store = Synthetic::new(kind);
        for dense in DenseFormat::ALL {
            let whole = load(&store, dense, ShardPlan::UNDIVIDED, false);
            for experts in SPLITS {
                for shard in [vec![ShardPlan::UNDIVIDED], ShardPlan::all(2, experts)].concat() {
                    let (plan, held, _) = load(&store, dense, shard, false);
                    let what = format!("{kind}, {dense:?}, {shard:?}");
                    let weights = ["experts", "attention", "lm_head", "embedding", "router"];
                    assert_eq!(held.matrices + held.vectors + held.experts, planned(&plan, &weights), "{what}");
                    assert_eq!(held.experts, planned(&plan, &["experts"]), "{what}");
                    assert_eq!(held.kv, planned(&plan, &["KV"]), "{what}");
                    assert!(held.buffers <= planned(&plan, &["activations"]), "{what}: {held:?}");
                    let world = shard.world as u64;
                    assert_eq!((held.experts * world, held.kv * world), (whole.1.experts, whole.1.kv), "{what}");
                }
            }
        }
    }
}

/// The rows that are divided among ranks are read whole, as their halves interleave on disk, and nothing else twice.
#[test]
fn a_rank_reads_its_shard_and_the_rows_it_shares() {
    let folder = tempfile::tempdir().unwrap();
    tandem_testkit::write_hub(folder.path(), &CheckpointSpec::B).unwrap();
    let store = Checkpoint::open(folder.path()).unwrap();
    let config = store.config();
    let (layers, spec) = (config.layers() as u64, CheckpointSpec::B);
    let (_, _, all) = load(&store, DenseFormat::Bf16, ShardPlan::UNDIVIDED, true);
    assert_eq!(all, store.total_bytes());
    for experts in SPLITS {
        for plan in ShardPlan::all(2, experts) {
            let shard = plan.shard(config).unwrap();
            let (_, _, read) = load(&store, DenseFormat::Bf16, plan, true);
            assert_eq!(read, shard.bytes_read(config), "{plan:?}");
            let others_heads = (spec.heads - shard.heads.len()) * spec.head_dim;
            let out = (spec.hidden * others_heads * 2) as u64;
            let others_units = spec.intermediate - shard.units.len();
            let down = spec.experts * spec.hidden * (others_units / 2 + others_units / 32);
            let gate_up_bias = spec.experts * 2 * others_units * 2;
            let whole_rows = layers * (out + (down + gate_up_bias) as u64);
            let biases = match (plan.rank, experts) {
                (0, _) => 0,
                (_, ExpertSplit::Slice) => layers * (spec.hidden * 2 * (1 + spec.experts)) as u64,
                (_, ExpertSplit::Whole) => layers * (spec.hidden * 2) as u64,
            };
            assert_eq!(read + biases, shard.bytes_held(config) + whole_rows, "{plan:?}");
        }
    }
}
