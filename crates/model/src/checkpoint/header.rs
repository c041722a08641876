use std::collections::HashSet;
use std::fmt;
use std::path::Path;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, de};

use super::CheckpointError;
use super::error::one_line;

/// Largest header that is read. Those of gpt-oss-120b's shards have 10 kB each, of all in one file 100 kB.
const MAX_HEADER_BYTES: u64 = 8 << 20;

/// The header of a safetensors file: which tensors it holds, and where. Checked: offsets follow one another without gap
/// or overlap, agree with shapes, and end with the file.
#[derive(Clone, Debug, PartialEq)]
pub struct Header {
    /// The tensors in the order of their bytes.
    pub entries: Vec<HeaderEntry>,
    /// Where the first tensor's bytes start in the file; offsets of entries count from there.
    pub data_start: u64,
}

/// One tensor of a header.
#[derive(Clone, Debug, PartialEq)]
pub struct HeaderEntry {
    /// Name.
    pub name: String,
    /// Number format as written there.
    pub dtype: String,
    /// Dimensions.
    pub shape: Vec<u64>,
    /// First byte.
    pub start: u64,
    /// One past the last byte.
    pub end: u64,
}

impl Header {
    /// Reads the header of a file of `file_bytes` bytes. `read_at(out, offset)` fills `out` from the file, within its size.
    pub fn read(
        path: &Path,
        file_bytes: u64,
        read_at: impl Fn(&mut [u8], u64) -> std::io::Result<()>,
    ) -> Result<Self, CheckpointError> {
        if file_bytes < 8 {
            return Err(CheckpointError::file(path, "the 8 bytes of a header's length", format!("{file_bytes} bytes")));
        }
        let mut length = [0; 8];
        read_at(&mut length, 0).map_err(CheckpointError::io(path, "reading the header's length"))?;
        let length = u64::from_le_bytes(length);
        let max = MAX_HEADER_BYTES.min(file_bytes - 8);
        if length > max {
            let expected = format!("a header of at most {max} bytes");
            return Err(CheckpointError::file(path, expected, format!("one of {length} bytes")));
        }
        let mut json = vec![0; length as usize];
        read_at(&mut json, 8).map_err(CheckpointError::io(path, "reading the header"))?;
        let data_start = 8 + length;
        Ok(Self { entries: entries(path, &json, file_bytes - data_start)?, data_start })
    }
}

fn entries(path: &Path, json: &[u8], data_bytes: u64) -> Result<Vec<HeaderEntry>, CheckpointError> {
    let parsed: RawHeader = serde_json::from_slice(json).map_err(|error| {
        CheckpointError::file(
            path,
            "a header of JSON with dtype, shape and data_offsets per tensor",
            one_line(&error.to_string()),
        )
    })?;
    let mut entries = parsed.0;
    entries.sort_by_key(|entry| (entry.start, entry.end));
    let mut end = 0;
    for entry in &entries {
        check_extent(path, entry, end, data_bytes)?;
        end = entry.end;
    }
    if end != data_bytes {
        let found = format!("{data_bytes} bytes");
        return Err(CheckpointError::file(path, format!("{end} bytes of tensors after the header"), found));
    }
    Ok(entries)
}

fn check_extent(path: &Path, entry: &HeaderEntry, from: u64, data_bytes: u64) -> Result<(), CheckpointError> {
    let (start, end) = (entry.start, entry.end);
    let wrong = |expected: String, found: String| Err(CheckpointError::tensor(path, &entry.name, expected, found));
    if end < start {
        return wrong("data_offsets in ascending order".into(), format!("[{start}, {end}]"));
    }
    if start != from {
        let trouble = if start < from { "an overlap" } else { "a gap" };
        let expected = format!("data from offset {from}, where the tensor before ends");
        return wrong(expected, format!("{start} ({trouble})"));
    }
    if let Some(bytes) = extent(entry)
        && bytes != u128::from(end - start)
    {
        let expected = format!("{bytes} bytes for {} {:?}", one_line(&entry.dtype), entry.shape);
        return wrong(expected, format!("{}, from {start} to {end}", end - start));
    }
    if end > data_bytes {
        return wrong(format!("data up to offset {end}"), format!("a file that ends at {data_bytes} (truncated)"));
    }
    Ok(())
}

/// Bytes that dtype and shape call for; `None` for formats this program knows nothing of, which no model uses.
fn extent(entry: &HeaderEntry) -> Option<u128> {
    let bytes: u128 = match entry.dtype.as_str() {
        "BOOL" | "U8" | "I8" | "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => 1,
        "U16" | "I16" | "F16" | "BF16" => 2,
        "U32" | "I32" | "F32" => 4,
        "U64" | "I64" | "F64" => 8,
        _ => return None,
    };
    // A saturated product is wrong for any file, so it is found to be.
    Some(entry.shape.iter().fold(bytes, |product, &dim| product.saturating_mul(dim.into())))
}

/// The header's JSON object, in which a name that comes twice is an error.
struct RawHeader(Vec<HeaderEntry>);

#[derive(Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawHeaderVisitor)
    }
}

struct RawHeaderVisitor;

impl<'de> Visitor<'de> for RawHeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let (mut entries, mut seen) = (Vec::new(), HashSet::new());
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(de::Error::custom(format!("{} twice", one_line(&name))));
            }
            if name == "__metadata__" {
                map.next_value::<IgnoredAny>()?;
                continue;
            }
            let RawEntry { dtype, shape, data_offsets: (start, end) } = map.next_value()?;
            entries.push(HeaderEntry { name, dtype, shape, start, end });
        }
        Ok(RawHeader(entries))
    }
}
