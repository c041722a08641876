//! A model over several ranks: the bits of one worker that holds all shards, and as close to the undivided model as f32
//! lets sums in another order be.

use std::path::Path;

use tandem_backend::{DenseFormat, KvFormat, Precision};
use tandem_link::TransportKind;
use tandem_model::{ExpertSplit, Formats, Model, ShardPlan};
use tandem_testkit::{CheckpointSpec, Distance, golden};

use crate::equalities::{assert_bits, long_prompt};
use crate::golden::{EXACT_ERROR_MAX, check, compare, files};
use crate::harness::{Harness, Part, relative_error};
use crate::links::links;

/// Five groups of 32 units, so 3 + 2 of two ranks and 2 + 1 + 1 + 1 of four, and a vocabulary that is odd.
const FOUR: CheckpointSpec = CheckpointSpec { seed: 4, kv_heads: 4, ..CheckpointSpec::B };

const SHAPES: [(&str, CheckpointSpec, usize); 4] =
    [("a", CheckpointSpec::A, 2), ("b", CheckpointSpec::B, 2), ("four", FOUR, 2), ("four", FOUR, 4)];
const SPLITS: [ExpertSplit; 2] = [ExpertSplit::Slice, ExpertSplit::Whole];
const FORMATS: Formats = Formats { dense: DenseFormat::Bf16, kv: KvFormat::F32 };

/// All ranks of a world, each with a model of its own.
struct Ranks(Vec<Harness>);

impl Ranks {
    fn load(folder: &Path, precision: Precision, formats: Formats, world: usize, experts: ExpertSplit) -> Self {
        let plans = ShardPlan::all(world, experts).into_iter();
        let rank = |(plan, exchange)| {
            Harness::load(folder, precision, formats, |backend, store, formats, capacity| {
                Model::load(backend, store, formats, capacity, plan)?.with_exchange(exchange)
            })
        };
        Self(plans.zip(links(TransportKind::Shm, world)).map(rank).collect())
    }

    /// The logits, which are the same on all ranks.
    fn run(&mut self, parts: &[Part<'_>]) -> Vec<Vec<f32>> {
        let mut logits: Vec<_> = std::thread::scope(|scope| {
            let running: Vec<_> = self.0.iter_mut().map(|rank| scope.spawn(|| rank.run(parts))).collect();
            running.into_iter().map(|rank| rank.join().unwrap()).collect()
        });
        for rank in 1..logits.len() {
            assert_bits(&logits[0], &logits[rank], &format!("rank {rank}"));
        }
        logits.swap_remove(0)
    }
}

/// One worker with all shards.
fn together(folder: &Path, precision: Precision, formats: Formats, world: usize, experts: ExpertSplit) -> Harness {
    Harness::load(folder, precision, formats, |backend, store, formats, capacity| {
        Model::load_all(backend, store, formats, capacity, world, experts)
    })
}

fn written(spec: &CheckpointSpec) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    tandem_testkit::write_hub(folder.path(), spec).unwrap();
    folder
}

/// Some 130 tokens beyond the window: in one piece, in chunks, and beside others.
#[test]
fn ranks_compute_the_bits_of_one_worker_with_all_shards() {
    for (name, spec, world) in SHAPES {
        let folder = written(&spec);
        for experts in SPLITS {
            let what = format!("{name} over {world}, {experts:?}");
            let tokens = &long_prompt("a")[..130];
            let mut one = together(folder.path(), Precision::Exact, FORMATS, world, experts);
            let mut ranks = Ranks::load(folder.path(), Precision::Exact, FORMATS, world, experts);
            let part = |sequence, range| Part { sequence, tokens, range };
            let want = one.run(&[part(0, 0..130)]);
            assert_bits(&want, &ranks.run(&[part(0, 0..130)]), &what);
            let chunks = [0..1, 1..34, 34..35, 35..130];
            let chunked = chunks.iter().flat_map(|range| ranks.run(&[part(1, range.clone())])).collect::<Vec<_>>();
            assert_bits(&want, &chunked, &format!("{what}, chunked"));
            let batched = ranks.run(&[part(2, 0..70), part(3, 0..9), part(4, 0..130)]);
            assert_bits(&want, &batched[79..], &format!("{what}, batched"));
        }
    }
}

#[test]
fn fast_mode_has_the_same_bits_on_ranks_and_on_one_worker_with_all_shards() {
    let (name, spec, world) = ("four", FOUR, 4);
    let folder = written(&spec);
    let formats = Formats { dense: DenseFormat::Q8, kv: KvFormat::Bf16 };
    for experts in SPLITS {
        let tokens = &long_prompt("a")[..60];
        let parts = [Part { sequence: 0, tokens, range: 0..60 }];
        let want = together(folder.path(), Precision::Fast, formats, world, experts).run(&parts);
        let got = Ranks::load(folder.path(), Precision::Fast, formats, world, experts).run(&parts);
        assert_bits(&want, &got, &format!("{name} over {world}, {experts:?}"));
    }
}

#[test]
fn shards_match_transformers_at_every_position() {
    for (name, spec, world) in &SHAPES[..2] {
        let folder = written(spec);
        for experts in SPLITS {
            let mut one = together(folder.path(), Precision::Exact, FORMATS, *world, experts);
            for prompt in golden(name).unwrap() {
                for (position, logits) in one.prompt(0, &prompt.tokens).iter().enumerate() {
                    let error = relative_error(logits, prompt.logits_at(position));
                    assert!(error <= EXACT_ERROR_MAX, "{name} {experts:?} position {position}: {error:.2e}");
                }
            }
        }
    }
}

#[test]
fn fast_shards_stay_close_to_the_undivided_exact_model() {
    for dense in [DenseFormat::Bf16, DenseFormat::Q8] {
        for (name, spec) in files() {
            let folder = written(&spec);
            let mut exact = Harness::open(folder.path(), Precision::Exact, dense, KvFormat::F32);
            let formats = Formats { dense, kv: KvFormat::Bf16 };
            let mut fast = SPLITS
                .map(|experts| (together(folder.path(), Precision::Fast, formats, 2, experts), Distance::default()));
            golden(name).unwrap().iter().for_each(|prompt| compare(&prompt.tokens, &mut exact, &mut fast));
            for (experts, (_, distance)) in SPLITS.iter().zip(&fast) {
                check(distance, &format!("{name}: fast {dense:?} over 2, {experts:?}, from exact {dense:?}"));
            }
        }
    }
}

#[test]
fn a_rank_alone_says_what_it_lacks() {
    let folder = written(&CheckpointSpec::SMALL);
    let plan = ShardPlan { rank: 1, world: 2, experts: ExpertSplit::Whole };
    let mut unconnected = None;
    Harness::load(folder.path(), Precision::Exact, FORMATS, |backend, store, formats, capacity| {
        let mut model = Model::load(backend, store, formats, capacity, plan)?;
        unconnected = model.logits(&[0], |_, _| panic!("logits of one rank alone")).err();
        let wrong = links(TransportKind::Shm, 2).swap_remove(0);
        let error = model.with_exchange(wrong).err().expect("the exchange of another rank").to_string();
        assert!(error.contains("an exchange of rank 0 of 2"), "{error}");
        Model::load(backend_again(), store, formats, capacity, ShardPlan::UNDIVIDED)
    });
    let said = unconnected.unwrap().to_string();
    assert!(said.ends_with("rank 1 of 2 is not connected to them"), "{said}");
}

fn backend_again() -> tandem_backend::cpu::CpuBackend {
    let options = tandem_backend::cpu::CpuOptions { precision: Precision::Exact, threads: Some(1), isa: None };
    tandem_backend::cpu::CpuBackend::new(options).unwrap()
}
