//! Whatever tokens a model writes, the parser makes sense of them.

mod common;

use common::{Reply, names, parse_tokens};
use proptest::prelude::*;
use tandem_harmony::{End, Parser, Tokenizer, ToolNames};

fn tools() -> ToolNames {
    names(&["get_weather", "python", "a.b"])
}

/// Tokens as a confused model mixes them: controls, words of headers, text, halves of characters, ids that are none.
fn token() -> impl Strategy<Value = u32> {
    let word = |text: &'static str| Just(Tokenizer::shared().encode(text)[0]);
    prop_oneof![
        3 => prop::sample::select(vec![200002u32, 200003, 200005, 200006, 200007, 200008, 200012, 199999]),
        2 => prop_oneof![
            word("assistant"), word("analysis"), word("commentary"), word("final"), word(" to"), word("="),
            word("functions"), word(".get"), word("_weather"), word("json"), word(" "), word("{}"), word("user"),
        ],
        2 => 0..199_998u32,
        1 => prop::sample::select(Tokenizer::shared().encode("🦀🇩🇪")),
        1 => prop_oneof![199_998..201_100u32, Just(u32::MAX)],
    ]
}

fn valid_reply() -> impl Strategy<Value = (Vec<u32>, Reply)> {
    let text = "[a-z é🦀{}\n<|>]{0,20}";
    (text, prop::option::of(text), any::<bool>(), any::<bool>()).prop_map(|(first, answer, calls, in_role)| {
        let tokenizer = Tokenizer::shared();
        let mut tokens = tokenizer.encode_with_special("<|channel|>analysis<|message|>");
        tokens.extend(tokenizer.encode(&first));
        let mut reply = Reply { reasoning: first, ..Reply::default() };
        tokens.extend(tokenizer.encode_with_special("<|end|><|start|>assistant"));
        if calls {
            let header = if in_role {
                " to=functions.a_b<|channel|>commentary <|constrain|>json<|message|>"
            } else {
                "<|channel|>commentary to=functions.a_b <|constrain|>json<|message|>"
            };
            tokens.extend(tokenizer.encode_with_special(header));
            tokens.extend(tokenizer.encode(r#"{"x":"é"}"#));
            tokens.push(200012);
            reply.calls.push(("a.b".into(), r#"{"x":"é"}"#.into()));
            reply.ended_calls = 1;
        } else {
            reply.content = answer.unwrap_or_default();
            tokens.extend(tokenizer.encode_with_special("<|channel|>final<|message|>"));
            tokens.extend(tokenizer.encode(&reply.content));
            tokens.push(200002);
        }
        (tokens, reply)
    })
}

/// What holds for any tokens.
fn check_invariants(tokens: &[u32]) {
    let (reply, summary) = parse_tokens(tokens, &tools());
    assert_eq!(reply.calls.len(), summary.tool_calls);
    assert_eq!(reply.ended_calls, reply.calls.len(), "every call that starts ends");
    assert!(reply.calls.iter().all(|(name, _)| !name.is_empty() && name.len() <= 128), "names are short");
    let last = tokens.iter().rev().find(|&&token| token <= 200012 && token != 200011);
    match summary.end {
        End::Return => assert_eq!(last, Some(&200002)),
        End::Call => assert_eq!(last, Some(&200012)),
        End::EndOfText => assert_eq!(last, Some(&199999)),
        End::Unfinished { .. } => {}
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_tokens_make_a_reply(tokens in prop::collection::vec(token(), 0..60)) {
        check_invariants(&tokens);
    }

    #[test]
    fn valid_replies_are_read_exactly((tokens, expected) in valid_reply()) {
        let (reply, summary) = parse_tokens(&tokens, &tools());
        prop_assert_eq!(reply, expected);
        prop_assert_eq!((summary.recovered, summary.unknown_recipients), (0, 0));
    }

    #[test]
    fn damaged_replies_make_a_reply(
        (tokens, _) in valid_reply(),
        damage in prop::collection::vec((any::<prop::sample::Index>(), 0..4, token()), 1..6),
    ) {
        let mut tokens = tokens;
        for (at, kind, token) in damage {
            if tokens.is_empty() { break }
            let at = at.index(tokens.len());
            match kind {
                0 => { tokens.remove(at); }
                1 => tokens.insert(at, token),
                2 => tokens[at] = token,
                _ => tokens.truncate(at),
            }
        }
        check_invariants(&tokens);
    }

    #[test]
    fn calls_of_push_all_make_no_difference(
        tokens in prop::collection::vec(token(), 0..60),
        cuts in prop::collection::vec(1..7usize, 60),
    ) {
        let whole = parse_tokens(&tokens, &tools());
        let mut parser = Parser::new(&tools());
        let mut reply = Reply::default();
        let mut rest = &tokens[..];
        for cut in cuts {
            let (chunk, after) = rest.split_at(cut.min(rest.len()));
            reply.extend(parser.push_all(chunk));
            rest = after;
        }
        let (events, summary) = parser.finish();
        reply.extend(events);
        prop_assert_eq!((reply, summary), whole);
    }

    #[test]
    fn text_is_never_lost_to_the_wait_for_a_header(text in "[A-Z🦀é][a-z 🦀é]{1,60}") {
        // No header at all: the text is the answer, and nearly all of it is out before the end.
        let tokens = Tokenizer::shared().encode(&text);
        let mut parser = Parser::new(&tools());
        let mut reply = Reply::default();
        reply.extend(parser.push_all(&tokens));
        prop_assert_eq!(&reply.content, &text);
    }
}
