//! `tandem key`: the file of API keys.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use tandem_api::{KeyFile, KeyLimits};

use crate::settings::{KeyAction, KeyArgs};

/// Does what was asked with the file.
pub fn run(args: &KeyArgs) -> Result<()> {
    let Some(path) = &args.api_keys else {
        bail!("which file? --api-keys FILE (or TANDEM_API_KEYS, or api-keys in the settings file) names it");
    };
    match &args.action {
        KeyAction::Add { name, max_concurrent, requests_per_minute } => {
            let limits = KeyLimits { max_concurrent: *max_concurrent, requests_per_minute: *requests_per_minute };
            add(path, name, limits)
        }
        KeyAction::List => list(path),
        KeyAction::Remove { name } => remove(path, name),
    }
}

fn add(path: &Path, name: &str, limits: KeyLimits) -> Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
    }
    let key = KeyFile::update(path, |file| file.add(name, limits).context("drawing a random key"))?;
    println!("{key}");
    eprintln!("This is the only time that this key is shown; {} holds its hash.", path.display());
    Ok(())
}

fn list(path: &Path) -> Result<()> {
    let file = KeyFile::read(path)?;
    let width = file.keys.iter().map(|key| key.name.len()).max().unwrap_or(0).max("name".len());
    println!("{:width$}  created     limits", "name");
    for key in &file.keys {
        println!("{:width$}  {}  {}", key.name, key.created, limits(&key.limits));
    }
    Ok(())
}

fn remove(path: &Path, name: &str) -> Result<()> {
    KeyFile::update(path, |file| match file.remove(name) {
        true => Ok(()),
        false => bail!("{}: there is no key with the name '{name}'; `tandem key list` shows them", path.display()),
    })
}

fn limits(limits: &KeyLimits) -> String {
    let concurrent = limits.max_concurrent.map(|max| format!("{max} at a time"));
    let per_minute = limits.requests_per_minute.map(|max| format!("{max} a minute"));
    let all: Vec<String> = concurrent.into_iter().chain(per_minute).collect();
    if all.is_empty() { "none".into() } else { all.join(", ") }
}
