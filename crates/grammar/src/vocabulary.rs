//! The vocabulary as `llguidance` wants it.

use std::sync::{Arc, OnceLock};

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::earley::SlicedBiasComputer;
use llguidance::toktrie::{InferenceCapabilities, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};
use tandem_harmony::{Tokenizer, special};

/// Reads the vocabulary, which takes a moment, so that the first request need not wait for it.
pub fn warm_up() {
    factory();
}

/// The compiler of grammars over the whole vocabulary.
///
/// `<|return|>` plays the end of a sentence: a mask that has it says that the text may end here.
pub(crate) fn factory() -> &'static ParserFactory {
    static FACTORY: OnceLock<ParserFactory> = OnceLock::new();
    FACTORY.get_or_init(|| {
        let vocabulary: TokEnv = Arc::new(Vocabulary { trie: trie() });
        let slices = SlicedBiasComputer::json_slices();
        let mut factory = ParserFactory::new(&vocabulary, InferenceCapabilities::default(), &slices)
            .expect("the slices are regular expressions that compile");
        factory.quiet();
        *factory.limits_mut() = limits();
        factory
    })
}

/// What compiling a grammar and computing one mask may cost. Counted in work, not in time, so that a grammar that
/// compiles here compiles everywhere.
fn limits() -> ParserLimits {
    ParserLimits {
        // A tenth of what a request may hold: about 1 KiB each.
        max_lexer_states: 50_000,
        max_grammar_size: 200_000,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

struct Vocabulary {
    trie: TokTrie,
}

impl TokenizerEnv for Vocabulary {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| Tokenizer::shared().encode(text))
    }
}

fn trie() -> TokTrie {
    let tokenizer = Tokenizer::shared();
    let vocab = tokenizer.vocab_size() as u32;
    let bytes = |id: u32| {
        let bytes = tokenizer.token_bytes(id).unwrap_or_default();
        match special::is_special(id) {
            true => [&[TokTrie::SPECIAL_TOKEN_MARKER], bytes].concat(),
            false => bytes.to_vec(),
        }
    };
    let words: Vec<Vec<u8>> = (0..vocab).map(bytes).collect();
    TokTrie::from(&TokRxInfo::new(vocab, special::RETURN), &words)
}
