use super::cut::Cut;
use super::*;
use crate::SyntheticKind;
use crate::layout::tensors;

const SPLITS: [ExpertSplit; 2] = [ExpertSplit::Slice, ExpertSplit::Whole];

fn plan(rank: usize, world: usize, experts: ExpertSplit) -> ShardPlan {
    ShardPlan { rank, world, experts }
}

#[test]
fn shares_follow_each_other_and_differ_by_one_at_most() {
    let shares = |count, world| (0..world).map(|rank| share(count, rank, world)).collect::<Vec<_>>();
    assert_eq!(shares(5, 2), [0..3, 3..5]);
    assert_eq!(shares(90, 4), [0..23, 23..46, 46..68, 68..90]);
    for (count, world) in [(1, 1), (7, 7), (8, 3), (201_088, 5), (2, 3)] {
        let shares = shares(count, world);
        assert!(shares.windows(2).all(|pair| pair[0].end == pair[1].start && pair[0].len() >= pair[1].len()));
        assert!((shares[0].start, shares[world - 1].end) == (0, count));
        assert!(shares[0].len() - shares[world - 1].len() <= 1);
    }
}

#[test]
fn two_ranks_of_gpt_oss() {
    let config = Config::gpt_oss_120b();
    let second = plan(1, 2, ExpertSplit::Slice).shard(&config).unwrap();
    assert_eq!((&second.heads, &second.kv_heads), (&(32..64), &(4..8)));
    assert_eq!((&second.units, &second.experts), (&(1440..2880), &(0..128)));
    assert_eq!(second.vocab, 100_544..201_088);
    assert_eq!((second.q_width(&config), second.qkv_width(&config)), (2048, 2560));
    assert!(!second.adds_biases());
    let whole = plan(1, 2, ExpertSplit::Whole).shard(&config).unwrap();
    assert_eq!((&whole.units, &whole.experts), (&(0..2880), &(64..128)));
}

#[test]
fn five_groups_are_split_three_to_two_and_one_rank_has_all() {
    let config = Config { intermediate: 160, ..SyntheticKind::Tiny.config() };
    let units = |rank| plan(rank, 2, ExpertSplit::Slice).shard(&config).unwrap().units;
    assert_eq!((units(0), units(1)), (0..96, 96..160));
    let all = ShardPlan::UNDIVIDED.shard(&config).unwrap();
    assert!(tensors(&config).all(|tensor| Cut::of(&all, &config, &tensor) == Cut::Whole));
}

#[test]
fn what_does_not_divide_is_named() {
    let gpt_oss = Config::gpt_oss_20b();
    let said = |config: &Config, world, experts| plan(0, world, experts).shard(config).unwrap_err().to_string();
    assert_eq!(
        said(&gpt_oss, 3, ExpertSplit::Slice),
        "8 key heads, each with its query heads, cannot be shared out evenly among 3 ranks"
    );
    for world in [2, 4, 8] {
        assert!(SPLITS.iter().all(|experts| plan(world - 1, world, *experts).shard(&gpt_oss).is_ok()));
    }
    assert!(said(&gpt_oss, 16, ExpertSplit::Whole).starts_with("8 key heads"));
    let error = plan(2, 2, ExpertSplit::Slice).shard(&gpt_oss).unwrap_err();
    assert_eq!(error.to_string(), "there is no rank 2 of 2");
    assert_eq!(plan(0, 0, ExpertSplit::Slice).shard(&gpt_oss).unwrap_err().to_string(), "there is no rank 0 of 0");
    let narrow = Config { heads: 2, kv_heads: 2, head_dim: 16, ..gpt_oss.clone() };
    assert_eq!(
        said(&narrow, 2, ExpertSplit::Slice),
        "the query heads of one of 2 ranks are 16 values wide, which is no multiple of 32"
    );
    let flat = Config { intermediate: 32, experts: 1, ..gpt_oss };
    assert_eq!(said(&flat, 2, ExpertSplit::Slice), "1 groups of 32 units in an expert are too few for 2 ranks");
    assert_eq!(said(&flat, 2, ExpertSplit::Whole), "1 experts are too few for 2 ranks");
}

/// Every byte of a tensor is on one rank, or on all of those that need it.
#[test]
fn shards_add_up_to_the_model() {
    let odd = Config { intermediate: 160, vocab: 777, experts: 5, ..SyntheticKind::Tiny.config() };
    let wide = Config { kv_heads: 4, heads: 8, ..odd.clone() };
    for (config, world) in [(odd, 2), (wide, 4), (Config::gpt_oss_120b(), 8)] {
        for experts in SPLITS {
            let shards: Vec<Shard> =
                ShardPlan::all(world, experts).iter().map(|plan| plan.shard(&config).unwrap()).collect();
            for tensor in tensors(&config) {
                let cuts: Vec<Cut> = shards.iter().map(|shard| Cut::of(shard, &config, &tensor)).collect();
                let held: u64 = cuts.iter().map(|cut| cut.bytes_held(&tensor)).sum();
                let copies = match cuts[0] {
                    Cut::Whole => world as u64,
                    Cut::Rows { .. } | Cut::Columns(_) => 1,
                    Cut::Zeroes => panic!("the first rank adds all biases"),
                };
                assert_eq!(held, copies * tensor.bytes(), "{:?} {experts:?}", tensor.id);
            }
        }
    }
}
