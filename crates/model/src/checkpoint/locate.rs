use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::index::Index;
use super::{CheckpointError, Layout};

const CONFIG: &str = "config.json";
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// The parts of a checkpoint, found but not yet read.
#[derive(Debug)]
pub(super) struct Located {
    pub layout: Layout,
    pub config: PathBuf,
    pub shards: Vec<PathBuf>,
    pub index: Option<Index>,
}

impl Located {
    /// The file to name when a tensor is nowhere.
    pub fn listing(&self) -> &Path {
        self.index.as_ref().map_or(&self.shards[0], |index| &index.path)
    }
}

/// Finds out which layout a folder has. Weights at the root come first; a hub repository of which only `original` was
/// downloaded has a config at its root all the same.
pub(super) fn locate(dir: &Path) -> Result<Located, CheckpointError> {
    if !dir.is_dir() {
        let found = if dir.exists() { "a file" } else { "nothing there" };
        return Err(CheckpointError::file(dir, "the folder of a checkpoint", found));
    }
    let (config, original) = (dir.join(CONFIG), dir.join("original"));
    let has_weights = |folder: &Path| folder.join(INDEX).exists() || folder.join(SINGLE).exists();
    if config.exists() && (has_weights(dir) || !original.join(CONFIG).exists()) {
        let layout = if has_original_keys(&config) { Layout::Original } else { Layout::Hub };
        return located(layout, dir);
    }
    if original.join(CONFIG).exists() {
        return located(Layout::Original, &original);
    }
    Err(CheckpointError::file(dir, "a checkpoint: config.json or original/config.json", "neither"))
}

/// Whether a config spells its keys as those in `original` folders do. What is not JSON is left for the config's reader
/// to complain about.
fn has_original_keys(config: &Path) -> bool {
    let bounded = fs::metadata(config).is_ok_and(|metadata| metadata.len() <= 1 << 20);
    let text = if bounded { fs::read(config).unwrap_or_default() } else { Vec::new() };
    let keys: Map<String, Value> = serde_json::from_slice(&text).unwrap_or_default();
    keys.contains_key("num_experts") && !keys.contains_key("model_type")
}

fn located(layout: Layout, folder: &Path) -> Result<Located, CheckpointError> {
    let config = folder.join(CONFIG);
    let index = folder.join(INDEX);
    if index.exists() {
        let index = Index::read(&index)?;
        let shards = listed_shards(folder, &index)?;
        return Ok(Located { layout, config, shards, index: Some(index) });
    }
    let single = folder.join(SINGLE);
    let shards = match layout {
        _ if single.exists() => vec![single],
        Layout::Original => numbered_shards(folder)?,
        Layout::Hub => return Err(CheckpointError::file(folder, format!("{INDEX} or {SINGLE}"), "neither")),
    };
    Ok(Located { layout, config, shards, index: None })
}

fn listed_shards(folder: &Path, index: &Index) -> Result<Vec<PathBuf>, CheckpointError> {
    let shards: Vec<PathBuf> = index.files().into_iter().map(|file| folder.join(file)).collect();
    if shards.is_empty() {
        return Err(CheckpointError::file(&index.path, "a weight_map with tensors", "an empty one"));
    }
    match shards.iter().find(|shard| !shard.exists()) {
        Some(missing) => Err(CheckpointError::file(missing, format!("a shard that {INDEX} lists"), "no such file")),
        None => Ok(shards),
    }
}

/// `model--00001-of-00007.safetensors` and so on, for folders without an index.
fn numbered_shards(folder: &Path) -> Result<Vec<PathBuf>, CheckpointError> {
    let failed = || CheckpointError::io(folder, "listing the folder");
    let mut shards = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed())? {
        let path = entry.map_err(failed())?.path();
        if let Some((number, count)) = path.file_name().and_then(|name| name.to_str()).and_then(shard_number) {
            shards.push((number, count, path));
        }
    }
    shards.sort();
    let Some(&(_, count, _)) = shards.first() else {
        let expected = format!("{SINGLE}, {INDEX} or model--00001-of-….safetensors");
        return Err(CheckpointError::file(folder, expected, "none of them"));
    };
    let numbers: Vec<(u32, u32)> = shards.iter().map(|&(number, count, _)| (number, count)).collect();
    if !numbers.iter().copied().eq((1..=count).map(|number| (number, count))) {
        let found = format!("{} with numbers {:?}", shards.len(), numbers.iter().map(|n| n.0).collect::<Vec<_>>());
        return Err(CheckpointError::file(folder, format!("{count} shards numbered from 1 to {count}"), found));
    }
    Ok(shards.into_iter().map(|(_, _, path)| path).collect())
}

/// Number and count of `model--00001-of-00007.safetensors`.
fn shard_number(name: &str) -> Option<(u32, u32)> {
    let middle = name.strip_prefix("model-")?.trim_start_matches('-').strip_suffix(".safetensors")?;
    let (number, count) = middle.split_once("-of-")?;
    Some((number.parse().ok()?, count.parse().ok()?))
}
