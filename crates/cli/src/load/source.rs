use std::path::Path;

use anyhow::Result;
use tandem_harmony::Tokenizer;
use tandem_model::selftest::Reference;
use tandem_model::{Checkpoint, Formats, Synthetic, SyntheticKind, WeightStore};

use crate::demo;
use crate::settings::{ModelArgs, SyntheticShape};

/// Where weights come from, and what the model is called.
pub struct Source {
    /// The weights.
    pub store: Box<dyn WeightStore + Send>,
    /// The model's name unless the settings give one.
    pub name: String,
    /// Something whoever talks to the model should know.
    pub notice: Option<&'static str>,
    origin: Origin,
}

/// Whose weights they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Origin {
    Demo,
    Synthetic(SyntheticKind),
    Checkpoint,
}

impl Source {
    /// Opens and checks what was named: a checkpoint folder, a synthetic shape, or neither for the demonstration model.
    pub fn open(args: &ModelArgs) -> Result<Self> {
        if let Some(shape) = args.synthetic {
            let kind = match shape {
                SyntheticShape::Tiny => SyntheticKind::Tiny,
                SyntheticShape::Gpt20b => SyntheticKind::Gpt20b,
                SyntheticShape::Gpt120b => SyntheticKind::Gpt120b,
            };
            let notice = Some("The weights are random: expect random words.");
            return Ok(Self {
                store: Box::new(Synthetic::new(kind)),
                name: format!("synthetic-{kind}"),
                notice,
                origin: Origin::Synthetic(kind),
            });
        }
        if let Some(folder) = &args.model {
            return Ok(Self {
                store: Box::new(Checkpoint::open(folder)?),
                name: folder_name(folder),
                notice: None,
                origin: Origin::Checkpoint,
            });
        }
        let store = Box::new(Checkpoint::open(&demo::checkpoint()?)?);
        Ok(Self { store, name: demo::NAME.into(), notice: Some(demo::NOTICE), origin: Origin::Demo })
    }

    /// What these weights are known to compute, if anything.
    pub fn reference(&self, formats: Formats) -> Option<Reference> {
        let config = self.store.config();
        match self.origin {
            Origin::Demo => Some(Reference::demo(formats)),
            Origin::Synthetic(kind) => Some(Reference::synthetic(kind, formats)),
            Origin::Checkpoint => Reference::published(config, |text| Tokenizer::shared().encode(text)),
        }
    }
}

/// The last part of the path that says something: `original` does not.
fn folder_name(folder: &Path) -> String {
    let absolute = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    let mut names = absolute.iter().rev().filter_map(|part| part.to_str()).filter(|part| *part != "original");
    names.next().filter(|name| *name != "/").unwrap_or("gpt-oss").to_owned()
}
