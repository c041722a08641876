//! Fast mode against exact mode on the demonstration model, which speaks sense and so says more than random weights.

use tandem_backend::{DenseFormat, KvFormat, Precision};
use tandem_testkit::{CheckpointSpec, Conversation, demo_conversations, golden, write_demo};

use crate::golden::Distance;
use crate::harness::Harness;

/// The bar speaks of so many positions.
const POSITIONS_MIN: u32 = 2000;

#[test]
#[ignore = "minutes of arithmetic: a job of its own in .ci/run"]
fn fast_mode_stays_close_on_the_demonstration_model() {
    let (folder, conversations) = (unpacked(), conversations());
    let load = |precision, dense, kv| Harness::open(folder.path(), precision, dense, kv);
    for dense in [DenseFormat::Q8, DenseFormat::Bf16] {
        let mut exact = load(Precision::Exact, dense, KvFormat::F32);
        let mut fast = load(Precision::Fast, dense, KvFormat::Bf16);
        let mut distance = Distance::default();
        conversations.iter().for_each(|tokens| distance.add(tokens, &mut exact, &mut fast));
        assert!(distance.positions() >= POSITIONS_MIN);
        distance.check(&format!("demo: fast {dense:?} from exact {dense:?}"));
    }
}

/// No bar, a figure for the documentation: what 8-bit attention and lm_head cost, in exact mode and by default.
#[test]
#[ignore = "minutes of arithmetic: a job of its own in .ci/run"]
fn what_eight_bit_weights_cost() {
    let mut models: Vec<(String, Vec<Vec<u32>>, tempfile::TempDir)> = Vec::new();
    for (name, spec) in [("a", CheckpointSpec::A), ("b", CheckpointSpec::B)] {
        let folder = tempfile::tempdir().unwrap();
        tandem_testkit::write_hub(folder.path(), &spec).unwrap();
        let prompts = golden(name).unwrap().into_iter().map(|prompt| prompt.tokens).collect();
        models.push((name.into(), prompts, folder));
    }
    models.push(("demo".into(), conversations(), unpacked()));
    for (name, prompts, folder) in &models {
        for (precision, kv) in [(Precision::Exact, KvFormat::F32), (Precision::Fast, KvFormat::Bf16)] {
            let mut shipped = Harness::open(folder.path(), Precision::Exact, DenseFormat::Bf16, KvFormat::F32);
            let mut eight = Harness::open(folder.path(), precision, DenseFormat::Q8, kv);
            let mut distance = Distance::default();
            prompts.iter().for_each(|tokens| distance.add(tokens, &mut shipped, &mut eight));
            let (mean, _) = distance.report(&format!("{name}: {precision:?} Q8 from exact Bf16"));
            assert!(mean.is_finite());
        }
    }
}

/// The recorded conversations, prompt and reply.
fn conversations() -> Vec<Vec<u32>> {
    let both = |Conversation { prompt, reply }| [prompt, reply].concat();
    demo_conversations().unwrap().into_iter().map(both).collect()
}

fn unpacked() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_demo(folder.path()).unwrap();
    folder
}
