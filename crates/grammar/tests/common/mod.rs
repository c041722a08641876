//! A model that writes at random whatever is allowed, and what a client would read of it.

#![allow(dead_code, reason = "each test file uses what it needs")]

use tandem_grammar::{Rules, Walk};
use tandem_harmony::{Event, Parser, STOP_TOKENS, Tokenizer, ToolNames, special};

/// Numbers without end (Steele et al. 2014).
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Writes under `rules` until a stop token. Every token is one that the mask allows, drawn evenly; now and then one that
/// closes something is preferred, or most texts would never end. `None` where `budget` tokens were not enough.
pub fn write(rules: &Rules, random: &mut Random, budget: usize) -> Option<Vec<u32>> {
    let mut walk = Walk::new(rules).expect("the rules compile");
    let mut tokens = Vec::new();
    while tokens.len() < budget {
        let some: Vec<(u32, bool)> = questions(random).map(|token| (token, walk.allows(token).unwrap())).collect();
        let mask = walk.mask().expect("there is a way on");
        let token = draw(&mask, random);
        for (token, allowed) in some.into_iter().chain([(token, true)]) {
            assert_eq!(allowed, allows(&mask, token), "token {token} after {tokens:?}");
        }
        assert!(walk.allows(token).unwrap(), "token {token} after {tokens:?}");
        walk.push(token).expect("what the mask allows is taken");
        tokens.push(token);
        if STOP_TOKENS.contains(&token) {
            return Some(tokens);
        }
    }
    None
}

/// Tokens to ask about one by one: a few of all, of the short ones that grammars are made of, and of the control tokens.
fn questions(random: &mut Random) -> impl Iterator<Item = u32> {
    let all = Tokenizer::VOCAB_SIZE as u32;
    let ranges = [0..all, 0..all, 0..300, 0..300, 0..1000, special::FIRST_SPECIAL..special::FIRST_SPECIAL + 16];
    let of = |range: std::ops::Range<u32>| range.start + random.below(range.len()) as u32;
    ranges.map(of).into_iter().chain([special::RETURN, special::END, Tokenizer::VOCAB_SIZE as u32 + 5])
}

/// Whether a token's bit is set.
pub fn allows(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

fn draw(mask: &[u32], random: &mut Random) -> u32 {
    let bits =
        |word: usize| (0..32).filter(move |bit| mask[word] >> bit & 1 == 1).map(move |bit| word as u32 * 32 + bit);
    let allowed: Vec<u32> = (0..mask.len()).filter(|word| mask[*word] != 0).flat_map(bits).collect();
    assert!(!allowed.is_empty(), "a mask allows something");
    if random.below(3) == 0 {
        let closes = |id: &&u32| {
            let bytes = Tokenizer::shared().token_bytes(**id).unwrap_or_default();
            **id >= 199_998 || matches!(bytes, b"\"" | b"}" | b"]" | b"\"}" | b"\"]")
        };
        let closing: Vec<&u32> = allowed.iter().filter(closes).collect();
        if !closing.is_empty() {
            return *closing[random.below(closing.len())];
        }
    }
    allowed[random.below(allowed.len())]
}

/// What a client reads.
#[derive(Debug, Default, PartialEq)]
pub struct Read {
    pub reasoning: String,
    pub content: String,
    /// Names and arguments.
    pub calls: Vec<(String, String)>,
    pub recovered: u32,
}

/// Reads a reply in harmony as the edge does.
pub fn read(tokens: &[u32]) -> Read {
    let mut parser = Parser::new(&ToolNames::default());
    let mut read = Read::default();
    let mut events = parser.push_all(tokens);
    let (last, summary) = parser.finish();
    events.extend(last);
    for event in events {
        match event {
            Event::Reasoning(text) => read.reasoning += &text,
            Event::Content(text) => read.content += &text,
            Event::ToolCallStart { name, .. } => read.calls.push((name, String::new())),
            Event::ToolCallArguments { index, delta } => read.calls[index].1 += &delta,
            Event::ToolCallEnd { .. } => {}
        }
    }
    read.recovered = summary.recovered;
    read
}

/// A raw text without its stop token.
pub fn text(tokens: &[u32]) -> String {
    Tokenizer::shared().decode(&tokens[..tokens.len() - 1])
}
