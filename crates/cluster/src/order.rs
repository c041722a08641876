//! What a group is to load.

use std::path::PathBuf;

use tandem_step::Capacity;

use crate::{WireError, proto};

/// What all ranks of a group load alike.
#[derive(Clone, Debug, PartialEq)]
pub struct LoadOrder {
    /// How experts are divided among ranks.
    pub experts: Experts,
    /// Where the weights are.
    pub model: ModelSource,
    /// A hash of the model's configuration and of its tensors' names, shapes and formats; a rank that finds another
    /// refuses.
    pub fingerprint: String,
    /// f32 throughout, in one order of summation.
    pub exact: bool,
    /// Format of attention and lm_head weights, as on the command line.
    pub dense: String,
    /// Format of cached keys and values, as on the command line.
    pub kv: String,
    /// Sizes of the pools and of a step, which the engine counts on.
    pub capacity: Capacity,
    /// How activations travel, as on the command line.
    pub link: String,
    /// Launch kernels one by one instead of as recorded steps.
    pub eager: bool,
    /// What GPUs round activations of prompts to, as on the command line.
    pub prefill_activations: String,
}

/// How experts are divided among ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Experts {
    /// A slice of every expert on every rank.
    Slice,
    /// Every expert whole on one rank.
    Whole,
}

/// Where weights come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelSource {
    /// A checkpoint folder, at this path unless the worker was told another.
    Path(PathBuf),
    /// Random weights of a shape, named as on the command line.
    Synthetic(String),
    /// The demonstration model that is part of the program.
    Demo,
}

impl Experts {
    pub(crate) fn to_wire(self) -> i32 {
        match self {
            Self::Slice => proto::ExpertSplit::Slice.into(),
            Self::Whole => proto::ExpertSplit::Whole.into(),
        }
    }

    pub(crate) fn from_wire(experts: i32) -> Result<Self, WireError> {
        match proto::ExpertSplit::try_from(experts) {
            Ok(proto::ExpertSplit::Slice) => Ok(Self::Slice),
            Ok(proto::ExpertSplit::Whole) => Ok(Self::Whole),
            _ => Err(WireError::Range { what: "the division of experts", value: experts.into() }),
        }
    }
}

impl ModelSource {
    pub(crate) fn to_wire(&self) -> proto::Model {
        use proto::model::Source;
        let source = match self {
            // Paths that are no text cannot be said to another machine; what is shown of them will not be found there.
            Self::Path(path) => Source::Path(path.display().to_string()),
            Self::Synthetic(shape) => Source::Synthetic(shape.clone()),
            Self::Demo => Source::Demo(proto::Demo {}),
        };
        proto::Model { source: Some(source) }
    }

    pub(crate) fn from_wire(model: Option<proto::Model>) -> Result<Self, WireError> {
        use proto::model::Source;
        match model.and_then(|model| model.source).ok_or(WireError::Missing("the model"))? {
            Source::Path(path) => Ok(Self::Path(path.into())),
            Source::Synthetic(shape) => Ok(Self::Synthetic(shape)),
            Source::Demo(_) => Ok(Self::Demo),
        }
    }
}
