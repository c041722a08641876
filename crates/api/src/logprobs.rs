//! Log-probabilities as clients see them.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use tandem_harmony::Tokenizer;
use tandem_step::TokenLogprobs;

/// Stands for a probability of zero, which JSON has no logarithm for; OpenAI's value.
const LOGPROB_MIN: f32 = -9999.0;

/// One position of a chat completion's `logprobs.content`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ChatLogprob(pub TokenLogprobs);

#[derive(Serialize)]
struct ChatPosition {
    #[serde(flatten)]
    chosen: ChatToken,
    top_logprobs: Vec<ChatToken>,
}

#[derive(Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl Serialize for ChatLogprob {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let TokenLogprobs { token, logprob, top } = &self.0;
        let top_logprobs = top.iter().map(|&(token, logprob)| ChatToken::new(token, logprob)).collect();
        ChatPosition { chosen: ChatToken::new(*token, *logprob), top_logprobs }.serialize(serializer)
    }
}

impl ChatToken {
    fn new(token: u32, logprob: f32) -> Self {
        Self { token: token_text(token), logprob: finite(logprob), bytes: token_bytes(token) }
    }
}

/// The tokens of a completion's text; written as its `logprobs`: parallel lists.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct CompletionLogprobs(Vec<Scored>);

/// A token of a completion.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scored {
    pub token: u32,
    /// `None` for the first token of a prompt, which nothing predicts.
    pub logprobs: Option<TokenLogprobs>,
    /// Where its text begins in the choice's text, in characters.
    offset: usize,
}

impl CompletionLogprobs {
    /// Adds a token whose text begins at `offset`.
    pub(crate) fn push(&mut self, token: u32, logprobs: Option<&TokenLogprobs>, offset: usize) {
        self.0.push(Scored { token, logprobs: logprobs.cloned(), offset });
    }

    /// The tokens.
    pub(crate) fn tokens(&self) -> &[Scored] {
        &self.0
    }

    /// The number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes the tokens out whose text begins before `offset`.
    pub(crate) fn take_before(&mut self, offset: usize) -> Self {
        let count = self.0.partition_point(|scored| scored.offset < offset);
        Self(self.0.drain(..count).collect())
    }

    /// Adds the tokens of `more` at the end.
    pub(crate) fn append(&mut self, more: Self) {
        self.0.extend(more.0);
    }
}

impl Serialize for CompletionLogprobs {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        fn list<T: Serialize>(tokens: &[Scored], field: impl Fn(&Scored) -> T) -> Vec<T> {
            tokens.iter().map(field).collect()
        }
        let logprob = |scored: &Scored| scored.logprobs.as_ref().map(|logprobs| finite(logprobs.logprob));
        let mut lists = serializer.serialize_struct("CompletionLogprobs", 4)?;
        lists.serialize_field("tokens", &list(&self.0, |scored| token_text(scored.token)))?;
        lists.serialize_field("token_logprobs", &list(&self.0, logprob))?;
        lists.serialize_field("top_logprobs", &list(&self.0, |scored| scored.logprobs.as_ref().map(alternatives)))?;
        lists.serialize_field("text_offset", &list(&self.0, |scored| scored.offset))?;
        lists.end()
    }
}

/// Log-probabilities by token text, likeliest first; written as an object.
#[derive(Clone, Debug, PartialEq)]
struct Alternatives(Vec<(String, f32)>);

impl Serialize for Alternatives {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter().map(|(text, logprob)| (text, logprob)))
    }
}

/// The likeliest tokens, and the chosen one if it is not among them.
fn alternatives(logprobs: &TokenLogprobs) -> Alternatives {
    let chosen = Some((logprobs.token, logprobs.logprob));
    let missing = chosen.filter(|(chosen, _)| logprobs.top.iter().all(|(token, _)| token != chosen));
    let all = logprobs.top.iter().copied().chain(missing);
    Alternatives(all.map(|(token, logprob)| (token_text(token), finite(logprob))).collect())
}

/// A token as text, different for every token: bytes that are no whole characters are spelt out, as OpenAI does.
pub(crate) fn token_text(token: u32) -> String {
    let Some(bytes) = Tokenizer::shared().token_bytes(token) else { return format!("<|token_{token}|>") };
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_string(),
        Err(_) => bytes.iter().fold("bytes:".to_string(), |text, byte| text + &format!("\\x{byte:02x}")),
    }
}

/// The bytes of a token's text, which may be parts of characters.
pub(crate) fn token_bytes(token: u32) -> Vec<u8> {
    Tokenizer::shared().token_bytes(token).unwrap_or_default().to_vec()
}

/// A logarithm that every format can write.
pub(crate) fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { LOGPROB_MIN }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_has_a_text_of_its_own() {
        let mut seen = std::collections::HashMap::new();
        for token in 0..Tokenizer::VOCAB_SIZE as u32 + 2 {
            if let Some(other) = seen.insert(token_text(token), token) {
                panic!("{token} and {other} are both {:?}", token_text(token));
            }
        }
    }

    #[test]
    fn the_chosen_token_is_among_the_alternatives() {
        let logprobs = TokenLogprobs { token: 7, logprob: f32::NEG_INFINITY, top: vec![(1, -0.5), (2, -1.0)] };
        let mut lists = CompletionLogprobs::default();
        lists.push(5, None, 0);
        lists.push(7, Some(&logprobs), 1);
        let json: serde_json::Value = serde_json::from_str(&serde_json::to_string(&lists).unwrap()).unwrap();
        assert_eq!(json["token_logprobs"], serde_json::json!([null, -9999.0]));
        assert_eq!(json["top_logprobs"][0], serde_json::Value::Null);
        assert_eq!(json["top_logprobs"][1].as_object().unwrap().len(), 3);
        assert_eq!(json["top_logprobs"][1][&token_text(7)], -9999.0);
    }
}
