//! Sets of tokens as bits.

use std::sync::{Arc, LazyLock};

use tandem_harmony::special::{CALL, END, ENDOFTEXT, FIRST_SPECIAL, RETURN, START};
use tandem_harmony::{STOP_TOKENS, Tokenizer};

/// One bit per token id, 32 to a word, lowest bit first: the token may come next.
pub(crate) type Mask = Arc<[u32]>;

/// The sets that occur over and over.
pub(crate) struct CommonMasks {
    /// Text of the analysis channel, which more messages follow.
    pub(crate) analysis: Mask,
    /// Text to the user before a call, which may also be all there is.
    pub(crate) preamble: Mask,
    /// A free answer.
    pub(crate) answer: Mask,
    /// Free arguments of a call.
    pub(crate) call: Mask,
    /// After a message.
    pub(crate) start: Mask,
    /// After an answer.
    pub(crate) start_or_stop: Mask,
    /// After `<|start|>`.
    pub(crate) author: Mask,
    /// After the end of the reply.
    pub(crate) stop: Mask,
}

pub(crate) static COMMON: LazyLock<CommonMasks> = LazyLock::new(|| CommonMasks {
    analysis: text_and(&[END]),
    preamble: text_and(&[END, RETURN]),
    answer: text_and(&[END, RETURN]),
    call: text_and(&[END, CALL]),
    start: only(&[START]),
    start_or_stop: only(&[START, RETURN]),
    author: only(&[*ASSISTANT]),
    stop: only(&STOP_TOKENS),
});

/// The one token of the word "assistant".
pub(crate) static ASSISTANT: LazyLock<u32> = LazyLock::new(|| the_one_token("assistant"));

/// A letter that no keyword, number or punctuation of a structured text has: where it may come next, so may most words.
pub(crate) static LETTER: LazyLock<u32> = LazyLock::new(|| the_one_token("w"));

fn the_one_token(text: &str) -> u32 {
    match Tokenizer::shared().encode(text)[..] {
        [token] => token,
        _ => unreachable!("o200k has a token for {text:?}"),
    }
}

/// Where a constrained text may end, and with which tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Exits(pub(crate) &'static [u32]);

impl Exits {
    pub(crate) const ANSWER: Self = Self(&[RETURN, END]);
    pub(crate) const CALL: Self = Self(&[CALL, END]);
    pub(crate) const TEXT: Self = Self(&[RETURN, CALL, ENDOFTEXT]);
}

/// The words of `mask` with all control tokens taken out, but for `exits` where `complete`. `None` where nothing is left.
pub(crate) fn inside_text(mut mask: Vec<u32>, complete: bool, exits: Exits) -> Option<Mask> {
    for id in FIRST_SPECIAL..Tokenizer::VOCAB_SIZE as u32 {
        remove(&mut mask, id);
    }
    if complete {
        exits.0.iter().for_each(|&id| insert(&mut mask, id));
    }
    mask.iter().any(|&word| word != 0).then(|| mask.into())
}

pub(crate) fn contains(mask: &[u32], id: u32) -> bool {
    mask.get(id as usize / 32).is_some_and(|word| word >> (id % 32) & 1 == 1)
}

fn insert(mask: &mut [u32], id: u32) {
    mask[id as usize / 32] |= 1 << (id % 32);
}

fn remove(mask: &mut [u32], id: u32) {
    if let Some(word) = mask.get_mut(id as usize / 32) {
        *word &= !(1 << (id % 32));
    }
}

fn only(ids: &[u32]) -> Mask {
    let mut mask = vec![0; Tokenizer::VOCAB_SIZE.div_ceil(32)];
    ids.iter().for_each(|&id| insert(&mut mask, id));
    mask.into()
}

fn text_and(ids: &[u32]) -> Mask {
    let mut mask = only(ids).to_vec();
    (0..FIRST_SPECIAL).for_each(|id| insert(&mut mask, id));
    mask.into()
}
