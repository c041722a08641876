//! Token ids to text as they arrive.

use crate::special;
use crate::tokenizer::Tokenizer;

/// Bytes to text in pieces: holds back an unfinished character until it is whole.
///
/// The pieces joined are what [`String::from_utf8_lossy`] makes of all the bytes.
#[derive(Clone, Debug, Default)]
pub(crate) struct Utf8Stream {
    /// The beginning of a character, at most three bytes.
    pending: Vec<u8>,
}

impl Utf8Stream {
    /// Takes more bytes and returns the text that is now certain.
    pub(crate) fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let unfinished = self.pending.utf8_chunks().last().map_or(0, |chunk| unfinished_len(chunk.invalid()));
        let whole = self.pending.len() - unfinished;
        let text = String::from_utf8_lossy(&self.pending[..whole]).into_owned();
        self.pending.drain(..whole);
        text
    }

    /// The text of what is held back: U+FFFD, or nothing.
    pub(crate) fn finish(&mut self) -> String {
        let text = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        text
    }
}

/// How many of the trailing invalid bytes may still become a character: all, if their only fault is to end too soon.
fn unfinished_len(invalid: &[u8]) -> usize {
    match std::str::from_utf8(invalid) {
        Err(error) if error.error_len().is_none() => invalid.len(),
        _ => 0,
    }
}

/// The text of a raw completion, token by token.
///
/// ```
/// use tandem_harmony::{TextDecoder, Tokenizer};
///
/// let mut decoder = TextDecoder::new();
/// let text: String = Tokenizer::shared().encode("naïve 🦀").iter().map(|&token| decoder.push(token)).collect();
/// assert_eq!(text + &decoder.finish(), "naïve 🦀");
/// ```
#[derive(Clone, Debug, Default)]
pub struct TextDecoder {
    utf8: Utf8Stream,
    show_special: bool,
}

impl TextDecoder {
    /// A decoder to which control tokens are no text.
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder that writes control tokens by their names, such as `<|end|>`.
    pub fn with_special() -> Self {
        Self { show_special: true, ..Self::default() }
    }

    /// Takes a token and returns the text that it completes; an id that is no token counts as U+FFFD.
    pub fn push(&mut self, token: u32) -> String {
        match Tokenizer::shared().token_bytes(token) {
            Some(_) if special::is_special(token) && !self.show_special => self.utf8.push(&[]),
            Some(bytes) => self.utf8.push(bytes),
            None => self.utf8.push("\u{FFFD}".as_bytes()),
        }
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        self.utf8.finish()
    }
}
