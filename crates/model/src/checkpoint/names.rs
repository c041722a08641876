use std::fmt::Write;

use super::Layout;
use crate::Config;
use crate::layout::{Dtype, TensorId, TensorSpec, tensors};

/// A tensor as a file of some layout should have it: one of the model's, or several whose rows follow one another.
#[derive(Debug, PartialEq)]
pub(super) struct FileTensor {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub parts: Vec<TensorSpec>,
}

impl FileTensor {
    /// Number format and shape, as messages say them.
    pub fn description(&self) -> String {
        describe(&self.dtype.to_string(), self.shape.iter())
    }
}

pub(super) fn describe<T: ToString>(dtype: &str, shape: impl Iterator<Item = T>) -> String {
    let mut text = format!("{dtype} [");
    for (i, dim) in shape.enumerate() {
        let separator = if i == 0 { "" } else { ", " };
        // Writing to a string cannot fail.
        let _ = write!(text, "{separator}{}", dim.to_string());
    }
    text.push(']');
    text
}

/// Every tensor that the files of a model should have.
pub(super) fn file_tensors(config: &Config, layout: Layout) -> Vec<FileTensor> {
    let name = |id: TensorId| match layout {
        Layout::Hub => id.hub_name(),
        Layout::Original => id.original_name(),
    };
    let mut files: Vec<FileTensor> = Vec::new();
    // Tensors that share one of the file's are q, k and v: never further apart than this.
    const NEARBY: usize = 4;
    for part in tensors(config) {
        let name = name(part.id);
        match files.iter_mut().rev().take(NEARBY).find(|file| file.name == name) {
            Some(file) => {
                file.shape[0] += part.shape[0];
                file.parts.push(part);
            }
            None => files.push(FileTensor { name, dtype: part.dtype, shape: part.shape.clone(), parts: vec![part] }),
        }
    }
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_original_layout_fuses_q_k_and_v() {
        let files = file_tensors(&Config::gpt_oss_20b(), Layout::Original);
        assert_eq!(files.len(), 24 * (19 - 4) + 3);
        let fused = files.iter().find(|file| file.name == "block.3.attn.qkv.weight").unwrap();
        assert_eq!(fused.description(), "BF16 [5120, 2880]");
        assert_eq!(fused.parts.iter().map(|part| part.shape[0]).collect::<Vec<_>>(), [4096, 512, 512]);
    }
}
