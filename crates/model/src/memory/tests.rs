use tandem_backend::{DenseFormat, KvFormat, StepLimits};

use super::weights::{Counting, weight_bytes};
use super::*;
use crate::{Config, ExpertSplit, Shard, ShardPlan, Synthetic, SyntheticKind, WeightStore};

fn request(budget_gb: u64) -> MemoryRequest {
    MemoryRequest {
        dense: DenseFormat::Q8,
        kv: KvFormat::Bf16,
        computing: Computing::CpuFast,
        context: None,
        max_streams: 16,
        prefill_chunk: 512,
        block_tokens: 16,
        budget_bytes: budget_gb * 1_000_000_000,
        shard: ShardPlan::UNDIVIDED,
    }
}

fn first_of(world: usize) -> ShardPlan {
    ShardPlan { world, ..ShardPlan::UNDIVIDED }
}

/// Rounded to a tenth of a per cent of a gigabyte.
fn gb(bytes: u64, decimals: usize) -> String {
    format!("{:.decimals$}", bytes as f64 / 1e9)
}

#[test]
fn with_shipped_formats_the_weights_are_those_of_the_checkpoint() {
    for config in [Config::gpt_oss_20b(), Config::gpt_oss_120b(), SyntheticKind::Tiny.config()] {
        let shipped: u64 = crate::layout::tensors(&config).map(|tensor| tensor.bytes()).sum();
        assert_eq!(as_shipped(&config, &Shard::undivided(&config)), shipped);
    }
    assert_eq!(Synthetic::new(SyntheticKind::Gpt20b).total_bytes(), 13_761_264_768);
}

/// Weights of a shard in the formats of the checkpoint.
fn as_shipped(config: &Config, shard: &Shard) -> u64 {
    let counting = Counting { dense: DenseFormat::Bf16, experts: shard.experts.len(), shard, vector_bytes: 2 };
    let w = weight_bytes(config, counting);
    w.embedding + w.attention + w.experts + w.small + w.lm_head + w.dense_scales
}

#[test]
fn a_shards_weights_are_its_part_of_the_checkpoint() {
    let odd = Config { intermediate: 160, vocab: 777, experts: 5, ..SyntheticKind::Tiny.config() };
    for config in [odd, Config::gpt_oss_20b(), Config::gpt_oss_120b()] {
        for experts in [ExpertSplit::Slice, ExpertSplit::Whole] {
            for plan in ShardPlan::all(2, experts) {
                let shard = plan.shard(&config).unwrap();
                assert_eq!(as_shipped(&config, &shard), shard.bytes_held(&config), "{plan:?}");
            }
        }
    }
}

/// Published figures of bytes read per decoded token, in GB: experts, attention, lm_head, everything. Their 8-bit column
/// counts no scales.
#[test]
fn bytes_per_token_are_the_published_ones() {
    let cases = [
        (Config::gpt_oss_20b(), DenseFormat::Bf16, ["1.269", "1.274", "1.158", "3.71"]),
        (Config::gpt_oss_20b(), DenseFormat::Q8, ["1.269", "0.637", "0.579", "2.49"]),
        (Config::gpt_oss_120b(), DenseFormat::Bf16, ["1.904", "1.911", "1.158", "5.00"]),
        (Config::gpt_oss_120b(), DenseFormat::Q8, ["1.904", "0.956", "0.579", "3.47"]),
        (Config::gpt_oss_120b(), DenseFormat::Mxfp4, ["1.904", "0.478", "0.290", "2.70"]),
    ];
    for (config, dense, expected) in cases {
        let bytes = bytes_per_token(&config, dense, &Shard::undivided(&config));
        let total = gb(bytes.total() - bytes.dense_scales, 2);
        let parts = [bytes.experts, bytes.attention, bytes.lm_head].map(|bytes| gb(bytes, 3));
        assert_eq!([&parts[0], &parts[1], &parts[2], &total], expected);
    }
}

#[test]
fn two_nodes_read_about_half_each() {
    let config = Config::gpt_oss_120b();
    let one = bytes_per_token(&config, DenseFormat::Q8, &Shard::undivided(&config));
    for experts in [ExpertSplit::Slice, ExpertSplit::Whole] {
        let half = ShardPlan { experts, ..first_of(2) }.shard(&config).unwrap();
        let two = bytes_per_token(&config, DenseFormat::Q8, &half);
        assert_eq!((two.experts * 2, two.attention * 2, two.lm_head * 2), (one.experts, one.attention, one.lm_head));
        assert!(two.small > one.small / 2);
    }
}

/// Keys and values of 12 layers of 8 heads of 64 in two bytes each.
#[test]
fn a_token_of_20b_costs_as_much_as_it_has_keys_and_values() {
    let plan = plan_memory(&Config::gpt_oss_20b(), &request(64)).unwrap();
    assert_eq!(plan.full_kv_bytes_per_token, 12 * 2 * 8 * 64 * 2);
    assert_eq!(plan.sliding_kv_bytes_per_token, 12 * 2 * 8 * 64 * 2);
    let halved = plan_memory(&Config::gpt_oss_20b(), &MemoryRequest { shard: first_of(2), ..request(64) }).unwrap();
    assert_eq!(halved.full_kv_bytes_per_token * 2, plan.full_kv_bytes_per_token);
}

#[test]
fn plenty_of_memory_gives_the_models_context_and_room_for_all_streams() {
    let plan = plan_memory(&Config::gpt_oss_20b(), &request(64)).unwrap();
    assert_eq!(plan.capacity.context, 131_072);
    assert_eq!(plan.capacity.full_blocks, (131_072 + 15 * 8192) / 16);
    assert_eq!(plan.capacity.max_step_tokens, 528);
    assert!(plan.table.total_bytes() < 64_000_000_000);
}

#[test]
fn little_memory_gives_a_shorter_context_that_fits() {
    let plan = plan_memory(&Config::gpt_oss_20b(), &request(15)).unwrap();
    let context = plan.capacity.context;
    assert!((1024..131_072).contains(&context), "{context}");
    assert_eq!(plan.capacity.full_blocks, context / 16);
    let spare = 15_000_000_000 - plan.table.total_bytes();
    assert!(spare < 16 * plan.full_kv_bytes_per_token, "{spare} bytes are left");
}

#[test]
fn a_context_asked_for_is_given_or_refused_with_the_table() {
    let asked = |context, budget| {
        plan_memory(&Config::gpt_oss_20b(), &MemoryRequest { context: Some(context), ..request(budget) })
    };
    assert_eq!(asked(5000, 24).unwrap().capacity.context, 5000);
    let error = asked(131_072, 15).unwrap_err();
    let MemoryError::DoesNotFit { context, table } = &error else { panic!("{error}") };
    assert_eq!(*context, 131_072);
    assert!(table.total_bytes() > 15_000_000_000);
    let text = error.to_string();
    assert!(text.starts_with("a context of 131072 tokens needs 1"), "{text}");
    for line in ["experts", "lm_head", "KV, full layers", "total", "may be used"] {
        assert!(text.lines().any(|found| found.trim_start().starts_with(line)), "{line} in {text}");
    }
    assert_eq!(asked(131_073, 64).unwrap_err(), MemoryError::ContextTooLong { asked: 131_073, max: 131_072 });
}

#[test]
fn what_cannot_fit_at_all_is_refused() {
    let error = plan_memory(&Config::gpt_oss_120b(), &request(24)).unwrap_err();
    assert!(matches!(error, MemoryError::DoesNotFit { context: 1024, .. }), "{error}");
    assert!(plan_memory(&Config::gpt_oss_120b(), &MemoryRequest { shard: first_of(2), ..request(40) }).is_ok());
}

/// What a GPU's backend is asked to reserve is what the plan counted, whatever context came out.
#[test]
fn a_gpus_working_memory_is_planned_to_the_byte() {
    fn work(limits: &StepLimits) -> u64 {
        (limits.rows * 1000 + limits.sequences * limits.blocks * 24) as u64
    }
    let config = Config::gpt_oss_20b();
    for (budget, context) in [(64, None), (15, None), (24, Some(5000))] {
        let asked = MemoryRequest { computing: Computing::Cuda(work), context, ..request(budget) };
        let plan = plan_memory(&config, &asked).unwrap();
        let (rows, blocks) = (plan.capacity.max_step_tokens as usize, plan.capacity.context.div_ceil(16) as usize);
        // Residual stream, norm and update; q, k, v; attention's result; four experts and weights; 64 rows of
        // logits here and on the host; a row of partial sums; the residual stream of a token for each of 16 requests.
        let buffers = rows * 4 * (3 * 2880 + 5120 + 4096 + 8) + 64 * 4 * (2 * 2880 + 2 * 201_088) + 17 * 4 * 2880;
        let limits = StepLimits { rows, sequences: 16, blocks, widths: config.widths() };
        let line = plan.table.lines.iter().find(|line| line.what == "activations").unwrap();
        assert_eq!(line.bytes, buffers as u64 + work(&limits));
        assert!(plan.table.total_bytes() <= budget * 1_000_000_000);
    }
}

/// Two nodes split five groups of 32 units three to two, and the first has three.
#[test]
fn uneven_groups_count_for_the_fuller_node() {
    let config = Config { intermediate: 160, ..SyntheticKind::Tiny.config() };
    let experts = |plan: ShardPlan| {
        let shard = &plan.shard(&config).unwrap();
        weight_bytes(&config, Counting { dense: DenseFormat::Bf16, experts: 8, shard, vector_bytes: 2 }).experts
    };
    assert_eq!(experts(first_of(2)) * 5, experts(ShardPlan::UNDIVIDED) * 3);
}

#[test]
fn impossible_requests_are_named() {
    let config = Config::gpt_oss_20b();
    let zero = MemoryRequest { max_streams: 0, ..request(64) };
    assert_eq!(plan_memory(&config, &zero).unwrap_err().to_string(), "the number of streams must be at least 1");
    let three = MemoryRequest { shard: first_of(3), ..request(64) };
    let said = plan_memory(&config, &three).unwrap_err().to_string();
    assert_eq!(said, "8 key heads, each with its query heads, cannot be shared out evenly among 3 ranks");
}

/// The pool must be able to hold what one request needs at most: a window and a chunk, wherever they begin in a block.
#[test]
fn the_sliding_pool_holds_every_streams_window_and_a_chunk() {
    for (streams, chunk, block) in [(1, 1, 16), (1, 512, 16), (16, 512, 32), (4, 100, 7)] {
        let asked = MemoryRequest { max_streams: streams, prefill_chunk: chunk, block_tokens: block, ..request(64) };
        let plan = plan_memory(&Config::gpt_oss_20b(), &asked).unwrap();
        let alone = (128 + chunk + block).div_ceil(block) + 1;
        let decoding = (streams - 1) * ((130 + block).div_ceil(block));
        assert!(plan.capacity.sliding_blocks >= alone + decoding, "{asked:?}");
    }
}
