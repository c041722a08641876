//! The keys that open this server, read again whenever their file changes.

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};

use super::allowance::{Allowance, Exceeded, Permit};
use super::caller::Caller;
use super::key_file::{KeyFile, KeyFileError, KeyLimits, hash};
use crate::error::ApiError;
use crate::file_watch;

/// Shared by its clones.
#[derive(Clone)]
pub struct Keyring(Arc<Inner>);

struct Inner {
    path: PathBuf,
    keys: RwLock<Arc<[Key]>>,
}

/// A key that opens this server.
#[derive(Clone)]
pub(super) struct Key {
    name: Arc<str>,
    sha256: [u8; 32],
    limits: KeyLimits,
    allowance: Arc<Allowance>,
}

impl Keyring {
    /// The keys of a file, of which there must be at least one.
    pub fn open(path: &Path) -> Result<Self, KeyFileError> {
        let file = KeyFile::read(path)?;
        if file.keys.is_empty() {
            let reason =
                "there are no keys in it, so nobody could use the server; add one with `tandem key add`".into();
            return Err(KeyFileError::Invalid { path: path.into(), reason });
        }
        Ok(Self(Arc::new(Inner { path: path.into(), keys: RwLock::new(keys(file, &[])) })))
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.0.path
    }

    /// How many keys there are.
    pub fn count(&self) -> usize {
        self.current().len()
    }

    /// Reads the file again; whether anything changed. Keys that stay keep what they have used; requests that are open
    /// go on. A file that cannot be read changes nothing.
    pub fn reload(&self) -> Result<bool, KeyFileError> {
        let file = KeyFile::read(&self.0.path)?;
        let before = self.current();
        let keys = keys(file, &before);
        let is_same = |(key, other): (&Key, &Key)| {
            key.sha256 == other.sha256 && key.name == other.name && key.limits == other.limits
        };
        let changed = keys.len() != before.len() || !keys.iter().zip(before.iter()).all(is_same);
        *self.0.keys.write().unwrap_or_else(PoisonError::into_inner) = keys;
        Ok(changed)
    }

    /// Reads the file again whenever it changes, for ever.
    pub async fn follow(self) {
        file_watch::follow(&[self.path()], || match self.reload() {
            Ok(true) => tracing::info!("{} API keys, read again from {}", self.count(), self.path().display()),
            Ok(false) => {}
            Err(error) => tracing::error!("the API keys stay as they were: {error}"),
        })
        .await;
    }

    /// The key that one of `given` is. How long it takes does not tell how much of one is right.
    pub(super) fn find(&self, given: &[&[u8]]) -> Option<Key> {
        let keys = self.current();
        let mut found = u64::MAX;
        for hashed in given.iter().map(|key| hash(key)) {
            for (at, key) in (0..).zip(keys.iter()) {
                let is_it: Choice = key.sha256.ct_eq(&hashed);
                found.conditional_assign(&at, is_it);
            }
        }
        keys.get(usize::try_from(found).ok()?).cloned()
    }

    fn current(&self) -> Arc<[Key]> {
        self.0.keys.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl std::fmt::Debug for Keyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keyring({} keys of {})", self.count(), self.path().display())
    }
}

fn keys(file: KeyFile, known: &[Key]) -> Arc<[Key]> {
    let key = |entry: super::KeyEntry| {
        let same = known.iter().find(|key| key.sha256 == entry.sha256);
        let allowance = same.map_or_else(Allowance::new, |key| key.allowance.clone());
        Key { name: entry.name.into(), sha256: entry.sha256, limits: entry.limits, allowance }
    };
    file.keys.into_iter().map(key).collect()
}

impl Key {
    /// Whose it is.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Whoever has it.
    pub(super) fn caller(&self) -> Caller {
        Caller::of_key(self.sha256)
    }

    /// Counts a request.
    pub(super) fn take(&self, now: Instant) -> Result<Permit, ApiError> {
        self.allowance.take(self.limits, now).map_err(|exceeded| match exceeded {
            Exceeded::Concurrent(max) => {
                ApiError::rate_limited(1, format!("the API key '{}' may have {max} requests open at a time", self.name))
            }
            Exceeded::PerMinute(max, wait) => {
                let message = format!("the API key '{}' may send {max} requests a minute", self.name);
                ApiError::rate_limited(wait.as_secs_f64().ceil() as u32, message)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(path: &Path, change: impl FnOnce(&mut KeyFile)) {
        KeyFile::update(path, |file| {
            change(file);
            Ok::<_, KeyFileError>(())
        })
        .unwrap();
    }

    #[test]
    fn keys_come_and_go_with_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let (mut first, mut second) = (String::new(), String::new());
        let one = KeyLimits { max_concurrent: Some(1), requests_per_minute: None };
        change(&path, |file| first = file.add("first", one).unwrap());
        let ring = Keyring::open(&path).unwrap();
        let name = |key: &str| ring.find(&[b"wrong", key.as_bytes()]).map(|key| key.name().to_string());
        assert_eq!(name(&first).as_deref(), Some("first"));
        assert_eq!(name(&first[..first.len() - 1]), None);
        assert!(ring.find(&[]).is_none());
        let open = ring.find(&[first.as_bytes()]).unwrap().take(Instant::now()).unwrap();
        change(&path, |file| second = file.add("second", KeyLimits::default()).unwrap());
        assert_eq!(name(&second), None);
        assert!(ring.reload().unwrap());
        assert!(!ring.reload().unwrap());
        assert_eq!(name(&second).as_deref(), Some("second"));
        let refused = ring.find(&[first.as_bytes()]).unwrap().take(Instant::now()).unwrap_err();
        assert_eq!(refused.status(), 429, "what is open still counts");
        drop(open);
        std::fs::write(&path, "nonsense").unwrap();
        assert!(ring.reload().is_err());
        assert_eq!(name(&first).as_deref(), Some("first"));
        std::fs::write(&path, "").unwrap();
        ring.reload().unwrap();
        assert_eq!((name(&first), name(&second)), (None, None), "a server with keys never becomes one without");
        assert!(Keyring::open(&path).unwrap_err().to_string().contains("tandem key add"));
    }
}
