//! What a request demands of its reply.

use serde::{Deserialize, Serialize};
use tandem_step::Constraint;

use crate::content::{Content, ContentError};
use crate::walk::Walk;

/// What the output of a request must look like.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rules {
    /// The whole output is one text, as after a raw prompt.
    Text(Content),
    /// The output is a reply in harmony, which goes on after `<|start|>assistant`.
    Reply(Reply),
}

/// What a reply in harmony must look like. The default constrains the headers alone.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Reply {
    /// The answer: the text of the final channel. With it, no other text to the user comes before.
    pub answer: Option<Content>,
    /// The tools that may be called. None other can be.
    pub calls: Vec<Call>,
    /// Tokens at the end of the prompt that already belong to the reply: the beginning of its first header.
    pub forced: Vec<u32>,
}

/// A tool that may be called.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Call {
    /// Its name, as the model knows it.
    pub name: String,
    /// What its arguments must look like, if not left to the model.
    pub arguments: Option<Content>,
}

/// Why rules cannot be followed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RulesError {
    /// The answer or the whole text.
    #[error("the format of the answer: {0}")]
    Answer(ContentError),
    /// The arguments of a call.
    #[error("the arguments of {name}: {error}")]
    Call {
        /// The tool.
        name: String,
        /// What is wrong.
        error: ContentError,
    },
    /// The header, forced tokens included.
    #[error("the header of the reply: {0}")]
    Header(String),
    /// A constraint that is not of this program's making.
    #[error("reading a constraint: {0}")]
    Unreadable(String),
}

impl Rules {
    /// Compiles the rules and writes them as the constraint of a request. May take a second: see [`Content::check`].
    pub fn constraint(&self) -> Result<Constraint, RulesError> {
        Walk::new(self)?;
        let spec = serde_json::to_string(self).map_err(|error| RulesError::Unreadable(error.to_string()))?;
        Ok(Constraint::new(spec))
    }

    /// Reads what [`Rules::constraint`] wrote.
    pub(crate) fn of(constraint: &Constraint) -> Result<Self, RulesError> {
        serde_json::from_str(constraint.spec()).map_err(|error| RulesError::Unreadable(error.to_string()))
    }
}
