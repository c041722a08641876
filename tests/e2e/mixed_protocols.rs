//! The mixed requests' other protocols: Anthropic's messages, OpenAI's responses, Ollama's chat and generate. Each has its
//! own way to say that a reply has begun, goes on and has ended, which it must keep to whatever the model writes.

use serde_json::{Value, json};

use crate::server::Server;

/// Sends request `number` in one of the other protocols and checks all of its answer. Returns whether it is one of theirs.
pub fn one(server: &Server, number: usize, budget: usize) -> bool {
    let streams = !number.is_multiple_of(3);
    match number % 13 {
        1 | 4 => anthropic(server, number, budget, streams),
        6 | 9 => responses(server, number, budget, streams),
        11 => ollama(server, "/api/chat", number, budget, streams),
        3 => ollama(server, "/api/generate", number, budget, streams),
        _ => return false,
    }
    true
}

fn parameters() -> Value {
    json!({"type": "object", "properties": {"word": {"type": "string"}}, "required": ["word"]})
}

fn question(number: usize) -> String {
    format!("Tell me about {}.", number % 17)
}

fn anthropic(server: &Server, number: usize, budget: usize, streams: bool) {
    let mut body = json!({"model": model(server), "max_tokens": budget, "temperature": 1, "stream": streams,
        "messages": [{"role": "user", "content": question(number)}]});
    if number.is_multiple_of(2) {
        body["tools"] = json!([{"name": "look_up", "description": "Looks up.", "input_schema": parameters()}]);
        let kind = ["auto", "any", "none"][number % 3];
        body["tool_choice"] = json!({"type": kind});
    }
    if number.is_multiple_of(5) {
        body["stop_sequences"] = json!(["e"]);
    }
    let (status, text) = server.post_raw("/v1/messages", body.to_string().as_bytes());
    assert_eq!(status, 200, "{number}: {text}");
    if streams {
        let mut events = named_events(&text);
        // These may come anywhere, also while the request waits in the queue.
        events.retain(|event| event["type"] != "ping");
        let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
        assert_eq!((events[0]["type"].as_str(), of("message_start")), (Some("message_start"), 1), "{number}: {text}");
        assert_eq!((of("message_delta"), of("message_stop"), of("error")), (1, 1, 0), "{number}: {text}");
        assert_eq!(events.last().unwrap()["type"], "message_stop", "{number}: {text}");
        assert_eq!(of("content_block_start"), of("content_block_stop"), "{number}: {text}");
        check_blocks(&events, number);
        let last = events.iter().find(|event| event["type"] == "message_delta").unwrap();
        check_anthropic_end(&last["delta"]["stop_reason"], &last["usage"], budget, number);
    } else {
        let message: Value = serde_json::from_str(&text).expect(&text);
        assert_eq!((&message["type"], &message["role"]), (&json!("message"), &json!("assistant")), "{number}: {text}");
        let blocks = message["content"].as_array().expect("blocks");
        let calls = blocks.iter().filter(|block| block["type"] == "tool_use").count();
        assert!(message["stop_reason"] != "tool_use" || calls > 0, "{number}: {text}");
        assert!(blocks.iter().all(|block| block["type"] != "tool_use" || block["input"].is_object()), "{text}");
        check_anthropic_end(&message["stop_reason"], &message["usage"], budget, number);
    }
}

/// One block is open at a time, numbered from 0, and deltas belong to the one that is.
fn check_blocks(events: &[Value], number: usize) {
    let (mut next, mut open) = (0, None);
    for event in events {
        let index = event["index"].as_u64();
        match event["type"].as_str() {
            Some("content_block_start") => {
                assert_eq!((open, index), (None, Some(next)), "{number}: {event}");
                open = index;
                next += 1;
            }
            Some("content_block_delta") => assert!(open.is_some() && open == index, "{number}: {event}"),
            Some("content_block_stop") => {
                assert!(open.is_some() && open == index, "{number}: {event}");
                open = None;
            }
            _ => {}
        }
    }
    assert_eq!(open, None, "{number}: a block is not closed");
}

fn check_anthropic_end(reason: &Value, usage: &Value, budget: usize, number: usize) {
    let reason = reason.as_str().unwrap_or_default();
    assert!(["end_turn", "max_tokens", "tool_use", "stop_sequence"].contains(&reason), "{number}: {reason}");
    let tokens = usage["output_tokens"].as_u64().expect("output_tokens");
    assert!((1..=budget as u64).contains(&tokens), "{number}: {usage}");
}

fn responses(server: &Server, number: usize, budget: usize, streams: bool) {
    let mut body = json!({"input": question(number), "max_output_tokens": budget, "temperature": 1, "stream": streams,
        "store": number.is_multiple_of(4)});
    if number.is_multiple_of(2) {
        let tool = json!({"type": "function", "name": "look_up", "parameters": parameters(), "strict": false});
        body["tools"] = json!([tool]);
        body["tool_choice"] = json!(["auto", "required", "none"][number % 3]);
    }
    let (status, text) = server.post_raw("/v1/responses", body.to_string().as_bytes());
    assert_eq!(status, 200, "{number}: {text}");
    let ended = if streams {
        let events = named_events(&text);
        for (at, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], at, "{number}: {text}");
        }
        assert_eq!(events[0]["type"], "response.created", "{number}: {text}");
        let terminal = ["response.completed", "response.incomplete", "response.failed", "error"];
        let is_terminal = |event: &Value| terminal.contains(&event["type"].as_str().unwrap_or_default());
        assert_eq!(events.iter().filter(|event| is_terminal(event)).count(), 1, "{number}: {text}");
        let of = |kind: &str| events.iter().filter(|event| event["type"] == kind).count();
        assert_eq!(of("response.output_item.added"), of("response.output_item.done"), "{number}: {text}");
        let last = events.last().unwrap();
        assert!(is_terminal(last), "{number}: {text}");
        last["response"].clone()
    } else {
        serde_json::from_str(&text).expect(&text)
    };
    let reason = ended["status"].as_str().unwrap_or_default();
    assert!(["completed", "incomplete"].contains(&reason), "{number}: {ended}");
    assert!(ended["output"].is_array() && ended["error"].is_null(), "{number}: {ended}");
    let tokens = ended["usage"]["output_tokens"].as_u64().expect("output_tokens");
    assert!((1..=budget as u64).contains(&tokens), "{number}: {ended}");
}

fn ollama(server: &Server, path: &str, number: usize, budget: usize, streams: bool) {
    let options = json!({"temperature": 1, "seed": number, "num_predict": budget});
    let mut body = json!({"model": model(server), "stream": streams, "options": options});
    let is_chat = path == "/api/chat";
    if is_chat {
        body["messages"] = json!([{"role": "user", "content": question(number)}]);
        if number.is_multiple_of(2) {
            let function = json!({"name": "look_up", "description": "Looks up.", "parameters": parameters()});
            body["tools"] = json!([{"type": "function", "function": function}]);
        }
    } else {
        body["prompt"] = json!(question(number));
    }
    if number.is_multiple_of(7) {
        body["format"] = json!("json");
    }
    let (status, text) = server.post_raw(path, body.to_string().as_bytes());
    assert_eq!(status, 200, "{number}: {text}");
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).expect(line)).collect();
    assert!(streams || lines.len() == 1, "{number}: {text}");
    for line in &lines {
        assert!(line["error"].is_null() && line["model"].is_string(), "{number}: {line}");
        let said = if is_chat { &line["message"]["content"] } else { &line["response"] };
        assert!(said.is_string(), "{number}: {line}");
    }
    let done: Vec<bool> = lines.iter().map(|line| line["done"] == true).collect();
    assert_eq!(done.iter().filter(|&&done| done).count(), 1, "{number}: {text}");
    let last = lines.last().unwrap();
    assert_eq!(last["done"], true, "{number}: {text}");
    assert!(["stop", "length"].contains(&last["done_reason"].as_str().unwrap_or_default()), "{number}: {last}");
    let tokens = last["eval_count"].as_u64().expect("eval_count");
    assert!((1..=budget as u64).contains(&tokens), "{number}: {last}");
}

fn model(server: &Server) -> Value {
    let (_, list) = server.get("/v1/models");
    let list: Value = serde_json::from_str(&list).expect("JSON");
    list["data"][0]["id"].clone()
}

/// The events of a stream whose name must be the `type` in their data.
fn named_events(text: &str) -> Vec<Value> {
    assert!(text.ends_with("\n\n"), "{text}");
    let events = text.trim_end().split("\n\n").filter(|event| !event.starts_with(':'));
    let read = |event: &str| {
        let (name, data) = event.strip_prefix("event: ").and_then(|event| event.split_once("\ndata: ")).expect(event);
        let data: Value = serde_json::from_str(data).expect(data);
        assert_eq!(data["type"], name, "{event}");
        data
    };
    events.map(read).collect()
}
