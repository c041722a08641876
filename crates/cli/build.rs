//! Says from which sources the program is built: nodes of one model must run the same.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

/// All that decides what is computed or said.
const SOURCES: [&str; 4] = ["crates", "kernels", "proto", "Cargo.lock"];
const ENDINGS: [&str; 7] = ["rs", "toml", "lock", "proto", "cu", "cuh", "html"];

fn main() -> io::Result<()> {
    let root = Path::new("../..");
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut hash = Sha256::new();
    for file in &files {
        println!("cargo:rerun-if-changed={}", file.display());
        let bytes = fs::read(file)?;
        hash.update(file.to_string_lossy().as_bytes());
        hash.update((bytes.len() as u64).to_le_bytes());
        hash.update(&bytes);
    }
    let digits: String = hash.finalize()[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    println!("cargo:rustc-env=BUILD_OF_TANDEM={}-{digits}", env!("CARGO_PKG_VERSION"));
    Ok(())
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    if path.is_dir() {
        println!("cargo:rerun-if-changed={}", path.display());
        for entry in fs::read_dir(path)? {
            let entry = entry?.path();
            // Tests decide nothing.
            if !entry.ends_with("tests") {
                collect(&entry, files)?;
            }
        }
    } else if path.extension().and_then(|ending| ending.to_str()).is_some_and(|ending| ENDINGS.contains(&ending)) {
        files.push(path.to_owned());
    }
    Ok(())
}
