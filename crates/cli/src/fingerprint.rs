//! What tells one model from another.

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tandem_model::{WeightStore, layout};

/// 16 digits of a hash of the configuration and of every tensor's name, shape, first and last row. It reads little, so a byte
/// changed in the middle of a tensor goes unnoticed; another model or another training does not.
pub fn fingerprint(store: &dyn WeightStore) -> Result<String> {
    let config = store.config();
    let mut hash = Sha256::new();
    hash.update(format!("{config:?}"));
    let mut row = Vec::new();
    for tensor in layout::tensors(config) {
        let name = tensor.id.hub_name();
        let source = store.tensor(tensor.id)?;
        hash.update(&name);
        hash.update((source.rows() as u64).to_le_bytes());
        row.resize(source.row_bytes(), 0);
        for index in [0, source.rows().saturating_sub(1)] {
            source.read(index, &mut row).with_context(|| format!("reading {name}"))?;
            hash.update(&row);
        }
    }
    Ok(hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use tandem_model::{Synthetic, SyntheticKind};

    use super::*;

    #[test]
    fn it_is_the_same_for_the_same_model_alone() {
        let tiny = fingerprint(&Synthetic::new(SyntheticKind::Tiny)).unwrap();
        assert_eq!(tiny, fingerprint(&Synthetic::new(SyntheticKind::Tiny)).unwrap());
        let demo = tandem_model::Checkpoint::open(&crate::demo::checkpoint().unwrap()).unwrap();
        assert_ne!(tiny, fingerprint(&demo).unwrap());
    }
}
