use std::path::{Path, PathBuf};

/// Why a config could not be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file could not be read.
    #[error("{}: reading the config: {source}", file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is not JSON.
    #[error("{}: parsing the config: {source}", file.display())]
    Json {
        /// The file.
        file: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// A key is missing, or has a value that cannot be.
    #[error("{}: {key}: expected {expected}, found {found}", file.display())]
    Value {
        /// The file.
        file: PathBuf,
        /// The key, dotted where nested.
        key: String,
        /// What should be there.
        expected: String,
        /// What is.
        found: String,
    },
}

impl ConfigError {
    pub(super) fn value(file: &Path, key: &str, expected: impl Into<String>, found: impl ToString) -> Self {
        Self::Value { file: file.to_owned(), key: key.to_owned(), expected: expected.into(), found: found.to_string() }
    }
}
