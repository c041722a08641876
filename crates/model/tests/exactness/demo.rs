//! Fast mode against exact mode on the demonstration model, which speaks sense and so says more than random weights.

use std::fs;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use tandem_backend::{DenseFormat, KvFormat, Precision};
use tandem_testkit::{CheckpointSpec, golden};

use crate::golden::Distance;
use crate::harness::Harness;

/// A recorded conversation of `tests/golden/demo.json`.
#[derive(Deserialize)]
struct Conversation {
    prompt: Vec<u32>,
    reply: Vec<u32>,
}

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
    let recorded = fs::read(repository().join("tests/golden/demo.json")).unwrap();
    let conversations: Vec<Conversation> = serde_json::from_slice(&recorded).unwrap();
    conversations.into_iter().map(|Conversation { prompt, reply }| [prompt, reply].concat()).collect()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn unpacked() -> tempfile::TempDir {
    let model = repository().join("models/tandem-demo");
    let folder = tempfile::tempdir().unwrap();
    fs::copy(model.join("config.json"), folder.path().join("config.json")).unwrap();
    let packed = fs::File::open(model.join("model.safetensors.zst")).unwrap();
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed).unwrap();
    let mut weights = fs::File::create(folder.path().join("model.safetensors")).unwrap();
    std::io::copy(&mut decoder, &mut weights).unwrap();
    folder
}
