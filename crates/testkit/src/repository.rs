use std::path::{Path, PathBuf};

/// Where files of tests are. Elsewhere than where it was built, a variable says it.
pub(crate) fn repository() -> PathBuf {
    match std::env::var_os("TEST_REPOSITORY") {
        Some(folder) => folder.into(),
        None => Path::new(env!("CARGO_MANIFEST_DIR")).join("../.."),
    }
}
