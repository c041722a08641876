//! Log-probabilities as clients see them.

use serde::{Serialize, Serializer};
use tandem_harmony::Tokenizer;
use tandem_step::TokenLogprobs;

/// Stands for a probability of zero, which JSON has no logarithm for; OpenAI's value.
const LOGPROB_MIN: f32 = -9999.0;

/// One position of a chat completion's `logprobs.content`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct ChatLogprob {
    #[serde(flatten)]
    chosen: ChatToken,
    top_logprobs: Vec<ChatToken>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
struct ChatToken {
    token: String,
    logprob: f32,
    bytes: Vec<u8>,
}

impl From<&TokenLogprobs> for ChatLogprob {
    fn from(logprobs: &TokenLogprobs) -> Self {
        let top_logprobs = logprobs.top.iter().map(|&(token, logprob)| ChatToken::new(token, logprob)).collect();
        Self { chosen: ChatToken::new(logprobs.token, logprobs.logprob), top_logprobs }
    }
}

impl ChatToken {
    fn new(token: u32, logprob: f32) -> Self {
        let bytes = Tokenizer::shared().token_bytes(token).unwrap_or_default().to_vec();
        Self { token: token_text(token), logprob: finite(logprob), bytes }
    }
}

/// The `logprobs` of a completion: parallel lists over its tokens.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct CompletionLogprobs {
    tokens: Vec<String>,
    /// `None` for the first token of a prompt, which nothing predicts.
    token_logprobs: Vec<Option<f32>>,
    top_logprobs: Vec<Option<Alternatives>>,
    /// Where each token's text begins in the choice's text, in characters.
    text_offset: Vec<usize>,
}

impl CompletionLogprobs {
    /// Adds a token whose text begins at `offset`.
    pub(crate) fn push(&mut self, token: u32, logprobs: Option<&TokenLogprobs>, offset: usize) {
        self.tokens.push(token_text(token));
        self.token_logprobs.push(logprobs.map(|logprobs| finite(logprobs.logprob)));
        self.top_logprobs.push(logprobs.map(alternatives));
        self.text_offset.push(offset);
    }

    /// The number of tokens.
    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// Takes the tokens out whose text begins before `offset`.
    pub(crate) fn take_before(&mut self, offset: usize) -> Self {
        let count = self.text_offset.partition_point(|&begins| begins < offset);
        Self {
            tokens: self.tokens.drain(..count).collect(),
            token_logprobs: self.token_logprobs.drain(..count).collect(),
            top_logprobs: self.top_logprobs.drain(..count).collect(),
            text_offset: self.text_offset.drain(..count).collect(),
        }
    }

    /// Adds the tokens of `more` at the end.
    pub(crate) fn append(&mut self, more: Self) {
        self.tokens.extend(more.tokens);
        self.token_logprobs.extend(more.token_logprobs);
        self.top_logprobs.extend(more.top_logprobs);
        self.text_offset.extend(more.text_offset);
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

fn finite(logprob: f32) -> f32 {
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
