use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::CheckpointError;
use super::error::one_line;

/// Largest index that is read; that of gpt-oss-120b has 60 kB.
const MAX_BYTES: u64 = 8 << 20;

/// `model.safetensors.index.json`: which tensor is in which file.
#[derive(Debug)]
pub(super) struct Index {
    pub path: PathBuf,
    /// File names, all of this folder, by tensor.
    pub weight_map: BTreeMap<String, String>,
    /// Bytes of all tensors, where it says.
    pub total_size: Option<u64>,
}

#[derive(Deserialize)]
struct RawIndex {
    metadata: Option<RawMetadata>,
    weight_map: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct RawMetadata {
    total_size: Option<u64>,
}

impl Index {
    pub fn read(path: &Path) -> Result<Self, CheckpointError> {
        let failed = || CheckpointError::io(path, "reading the index");
        let mut text = Vec::new();
        let file = File::open(path).map_err(failed())?;
        file.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(failed())?;
        if text.len() as u64 > MAX_BYTES {
            return Err(CheckpointError::file(path, format!("an index of at most {MAX_BYTES} bytes"), "more"));
        }
        let raw: RawIndex = serde_json::from_slice(&text).map_err(|error| {
            CheckpointError::file(path, "an index of JSON with weight_map and metadata", one_line(&error.to_string()))
        })?;
        check_names(path, &raw.weight_map)?;
        let total_size = raw.metadata.and_then(|metadata| metadata.total_size);
        Ok(Self { path: path.to_owned(), weight_map: raw.weight_map, total_size })
    }

    /// Its files, each once.
    pub fn files(&self) -> BTreeSet<&str> {
        self.weight_map.values().map(String::as_str).collect()
    }
}

/// An index must not lead out of its folder.
fn check_names(path: &Path, weight_map: &BTreeMap<String, String>) -> Result<(), CheckpointError> {
    let plain =
        |file: &str| Path::new(file).file_name().is_some_and(|name| name == file) && file.ends_with(".safetensors");
    match weight_map.iter().find(|(_, file)| !plain(file)) {
        Some((tensor, file)) => Err(CheckpointError::tensor(
            path,
            tensor,
            "the name of a .safetensors file beside the index",
            one_line(file),
        )),
        None => Ok(()),
    }
}
