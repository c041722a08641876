//! Checkpoints on disk: finding, checking and reading their files.

mod error;
mod header;
mod index;
mod locate;
mod names;
mod source;
mod validate;

use std::collections::HashMap;
use std::path::Path;

use tandem_backend::RowSource;

pub use error::CheckpointError;
pub use header::{Header, HeaderEntry};
use source::{Shard, TensorSource};

use crate::layout::TensorId;
use crate::{Config, WeightStore};

/// A gpt-oss checkpoint on disk, checked: every tensor that the config calls for is there, in the right place, with the
/// right shape and number format, and nothing else is.
#[derive(Debug)]
pub struct Checkpoint {
    config: Config,
    layout: Layout,
    shards: Vec<Shard>,
    places: HashMap<TensorId, Place>,
}

/// Where a tensor's bytes are.
#[derive(Clone, Copy, Debug)]
struct Place {
    shard: usize,
    offset: u64,
    rows: usize,
    row_bytes: usize,
}

/// The two ways in which gpt-oss checkpoints are published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Transformers' names, at the root of a hub repository.
    Hub,
    /// OpenAI's own names, in its folder `original`.
    Original,
}

impl Checkpoint {
    /// Opens the checkpoint in `dir`: a hub repository with its config and shards at the root, one that has only its
    /// `original` folder, or such a folder itself. Reads headers, no weights.
    pub fn open(dir: &Path) -> Result<Self, CheckpointError> {
        let found = locate::locate(dir)?;
        let config = match found.layout {
            Layout::Hub => Config::read_hub(&found.config)?,
            Layout::Original => Config::read_original(&found.config)?,
        };
        let shards = found.shards.iter().map(|path| Shard::open(path)).collect::<Result<Vec<_>, _>>()?;
        let files = validate::files(&shards, found.index.as_ref())?;
        let places = validate::places(&config, found.layout, &files, found.listing())?;
        Ok(Self { config, layout: found.layout, shards, places })
    }

    /// Which of the two layouts it is in.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The files that hold its tensors.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.shards.iter().map(|shard| shard.path.as_path())
    }
}

impl WeightStore for Checkpoint {
    fn config(&self) -> &Config {
        &self.config
    }

    fn tensor(&self, id: TensorId) -> Result<Box<dyn RowSource + '_>, CheckpointError> {
        let place = *self.places.get(&id).ok_or(CheckpointError::NoSuchTensor(id.hub_name()))?;
        Ok(Box::new(TensorSource::new(&self.shards[place.shard], id, place)))
    }
}
