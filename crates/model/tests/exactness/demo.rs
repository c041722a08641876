//! Fast mode against exact mode on the demonstration model, which speaks sense and so says more than random weights.

use tandem_backend::{DenseFormat, KvFormat, Precision};
use tandem_testkit::{Conversation, demo_conversations, write_demo};

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

/// The recorded conversations, prompt and reply.
pub fn conversations() -> Vec<Vec<u32>> {
    let both = |Conversation { prompt, reply }| [prompt, reply].concat();
    demo_conversations().unwrap().into_iter().map(both).collect()
}

/// A folder with the model's weights unpacked.
pub fn unpacked() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    write_demo(folder.path()).unwrap();
    folder
}
