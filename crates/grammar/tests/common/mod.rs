//! A model that writes at random whatever is allowed, and what a client would read of it.

#![allow(dead_code, reason = "each test file uses what it needs")]

use tandem_grammar::{Rules, Walk};
use tandem_harmony::{Event, Parser, STOP_TOKENS, Tokenizer, ToolNames};

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
        let mask = walk.mask().expect("there is a way on");
        let token = draw(&mask, random);
        walk.push(token).expect("what the mask allows is taken");
        tokens.push(token);
        if STOP_TOKENS.contains(&token) {
            return Some(tokens);
        }
    }
    None
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
