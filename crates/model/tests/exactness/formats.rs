//! What number formats cost, for the documentation: each against BF16 throughout, over the same prompts.

use std::path::Path;

use tandem_backend::conformance::divergence_max;
use tandem_backend::{DenseFormat, KvFormat, Precision};
use tandem_testkit::{CheckpointSpec, Conversation, Distance, demo_conversations, golden, write_demo};

use crate::golden::compare;
use crate::harness::Harness;

#[test]
#[ignore = "minutes of arithmetic: a job of its own in .ci/run"]
fn what_formats_cost() {
    for (name, spec) in [("a", CheckpointSpec::A), ("b", CheckpointSpec::B)] {
        let folder = tempfile::tempdir().unwrap();
        tandem_testkit::write_hub(folder.path(), &spec).unwrap();
        let prompts: Vec<_> = golden(name).unwrap().into_iter().map(|prompt| prompt.tokens).collect();
        run(&format!("golden {name}"), folder.path(), &prompts);
    }
    let folder = tempfile::tempdir().unwrap();
    write_demo(folder.path()).unwrap();
    let conversations: Vec<_> = demo_conversations().unwrap().iter().map(Conversation::tokens).collect();
    run("demonstration model", folder.path(), &conversations);
}

/// Every format in exact mode, then in fast mode those that `tandem` takes by default and those it can be asked for together.
fn formats() -> Vec<(Precision, DenseFormat, KvFormat)> {
    let mut formats = vec![(Precision::Exact, DenseFormat::Bf16, KvFormat::F32)];
    for dense in DenseFormat::ALL {
        formats.extend([KvFormat::Bf16, KvFormat::Fp8].map(|kv| (Precision::Exact, dense, kv)));
    }
    formats.extend([DenseFormat::Q8, DenseFormat::Mxfp4].map(|dense| (Precision::Fast, dense, KvFormat::Bf16)));
    // What everything is compared with.
    formats.retain(|format| *format != SHIPPED);
    formats
}

/// BF16 throughout, computed without further rounding.
const SHIPPED: (Precision, DenseFormat, KvFormat) = (Precision::Exact, DenseFormat::Bf16, KvFormat::Bf16);

/// Runs all of them over the prompts.
fn run(name: &str, folder: &Path, prompts: &[Vec<u32>]) {
    let open = |precision, dense, kv| Harness::open(folder, precision, dense, kv);
    let mut shipped = open(SHIPPED.0, SHIPPED.1, SHIPPED.2);
    let formats = formats();
    let mut others: Vec<_> =
        formats.iter().map(|&(precision, dense, kv)| (open(precision, dense, kv), Distance::default())).collect();
    prompts.iter().for_each(|tokens| compare(tokens, &mut shipped, &mut others));
    for ((precision, dense, kv), (_, distance)) in formats.into_iter().zip(others) {
        let what = format!("{name}: {precision:?}, {dense:?}, KV {kv:?}, from BF16 throughout");
        distance.print(&what);
        let most = divergence_max(dense, kv);
        assert!(distance.mean() <= most, "{what}: mean divergence {:.2e} > {most:.1e}", distance.mean());
    }
}
