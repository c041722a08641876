//! Our parser against the library's, on replies that both take.

use harmony_oracle::generate::Random;
use harmony_oracle::reference::encoding;
use openai_harmony::chat::{Content, Message, Role};
use tandem_harmony::{Event, Parser, Tokenizer, Tool, ToolNames};

/// Reasoning, visible text and calls, of each the messages in order.
type Reply = (Vec<String>, Vec<String>, Vec<(String, String)>);

#[test]
fn generated_replies_are_read_alike() {
    let library = encoding(env!("CARGO_TARGET_TMPDIR"));
    for seed in 0..500 {
        let tokens = reply(&mut Random::new(seed));
        let theirs = library.parse_messages_from_completion_tokens(tokens.iter().copied(), Some(Role::Assistant));
        let theirs = theirs.expect("the library reads well-formed replies");
        assert_eq!(read(&tokens), of_messages(&theirs), "seed {seed}: {}", Tokenizer::shared().decode(&tokens));
    }
}

/// What a well-behaved model writes: reasoning, perhaps a preamble, then a call or an answer.
fn reply(random: &mut Random) -> Vec<u32> {
    let tokenizer = Tokenizer::shared();
    let mut tokens = Vec::new();
    let mut message = |header: &str, text: &str, end: &str| {
        tokens.extend(tokenizer.encode_with_special(header));
        tokens.extend(tokenizer.encode(text));
        tokens.extend(tokenizer.encode_with_special(end));
    };
    for _ in 0..random.below(3) {
        message("<|channel|>analysis<|message|>", &random.text(), "<|end|><|start|>assistant");
    }
    if random.below(3) == 0 {
        message("<|channel|>commentary<|message|>", &random.text(), "<|end|><|start|>assistant");
    }
    let calls = [
        "<|channel|>commentary to=functions.find <|constrain|>json<|message|>",
        "<|channel|>commentary to=functions.find<|constrain|>json<|message|>",
        " to=functions.find<|channel|>commentary <|constrain|>json<|message|>",
        " to=functions.find<|channel|>commentary<|message|>",
        "<|channel|>analysis to=functions.find code<|message|>",
    ];
    match calls.get(random.below(2 * calls.len())) {
        Some(header) => message(header, &random.text(), "<|call|>"),
        None => message("<|channel|>final<|message|>", &random.text(), "<|return|>"),
    }
    tokens
}

fn of_messages(messages: &[Message]) -> Reply {
    let mut reply = Reply::default();
    for message in messages {
        let Content::Text(text) = &message.content[0] else { panic!("a message of text") };
        let text = text.text.clone();
        match (&message.recipient, message.channel.as_deref()) {
            (Some(recipient), _) => reply.2.push((recipient.replace("functions.", ""), text)),
            (None, Some("analysis")) => reply.0.push(text),
            (None, _) => reply.1.push(text),
        }
    }
    // We join messages of a kind by an empty line.
    let joined = |texts: Vec<String>| if texts.is_empty() { texts } else { vec![texts.join("\n\n")] };
    (joined(reply.0), joined(reply.1), reply.2)
}

fn read(tokens: &[u32]) -> Reply {
    let find = Tool { name: "find".into(), description: String::new(), parameters: Default::default() };
    let mut parser = Parser::new(&ToolNames::new(&[find]).expect("a legal tool"));
    let mut events = parser.push_all(tokens);
    events.extend(parser.finish().0);
    let mut reply = Reply::default();
    let append = |texts: &mut Vec<String>, delta: &str| match texts.last_mut() {
        Some(text) => *text += delta,
        None => texts.push(delta.to_string()),
    };
    for event in events {
        match event {
            Event::Reasoning(delta) => append(&mut reply.0, &delta),
            Event::Content(delta) => append(&mut reply.1, &delta),
            Event::ToolCallStart { name, .. } => reply.2.push((name, String::new())),
            Event::ToolCallArguments { index, delta } => reply.2[index].1 += &delta,
            Event::ToolCallEnd { .. } => {}
        }
    }
    reply
}
