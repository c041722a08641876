use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::ConfigError;

/// The real ones have 2 kB.
const MAX_BYTES: u64 = 1 << 20;

/// A JSON object together with where it stands, so that complaints can say so.
pub(super) struct Object {
    file: PathBuf,
    prefix: String,
    map: Map<String, Value>,
}

impl Object {
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let failed = |source| ConfigError::Read { file: file.to_owned(), source };
        let mut text = Vec::new();
        let opened = File::open(file).map_err(failed)?;
        opened.take(MAX_BYTES + 1).read_to_end(&mut text).map_err(failed)?;
        if text.len() as u64 > MAX_BYTES {
            return Err(ConfigError::value(file, "(whole file)", format!("at most {MAX_BYTES} bytes"), "more"));
        }
        let value =
            serde_json::from_slice(&text).map_err(|source| ConfigError::Json { file: file.to_owned(), source })?;
        match value {
            Value::Object(map) => Ok(Self { file: file.to_owned(), prefix: String::new(), map }),
            other => Err(ConfigError::value(file, "(whole file)", "an object", brief(&other))),
        }
    }

    pub fn file(&self) -> &Path {
        &self.file
    }

    /// The value of a key; `null` counts as absent.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    pub fn wrong(&self, key: &str, expected: impl Into<String>) -> ConfigError {
        let found = self.map.get(key).map_or("nothing".to_owned(), brief);
        ConfigError::value(&self.file, &format!("{}{key}", self.prefix), expected, found)
    }

    pub fn object(&self, key: &str) -> Result<Option<Object>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => {
                let prefix = format!("{}{key}.", self.prefix);
                Ok(Some(Object { file: self.file.clone(), prefix, map: map.clone() }))
            }
            Some(_) => Err(self.wrong(key, "an object")),
        }
    }

    pub fn size(&self, key: &str) -> Result<usize, ConfigError> {
        let size = self.get(key).and_then(Value::as_u64).and_then(|size| usize::try_from(size).ok());
        size.ok_or_else(|| self.wrong(key, "a whole number"))
    }

    pub fn optional_size(&self, key: &str) -> Result<Option<usize>, ConfigError> {
        self.get(key).map(|_| self.size(key)).transpose()
    }

    pub fn number(&self, key: &str) -> Result<f64, ConfigError> {
        self.get(key).and_then(Value::as_f64).ok_or_else(|| self.wrong(key, "a number"))
    }

    pub fn optional_number(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        self.get(key).map(|_| self.number(key)).transpose()
    }

    pub fn optional_bool(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        let as_bool = |value: &Value| value.as_bool().ok_or_else(|| self.wrong(key, "true or false"));
        self.get(key).map(as_bool).transpose()
    }

    /// A token id, or a list of them, all in the vocabulary.
    pub fn tokens(&self, key: &str, vocab: usize) -> Result<Option<Vec<u32>>, ConfigError> {
        let in_vocabulary = |id: &u32| (*id as usize) < vocab;
        let as_id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).filter(in_vocabulary);
        let ids = match self.get(key) {
            None => return Ok(None),
            Some(Value::Array(list)) => list.iter().map(as_id).collect(),
            Some(one) => as_id(one).map(|id| vec![id]),
        };
        ids.map(Some).ok_or_else(|| self.wrong(key, format!("token ids below vocab_size, which is {vocab}")))
    }

    /// A key that may be absent, but if it is there has this value.
    pub fn must_be(&self, key: &str, expected: &Value) -> Result<(), ConfigError> {
        match self.get(key) {
            Some(found) if found != expected => Err(self.wrong(key, expected.to_string())),
            _ => Ok(()),
        }
    }
}

/// The value in one short line.
fn brief(value: &Value) -> String {
    const MAX_CHARS: usize = 60;
    let text = value.to_string();
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}
