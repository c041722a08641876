//! Replies in harmony under rules: what may come where, and that nothing decides it but the rules and the tokens.

mod common;

use std::time::{Duration, Instant};

use common::{Random, allows, read, write};
use serde_json::{Value, json};
use tandem_grammar::{Call, Content, Masks, Reply, Rules, RulesError, Walk};
use tandem_harmony::{Tokenizer, special};
use tandem_step::{Ahead, Constraint, Masker};

fn tokens(text: &str) -> Vec<u32> {
    Tokenizer::shared().encode_with_special(text)
}

fn schema() -> Value {
    json!({"type": "object", "properties": {"city": {"enum": ["Oslo", "Rome"]}}, "required": ["city"],
        "additionalProperties": false})
}

fn call(name: &str, arguments: Option<Content>) -> Call {
    Call { name: name.into(), arguments }
}

/// Two tools, one of them strict.
fn tools() -> Reply {
    let calls = vec![call("get_weather", Some(Content::Json(schema()))), call("get", None)];
    Reply { calls, ..Reply::default() }
}

/// How many tokens of `text` the rules let through, and how many there are.
fn passed(rules: &Reply, text: &str) -> (usize, usize) {
    let mut walk = Walk::new(&Rules::Reply(rules.clone())).unwrap();
    let tokens = tokens(text);
    for (at, &token) in tokens.iter().enumerate() {
        if !allows(&walk.mask().unwrap(), token) {
            return (at, tokens.len());
        }
        walk.push(token).unwrap();
    }
    (tokens.len(), tokens.len())
}

fn is_allowed(rules: &Reply, text: &str) -> bool {
    let (passed, all) = passed(rules, text);
    passed == all
}

/// Which control tokens may follow `text`.
fn exits_after(rules: &Reply, text: &str) -> Vec<u32> {
    let mut walk = Walk::new(&Rules::Reply(rules.clone())).unwrap();
    tokens(text).iter().for_each(|&token| walk.push(token).unwrap());
    let mask = walk.mask().unwrap();
    (special::FIRST_SPECIAL..Tokenizer::VOCAB_SIZE as u32).filter(|&id| allows(&mask, id)).collect()
}

#[test]
fn the_recipient_may_stand_in_either_part_of_the_header() {
    let rules = tools();
    for header in [
        "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.get_weather<|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.get_weather json<|message|>",
        "<|channel|>commentary to=functions.get_weather<|message|>",
        "<|channel|>analysis to=functions.get_weather code<|message|>",
        " to=functions.get_weather<|channel|>commentary <|constrain|>json<|message|>",
        " to=functions.get_weather<|channel|>commentary json<|message|>",
        " to=functions.get_weather<|channel|>analysis<|message|>",
    ] {
        let whole = format!("{header}{{\"city\":\"Oslo\"}}<|call|>");
        assert!(is_allowed(&rules, &whole), "{whole}: {:?}", passed(&rules, &whole));
        let wrong = format!("{header}{{\"city\":\"Paris\"}}<|call|>");
        assert!(!is_allowed(&rules, &wrong), "{wrong}");
    }
}

#[test]
fn headers_that_clients_could_not_use_are_not_written() {
    let rules = tools();
    for header in [
        "<|channel|>commentary to=functions.unknown<|message|>",
        "<|channel|>commentary to=get_weather<|message|>",
        "<|channel|>comment<|message|>",
        "<|channel|>final to=functions.get<|message|>",
        "<|channel|><|channel|>analysis<|message|>",
        "<|message|>",
        "Hello",
        "<|channel|>analysis<|message|>x<|return|>",
        "<|channel|>analysis<|message|>x<|end|><|channel|>",
        "<|channel|>analysis<|message|>x<|end|><|start|>user",
        "<|channel|>analysis<|message|>x<|start|>",
    ] {
        assert!(!is_allowed(&rules, header), "{header}");
    }
}

#[test]
fn a_reply_may_think_and_say_and_call() {
    let rules = tools();
    let think = "<|channel|>analysis<|message|>Any <words> {\"at\": all<|end|><|start|>assistant";
    for rest in [
        "<|channel|>final<|message|>Free text.<|return|>",
        "<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant to=functions.get<|channel|>commentary\
         <|message|>anything<|call|>",
        "<|channel|>commentary to=functions.get <|constrain|>json<|message|>not even JSON<|call|>",
        "<|channel|>commentary to=functions.get_weather<|message|>{ \"city\" : \"Rome\" }<|end|><|return|>",
    ] {
        let whole = format!("{think}{rest}");
        assert!(is_allowed(&rules, &whole), "{whole}: {:?}", passed(&rules, &whole));
    }
}

#[test]
fn an_answer_with_a_format_is_all_the_client_sees() {
    let rules = Reply { answer: Some(Content::Json(schema())), ..tools() };
    assert!(is_allowed(
        &rules,
        "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>final\
                                <|message|>{\"city\":\"Rome\"}<|return|>"
    ));
    assert!(is_allowed(&rules, "<|channel|>final <|constrain|>json<|message|>{\"city\":\"Rome\"}<|end|><|return|>"));
    assert!(is_allowed(&rules, "<|channel|>commentary to=functions.get<|message|>{}<|call|>"));
    assert!(!is_allowed(&rules, "<|channel|>commentary<|message|>"), "a preamble would be in front of the JSON");
    let after_answer = exits_after(&rules, "<|channel|>final<|message|>{\"city\":\"Rome\"}<|end|>");
    assert!(!after_answer.contains(&special::START), "a second answer would be behind the JSON");
}

#[test]
fn a_text_ends_exactly_when_it_is_complete() {
    let rules = Reply { answer: Some(Content::Json(schema())), ..tools() };
    let answer = "<|channel|>final<|message|>";
    assert_eq!(exits_after(&rules, answer), [0_u32; 0]);
    assert_eq!(exits_after(&rules, &format!("{answer}{{\"city\":\"Rome\"")), [0_u32; 0]);
    assert_eq!(exits_after(&rules, &format!("{answer}{{\"city\":\"Rome\"}}")), [special::RETURN, special::END]);
    let call = "<|channel|>commentary to=functions.get_weather<|message|>";
    assert_eq!(exits_after(&rules, call), [0_u32; 0]);
    assert_eq!(exits_after(&rules, &format!("{call}{{\"city\":\"Rome\"}}")), [special::END, special::CALL]);
    let count = Reply { answer: Some(Content::Regex("a{2,3}".into())), ..Reply::default() };
    assert_eq!(exits_after(&count, &format!("{answer}a")), [0_u32; 0]);
    assert_eq!(exits_after(&count, &format!("{answer}aa")), [special::RETURN, special::END]);
    assert_eq!(exits_after(&count, &format!("{answer}aaa")), [special::RETURN, special::END]);
    let text = Walk::new(&Rules::Text(Content::Choice(vec!["ab".into()]))).map(|mut walk| {
        tokens("ab").iter().for_each(|&token| walk.push(token).unwrap());
        let mask = walk.mask().unwrap();
        (0..Tokenizer::VOCAB_SIZE as u32).filter(|&id| allows(&mask, id)).collect::<Vec<_>>()
    });
    assert_eq!(text.unwrap(), [special::ENDOFTEXT, special::RETURN, special::CALL]);
}

#[test]
fn a_forced_header_is_part_of_the_reply() {
    let forced = tokens("<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>");
    let rules = Reply { forced, ..tools() };
    assert!(is_allowed(&rules, "{\"city\":\"Oslo\"}<|call|>"));
    assert!(!is_allowed(&rules, "Hello"));
    let rules = Reply { forced: tokens("<|channel|>commentary to=functions"), ..tools() };
    assert!(is_allowed(&rules, ".get_weather <|constrain|>json<|message|>{\"city\":\"Oslo\"}<|call|>"));
    assert!(is_allowed(&rules, ".get<|message|>whatever<|call|>"));
    assert!(!is_allowed(&rules, ".got"));
    let impossible = Rules::Reply(Reply { forced: tokens("<|channel|>final<|message|>x<|start|>"), ..tools() });
    assert!(matches!(impossible.constraint(), Err(RulesError::Header(_))));
}

#[test]
fn whatever_is_written_under_rules_is_well_formed() {
    let mut random = Random(11);
    let (mut answers, mut calls) = (0, 0);
    for _ in 0..60 {
        let rules = Reply { answer: Some(Content::Json(schema())), ..tools() };
        let Some(written) = write(&Rules::Reply(rules), &mut random, 800) else { continue };
        let reply = read(&written);
        match &reply.calls[..] {
            [] => {
                let value: Value =
                    serde_json::from_str(&reply.content).unwrap_or_else(|error| panic!("{error}: {reply:?}"));
                assert!(["Oslo", "Rome"].contains(&value["city"].as_str().unwrap()));
                answers += 1;
            }
            [(name, arguments)] => {
                assert_eq!(reply.content, "");
                assert!(["get_weather", "get"].contains(&&**name), "{name}");
                if name == "get_weather" {
                    let value: Value = serde_json::from_str(arguments).unwrap();
                    assert!(["Oslo", "Rome"].contains(&value["city"].as_str().unwrap()));
                }
                calls += 1;
            }
            more => panic!("{more:?}"),
        }
    }
    assert!(answers > 2 && calls > 2, "{answers} answers, {calls} calls");
}

#[test]
fn masks_follow_from_rules_and_tokens_alone() {
    let rules = Rules::Reply(Reply { answer: Some(Content::Json(schema())), ..tools() });
    let constraint = rules.constraint().unwrap();
    let written = tokens(
        "<|channel|>analysis<|message|>x<|end|><|start|>assistant<|channel|>final<|message|>\
                          {\"city\": \"Oslo\"}<|return|>",
    );
    let mut walk = Walk::new(&rules).unwrap();
    let (mut first, mut second) = (Masks::start(1).unwrap(), Masks::start(3).unwrap());
    first.begin(5, &constraint, &[]);
    for (at, &token) in written.iter().enumerate() {
        let expected = walk.mask().unwrap();
        assert_eq!(first.mask(5).unwrap(), expected, "at {at}");
        // The same mask again, by whoever resumes the request after a preemption.
        second.begin(0, &constraint, &written[..at]);
        assert_eq!(second.mask(0).unwrap(), expected, "resumed at {at}");
        second.end(0);
        first.push(5, token, Ahead::IfLikely);
        walk.push(token).unwrap();
    }
    assert_eq!(first.mask(5).unwrap(), walk.mask().unwrap());
}

/// Whether masks were computed ahead, on demand, or not at all.
#[test]
fn what_is_allowed_does_not_depend_on_who_asked_for_masks() {
    let rules = Rules::Reply(Reply { answer: Some(Content::Json(json!({"type": "object"}))), ..tools() });
    let constraint = rules.constraint().unwrap();
    let mut random = Random(11);
    let mut masks = Masks::start(2).unwrap();
    for _ in 0..5 {
        let Some(written) = write(&rules, &mut random, 400) else { continue };
        // Slot 0 has every mask asked for, slot 1 none after the first, slot 2 some.
        (0..3).for_each(|slot| masks.begin(slot, &constraint, &[]));
        for (at, &token) in written.iter().enumerate() {
            let whole = masks.mask(0).unwrap();
            let asked = [token, random.below(300) as u32, random.below(Tokenizer::VOCAB_SIZE) as u32];
            for token in asked {
                (0..3).for_each(|slot| assert_eq!(masks.allows(slot, token), Ok(allows(&whole, token)), "at {at}"));
            }
            let narrow = [0, 1, 2].map(|slot| masks.is_narrow(slot).unwrap());
            assert!(narrow == [true; 3] || narrow == [false; 3], "{narrow:?} at {at}");
            if random.below(2) == 0 {
                masks.order(2);
            }
            if random.below(3) == 0 {
                assert_eq!(masks.mask(2).unwrap(), whole, "at {at}");
            }
            let ahead = [Ahead::Always, Ahead::Never, Ahead::IfLikely];
            (0..3).zip(ahead).for_each(|(slot, ahead)| masks.push(slot, token, ahead));
        }
        assert_eq!(masks.mask(1).unwrap(), masks.mask(0).unwrap());
        (0..3).for_each(|slot| masks.end(slot));
    }
}

/// Structure is narrow, text is not, and where it is narrow a mask has few tokens.
#[test]
fn only_text_is_not_narrow() {
    let schema = json!({"type": "object", "properties": {
        "city": {"type": "string"}, "days": {"type": "integer"}, "unit": {"enum": ["C", "F"]}},
        "required": ["city", "days", "unit"], "additionalProperties": false});
    let rules = Rules::Reply(Reply { answer: Some(Content::Json(schema)), ..Reply::default() });
    let pieces = [
        ("<|channel|>", true),
        ("analysis<|message|>Where is", false),
        ("<|end|><|start|>assistant<|channel|>final<|message|>{\"", true),
        ("city\":", true),
        ("\"Oslo, Nor", false),
        ("way\", \"days\": 12", true),
        ("3, \"unit\": \"C\"}", true),
    ];
    let mut masks = Masks::start(1).unwrap();
    masks.begin(0, &rules.constraint().unwrap(), &[]);
    for (piece, narrow_after) in pieces {
        for token in tokens(piece) {
            masks.push(0, token, Ahead::IfLikely);
        }
        assert_eq!(masks.is_narrow(0), Ok(narrow_after), "after {piece}");
        let allowed: u32 = masks.mask(0).unwrap().iter().map(|word| word.count_ones()).sum();
        assert_eq!(allowed < 10_000, narrow_after, "{allowed} tokens after {piece}");
    }
}

/// Masks of structure are there before anybody asks; those of text only where a token of the text before was refused.
#[test]
fn masks_are_computed_ahead_where_they_are_likely_needed() {
    let rules =
        Rules::Text(Content::Json(json!({"type": "array", "items": {"type": "string", "pattern": "^[a-z]*$"}})));
    let mut masks = Masks::start(1).unwrap();
    masks.begin(0, &rules.constraint().unwrap(), &[]);
    assert!(masks.mask_at_hand(0).is_some());
    let mut push = |text: &str, ahead, refused: bool| {
        if refused {
            assert_eq!(masks.allows(0, tokens("7")[0]), Ok(false));
        }
        tokens(text).into_iter().for_each(|token| masks.push(0, token, ahead));
        masks.mask_at_hand(0).is_some()
    };
    assert!(push("[", Ahead::IfLikely, false), "structure");
    assert!(!push("\"", Ahead::IfLikely, true), "what was refused outside of a text says nothing about it");
    assert!(!push("ab", Ahead::IfLikely, false), "text");
    assert!(push("cd", Ahead::IfLikely, true), "text in which a token was refused");
    assert!(push("ef", Ahead::IfLikely, false), "nothing else was asked since");
    assert!(!push("gh", Ahead::Never, false));
    assert!(push("ij", Ahead::Always, false));
}

#[test]
fn slots_are_apart() {
    let constraint = |word: &str| Rules::Text(Content::Choice(vec![word.into()])).constraint().unwrap();
    let mut masks = Masks::start(2).unwrap();
    let words = ["alpha", "beta", "gamma", "delta"];
    for (slot, word) in (0..).zip(words) {
        masks.begin(slot, &constraint(word), &[]);
    }
    for (slot, word) in (0..4).rev().zip(words.iter().rev()) {
        let first = Tokenizer::shared().encode(word)[0];
        assert!(allows(&masks.mask(slot).unwrap(), first), "{word}");
    }
    // A slot that changes hands while its mask is still being computed.
    masks.push(0, Tokenizer::shared().encode("alpha")[0], Ahead::Always);
    masks.end(0);
    masks.begin(0, &constraint("omega"), &[]);
    let first = Tokenizer::shared().encode("omega")[0];
    assert!(allows(&masks.mask(0).unwrap(), first));
    assert!(masks.mask(9).is_err());
}

/// Compiling takes its time, and whoever cannot wait for it is told so and may ask again.
#[test]
fn a_wait_ends_when_it_was_said_to() {
    let properties: serde_json::Map<String, Value> = (0..2000).map(|i| (format!("p{i}"), schema())).collect();
    let rules = Rules::Text(Content::Json(json!({"type": "object", "properties": properties})));
    let mut masks = Masks::start(1).unwrap();
    // Not checked before, so that it is not in the cache.
    masks.begin(1, &Constraint::new(serde_json::to_string(&rules).unwrap()), &[]);
    let error = masks.ready(1, Instant::now()).unwrap_err();
    assert!(error.contains("took longer"), "{error}");
    masks.ready(1, Instant::now() + Duration::from_secs(60)).unwrap();
    assert!(masks.mask(1).is_ok());
}

#[test]
fn what_goes_wrong_is_an_error_of_that_slot_alone() {
    let mut masks = Masks::start(1).unwrap();
    masks.begin(0, &Constraint::new("{".into()), &[]);
    masks.begin(1, &Rules::Text(Content::Choice(vec!["a".into()])).constraint().unwrap(), &[]);
    assert!(masks.mask(0).unwrap_err().contains("constraint"));
    masks.push(0, 5, Ahead::Never);
    assert!(masks.mask(0).is_err());
    assert!(masks.mask(1).is_ok());
    // A token that was not allowed.
    masks.push(1, Tokenizer::shared().encode("z")[0], Ahead::Never);
    assert!(masks.mask(1).is_err());
}
