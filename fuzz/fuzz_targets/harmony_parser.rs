//! Whatever tokens a model writes, the parser neither panics nor loses count.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use tandem_harmony::{Event, Parser, STOP_TOKENS, Tokenizer, Tool, ToolNames, special};

/// What headers are made of, so that the fuzzer need not guess it.
const WORDS: [&str; 16] = [
    "assistant",
    "analysis",
    "commentary",
    "final",
    " to",
    "=",
    "functions",
    ".find",
    "json",
    " ",
    "{}",
    "user",
    "tool",
    "python",
    "\n",
    "🦀",
];

static WORD_TOKENS: LazyLock<Vec<u32>> =
    LazyLock::new(|| WORDS.iter().flat_map(|word| Tokenizer::shared().encode(word)).collect());

static NAMES: LazyLock<ToolNames> = LazyLock::new(|| {
    let tool = |name: &str| Tool { name: name.into(), description: String::new(), parameters: Default::default() };
    ToolNames::new(&[tool("find"), tool("python")]).expect("legal tools")
});

// Building the tokenizer is no part of the first input's time.
fuzz_target!(init: { LazyLock::force(&WORD_TOKENS); }, |data: &[u8]| {
    let mut parser = Parser::new(&NAMES);
    let mut events = Vec::new();
    let tokens: Vec<u32> = data.chunks_exact(3).map(token).collect();
    for &token in &tokens {
        events.extend(parser.push(token));
    }
    let (rest, summary) = parser.finish();
    events.extend(rest);
    let (mut started, mut ended) = (0, 0);
    for event in &events {
        match event {
            Event::ToolCallStart { index, name } => {
                assert!((*index, started) == (started, ended) && !name.is_empty());
                started += 1;
            }
            Event::ToolCallArguments { index, .. } => assert_eq!((index + 1, *index), (started, ended)),
            Event::ToolCallEnd { index } => {
                assert_eq!((index + 1, *index), (started, ended));
                ended += 1;
            }
            Event::Reasoning(text) | Event::Content(text) => assert!(!text.is_empty()),
        }
    }
    assert_eq!((started, ended), (summary.tool_calls, summary.tool_calls));
});

/// A control token, a word of a header or any id, by the first byte.
fn token(bytes: &[u8]) -> u32 {
    let index = usize::from(bytes[1]);
    let controls = [special::START, special::END, special::MESSAGE, special::CHANNEL, special::CONSTRAIN];
    match bytes[0] {
        0..64 if index % 8 < 5 => controls[index % 8],
        0..64 => STOP_TOKENS[index % 8 - 5],
        64..160 => WORD_TOKENS[index % WORD_TOKENS.len()],
        high => u32::from_le_bytes([bytes[1], bytes[2], high % 4, 0]),
    }
}
