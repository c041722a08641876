use std::path::Path;
use std::{fs, io};

use safetensors::{Dtype, SafeTensors};

use crate::repository::repository;

/// A prompt and what transformers makes of it.
#[derive(Clone, Debug, PartialEq)]
pub struct GoldenPrompt {
    /// The prompt.
    pub tokens: Vec<u32>,
    /// Logits `[tokens, vocab]`, row-major, computed in f32.
    pub logits: Vec<f32>,
    /// Relative error `‖bf16 − f32‖ / ‖f32‖` over the whole prompt of the same model run in bfloat16.
    pub err_bf16: f32,
}

impl GoldenPrompt {
    /// Logits after the token at `position`.
    pub fn logits_at(&self, position: usize) -> &[f32] {
        let vocab = self.logits.len() / self.tokens.len();
        &self.logits[position * vocab..][..vocab]
    }
}

/// The prompts of `tests/golden/<name>.safetensors`: `a` belongs to [`crate::CheckpointSpec::A`], `b` to `B`.
pub fn golden(name: &str) -> io::Result<Vec<GoldenPrompt>> {
    golden_file(&repository().join("tests/golden").join(format!("{name}.safetensors")))
}

/// The prompts of any file of that kind.
pub fn golden_file(path: &Path) -> io::Result<Vec<GoldenPrompt>> {
    let bytes = fs::read(path)?;
    let file = SafeTensors::deserialize(&bytes).map_err(io::Error::other)?;
    let prompts = file.names().iter().filter(|name| name.starts_with("tokens_")).count();
    (0..prompts).map(|i| prompt(&file, i)).collect()
}

fn prompt(file: &SafeTensors<'_>, i: usize) -> io::Result<GoldenPrompt> {
    let tokens = words(file, &format!("tokens_{i}"), Dtype::I32)?.map(u32::from_le_bytes).collect();
    let logits = words(file, &format!("logits_{i}"), Dtype::F32)?.map(f32::from_le_bytes).collect();
    let err_bf16 = words(file, &format!("err_bf16_{i}"), Dtype::F32)?.map(f32::from_le_bytes).sum();
    Ok(GoldenPrompt { tokens, logits, err_bf16 })
}

fn words<'a>(file: &SafeTensors<'a>, name: &str, dtype: Dtype) -> io::Result<impl Iterator<Item = [u8; 4]> + 'a> {
    let tensor = file.tensor(name).map_err(io::Error::other)?;
    if tensor.dtype() != dtype {
        return Err(io::Error::other(format!("{name} is {:?}, not {dtype:?}", tensor.dtype())));
    }
    Ok(tensor.data().chunks_exact(4).map(|word| [word[0], word[1], word[2], word[3]]))
}
