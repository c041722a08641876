//! The demonstration model inside this binary.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use sha2::{Digest, Sha256};

/// Name under which it is served.
pub const NAME: &str = "tandem-demo";
/// What whoever talks to it should know.
pub const NOTICE: &str = "tandem-demo is a small demonstration model that shows how Tandem works; do not rely on what it says. \
     Give `tandem serve` a gpt-oss checkpoint for the real thing.";

const CONFIG: &[u8] = include_bytes!("../../../models/tandem-demo/config.json");
const GENERATION_CONFIG: &[u8] = include_bytes!("../../../models/tandem-demo/generation_config.json");
const WEIGHTS: &[u8] = include_bytes!("../../../models/tandem-demo/model.safetensors.zst");
/// SHA-256 of the unpacked weights, as `sha256sum` prints it.
const WEIGHTS_SHA256: &str = include_str!("../../../models/tandem-demo/model.safetensors.sha256");

/// The folder of the unpacked checkpoint. Unpacks into the user's cache on first use, and again where what lies there is
/// not what it should be.
pub fn checkpoint() -> Result<PathBuf> {
    let expected = WEIGHTS_SHA256.split_whitespace().next().unwrap_or_default();
    let folder = cache_folder().join(format!("{NAME}-{}", &expected[..expected.len().min(12)]));
    let weights = folder.join("model.safetensors");
    if sha256(&weights).is_ok_and(|found| found == expected) {
        return Ok(folder);
    }
    tracing::info!("unpacking the demonstration model to {}", folder.display());
    unpack(&folder, &weights).with_context(|| format!("unpacking the demonstration model to {}", folder.display()))?;
    let found = sha256(&weights)?;
    ensure!(found == expected, "{}: SHA-256 is {found}, expected {expected}", weights.display());
    Ok(folder)
}

fn unpack(folder: &Path, weights: &Path) -> Result<()> {
    fs::create_dir_all(folder)?;
    fs::write(folder.join("config.json"), CONFIG)?;
    fs::write(folder.join("generation_config.json"), GENERATION_CONFIG)?;
    // Renamed when complete: a second process, or a full disk, never leaves half a file under the final name.
    let partial = folder.join(format!("model.safetensors.{}", std::process::id()));
    let written = decompress(&partial).and_then(|()| fs::rename(&partial, weights));
    if written.is_err() {
        // The first error is the one to report.
        let _ = fs::remove_file(&partial);
    }
    Ok(written?)
}

fn decompress(to: &Path) -> io::Result<()> {
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(WEIGHTS).map_err(io::Error::other)?;
    let mut file = BufWriter::new(File::create(to)?);
    io::copy(&mut decoder, &mut file)?;
    file.flush()
}

fn sha256(file: &Path) -> io::Result<String> {
    let mut file = File::open(file)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            n => hash.update(&buffer[..n]),
        }
    }
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

/// `$XDG_CACHE_HOME/tandem`, `~/.cache/tandem`, or the folder for temporary files where there is no home.
pub fn cache_folder() -> PathBuf {
    let home = || Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache"));
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    cache.unwrap_or_else(std::env::temp_dir).join("tandem")
}
