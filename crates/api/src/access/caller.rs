//! Who sent a request.

/// The key that a request came with, by its hash: names may be given again. Without keys everybody is the same.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Caller(Option<[u8; 32]>);

impl Caller {
    /// Whoever has the key of this SHA-256.
    pub(super) fn of_key(sha256: [u8; 32]) -> Self {
        Self(Some(sha256))
    }
}
