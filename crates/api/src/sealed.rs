//! Reasoning as an opaque string, for clients that carry it from turn to turn without showing it.
//!
//! Anthropic calls such a string a thinking block's signature, OpenAI a reasoning item's encrypted content. It hides
//! nothing: who runs the server and who talks to it may both read what the model thinks.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

/// Tells our strings from those of other servers, which a conversation that moved here brings along.
const PREFIX: &str = "tandem1.";

/// The string for `reasoning`; never empty.
pub(crate) fn seal(reasoning: &str) -> String {
    PREFIX.to_string() + &URL_SAFE_NO_PAD.encode(reasoning)
}

/// The reasoning in a string of ours; `None` for anybody else's.
pub(crate) fn open(sealed: &str) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(sealed.strip_prefix(PREFIX)?).ok()?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_again_and_nothing_else_does() {
        for reasoning in ["", "hm", "\u{1f980}\n<|end|>"] {
            assert_eq!(open(&seal(reasoning)).as_deref(), Some(reasoning));
        }
        for foreign in ["", "EqQBCgIYAhIM", "tandem1.!", "tandem1._w"] {
            assert_eq!(open(foreign), None, "{foreign}");
        }
    }
}
