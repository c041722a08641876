//! Stop strings, in whatever pieces the text arrives.

use proptest::prelude::*;
use tandem_harmony::StopStrings;

/// The text shown and the stop string found, for a text in pieces.
fn run<'a>(stops: &[&str], pieces: impl IntoIterator<Item = &'a str>) -> (String, Option<usize>) {
    let mut matcher = StopStrings::new(stops.iter().map(|stop| stop.to_string()));
    let mut shown = String::new();
    let mut matched = None;
    for piece in pieces {
        let output = matcher.push(piece);
        shown += &output.text;
        matched = output.matched;
    }
    (shown + &matcher.finish(), matched)
}

#[test]
fn cuts_before_the_match() {
    assert_eq!(run(&["END"], ["one END two"]), ("one ".into(), Some(0)));
    assert_eq!(run(&["END"], ["one E", "N", "D two", "three"]), ("one ".into(), Some(0)));
    assert_eq!(run(&["END"], ["one EN", "d"]), ("one ENd".into(), None));
    assert_eq!(run(&["END"], ["one EN"]), ("one EN".into(), None), "what was held back comes at the end");
}

#[test]
fn the_first_to_be_complete_wins() {
    assert_eq!(run(&["abcd", "bc"], ["abcd"]), ("a".into(), Some(1)));
    assert_eq!(run(&["bc", "abc"], ["abc"]), ("".into(), Some(1)), "of two complete at once, the longer");
    assert_eq!(run(&["aab"], ["aaab"]), ("a".into(), Some(0)), "a match may begin inside a failed one");
}

#[test]
fn holds_back_no_more_than_may_match() {
    let mut matcher = StopStrings::new(["\n\n".to_string()]);
    assert_eq!(matcher.push("x\n").text, "x");
    assert_eq!(matcher.push("y").text, "\ny");
}

#[test]
fn empty_stop_strings_never_match() {
    assert_eq!(run(&["", "é"], ["naïve"]), ("naïve".into(), None));
    assert_eq!(run(&[], ["text"]), ("text".into(), None));
}

proptest! {
    #[test]
    fn pieces_make_no_difference(text in "[abé]{0,24}", stops in prop::collection::vec("[abé]{0,4}", 0..4)) {
        let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
        let whole = run(&stops, [text.as_str()]);
        let mut buffer = [0; 4];
        let chars: Vec<String> = text.chars().map(|char| char.encode_utf8(&mut buffer).to_string()).collect();
        prop_assert_eq!(&run(&stops, chars.iter().map(String::as_str)), &whole);
        match whole.1 {
            Some(index) => prop_assert!(text.starts_with(&(whole.0 + stops[index]))),
            None => {
                prop_assert_eq!(&whole.0, &text);
                prop_assert!(stops.iter().all(|stop| stop.is_empty() || !text.contains(stop)));
            }
        }
    }
}
