//! Text to token ids and back, over the embedded o200k_harmony vocabulary.

use std::collections::HashMap;
use std::sync::OnceLock;

use crate::bpe::Bpe;
use crate::special;

/// Bytes of U+FFFD, shown for an id that is no token.
const REPLACEMENT: &[u8] = "\u{FFFD}".as_bytes();

/// The o200k_harmony tokenizer.
///
/// The vocabulary comes from `tiktoken-rs`, the encoding is our own: tiktoken's backtracking split panics on a
/// megabyte of blanks, and its tables take five times the memory. The tests hold the two equal.
pub struct Tokenizer {
    /// All tokens' bytes, one after the other.
    bytes: Vec<u8>,
    /// `bytes[starts[id]..starts[id + 1]]` is token `id`; one more entry than tokens.
    starts: Vec<u32>,
    special_ids: HashMap<String, u32>,
    bpe: Bpe,
}

impl Tokenizer {
    /// The size of the vocabulary, specials and reserved ids included: the rows of the model's embedding.
    pub const VOCAB_SIZE: usize = 201_088;

    /// The one instance, built on first use (a fraction of a second).
    pub fn shared() -> &'static Tokenizer {
        static SHARED: OnceLock<Tokenizer> = OnceLock::new();
        SHARED.get_or_init(Tokenizer::new)
    }

    fn new() -> Self {
        let vocabulary = tiktoken_rs::o200k_harmony().expect("the vocabulary embedded in tiktoken-rs is intact");
        let mut bytes = Vec::new();
        let mut starts = vec![0];
        let mut special_ids = HashMap::new();
        for id in 0..Self::VOCAB_SIZE as u32 {
            let token = vocabulary.decode_bytes(&[id]).expect("o200k_harmony names every id below its size");
            if special::is_special(id) {
                special_ids.insert(String::from_utf8_lossy(&token).into_owned(), id);
            }
            bytes.extend_from_slice(&token);
            starts.push(bytes.len() as u32);
        }
        let ordinary = &starts[..=special::FIRST_SPECIAL as usize];
        let bpe = Bpe::new(ordinary.windows(2).map(|at| &bytes[at[0] as usize..at[1] as usize]));
        Self { bytes, starts, special_ids, bpe }
    }

    /// Encodes ordinary text. What looks like a control token stays text: no input yields a special id.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        self.encode_into(text, &mut tokens);
        tokens
    }

    /// Appends the encoding of ordinary text to `tokens`.
    pub fn encode_into(&self, text: &str, tokens: &mut Vec<u32>) {
        self.bpe.encode_into(text, tokens);
    }

    /// Encodes text in which `<|start|>` and the like stand for the control tokens. Not for text from users.
    pub fn encode_with_special(&self, text: &str) -> Vec<u32> {
        let mut tokens = Vec::new();
        let (mut rest, mut from) = (text, 0);
        while let Some(open) = rest[from..].find("<|").map(|at| from + at) {
            let name_end = rest[open..].find("|>").map(|at| open + at + 2);
            match name_end.and_then(|end| Some((end, *self.special_ids.get(&rest[open..end])?))) {
                Some((end, id)) => {
                    self.encode_into(&rest[..open], &mut tokens);
                    tokens.push(id);
                    (rest, from) = (&rest[end..], 0);
                }
                None => from = open + 2,
            }
        }
        self.encode_into(rest, &mut tokens);
        tokens
    }

    /// The bytes of `tokens`, control tokens as their names. An id that is no token gives U+FFFD.
    pub fn decode_bytes(&self, tokens: &[u32]) -> Vec<u8> {
        tokens.iter().flat_map(|&token| self.token_bytes(token).unwrap_or(REPLACEMENT)).copied().collect()
    }

    /// The text of `tokens`; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, tokens: &[u32]) -> String {
        String::from_utf8_lossy(&self.decode_bytes(tokens)).into_owned()
    }

    /// The bytes of one token, which need not be whole characters; `None` for an id outside the vocabulary.
    pub fn token_bytes(&self, token: u32) -> Option<&[u8]> {
        let id = token as usize;
        let (start, end) = (*self.starts.get(id)?, *self.starts.get(id + 1)?);
        Some(&self.bytes[start as usize..end as usize])
    }

    /// The id of a control token by its name, such as `<|end|>`.
    pub fn special_id(&self, name: &str) -> Option<u32> {
        self.special_ids.get(name).copied()
    }

    /// The number of ids, 201,088.
    pub fn vocab_size(&self) -> usize {
        Self::VOCAB_SIZE
    }
}
