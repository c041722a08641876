use std::io;
use std::path::{Path, PathBuf};

use crate::ConfigError;

/// Why a checkpoint could not be used, in one line each.
#[derive(Debug, thiserror::Error)]
pub enum CheckpointError {
    /// Its config is not one of a gpt-oss model.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file or folder could not be read.
    #[error("{}: {doing}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done.
        doing: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file or folder is not what it should be.
    #[error("{}: expected {expected}, found {found}", path.display())]
    File {
        /// The file or folder.
        path: PathBuf,
        /// What it should be or have.
        expected: String,
        /// What it is or has.
        found: String,
    },
    /// A tensor is not what it should be.
    #[error("{}: tensor {tensor}: expected {expected}, found {found}", path.display())]
    Tensor {
        /// The file that has the tensor, should have it, or says something of it.
        path: PathBuf,
        /// Its name in that file.
        tensor: String,
        /// What it should be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// A tensor was asked for that this model does not have: a bug of the caller.
    #[error("the model has no tensor {0}")]
    NoSuchTensor(String),
}

impl CheckpointError {
    pub(super) fn io(path: &Path, doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, doing, source }
    }

    pub(super) fn file(path: &Path, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::File { path: path.to_owned(), expected: expected.into(), found: found.into() }
    }

    pub(super) fn tensor(path: &Path, name: &str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        let (expected, found) = (expected.into(), found.into());
        Self::Tensor { path: path.to_owned(), tensor: one_line(name), expected, found }
    }
}

/// A name from a file, fit for a message: bounded, and without characters that would break the line.
pub(super) fn one_line(name: &str) -> String {
    const MAX_CHARS: usize = 120;
    name.chars().take(MAX_CHARS).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
