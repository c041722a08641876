use crate::GroupError;

/// Why there is no group, or no longer.
pub(crate) enum Hitch {
    /// It is time to end.
    Stopped,
    /// The group made room for a better one.
    Relieved,
    /// A worker of this machine, which might fail again in the same way.
    Ours { reason: String, is_refusal: bool },
    /// Another's: it will come back.
    Theirs(String),
}

impl From<GroupError> for Hitch {
    fn from(error: GroupError) -> Self {
        match error.is_local {
            true => Self::Ours { is_refusal: error.is_refusal, reason: error.to_string() },
            false => Self::Theirs(error.to_string()),
        }
    }
}
