use std::io;

use tandem_backend::RowSource;

use super::{Shard, cut::Cut};
use crate::layout::{TensorId, TensorSpec, tensors};
use crate::sources::{ColumnCut, RowCut, rows_asked};
use crate::{CheckpointError, Config, WeightStore};

/// One rank's part of the weights of another store. Its config is the whole model's; its tensors have the rows and
/// columns that the rank holds. Another rank's bias is all zeroes.
#[derive(Clone, Copy)]
pub struct ShardStore<'a> {
    store: &'a dyn WeightStore,
    shard: &'a Shard,
}

impl<'a> ShardStore<'a> {
    /// What `shard` has of `store`, of whose config it was made.
    pub fn new(store: &'a dyn WeightStore, shard: &'a Shard) -> Self {
        Self { store, shard }
    }
}

impl WeightStore for ShardStore<'_> {
    fn config(&self) -> &Config {
        self.store.config()
    }

    fn tensor(&self, id: TensorId) -> Result<Box<dyn RowSource + '_>, CheckpointError> {
        let spec = TensorSpec::new(self.config(), id);
        Ok(match Cut::of(self.shard, self.config(), &spec) {
            Cut::Whole => self.store.tensor(id)?,
            Cut::Rows { period, keep } => Box::new(RowCut::new(self.store.tensor(id)?, period, keep)),
            Cut::Columns(keep) => Box::new(ColumnCut::new(self.store.tensor(id)?, keep)),
            Cut::Zeroes => Box::new(Zeroes { rows: spec.rows(), row_bytes: spec.row_bytes() }),
        })
    }

    fn total_bytes(&self) -> u64 {
        self.shard.bytes_held(self.config())
    }
}

impl Shard {
    /// Bytes of all tensors of this shard, in the formats of the checkpoint.
    pub fn bytes_held(&self, config: &Config) -> u64 {
        tensors(config).map(|tensor| Cut::of(self, config, &tensor).bytes_held(&tensor)).sum()
    }

    /// Bytes that loading it reads: as many, and the other ranks' parts of the rows that are divided among ranks.
    pub fn bytes_read(&self, config: &Config) -> u64 {
        tensors(config).map(|tensor| Cut::of(self, config, &tensor).bytes_read(&tensor)).sum()
    }
}

/// A bias that another rank adds.
struct Zeroes {
    rows: usize,
    row_bytes: usize,
}

impl RowSource for Zeroes {
    fn rows(&self) -> usize {
        self.rows
    }

    fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()> {
        rows_asked(self, first, out)?;
        out.fill(0);
        Ok(())
    }
}
