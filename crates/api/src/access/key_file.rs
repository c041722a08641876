//! The file of API keys: their names, limits and hashes. A key itself is shown once, when it is made.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest, Sha256};

use crate::date;

/// Most keys of a file.
const KEYS_MAX: usize = 10_000;
/// Longest name of a key, in bytes.
const NAME_BYTES_MAX: usize = 64;
/// Largest file that is read.
const FILE_BYTES_MAX: u64 = 8 << 20;
/// What every key begins with. Clients and scanners for leaked secrets know `sk-`.
const KEY_PREFIX: &str = "sk-tandem-";
/// Random bytes of a key. So many cannot be guessed, which is why one round of SHA-256 is enough to hide them.
const KEY_BYTES: usize = 32;
const HEADING: &str =
    "# API keys, written by `tandem key`: only their SHA-256, the keys themselves are kept nowhere.\n\n";

/// What a key file holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeyFile {
    /// The keys, oldest first.
    #[serde(default, rename = "key")]
    pub keys: Vec<KeyEntry>,
}

/// A key as the file knows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeyEntry {
    /// Whose key it is, in the log and on the status page.
    pub name: String,
    /// SHA-256 of the key.
    #[serde(serialize_with = "to_hex", deserialize_with = "from_hex")]
    pub sha256: [u8; 32],
    /// The day it was made, `YYYY-MM-DD`.
    pub created: String,
    /// What it may be used for at most.
    #[serde(flatten)]
    pub limits: KeyLimits,
}

/// How much a key may be used; `None` is as much as the server can do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct KeyLimits {
    /// Requests at a time, from arrival to the last byte of the answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_concurrent: Option<u32>,
    /// Requests a minute, which may come all at once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u32>,
}

/// Why a key file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// It cannot be read.
    #[error("reading {}: {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// It cannot be written.
    #[error("writing {}: {error}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// What it says makes no sense.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

impl KeyFile {
    /// Reads and checks a file.
    pub fn read(path: &Path) -> Result<Self, KeyFileError> {
        let text = read_text(path).map_err(|error| KeyFileError::Read { path: path.into(), error })?;
        let invalid = |reason| KeyFileError::Invalid { path: path.into(), reason };
        let file: Self = toml::from_str(&text).map_err(|error| invalid(error.to_string()))?;
        file.check().map_err(invalid)?;
        Ok(file)
    }

    /// Changes a file, which is made where there is none, while no other process changes it. Nothing is written where
    /// `change` fails.
    pub fn update<T, E: From<KeyFileError>>(
        path: &Path,
        change: impl FnOnce(&mut Self) -> Result<T, E>,
    ) -> Result<T, E> {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let failed = |error| KeyFileError::Write { path: path.into(), error };
        // The file itself is replaced, so it is the folder that is locked.
        let lock = File::open(folder).and_then(|folder| folder.lock().map(|()| folder)).map_err(failed)?;
        let mut file = match Self::read(path) {
            Err(KeyFileError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => Self::default(),
            read => read?,
        };
        let done = change(&mut file)?;
        file.check().map_err(|reason| KeyFileError::Invalid { path: path.into(), reason })?;
        let text = toml::to_string(&file)
            .map_err(|error| KeyFileError::Invalid { path: path.into(), reason: error.to_string() })?;
        replace(path, &format!("{HEADING}{text}")).map_err(failed)?;
        drop(lock);
        Ok(done)
    }

    /// Makes a key and returns it; the file keeps only its hash.
    pub fn add(&mut self, name: &str, limits: KeyLimits) -> Result<String, io::Error> {
        let mut secret = [0; KEY_BYTES];
        getrandom::fill(&mut secret).map_err(io::Error::other)?;
        let key = format!("{KEY_PREFIX}{}", hex(&secret));
        let created = date::today();
        self.keys.push(KeyEntry { name: name.into(), sha256: hash(key.as_bytes()), created, limits });
        Ok(key)
    }

    /// Forgets the key of that name; whether there was one.
    pub fn remove(&mut self, name: &str) -> bool {
        let before = self.keys.len();
        self.keys.retain(|key| key.name != name);
        self.keys.len() < before
    }

    fn check(&self) -> Result<(), String> {
        if self.keys.len() > KEYS_MAX {
            return Err(format!("{} keys, at most {KEYS_MAX} are allowed", self.keys.len()));
        }
        for (at, key) in self.keys.iter().enumerate() {
            check_name(&key.name)?;
            if self.keys[..at].iter().any(|other| other.name == key.name) {
                return Err(format!("there are two keys with the name '{}'", key.name));
            }
            let limits = [
                ("max-concurrent", key.limits.max_concurrent),
                ("requests-per-minute", key.limits.requests_per_minute),
            ];
            if let Some((limit, _)) = limits.iter().find(|(_, value)| *value == Some(0)) {
                return Err(format!("{limit} of '{}' is 0; remove a key that may do nothing", key.name));
            }
        }
        Ok(())
    }
}

/// SHA-256 of a key.
pub(super) fn hash(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

fn check_name(name: &str) -> Result<(), String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.@".contains(c);
    match !name.is_empty() && name.len() <= NAME_BYTES_MAX && name.chars().all(is_plain) {
        true => Ok(()),
        false => {
            Err(format!("'{name}' is no name of a key: 1 to {NAME_BYTES_MAX} letters, digits, '-', '_', '.' or '@'"))
        }
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_BYTES_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(io::Error::other(format!("it is larger than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// Readers see the old file or the new one, whole; only its owner may read it.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let partial = path.with_extension(format!("{}.partial", std::process::id()));
    let written =
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial).and_then(|mut file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
    let written = written.and_then(|()| fs::rename(&partial, path));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    written
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn to_hex<S: Serializer>(bytes: &[u8; 32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&hex(bytes))
}

fn from_hex<'de, D: Deserializer<'de>>(deserializer: D) -> Result<[u8; 32], D::Error> {
    let text = String::deserialize(deserializer)?;
    let wrong = || serde::de::Error::custom("a SHA-256 has 64 hexadecimal digits");
    if text.len() != 64 || !text.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(wrong());
    }
    let mut bytes = [0; 32];
    for (at, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * at..2 * at + 2], 16).map_err(|_| wrong())?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn add(path: &Path, name: &str, limits: KeyLimits) -> Result<String, KeyFileError> {
        KeyFile::update(path, |file| {
            file.add(name, limits).map_err(|error| KeyFileError::Write { path: path.into(), error })
        })
    }

    #[test]
    fn what_is_written_is_read_and_holds_no_key() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        let limits = KeyLimits { max_concurrent: Some(2), requests_per_minute: None };
        let first = add(&path, "laptop", limits).unwrap();
        let second = add(&path, "phone", KeyLimits::default()).unwrap();
        assert!(first != second && first.starts_with(KEY_PREFIX) && first.len() == KEY_PREFIX.len() + 64);
        let text = fs::read_to_string(&path).unwrap();
        assert!(!text.contains(&first[KEY_PREFIX.len()..]) && !text.contains(KEY_PREFIX), "{text}");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let file = KeyFile::read(&path).unwrap();
        assert_eq!(file.keys.iter().map(|key| key.name.as_str()).collect::<Vec<_>>(), ["laptop", "phone"]);
        assert_eq!((file.keys[0].limits, file.keys[0].sha256), (limits, hash(first.as_bytes())));
        assert!(KeyFile::update(&path, |file| Ok::<_, KeyFileError>(file.remove("laptop"))).unwrap());
        assert_eq!(KeyFile::read(&path).unwrap().keys.len(), 1);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn what_makes_no_sense_is_refused_and_changes_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("keys.toml");
        add(&path, "laptop", KeyLimits::default()).unwrap();
        let before = fs::read_to_string(&path).unwrap();
        let none = KeyLimits { max_concurrent: Some(0), ..KeyLimits::default() };
        for (name, limits) in
            [("laptop", KeyLimits::default()), ("", KeyLimits::default()), ("a b", KeyLimits::default()), ("x", none)]
        {
            let error = add(&path, name, limits).unwrap_err().to_string();
            assert!(error.contains("keys.toml") && error.contains(name), "{error}");
        }
        assert_eq!(fs::read_to_string(&path).unwrap(), before);
        for text in ["keys = 1", "[[key]]\nname = \"x\"", "[[key]]\nname = \"x\"\ncreated = \"\"\nsha256 = \"éé\"", "x"]
        {
            fs::write(&path, text).unwrap();
            assert!(matches!(KeyFile::read(&path), Err(KeyFileError::Invalid { .. })), "{text}");
        }
        assert!(matches!(KeyFile::read(Path::new("/no/such/file")), Err(KeyFileError::Read { .. })));
    }
}
