//! Seeded conversations, within what the library renders right.

use serde_json::{json, Map, Value};
use tandem_harmony::{Conversation, Effort, Message, RecipientPosition, Tool, ToolCall};

const WORDS: [&str; 24] = [
    "weather",
    "Paris",
    "42",
    "naïve",
    "日本語",
    "🦀",
    "<|end|>",
    "<|start|>assistant",
    "\n\n",
    "  ",
    "{\"a\": 1}",
    "I'm",
    "don't",
    "x = y + 1;",
    "http://a.b/c?d=e",
    "e\u{301}",
    "\t",
    "...",
    "C++",
    "NULL",
    "\r\n",
    "- item",
    "ß",
    "1,000",
];

/// Random numbers by splitmix64 (Steele, Lea and Flood, 2014).
pub struct Random(u64);

impl Random {
    /// The same numbers for the same seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((mixed ^ (mixed >> 31)) % end as u64) as usize
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    fn pick<'a>(&mut self, items: &[&'a str]) -> &'a str {
        items[self.below(items.len())]
    }

    /// Text of any kind, not empty.
    pub fn text(&mut self) -> String {
        let words: Vec<&str> = (0..=self.below(12)).map(|_| self.pick(&WORDS)).collect();
        words.join(self.pick(&[" ", "", "\n"])) + "."
    }

    /// A line of plain words.
    fn line(&mut self) -> String {
        let words = ["the", "city", "to", "look", "up,", "e.g.", "Paris", "(FR)", "in", "°C"];
        (0..=self.below(6)).map(|_| self.pick(&words)).collect::<Vec<_>>().join(" ")
    }
}

/// A conversation with everything that both sides render alike.
pub fn conversation(seed: u64) -> Conversation {
    let mut random = Random::new(seed);
    let random = &mut random;
    let tools: Vec<Tool> = (0..random.below(5)).map(|index| tool(random, index)).collect();
    let mut messages = Vec::new();
    if random.chance(60) {
        messages.push(instructions(random));
    }
    let mut calls = 0;
    for _ in 0..=random.below(4) {
        messages.push(Message::User { text: random.text() });
        if random.chance(20) {
            messages.push(instructions(random));
        }
        turn(random, &tools, &mut calls, &mut messages);
    }
    Conversation {
        messages,
        tools,
        effort: [Effort::Low, Effort::Medium, Effort::High][random.below(3)],
        date: format!("20{}-0{}-1{}", 10 + random.below(90), 1 + random.below(9), random.below(10)),
        keep_analysis: random.chance(30),
        recipient: RecipientPosition::Role,
    }
}

fn instructions(random: &mut Random) -> Message {
    let text = random.text();
    if random.chance(50) {
        Message::System { text }
    } else {
        Message::Developer { text }
    }
}

/// Rounds of tool calls, then an answer or not.
fn turn(random: &mut Random, tools: &[Tool], calls: &mut usize, messages: &mut Vec<Message>) {
    let rounds = if tools.is_empty() { 0 } else { random.below(4) };
    for _ in 0..rounds {
        let tool_calls: Vec<ToolCall> = (0..=random.below(2)).map(|_| call(random, tools, calls)).collect();
        let mut results: Vec<Message> = tool_calls.iter().map(|call| result(random, call)).collect();
        if random.chance(50) {
            results.reverse();
        }
        messages.push(assistant(random, tool_calls));
        messages.extend(results);
    }
    if random.chance(70) {
        messages.push(assistant(random, Vec::new()));
    }
}

fn assistant(random: &mut Random, tool_calls: Vec<ToolCall>) -> Message {
    let reasoning = random.chance(60).then(|| random.text());
    let content = (tool_calls.is_empty() || random.chance(30)).then(|| random.text());
    Message::Assistant { reasoning, content, tool_calls, tokens: None }
}

fn call(random: &mut Random, tools: &[Tool], calls: &mut usize) -> ToolCall {
    *calls += 1;
    let name = tools[random.below(tools.len())].name.clone();
    ToolCall { id: format!("call_{calls}"), name, arguments: json!({"p": random.text()}).to_string() }
}

fn result(random: &mut Random, call: &ToolCall) -> Message {
    Message::ToolResult { call_id: call.id.clone(), name: None, text: random.text() }
}

fn tool(random: &mut Random, index: usize) -> Tool {
    let name = format!("{}{index}", random.pick(&["get_weather", "search-web", "Read", "mcp__files__list"]));
    let lines: Vec<String> = (0..random.below(4)).map(|_| random.line()).collect();
    let parameters = if random.chance(15) { Value::Null } else { object(random, 0) };
    Tool { name, description: lines.join("\n"), parameters }
}

fn object(random: &mut Random, depth: usize) -> Value {
    let mut properties = Map::new();
    for index in 0..random.below(5) {
        properties
            .insert(format!("{}{index}", random.pick(&["city", "unit_of", "maxResults"])), property(random, depth));
    }
    let required: Vec<&String> = properties.keys().filter(|name| name.len() % 2 == 0).collect();
    let mut schema = json!({"type": "object", "properties": properties, "required": required});
    if depth == 0 && random.chance(30) {
        schema["description"] = json!(random.line());
    }
    if random.chance(30) {
        schema["additionalProperties"] = json!(false);
    }
    schema
}

fn property(random: &mut Random, depth: usize) -> Value {
    let mut schema = match random.below(if depth < 2 { 10 } else { 7 }) {
        0 => json!({"type": "string"}),
        1 => json!({"type": "integer", "minimum": 0}),
        2 => json!({"type": "boolean"}),
        3 => json!({"type": "string", "enum": ["celsius", "fahrenheit"]}),
        4 => json!({"type": ["number", "string", "null"]}),
        5 => json!({"type": "array", "items": {"type": "string"}}),
        6 => json!({"type": "array"}),
        7 => return object(random, depth + 1),
        8 => json!({"type": "array", "items": object(random, depth + 1)}),
        _ => return one_of(random),
    };
    let kind = schema["type"].as_str().unwrap_or_default().to_string();
    if random.chance(50) {
        schema["description"] = json!(random.line());
    }
    if random.chance(20) {
        schema["title"] = json!(random.line());
    }
    if random.chance(20) {
        schema["examples"] = json!([random.line(), random.line()]);
    }
    if random.chance(20) && ["string", "integer", "boolean"].contains(&kind.as_str()) {
        schema["nullable"] = json!(true);
    }
    match kind.as_str() {
        "string" if random.chance(30) => schema["default"] = json!("celsius"),
        "integer" if random.chance(30) => schema["default"] = json!(random.below(100)),
        "boolean" if random.chance(30) => schema["default"] = json!(false),
        _ => {}
    }
    schema
}

fn one_of(random: &mut Random) -> Value {
    let mut text = json!({"type": "string"});
    let mut number = json!({"type": "number"});
    if random.chance(50) {
        text["default"] = json!("ten");
    }
    if random.chance(50) {
        number["description"] = json!(random.line());
    }
    let mut schema = json!({"oneOf": [text, number]});
    if random.chance(50) {
        schema["description"] = json!("Either of two");
    }
    if random.chance(50) {
        schema["default"] = json!(10);
    }
    schema
}
