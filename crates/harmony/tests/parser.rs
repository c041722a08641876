//! The parser on what models write: well formed, and every malformation known.

mod common;

use common::{Reply, names, parse_tokens};
use tandem_harmony::{Channel, End, Event, Parser, Summary, Tokenizer};

const ARGUMENTS: &str = r#"{"city":"Paris"}"#;

/// Parses text in which `<|…|>` stand for control tokens; the tools are `get_weather` and `python`.
fn parse(text: &str) -> (Reply, Summary) {
    parse_tokens(&Tokenizer::shared().encode_with_special(text), &names(&["get_weather", "python"]))
}

fn said(content: &str) -> Reply {
    Reply { content: content.into(), ..Reply::default() }
}

fn thought(reasoning: &str) -> Reply {
    Reply { reasoning: reasoning.into(), ..Reply::default() }
}

fn called(name: &str, arguments: &str) -> Reply {
    Reply { calls: vec![(name.into(), arguments.into())], ended_calls: 1, ..Reply::default() }
}

/// Well formed: nothing had to be guessed.
fn clean(text: &str, expected: Reply, end: End) {
    let (reply, summary) = parse(text);
    assert_eq!(reply, expected, "{text}");
    assert_eq!((summary.end, summary.recovered, summary.unknown_recipients), (end, 0, 0), "{text}");
    assert_eq!(summary.tool_calls, expected.calls.len(), "{text}");
}

/// Malformed, and understood nevertheless.
fn recovers(text: &str, expected: Reply) {
    let (reply, summary) = parse(text);
    assert_eq!(reply, expected, "{text}");
    assert!(summary.recovered > 0, "{text} is counted as malformed");
    assert_eq!(summary.unknown_recipients, 0, "{text}");
}

#[test]
fn answers() {
    clean("<|channel|>final<|message|>4<|return|>", said("4"), End::Return);
    clean("<|channel|>analysis<|message|>Sum.<|end|>", thought("Sum."), End::Unfinished { channel: None });
    let both = Reply { reasoning: "Sum.".into(), content: "4".into(), ..Reply::default() };
    clean(
        "<|channel|>analysis<|message|>Sum.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>",
        both,
        End::Return,
    );
    clean("<|channel|>final<|message|>4<|endoftext|>", said("4"), End::EndOfText);
    clean("<|channel|>final <|constrain|>json<|message|>{}<|return|>", said("{}"), End::Return);
}

#[test]
fn calls_with_the_recipient_in_either_position() {
    for header in [
        "<|channel|>commentary to=functions.get_weather <|constrain|>json",
        "<|channel|>commentary to=functions.get_weather<|constrain|>json",
        "<|channel|>commentary to=functions.get_weather",
        "<|channel|>commentary to=functions.get_weather json",
        "<|channel|>commentary to=functions.get_weather code",
        " to=functions.get_weather<|channel|>commentary <|constrain|>json",
        " to=functions.get_weather<|channel|>commentary<|constrain|>json",
        " to=functions.get_weather<|channel|>commentary",
    ] {
        let (reply, summary) = parse(&format!("{header}<|message|>{ARGUMENTS}<|call|>"));
        assert_eq!(reply, called("get_weather", ARGUMENTS), "{header}");
        assert_eq!((summary.end, summary.unknown_recipients), (End::Call, 0), "{header}");
        let exact = !header.ends_with(" json") && !header.ends_with(" code");
        assert_eq!(summary.recovered == 0, exact, "{header}");
    }
}

#[test]
fn preamble_and_call() {
    let (reply, summary) = parse(
        "<|channel|>analysis<|message|>Look.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me see.<|end|>\
         <|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{}<|call|>",
    );
    let expected = Reply { reasoning: "Look.".into(), content: "Let me see.".into(), ..called("get_weather", "{}") };
    assert_eq!((reply, summary.end, summary.recovered), (expected, End::Call, 0));
}

#[test]
fn messages_of_one_kind_are_kept_apart() {
    let preamble =
        "<|channel|>commentary<|message|>Wait.<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>";
    clean(preamble, said("Wait.\n\n4"), End::Return);
    let twice = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|>";
    clean(twice, thought("a\n\nb"), End::Unfinished { channel: None });
}

#[test]
fn calls_on_any_channel_with_or_without_namespace() {
    for header in [
        "<|channel|>analysis to=functions.get_weather <|constrain|>json",
        "<|channel|>final to=functions.get_weather <|constrain|>json",
        "<|channel|>commentary to=get_weather <|constrain|>json",
        " to=get_weather<|channel|>analysis code",
        " to=functions.get_weather",
        "<|channel|>commentary functions.get_weather <|constrain|>json",
        "<|channel|>commentary to= functions.get_weather",
        "<|channel|>commentary <|constrain|>json to=functions.get_weather",
        "<|channel|>thoughts to=functions.get_weather",
    ] {
        recovers(&format!("{header}<|message|>{ARGUMENTS}<|call|>"), called("get_weather", ARGUMENTS));
    }
}

#[test]
fn control_tokens_leaking_into_names_are_cut() {
    // As ordinary text, the way some models spell them.
    let tokenizer = Tokenizer::shared();
    for leak in ["<|channel|>commentary", "<|constrain|>json", "<|call|>"] {
        let tokens = [
            tokenizer.encode_with_special("<|channel|>commentary"),
            tokenizer.encode(&format!(" to=functions.get_weather{leak}")),
            tokenizer.encode_with_special("<|message|>{}<|call|>"),
        ]
        .concat();
        let (reply, summary) = parse_tokens(&tokens, &names(&["get_weather"]));
        assert_eq!(reply, called("get_weather", "{}"), "{leak}");
        assert_eq!(summary.unknown_recipients, 0, "{leak}");
    }
    // As control tokens.
    recovers(
        "<|channel|>commentary to=functions.get_weather<|channel|>commentary<|message|>{}<|call|>",
        called("get_weather", "{}"),
    );
    recovers("<|start|>assistant<|channel|>commentary<|channel|>final<|message|>4<|return|>", said("4"));
}

#[test]
fn doubled_parts() {
    recovers("<|channel|>analysis<|channel|>final<|message|>4<|return|>", said("4"));
    recovers("<|channel|><|channel|>final<|message|>4<|return|>", said("4"));
    recovers(
        "<|channel|>analysis commentary to=functions.get_weather<|message|>{}<|call|>",
        called("get_weather", "{}"),
    );
    recovers("assistant<|channel|>final<|message|>4<|return|>", said("4"));
    recovers("<|channel|>final<|message|><|message|>4<|return|>", said("4"));
    clean("<|start|>assistant<|channel|>final<|message|>4<|return|>", said("4"), End::Return);
}

#[test]
fn missing_start() {
    let both = Reply { reasoning: "Sum.".into(), content: "4".into(), ..Reply::default() };
    for between in ["<|end|>assistant", "<|end|>", "", "<|end|> assistant", "<|start|>assistant", "<|end|><|start|>"] {
        let text = format!("<|channel|>analysis<|message|>Sum.{between}<|channel|>final<|message|>4<|return|>");
        let (reply, summary) = parse(&text);
        assert_eq!(reply, both, "{text}");
        assert_eq!(summary.recovered > 0, between != "<|end|><|start|>", "{text}");
    }
    let call = Reply { reasoning: "Sum.".into(), ..called("get_weather", "{}") };
    recovers("<|channel|>analysis<|message|>Sum.<|end|> to=functions.get_weather<|message|>{}<|call|>", call);
}

#[test]
fn missing_message() {
    recovers(
        "<|channel|>final The answer is 4, I am quite sure about that one.<|return|>",
        said("The answer is 4, I am quite sure about that one."),
    );
    recovers("<|channel|>final 4<|return|>", said("4"));
    recovers("<|channel|>analysis We add.<|end|>", thought("We add."));
    recovers("<|channel|>final<|return|>", said(""));
    recovers(
        r#"<|channel|>commentary to=functions.get_weather <|constrain|>json{"city":"Paris"}<|call|>"#,
        called("get_weather", ARGUMENTS),
    );
    recovers(
        r#"<|channel|>commentary to=functions.get_weather {"city":"Paris"}<|call|>"#,
        called("get_weather", ARGUMENTS),
    );
}

#[test]
fn missing_channel() {
    recovers("<|message|>4<|return|>", said("4"));
    recovers("<|start|>assistant<|message|>4<|return|>", said("4"));
    recovers("<|channel|><|message|>4<|return|>", said("4"));
    recovers("final<|message|>4<|return|>", said("4"));
    recovers("analysis<|message|>Sum.<|end|>", thought("Sum."));
}

#[test]
fn plain_text_streams_at_once() {
    for text in [
        "Hello there, how are you?",
        " user friendly",
        "text is fine",
        "Final",
        "1 + 1",
        "\u{1f980} hi",
        "final\u{1f980}",
    ] {
        recovers(text, said(text));
    }
    let mut parser = Parser::new(&names(&[]));
    let tokens = Tokenizer::shared().encode("Hello there");
    assert_eq!(parser.push(tokens[0]), [Event::Content("Hello".into())]);
}

#[test]
fn stray_words_before_message_are_dropped() {
    recovers("<|channel|>final please note<|message|>4<|return|>", said("4"));
    recovers("<|channel|>commentary to=functions.get_weather now<|message|>{}<|call|>", called("get_weather", "{}"));
}

#[test]
fn messages_to_nobody_in_particular() {
    for recipient in ["assistant", "user", "all"] {
        recovers(&format!("<|channel|>commentary to={recipient}<|message|>Hi<|end|>"), said("Hi"));
        recovers(&format!(" to={recipient}<|channel|>final<|message|>Hi<|return|>"), said("Hi"));
        recovers(&format!("<|channel|>analysis to={recipient}<|message|>Hm<|end|>"), thought("Hm"));
    }
}

#[test]
fn unknown_channels_are_visible() {
    recovers("<|channel|>thoughts<|message|>Hm<|return|>", said("Hm"));
    recovers(
        "<|channel|>Hello world, this is an answer without any header.<|return|>",
        said("Hello world, this is an answer without any header."),
    );
}

#[test]
fn unknown_recipients_are_calls_under_cleaned_names() {
    for (recipient, name) in [
        ("functions.nope", "nope"),
        ("browser.search", "browser_search"),
        ("container", "container"),
        ("functions.", "unknown"),
        ("functions.été", "_t_"),
    ] {
        let (reply, summary) = parse(&format!("<|channel|>commentary to={recipient}<|message|>{{}}<|call|>"));
        assert_eq!(reply, called(name, "{}"), "{recipient}");
        assert_eq!(summary.unknown_recipients, 1, "{recipient}");
    }
    let long = "x".repeat(100_000);
    let (reply, summary) = parse(&format!("<|channel|>commentary to=functions.{long}<|message|>{{}}<|call|>"));
    assert!(reply.calls.iter().all(|(name, _)| name.len() <= 128), "names have a limit");
    assert_eq!(reply.calls.len(), 1);
    assert_eq!(summary.end, End::Call);
}

#[test]
fn aliased_tools_come_back_under_their_own_names() {
    clean(
        "<|channel|>commentary to=functions.python_tool <|constrain|>json<|message|>{}<|call|>",
        called("python", "{}"),
        End::Call,
    );
    recovers("<|channel|>analysis to=python code<|message|>{}<|call|>", called("python", "{}"));
}

#[test]
fn other_authors_are_never_visible() {
    recovers(
        "<|channel|>final<|message|>4<|end|><|start|>user<|message|>And 3 + 3?<|end|>",
        Reply { reasoning: "And 3 + 3?".into(), content: "4".into(), ..Reply::default() },
    );
    recovers(
        "<|start|>functions.get_weather to=assistant<|channel|>commentary<|message|>sunny<|end|>",
        thought("sunny"),
    );
    recovers("<|start|>functions.get_weather<|channel|>commentary<|message|>{}<|call|>", called("get_weather", "{}"));
}

#[test]
fn a_call_without_arguments_gets_the_empty_object() {
    for body in
        ["<|message|><|call|>", "<|call|>", "<|message|>  <|call|>", "<|message|><|end|>", "<|message|><|return|>"]
    {
        let (reply, _) = parse(&format!("<|channel|>commentary to=functions.get_weather{body}"));
        let (name, arguments) = &reply.calls[0];
        assert_eq!((name.as_str(), arguments.trim(), reply.ended_calls), ("get_weather", "{}", 1), "{body}");
    }
}

#[test]
fn output_cut_off() {
    let unfinished = |channel| End::Unfinished { channel };
    clean("<|channel|>analysis<|message|>We", thought("We"), unfinished(Some(Channel::Analysis)));
    clean("<|channel|>final<|message|>We", said("We"), unfinished(Some(Channel::Final)));
    clean("", Reply::default(), unfinished(None));
    clean("<|channel|>comm", Reply::default(), unfinished(None));
    clean("<|channel|>commentary to=functions.get_we", Reply::default(), unfinished(None));
    clean(
        r#"<|channel|>commentary to=functions.get_weather<|message|>{"ci"#,
        called("get_weather", r#"{"ci"#),
        unfinished(Some(Channel::Commentary)),
    );
    // A character cut in half.
    let mut tokens = Tokenizer::shared().encode_with_special("<|channel|>final<|message|>\u{1f980}");
    tokens.pop();
    assert_eq!(parse_tokens(&tokens, &names(&[])).0, said("\u{FFFD}"));
}

#[test]
fn characters_split_across_tokens_arrive_whole() {
    let mut parser = Parser::new(&names(&[]));
    parser.push_all(&Tokenizer::shared().encode_with_special("<|channel|>final<|message|>"));
    let crab = Tokenizer::shared().encode("\u{1f980}");
    let (last, before) = crab.split_last().expect("a crab is tokens");
    assert!(!before.is_empty() && parser.push_all(before).is_empty());
    assert_eq!(parser.push(*last), [Event::Content("\u{1f980}".into())]);
}

#[test]
fn a_character_never_spans_messages() {
    let half = Tokenizer::shared().encode("\u{1f980}")[0];
    let tokenizer = Tokenizer::shared();
    let tokens = [
        tokenizer.encode_with_special("<|channel|>analysis<|message|>"),
        vec![half],
        tokenizer.encode_with_special("<|end|><|start|>assistant<|channel|>final<|message|>4<|return|>"),
    ]
    .concat();
    let expected = Reply { reasoning: "\u{FFFD}".into(), content: "4".into(), ..Reply::default() };
    assert_eq!(parse_tokens(&tokens, &names(&[])).0, expected);
}

#[test]
fn begins_anew_after_a_stop_token() {
    let answer = "<|channel|>final<|message|>4<|return|>";
    clean(&format!("{answer}<|start|>assistant{answer}"), said("4\n\n4"), End::Return);
    recovers(&format!("{answer}{answer}"), said("4\n\n4"));
    recovers(&format!("{answer} and so on"), said("4\n\n and so on"));
    let (reply, summary) = parse(&format!("{answer}<|start|>assistant<|channel|>analysis<|message|>Hm"));
    assert_eq!(reply, Reply { reasoning: "Hm".into(), ..said("4") });
    assert_eq!(summary.end, End::Unfinished { channel: Some(Channel::Analysis) });
}

#[test]
fn control_tokens_inside_content_are_no_text() {
    recovers("<|channel|>final<|message|>a<|constrain|>b<|startoftext|>c<|return|>", said("abc"));
    let tokens = Tokenizer::shared().encode_with_special("<|channel|>final<|message|>a");
    let tokens = [tokens, vec![200_500, 201_087, 201_088, u32::MAX]].concat();
    assert_eq!(parse_tokens(&tokens, &names(&[])).0, said("a"));
}

#[test]
fn text_that_spells_control_tokens_stays_text() {
    let spelled = Tokenizer::shared().encode("<|end|><|start|>");
    let tokens = [Tokenizer::shared().encode_with_special("<|channel|>final<|message|>"), spelled].concat();
    let (reply, summary) = parse_tokens(&tokens, &names(&[]));
    assert_eq!((reply, summary.recovered), (said("<|end|><|start|>"), 0));
}
