//! The model of tests that are about processes and not about what is said: the demonstration model, and under emulation, where
//! that one takes minutes to load, one of a few thousand weights.

use std::sync::LazyLock;

use serde_json::{Value, json};
use tandem_testkit::CheckpointSpec;
use tempfile::TempDir;

/// Where its checkpoint is, if it is to be served.
static FOLDER: LazyLock<Option<TempDir>> = LazyLock::new(|| {
    std::env::var_os("TEST_EMULATED")?;
    let folder = tempfile::tempdir().expect("a folder");
    tandem_testkit::write_hub(folder.path(), &CheckpointSpec::SMALL).expect("a checkpoint");
    Some(folder)
});

/// What names it on the command line.
pub fn arguments() -> Vec<&'static str> {
    FOLDER.iter().map(|folder| folder.path().to_str().expect("a path of letters")).collect()
}

/// A prompt for it. The small one's vocabulary has no text.
pub fn prompt(text: &str) -> Value {
    match *FOLDER {
        Some(_) => text.bytes().map(|byte| usize::from(byte) % CheckpointSpec::SMALL.vocab).collect(),
        None => json!(text),
    }
}
