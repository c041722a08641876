use std::ops::Range;

use super::{ExpertSplit, Shard};
use crate::Config;
use crate::layout::{LayerTensor, TensorId, TensorSpec};

/// What a rank has of one tensor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cut {
    /// All of it.
    Whole,
    /// Of every `period` rows those in `keep`.
    Rows { period: usize, keep: Range<usize> },
    /// These bytes of every row.
    Columns(Range<usize>),
    /// Nothing: another rank adds this bias.
    Zeroes,
}

impl Cut {
    /// What `shard` has of the tensor.
    pub(super) fn of(shard: &Shard, config: &Config, tensor: &TensorSpec) -> Self {
        let cut = match tensor.id {
            TensorId::Embedding | TensorId::FinalNorm => Cut::Whole,
            TensorId::LmHead => Cut::Rows { period: config.vocab, keep: shard.vocab.clone() },
            TensorId::Layer(_, tensor) => of_layer(shard, config, tensor),
        };
        match cut {
            Cut::Rows { period, ref keep } if keep.len() == period => Cut::Whole,
            Cut::Columns(ref keep) if keep.len() == tensor.row_bytes() => Cut::Whole,
            cut => cut,
        }
    }

    /// Bytes that stay, zeroes in place of another rank's bias included.
    pub(super) fn bytes_held(&self, tensor: &TensorSpec) -> u64 {
        let whole = tensor.bytes();
        match self {
            Cut::Whole | Cut::Zeroes => whole,
            Cut::Rows { period, keep } => whole / *period as u64 * keep.len() as u64,
            Cut::Columns(keep) => tensor.rows() as u64 * keep.len() as u64,
        }
    }

    /// Bytes read: rows cut along their input are read whole.
    pub(super) fn bytes_read(&self, tensor: &TensorSpec) -> u64 {
        match self {
            Cut::Whole | Cut::Columns(_) => tensor.bytes(),
            Cut::Rows { .. } => self.bytes_held(tensor),
            Cut::Zeroes => 0,
        }
    }
}

fn of_layer(shard: &Shard, config: &Config, tensor: LayerTensor) -> Cut {
    use LayerTensor::*;
    const BF16: usize = 2;
    let rows = |period, keep| Cut::Rows { period, keep };
    let units = &shard.units;
    match tensor {
        InputNorm | PostAttentionNorm | RouterWeight | RouterBias => Cut::Whole,
        QWeight | QBias => rows(config.q_width(), times(&shard.heads, config.head_dim)),
        KWeight | KBias | VWeight | VBias => rows(config.kv_width(), times(&shard.kv_heads, config.head_dim)),
        Sinks => rows(config.heads, shard.heads.clone()),
        OWeight => Cut::Columns(times(&shard.heads, config.head_dim * BF16)),
        OBias if shard.adds_biases() => Cut::Whole,
        OBias => Cut::Zeroes,
        _ => match shard.plan.experts {
            ExpertSplit::Slice => sliced(tensor, units, shard.adds_biases(), config),
            ExpertSplit::Whole => of_some_experts(tensor, &shard.experts, config),
        },
    }
}

/// The units of every expert. Gate and up rows alternate, so that a unit has two.
fn sliced(tensor: LayerTensor, units: &Range<usize>, adds_biases: bool, config: &Config) -> Cut {
    match tensor {
        LayerTensor::GateUpBias => Cut::Columns(times(units, 2 * 2)),
        LayerTensor::DownBlocks => Cut::Columns(units.start / 2..units.end / 2),
        LayerTensor::DownScales => Cut::Columns(units.start / 32..units.end / 32),
        LayerTensor::DownBias if adds_biases => Cut::Whole,
        LayerTensor::DownBias => Cut::Zeroes,
        _ => Cut::Rows { period: 2 * config.intermediate, keep: times(units, 2) },
    }
}

/// All rows of some experts.
fn of_some_experts(tensor: LayerTensor, experts: &Range<usize>, config: &Config) -> Cut {
    let each = match tensor {
        LayerTensor::GateUpBias | LayerTensor::DownBias => 1,
        LayerTensor::DownBlocks | LayerTensor::DownScales => config.hidden,
        _ => 2 * config.intermediate,
    };
    Cut::Rows { period: config.experts * each, keep: times(experts, each) }
}

fn times(range: &Range<usize>, factor: usize) -> Range<usize> {
    range.start * factor..range.end * factor
}
