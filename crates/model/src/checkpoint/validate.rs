use std::collections::{HashMap, HashSet};
use std::path::Path;

use super::error::one_line;
use super::header::HeaderEntry;
use super::index::Index;
use super::names::{FileTensor, describe, file_tensors};
use super::source::Shard;
use super::{CheckpointError, Layout, Place};
use crate::Config;

use crate::layout::TensorId;

/// The tensors of all shards, by name.
pub(super) struct Files<'a> {
    shards: &'a [Shard],
    entries: HashMap<&'a str, (usize, &'a HeaderEntry)>,
}

/// Brings the headers of all shards together, and holds the index against them.
pub(super) fn files<'a>(shards: &'a [Shard], index: Option<&Index>) -> Result<Files<'a>, CheckpointError> {
    let mut entries: HashMap<&str, (usize, &HeaderEntry)> = HashMap::new();
    for (number, shard) in shards.iter().enumerate() {
        for entry in &shard.header.entries {
            if let Some((earlier, _)) = entries.insert(&entry.name, (number, entry)) {
                let found = format!("it also in {}", shards[earlier].file_name());
                return Err(CheckpointError::tensor(&shard.path, &entry.name, "every tensor in one file", found));
            }
        }
    }
    let files = Files { shards, entries };
    if let Some(index) = index {
        check_index(&files, index)?;
    }
    Ok(files)
}

fn check_index(files: &Files<'_>, index: &Index) -> Result<(), CheckpointError> {
    for (tensor, file) in &index.weight_map {
        let found = match files.entries.get(tensor.as_str()) {
            Some(&(shard, _)) if files.shards[shard].file_name() == *file => continue,
            Some(&(shard, _)) => format!("it in {}", files.shards[shard].file_name()),
            None => "it in no file".to_owned(),
        };
        return Err(CheckpointError::tensor(&index.path, tensor, format!("it in {file}"), found));
    }
    let unlisted = files.entries.iter().filter(|(name, _)| !index.weight_map.contains_key(**name));
    if let Some((name, &(shard, _))) = unlisted.min_by_key(|(name, _)| **name) {
        let found = format!("it in {}", files.shards[shard].file_name());
        return Err(CheckpointError::tensor(&index.path, name, "no tensor that the index does not list", found));
    }
    let bytes = files.entries.values().fold(0u64, |sum, (_, entry)| sum.saturating_add(entry.end - entry.start));
    match index.total_size {
        Some(total) if total != bytes => {
            let expected = format!("a total_size of {bytes} bytes, as its files have");
            Err(CheckpointError::file(&index.path, expected, total.to_string()))
        }
        _ => Ok(()),
    }
}

/// Holds the files against what the config calls for, and says where every tensor is. `listing` is the file to name when
/// a tensor is missing.
pub(super) fn places(
    config: &Config,
    layout: Layout,
    files: &Files<'_>,
    listing: &Path,
) -> Result<HashMap<TensorId, Place>, CheckpointError> {
    let expected = file_tensors(config, layout);
    check_nothing_else(&expected, files)?;
    let mut places = HashMap::new();
    for tensor in &expected {
        let Some(&(shard, entry)) = files.entries.get(tensor.name.as_str()) else {
            return Err(CheckpointError::tensor(listing, &tensor.name, tensor.description(), "nothing"));
        };
        check_same(&files.shards[shard].path, tensor, entry)?;
        let mut offset = files.shards[shard].header.data_start + entry.start;
        for part in &tensor.parts {
            places.insert(part.id, Place { shard, offset, rows: part.rows(), row_bytes: part.row_bytes() });
            offset += part.bytes();
        }
    }
    Ok(places)
}

fn check_nothing_else(expected: &[FileTensor], files: &Files<'_>) -> Result<(), CheckpointError> {
    let known: HashSet<&str> = expected.iter().map(|tensor| tensor.name.as_str()).collect();
    let unknown = files.entries.iter().filter(|(name, _)| !known.contains(**name));
    match unknown.min_by_key(|(name, _)| **name) {
        Some((name, &(shard, entry))) => {
            let found = describe(&one_line(&entry.dtype), entry.shape.iter());
            let expected = "no tensor of this name in a model of this config";
            Err(CheckpointError::tensor(&files.shards[shard].path, name, expected, found))
        }
        None => Ok(()),
    }
}

fn check_same(path: &Path, tensor: &FileTensor, entry: &HeaderEntry) -> Result<(), CheckpointError> {
    let same_shape = tensor.shape.iter().map(|&dim| dim as u64).eq(entry.shape.iter().copied());
    if same_shape && tensor.dtype.to_string() == entry.dtype {
        return Ok(());
    }
    let found = describe(&one_line(&entry.dtype), entry.shape.iter());
    Err(CheckpointError::tensor(path, &tensor.name, tensor.description(), found))
}
