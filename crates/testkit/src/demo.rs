use std::fs::{self, File};
use std::io;
use std::path::Path;

use serde::Deserialize;

use crate::repository::repository;

/// What the demonstration model was recorded to say in exact mode at temperature 0.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Conversation {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// The reply, its stop token included.
    pub reply: Vec<u32>,
}

impl Conversation {
    /// Prompt and reply in one.
    pub fn tokens(&self) -> Vec<u32> {
        [&self.prompt[..], &self.reply].concat()
    }
}

/// The conversations of `tests/golden/demo.json`.
pub fn demo_conversations() -> io::Result<Vec<Conversation>> {
    Ok(serde_json::from_slice(&fs::read(repository().join("tests/golden/demo.json"))?)?)
}

/// Unpacks the demonstration model into a folder.
pub fn write_demo(folder: &Path) -> io::Result<()> {
    let model = repository().join("models/tandem-demo");
    fs::copy(model.join("config.json"), folder.join("config.json"))?;
    let packed = File::open(model.join("model.safetensors.zst"))?;
    let mut decoder = ruzstd::decoding::StreamingDecoder::new(packed).map_err(io::Error::other)?;
    io::copy(&mut decoder, &mut File::create(folder.join("model.safetensors"))?)?;
    Ok(())
}
