mod pattern;

use std::fmt;
use std::io;
use std::str::FromStr;

use pattern::Pattern;
use tandem_backend::RowSource;

use crate::layout::{LayerTensor, TensorId, TensorSpec};
use crate::sources::rows_asked;
use crate::{CheckpointError, Config, LayerKind, WeightStore};

/// Random weights of a given shape, generated while they are read: nothing is stored. The same bytes on every machine,
/// whatever is read in which order.
#[derive(Clone, Debug)]
pub struct Synthetic {
    config: Config,
}

/// Shapes that [`Synthetic`] makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticKind {
    /// Four narrow layers of eight experts under the whole vocabulary: 52 MB, runs anywhere, speaks gibberish.
    Tiny,
    /// gpt-oss-20b.
    Gpt20b,
    /// gpt-oss-120b.
    Gpt120b,
}

impl SyntheticKind {
    /// All of them.
    pub const ALL: [SyntheticKind; 3] = [SyntheticKind::Tiny, SyntheticKind::Gpt20b, SyntheticKind::Gpt120b];

    /// The shape.
    pub fn config(self) -> Config {
        match self {
            SyntheticKind::Tiny => tiny(),
            SyntheticKind::Gpt20b => Config::gpt_oss_20b(),
            SyntheticKind::Gpt120b => Config::gpt_oss_120b(),
        }
    }
}

fn tiny() -> Config {
    Config {
        layer_kinds: LayerKind::alternating(4),
        hidden: 64,
        intermediate: 64,
        heads: 4,
        kv_heads: 2,
        experts: 8,
        ..Config::gpt_oss_20b()
    }
}

impl fmt::Display for SyntheticKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            SyntheticKind::Tiny => "tiny",
            SyntheticKind::Gpt20b => "20b",
            SyntheticKind::Gpt120b => "120b",
        })
    }
}

impl FromStr for SyntheticKind {
    type Err = UnknownKind;

    fn from_str(name: &str) -> Result<Self, UnknownKind> {
        Self::ALL.into_iter().find(|kind| kind.to_string() == name).ok_or_else(|| UnknownKind(name.to_owned()))
    }
}

/// A name that is none of a [`SyntheticKind`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("synthetic weights come as tiny, 20b or 120b, not {0:?}")]
pub struct UnknownKind(String);

impl Synthetic {
    /// Weights of this shape.
    pub fn new(kind: SyntheticKind) -> Self {
        Self { config: kind.config() }
    }
}

impl WeightStore for Synthetic {
    fn config(&self) -> &Config {
        &self.config
    }

    fn tensor(&self, id: TensorId) -> Result<Box<dyn RowSource + '_>, CheckpointError> {
        if matches!(id, TensorId::Layer(layer, _) if layer >= self.config.layers()) {
            return Err(CheckpointError::NoSuchTensor(id.hub_name()));
        }
        let spec = TensorSpec::new(&self.config, id);
        let pattern = pattern_of(&self.config, &spec);
        Ok(Box::new(Generated { rows: spec.rows(), row_bytes: spec.row_bytes(), key: key(id), pattern }))
    }
}

/// Gains that make a random model behave like a trained one where it matters to speed and comparisons: scores and router
/// logits of order one, so that attention and routing spread; block outputs small beside the residual stream.
fn pattern_of(config: &Config, spec: &TensorSpec) -> Pattern {
    use LayerTensor::*;
    let fan_in = spec.shape.last().map_or(1.0, |&dim| dim as f64);
    let matrix = |gain: f64| Pattern::bf16(gain / fan_in.sqrt(), 0.0);
    let vector = |deviation: f64| Pattern::bf16(deviation, 0.0);
    let norm = Pattern::bf16(0.15, 1.0);
    match spec.id {
        TensorId::Embedding => vector(0.6),
        TensorId::FinalNorm => norm,
        TensorId::LmHead => matrix(2.0),
        TensorId::Layer(_, tensor) => match tensor {
            InputNorm | PostAttentionNorm => norm,
            QWeight | KWeight | RouterWeight => matrix(1.5),
            VWeight => matrix(1.0),
            OWeight => matrix(0.5),
            QBias | KBias | RouterBias | GateUpBias | DownBias => vector(0.3),
            VBias => vector(0.2),
            OBias => vector(0.1),
            Sinks => vector(1.0),
            GateUpBlocks | DownBlocks => Pattern::Codes,
            GateUpScales => Pattern::scales(unit_gain_scale(config.hidden)),
            DownScales => Pattern::scales(unit_gain_scale(config.intermediate) - 3),
        },
    }
}

/// The E8M0 scale with which a matrix of random E2M1 codes, whose rms is 2.9, has a gain near one.
fn unit_gain_scale(fan_in: usize) -> u8 {
    // An exponent of at most -2 and, widths being bounded, at least -11.
    let exponent = (1.0 / (2.9 * (fan_in as f64).sqrt())).log2().round();
    (127.0 + exponent) as u8
}

/// FNV-1a of the tensor's name on the hub: every tensor has a stream of its own, whatever else the model has.
fn key(id: TensorId) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    id.hub_name().bytes().fold(0xcbf2_9ce4_8422_2325, step)
}

struct Generated {
    rows: usize,
    row_bytes: usize,
    key: u64,
    pattern: Pattern,
}

impl RowSource for Generated {
    fn rows(&self) -> usize {
        self.rows
    }

    fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()> {
        rows_asked(self, first, out)?;
        self.pattern.fill(self.key, first as u64 * self.row_bytes as u64, out);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
