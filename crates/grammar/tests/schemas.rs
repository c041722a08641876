//! Whatever a model writes under a schema parses and is valid, by the word of another implementation.

mod common;

use common::{Random, read, text, write};
use serde_json::{Value, json};
use tandem_grammar::{Content, Reply, Rules};

/// Replies per schema.
const REPLIES: usize = 12;
/// Tokens after which a reply is given up.
const BUDGET: usize = 1500;

/// Writes replies under a schema, checks each, and returns them.
fn replies(schema: &Value) -> Vec<Value> {
    let options = jsonschema::options().should_validate_formats(true).with_draft(jsonschema::Draft::Draft202012);
    let validator = options.build(schema).expect("the schema is one");
    let answer = Some(Content::Json(schema.clone()));
    let rules = Rules::Reply(Reply { answer, ..Reply::default() });
    let mut random = Random(7);
    let mut values = Vec::new();
    for _ in 0..REPLIES {
        let Some(tokens) = write(&rules, &mut random, BUDGET) else { continue };
        let reply = read(&tokens);
        assert_eq!((reply.recovered, reply.calls.len()), (0, 0), "{reply:?}");
        let value: Value = serde_json::from_str(&reply.content).unwrap_or_else(|error| panic!("{error}: {reply:?}"));
        if let Err(error) = validator.validate(&value) {
            panic!("{error}\n{value}\ndoes not fit {schema}");
        }
        values.push(value);
    }
    assert!(values.len() >= REPLIES / 3, "only {} of {REPLIES} replies ended: {schema}", values.len());
    values
}

#[test]
fn objects() {
    replies(&json!({"type": "object", "properties": {
        "name": {"type": "string"}, "age": {"type": "integer", "minimum": 0, "maximum": 150},
        "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3}},
        "required": ["name", "age"], "additionalProperties": false}));
    let open = json!({"type": "object", "properties": {"a": {"type": "null"}}, "required": ["a"],
        "additionalProperties": {"type": "integer"}});
    replies(&open);
    replies(
        &json!({"type": "object", "patternProperties": {"^x-": {"type": "boolean"}}, "additionalProperties": false,
        "maxProperties": 3}),
    );
    replies(&json!({"type": "object", "required": ["b"], "properties": {"a": {"const": 1}, "b": {"const": 2}},
        "additionalProperties": false}));
}

#[test]
fn properties_come_in_the_schemas_order() {
    let schema = json!({"type": "object", "properties": {"z": {"type": "null"}, "a": {"type": "null"}},
        "required": ["a", "z"], "additionalProperties": false});
    for value in replies(&schema) {
        assert_eq!(value.to_string(), r#"{"z":null,"a":null}"#);
    }
}

#[test]
fn arrays() {
    for value in replies(&json!({"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 4})) {
        assert!((2..=4).contains(&value.as_array().unwrap().len()));
    }
    replies(&json!({"type": "array", "prefixItems": [{"type": "integer"}, {"type": "boolean"}], "items": false}));
}

#[test]
fn strings() {
    replies(&json!({"type": "string", "minLength": 3, "maxLength": 9}));
    replies(&json!({"type": "string", "pattern": "^[A-Z]{2}-\\d{3,5}$"}));
    replies(&json!({"type": "string", "pattern": "^ä+ß$"}));
    replies(&json!({"type": "string", "format": "date", "pattern": "-02-"}));
    for format in ["date", "time", "date-time", "duration", "uuid", "ipv4", "ipv6", "email", "hostname", "uri"] {
        replies(&json!({"type": "string", "format": format}));
    }
}

#[test]
fn numbers() {
    replies(&json!({"type": "integer", "minimum": -17, "maximum": 4242}));
    replies(&json!({"type": "integer", "exclusiveMinimum": 9, "exclusiveMaximum": 12}));
    replies(&json!({"type": "number", "minimum": 0.25, "maximum": 1.5}));
    replies(&json!({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 100}));
}

#[test]
fn choices_between_schemas() {
    replies(&json!({"anyOf": [{"type": "integer"}, {"type": "object", "properties": {"x": {"type": "null"}},
        "required": ["x"], "additionalProperties": false}]}));
    replies(&json!({"enum": ["a", "b\"c", "ü\n", 3, null, [1, {"k": true}]]}));
    replies(&json!({"const": {"fixed": [1, 2, "three"]}}));
    replies(&json!({"type": ["string", "null"], "maxLength": 4}));
    replies(&json!({"oneOf": [{"type": "integer"}, {"type": "string", "maxLength": 4}]}));
    replies(&json!({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}));
}

#[test]
fn references_also_recursive_ones() {
    replies(&json!({"$defs": {"point": {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"],
        "additionalProperties": false}}, "type": "array", "items": {"$ref": "#/$defs/point"}, "maxItems": 2}));
    replies(&json!({"type": "object", "properties": {"value": {"type": "integer"}, "next": {"anyOf":
        [{"$ref": "#"}, {"type": "null"}]}}, "required": ["value", "next"], "additionalProperties": false}));
    replies(&json!({"$ref": "#/definitions/tree", "definitions": {"tree": {"type": "object", "properties":
        {"leaf": {"type": "boolean"}, "children": {"type": "array", "items": {"$ref": "#/definitions/tree"},
        "maxItems": 1}}, "required": ["leaf"], "additionalProperties": false}}}));
}

#[test]
fn any_object() {
    for value in replies(&json!({"type": "object"})) {
        assert!(value.is_object());
    }
}

#[test]
fn unicode_in_names_and_values() {
    for value in replies(&json!({"type": "object", "properties": {"größe \"in\" 米": {"enum": ["🦀", "é"]}},
        "required": ["größe \"in\" 米"], "additionalProperties": false}))
    {
        assert_eq!(value.as_object().unwrap().len(), 1);
    }
}

#[test]
fn raw_texts() {
    let mut random = Random(3);
    let mut write_text = |content: Content| loop {
        if let Some(tokens) = write(&Rules::Text(content.clone()), &mut random, BUDGET) {
            break text(&tokens);
        }
    };
    let pattern = |text: &str| regex::Regex::new(text).unwrap();
    let (address, letters) = (pattern(r"^(?:\w{2,5}@\d+\.com)$"), pattern("^a+b?$"));
    let sum = pattern(r"^[0-9]{1,2}(\+[0-9]{1,2})*$");
    for _ in 0..REPLIES {
        let text = write_text(Content::Regex(r"\w{2,5}@\d+\.com".into()));
        assert!(address.is_match(&text), "{text:?}");
        let text = write_text(Content::Regex(r"^a+b?$".into()));
        assert!(letters.is_match(&text), "{text:?}");
        let text = write_text(Content::Choice(vec!["a.b".into(), "a.b.c".into(), "(x|y)*".into()]));
        assert!(["a.b", "a.b.c", "(x|y)*"].contains(&&*text), "{text:?}");
        let text = write_text(Content::Lark("start: sum\nsum: N (\"+\" N)*\nN: /[0-9]{1,2}/".into()));
        assert!(sum.is_match(&text), "{text:?}");
        serde_json::from_str::<Value>(&write_text(Content::json_object())).unwrap();
    }
}

#[test]
fn what_is_not_supported_is_refused_by_its_place() {
    let cases = [
        (json!({"type": "object", "properties": {"a": {"not": {}}}}), ".properties.a.not"),
        (json!({"items": {"uniqueItems": true}}), ".items.uniqueItems"),
        (json!({"anyOf": [{}, {"if": {}}]}), ".anyOf[1].if"),
        (json!({"type": "object", "nullable": true}), ".nullable"),
        (json!({"properties": {"x": 5}}), ".properties.x"),
        (json!({"properties": []}), ".properties"),
        (json!({"type": "strin"}), ""),
        (json!({"properties": {"x": {"type": "strin"}}}), ".properties.x"),
        (json!({"properties": {"x": {"type": "string", "format": "color"}}}), ".properties.x"),
        (json!({"properties": {"x": {"type": "string", "pattern": "(?=a)b"}}}), ".properties.x"),
        (json!({"items": {"type": "string", "pattern": "("}}), ".items"),
        (json!({"minLength": -1}), ".minLength"),
        (json!({"minimum": "1"}), ".minimum"),
        (json!({"required": "a"}), ".required"),
        (json!({"enum": []}), ".enum"),
        (json!({"enum": [1, 9_007_199_254_740_993_u64]}), ".enum[1]"),
        (json!({"$ref": "#/$defs/none"}), ".$ref"),
        (json!({"$ref": "https://example.com/schema"}), ".$ref"),
        (
            json!({"type": "object", "properties": {"n": {"type": "integer", "minimum": 5, "maximum": 4}}, "required": ["n"]}),
            "",
        ),
        (json!({"properties": {"n": {"oneOf": [{"type": "integer"}, {"type": "integer"}]}}}), ".properties.n"),
        (json!([]), ""),
        (json!(false), ""),
    ];
    for (schema, path) in cases {
        let error = Content::Json(schema.clone()).check().expect_err(&schema.to_string());
        assert_eq!(error.path, path, "{schema}: {error}");
        assert!(!error.message.is_empty() && !error.message.contains('<'), "{error}");
    }
}

#[test]
fn annotations_are_no_obstacle() {
    let schema = json!({"$schema": "http://json-schema.org/draft-07/schema#", "$id": "x", "title": "T", "type": "object",
        "x-guidance": {"lenient": true}, "x-order": 3, "properties": {"x": {"type": "integer", "description": "d",
        "default": {"not": "a schema"}, "examples": [1], "deprecated": true}}});
    Content::Json(schema).check().unwrap();
}

#[test]
fn other_contents_are_checked_too() {
    let refused = |content: Content| content.check().unwrap_err().message;
    assert!(refused(Content::Regex("a(".into())).contains("unclosed group"));
    assert!(refused(Content::Regex("(?!a)b".into())).contains("look-around"));
    assert!(refused(Content::Choice(vec![])).contains("no choice"));
    assert!(refused(Content::Lark("root ::= \"a\"".into())).contains("Lark"));
    assert!(refused(Content::Lark("start: missing".into())).contains("missing"));
    assert!(refused(Content::Lark("start: <|end|> \"a\"".into())).contains("control tokens"));
    assert!(refused(Content::Lark("start: <[200007]> \"a\"".into())).contains("control tokens"));
    assert!(refused(Content::Regex("a".repeat(300_000))).contains("at most"));
    assert!(refused(Content::Lark("".into())).len() > 3);
}

#[test]
fn blanks_are_few() {
    let rules =
        Rules::Text(Content::Json(json!({"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2})));
    let takes = |text: &str| {
        let mut walk = tandem_grammar::Walk::new(&rules).unwrap();
        tandem_harmony::Tokenizer::shared().encode(text).iter().all(|&token| {
            let mask = walk.mask().unwrap();
            mask[token as usize / 32] >> (token % 32) & 1 == 1 && walk.push(token).is_ok()
        })
    };
    assert!(takes("[1,1]") && takes("[1, 1]") && takes("[\n  1,\n  1\n]") && takes("[\r\n\t1 ,\r\n\t1\r\n]"));
    assert!(!takes("[\n\n1,1]") && !takes("[  1,1]") && !takes("\n[") && !takes("[1,1]\n"));
}
