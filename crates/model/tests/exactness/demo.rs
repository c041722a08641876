//! Fast mode against exact mode on the demonstration model, which speaks sense and so says more than random weights.

use tandem_backend::{DenseFormat, KvFormat, Precision};
use tandem_testkit::{Distance, demo_conversations, write_demo};

use crate::golden::{check, compare};
use crate::harness::Harness;

/// The bar speaks of so many positions.
const POSITIONS_MIN: u32 = 2000;

#[test]
#[ignore = "minutes of arithmetic: a job of its own in .ci/run"]
fn fast_mode_stays_close_on_the_demonstration_model() {
    let (folder, conversations) = (tempfile::tempdir().unwrap(), demo_conversations().unwrap());
    write_demo(folder.path()).unwrap();
    let load = |precision, dense, kv| Harness::open(folder.path(), precision, dense, kv);
    for dense in [DenseFormat::Q8, DenseFormat::Bf16] {
        let mut exact = load(Precision::Exact, dense, KvFormat::F32);
        let mut fast = [(load(Precision::Fast, dense, KvFormat::Bf16), Distance::default())];
        conversations.iter().for_each(|it| compare(&it.tokens(), &mut exact, &mut fast));
        let [(_, distance)] = fast;
        assert!(distance.positions() >= POSITIONS_MIN);
        check(&distance, &format!("demo: fast {dense:?} from exact {dense:?}"));
    }
}
