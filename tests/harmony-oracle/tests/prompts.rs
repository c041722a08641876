//! Our prompts against the library's: the same, but for the differences listed here, each of them meant.

use harmony_oracle::generate::conversation;
use harmony_oracle::reference::{encoding, messages, prompt};
use openai_harmony::chat::Role;
use openai_harmony::{HarmonyEncoding, StreamableParser};
use serde_json::{json, Value};
use tandem_harmony::{render, special, Conversation, Message, RecipientPosition, Tokenizer, Tool, ToolCall};

const SEEDS: u64 = 500;

fn library() -> &'static HarmonyEncoding {
    encoding(env!("CARGO_TARGET_TMPDIR"))
}

fn ours(conversation: &Conversation) -> Vec<u32> {
    render(conversation).expect("a conversation without faults").tokens
}

fn text(tokens: &[u32]) -> String {
    Tokenizer::shared().decode(tokens)
}

#[test]
fn generated_conversations_have_the_same_prompt() {
    let mut calls = 0;
    let mut with_analysis = 0;
    for seed in 0..SEEDS {
        let conversation = conversation(seed);
        let ours = ours(&conversation);
        let theirs = prompt(library(), &conversation);
        assert_eq!(text(&ours), text(&theirs), "seed {seed}");
        assert_eq!(ours, theirs, "seed {seed}: the same text in other tokens");
        calls += ours.iter().filter(|&&token| token == special::CALL).count();
        with_analysis += usize::from(text(&ours).contains("<|channel|>analysis"));
    }
    assert!(calls > 500 && with_analysis > 100, "the generator covers calls ({calls}) and analysis ({with_analysis})");
}

/// Difference 1: we put the recipient of a call where the model puts it. The library reads that as the same message.
#[test]
fn recipients_in_the_channel_position_mean_the_same() {
    let mut different = 0;
    for seed in 0..SEEDS / 2 {
        let in_role = conversation(seed);
        let in_channel = Conversation { recipient: RecipientPosition::Channel, ..in_role.clone() };
        let (in_role, in_channel) = (ours(&in_role), ours(&in_channel));
        different += usize::from(in_role != in_channel);
        assert_eq!(read_back(&in_role), read_back(&in_channel), "seed {seed}");
    }
    assert!(different > 100, "{different} conversations with calls");
}

/// What the library understands of a prompt: author, recipient, channel, content type and text of each message.
fn read_back(prompt: &[u32]) -> Vec<Value> {
    let mut parser = StreamableParser::new(library().clone(), None).expect("a parser");
    for &token in &prompt[..prompt.len() - 2] {
        parser.process(token).expect("a well-formed prompt");
    }
    parser.messages().iter().map(|message| serde_json::to_value(message).expect("a message is JSON")).collect()
}

/// Difference 2: which reasoning is dropped. The library keeps that of all turns but the first; it keeps everything
/// as soon as the last assistant message is a call. We drop that of finished turns, and keep that of the turn at hand.
#[test]
fn analysis_of_finished_turns_is_dropped() {
    let assistant = |reasoning: &str| Message::Assistant {
        reasoning: Some(reasoning.into()),
        content: Some("done".into()),
        tool_calls: vec![],
        tokens: None,
    };
    let user = || Message::User { text: "go on".into() };
    let conversation = Conversation {
        messages: vec![user(), assistant("first"), user(), assistant("second"), user()],
        date: "2025-06-28".into(),
        ..Conversation::default()
    };
    let theirs = default_prompt(&conversation);
    assert!(!theirs.contains("first") && theirs.contains("second"), "{theirs}");
    let ours = text(&ours(&conversation));
    assert!(!ours.contains("first") && !ours.contains("second"), "{ours}");

    let call = ToolCall { id: "1".into(), name: "find".into(), arguments: "{}".into() };
    let mut in_progress = conversation;
    in_progress.messages.push(Message::Assistant {
        reasoning: Some("third".into()),
        content: None,
        tool_calls: vec![call],
        tokens: None,
    });
    let theirs = default_prompt(&in_progress);
    assert!(["first", "second", "third"].iter().all(|reasoning| theirs.contains(reasoning)), "{theirs}");
    let ours = text(&self::ours(&in_progress));
    assert!(!ours.contains("first") && !ours.contains("second") && ours.contains("third"), "{ours}");
}

/// The prompt of the whole conversation as the library renders it with its defaults.
fn default_prompt(conversation: &Conversation) -> String {
    let everything = messages(&Conversation { keep_analysis: true, ..conversation.clone() });
    let defaults = Some(&Default::default());
    let tokens = library().render_conversation_for_completion(&everything, Role::Assistant, defaults);
    text(&tokens.expect("the library renders it"))
}

/// Difference 3: names that the model could take for something else.
#[test]
fn illegal_names_are_mapped() {
    let (theirs, ours) = declarations("python", Value::Null);
    assert_eq!((theirs.as_str(), ours.as_str()), ("type python = () => any;", "type python_tool = () => any;"));
    let (theirs, ours) = declarations("a.b", Value::Null);
    assert_eq!((theirs.as_str(), ours.as_str()), ("type a.b = () => any;", "type a_b = () => any;"));
}

/// The declaration of a tool by the library and by us.
fn declarations(name: &str, parameters: Value) -> (String, String) {
    let tool = Tool { name: name.into(), description: String::new(), parameters };
    let conversation = Conversation { tools: vec![tool], date: "2025-06-28".into(), ..Conversation::default() };
    let declaration = |tokens: Vec<u32>| {
        let text = text(&tokens);
        let (_, text) = text.split_once("namespace functions {\n\n").expect("the namespace opens");
        let (text, _) = text.split_once("\n\n} // namespace functions").expect("the namespace closes");
        text.to_string()
    };
    (declaration(prompt(library(), &conversation)), declaration(ours(&conversation)))
}

/// The declaration of a function of one property `p`, less what is the same for all.
fn property(schema: &Value) -> (String, String) {
    let parameters = json!({"type": "object", "properties": {"p": schema}, "$defs": {"D": {"type": "string"}}});
    let (theirs, ours) = declarations("f", parameters);
    let inner = |text: String| {
        let text = text.strip_prefix("type f = (_: {\n").and_then(|text| text.strip_suffix("\n}) => any;"));
        text.expect("a function of one object").to_string()
    };
    (inner(theirs), inner(ours))
}

/// Difference 4: what the library loses or garbles of a schema. Each line: the schema, the library's type, ours.
#[test]
fn schemas_lose_nothing() {
    let differences = [
        // Lost altogether.
        (json!({"anyOf": [{"type": "string"}, {"type": "null"}]}), "p?: any,", "p?: string | null,"),
        (json!({"allOf": [{"type": "string"}]}), "p?: any,", "p?: string,"),
        (json!({"$ref": "#/$defs/D"}), "p?: any,", "p?: string,"),
        (json!({"const": "on"}), "p?: any,", "p?: \"on\","),
        (json!({"type": "null"}), "p?: any,", "p?: null,"),
        (json!({"properties": {"a": {}}}), "p?: any,", "p?: {\n    a?: any,\n    },"),
        // Enums of other than strings, or of no type.
        (json!({"type": "integer", "enum": [1, 2]}), "p?: number,", "p?: 1 | 2,"),
        (json!({"enum": ["a", "b"]}), "p?: any,", "p?: \"a\" | \"b\","),
        (json!({"type": ["string", "null"], "enum": ["a", null]}), "p?: string | null,", "p?: \"a\" | null,"),
        (json!({"type": "string", "enum": ["a\"b"]}), "p?: \"a\"b\",", "p?: \"a\\\"b\","),
        // The values of a map.
        (
            json!({"type": "object", "additionalProperties": {"type": "integer"}}),
            "p?: {\n    },",
            "p?: {\n    [key: string]: number,\n    },",
        ),
        // Arrays of unions.
        (
            json!({"type": "array", "items": {"type": "string", "enum": ["a", "b"]}}),
            "p?: \"a\" | \"b\"[],",
            "p?: (\"a\" | \"b\")[],",
        ),
        (
            json!({"type": "array", "items": {"type": ["string", "null"]}}),
            "p?: string | null[],",
            "p?: (string | null)[],",
        ),
        (
            json!({"type": "array", "items": {"type": "string", "nullable": true}}),
            "p?: string[],",
            "p?: (string | null)[],",
        ),
        (
            json!({"type": "array", "items": {"oneOf": [{"type": "string"}, {"type": "number"}]}}),
            "p?: \n     | string\n     | number[],",
            "p?: (string | number)[],",
        ),
        (json!({"type": ["array", "null"], "items": {"type": "string"}}), "p?: array | null,", "p?: string[] | null,"),
        (json!({"type": ["integer", "number"]}), "p?: number | number,", "p?: number,"),
        // Comments that end too soon, or say a thing twice, or not at all.
        (json!({"type": "string", "description": "a\nb"}), "// a\nb\np?: string,", "// a\n// b\np?: string,"),
        (json!({"type": "object", "description": "a"}), "// a\np?:     // a\n{\n    },", "// a\np?: {\n    },"),
        (
            json!({"type": "string", "default": "a\nb"}),
            "p?: string, // default: \"a\nb\"",
            "p?: string, // default: \"a\\nb\"",
        ),
        (json!({"type": "integer", "examples": [1]}), "// Examples:\np?: number,", "// Examples:\n// - 1\np?: number,"),
        (
            json!({"description": "a", "oneOf": [{"type": "string", "description": "b"}]}),
            "// a\np?:\n | string\n,",
            "// a\np?:\n | string // b\n,",
        ),
    ];
    for (schema, theirs, ours) in differences {
        assert_eq!(property(&schema), (theirs.to_string(), ours.to_string()), "{schema}");
    }
    let name = json!({"type": "object", "properties": {"x-y": {"type": "string"}}});
    let (theirs, ours) = declarations("f", name);
    assert_eq!(theirs, "type f = (_: {\nx-y?: string,\n}) => any;");
    assert_eq!(ours, "type f = (_: {\n\"x-y\"?: string,\n}) => any;");
}
