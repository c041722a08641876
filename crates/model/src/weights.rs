use std::sync::atomic::{AtomicU64, Ordering};

use std::io;
use tandem_backend::RowSource;

use crate::layout::{self, LayerTensor, TensorId};
use crate::sources::Concat;
use crate::{CheckpointError, Config};

/// Where weights come from: a checkpoint, or a generator.
pub trait WeightStore: Sync {
    /// Shape of the model.
    fn config(&self) -> &Config;

    /// One tensor, with rows as [`layout::TensorSpec::rows`] says. Reading fails where the file does, or where an
    /// MXFP4 scale is not a number.
    fn tensor(&self, id: TensorId) -> Result<Box<dyn RowSource + '_>, CheckpointError>;

    /// Bytes of all tensors together.
    fn total_bytes(&self) -> u64 {
        layout::tensors(self.config()).map(|tensor| tensor.bytes()).sum()
    }
}

/// The q, k and v matrices of a layer as one `[qkv_width, hidden]`.
pub fn qkv_weight(store: &dyn WeightStore, layer: usize) -> Result<Concat<'_>, CheckpointError> {
    use LayerTensor::{KWeight, QWeight, VWeight};
    concat(store, layer, [QWeight, KWeight, VWeight])
}

/// The q, k and v biases of a layer as one `[qkv_width]`.
pub fn qkv_bias(store: &dyn WeightStore, layer: usize) -> Result<Concat<'_>, CheckpointError> {
    use LayerTensor::{KBias, QBias, VBias};
    concat(store, layer, [QBias, KBias, VBias])
}

fn concat(store: &dyn WeightStore, layer: usize, parts: [LayerTensor; 3]) -> Result<Concat<'_>, CheckpointError> {
    let sources: Result<Vec<_>, _> = parts.iter().map(|&part| store.tensor(TensorId::Layer(layer, part))).collect();
    Ok(Concat::new(sources?))
}

/// A store that counts what is read from it, so that loading can show its progress from another thread.
pub struct Counted<'a> {
    store: &'a dyn WeightStore,
    bytes: &'a AtomicU64,
}

impl<'a> Counted<'a> {
    /// Adds every byte read from `store` to `bytes`.
    pub fn new(store: &'a dyn WeightStore, bytes: &'a AtomicU64) -> Self {
        Self { store, bytes }
    }
}

impl WeightStore for Counted<'_> {
    fn config(&self) -> &Config {
        self.store.config()
    }

    fn tensor(&self, id: TensorId) -> Result<Box<dyn RowSource + '_>, CheckpointError> {
        Ok(Box::new(CountedSource { source: self.store.tensor(id)?, bytes: self.bytes }))
    }

    fn total_bytes(&self) -> u64 {
        self.store.total_bytes()
    }
}

struct CountedSource<'a> {
    source: Box<dyn RowSource + 'a>,
    bytes: &'a AtomicU64,
}

impl RowSource for CountedSource<'_> {
    fn rows(&self) -> usize {
        self.source.rows()
    }

    fn row_bytes(&self) -> usize {
        self.source.row_bytes()
    }

    fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()> {
        self.source.read(first, out)?;
        self.bytes.fetch_add(out.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}
