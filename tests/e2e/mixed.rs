//! A thousand requests of every kind and protocol, 32 at a time, to a model that writes at random: nothing breaks, nothing is lost,
//! and nothing grows.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::mixed_protocols;
use crate::server::Server;
use crate::structured::impatience;

const REQUESTS: usize = 1000;
/// An emulated processor takes a hundred times as long.
const REQUESTS_EMULATED: usize = 100;
const AT_ONCE: usize = 32;
/// What the rest may add: allocators keep some of what was freed.
const GROWTH_BYTES_MAX: u64 = 48 << 20;

/// What was checked, so that nothing passes for want of cases.
#[derive(Debug, Default)]
struct Checked {
    requests: AtomicUsize,
    /// Whole answers that had to fit a format.
    formats: AtomicUsize,
    /// Whole calls whose arguments had to fit.
    calls: AtomicUsize,
    /// Requests in other protocols than OpenAI's chat and text completions.
    others: AtomicUsize,
}

impl Checked {
    fn count(counter: &AtomicUsize) {
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

#[test]
fn a_thousand_mixed_requests() {
    let limits = ["--context", "2048", "--memory", "2G", "--max-streams", "8", "--max-queue", "64"];
    let server = Server::start(&[&["--synthetic", "tiny"][..], &limits].concat());
    let checked = Checked::default();
    let emulated = std::env::var_os("TEST_EMULATED").is_some();
    let requests = if emulated { REQUESTS_EMULATED } else { REQUESTS };
    // After these, memory should have reached what it needs.
    let warm_up = requests * 2 / 5;
    run(&server, 0..warm_up, &checked);
    let before = resident_bytes(server.pid());
    run(&server, warm_up..requests, &checked);
    let after = resident_bytes(server.pid());
    assert!(after < before + GROWTH_BYTES_MAX, "{before} bytes before, {after} after");
    let (_, metrics) = server.get("/metrics");
    let gauge = |name: &str| {
        let line = metrics.lines().find(|line| line.contains(name) && !line.starts_with('#')).expect(name);
        line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()
    };
    assert_eq!((gauge("num_requests_running"), gauge("num_requests_waiting")), (0.0, 0.0), "{metrics}");
    println!("{before} bytes before, {after} after; {checked:?}");
    assert_eq!(checked.requests.into_inner(), requests, "every request was answered and checked");
    assert!(checked.others.into_inner() * 3 >= requests, "too few were of the other protocols");
    assert!(
        checked.formats.into_inner() * 50 >= requests && checked.calls.into_inner() * 50 >= requests,
        "too few were complete"
    );
}

fn run(server: &Server, numbers: std::ops::Range<usize>, checked: &Checked) {
    let next = AtomicUsize::new(numbers.start);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= numbers.end {
                        return;
                    }
                    one(server, number, checked);
                    Checked::count(&checked.requests);
                }
            });
        }
    });
}

/// Sends request `number` and checks all of its answer.
fn one(server: &Server, number: usize, checked: &Checked) {
    if mixed_protocols::one(server, number, budget(number)) {
        return Checked::count(&checked.others);
    }
    let (path, mut body) = request(number);
    body["temperature"] = json!(1);
    body["seed"] = json!(number);
    if number.is_multiple_of(3) {
        let (status, answer) = server.post(path, &body);
        assert_eq!(status, 200, "{number}: {answer}");
        check_whole(&body, &answer, number, checked);
    } else {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": number.is_multiple_of(2)});
        check_stream(&body, &server.stream(path, &body), number, checked);
    }
}

fn hurries(number: usize) -> bool {
    number % 5 < 3
}

fn budget(number: usize) -> usize {
    if hurries(number) { 60 } else { 1 + number * 7 % 40 }
}

/// Budgets are small, conversations differ in their beginnings, and every feature meets every other.
fn request(number: usize) -> (&'static str, Value) {
    // A random model seldom comes to an end by itself: half of the requests help it.
    let hurry = hurries(number);
    let budget = budget(number);
    if number.is_multiple_of(11) {
        let mut body = json!({"prompt": format!("Once {}", number % 13), "max_tokens": budget, "n": 1 + number % 2});
        if number.is_multiple_of(2) {
            body["guided_regex"] = json!("[a-z ]{5,60}");
        }
        return ("/v1/completions", body);
    }
    let mut messages = vec![json!({"role": "user", "content": format!("Tell me about {}.", number % 17)})];
    if number.is_multiple_of(4) {
        let call = json!({"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{\"word\":\"a\"}"}});
        messages.push(json!({"role": "assistant", "content": null, "tool_calls": [call]}));
        messages.push(json!({"role": "tool", "tool_call_id": "call_1", "content": "nothing"}));
    }
    let mut body = json!({"messages": messages, "max_tokens": budget, "n": 1 + number % 3 / 2});
    let schema = json!({"type": "object", "properties": {"word": {"type": "string"}, "times": {"type": "integer"}},
        "required": ["word"], "additionalProperties": false});
    if number.is_multiple_of(2) {
        let tool = |name: &str| {
            json!({"type": "function", "function":
            {"name": name, "parameters": schema, "strict": number.is_multiple_of(5)}})
        };
        body["tools"] = json!([tool("look_up"), tool("python")]);
        body["tool_choice"] = match number % 8 {
            0 => json!("auto"),
            2 => json!("required"),
            4 => json!({"type": "function", "function": {"name": "look_up"}}),
            _ => json!("none"),
        };
    }
    match number % 7 {
        1 => body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}),
        2 => body["response_format"] = json!({"type": "json_object"}),
        3 => body["stop"] = json!(["e", "\n"]),
        4 => body["logprobs"] = json!(true),
        5 => body["presence_penalty"] = json!(0.5),
        6 => body["min_tokens"] = json!(budget.min(3)),
        _ => body["ignore_eos"] = json!(true),
    }
    if hurry {
        body["logit_bias"] = impatience();
    }
    ("/v1/chat/completions", body)
}

const FINISHES: [&str; 3] = ["stop", "length", "tool_calls"];

fn check_whole(body: &Value, answer: &Value, number: usize, checked: &Checked) {
    let choices = answer["choices"].as_array().unwrap_or_else(|| panic!("{number}: {answer}"));
    assert_eq!(choices.len() as u64, body["n"].as_u64().unwrap(), "{number}: {answer}");
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index, "{number}: {answer}");
        let finish = choice["finish_reason"].as_str().unwrap_or_default();
        assert!(FINISHES.contains(&finish), "{number}: {answer}");
        if let Some(message) = choice["message"].as_object() {
            check_message(
                body,
                message["content"].as_str(),
                &message.get("tool_calls").cloned().unwrap_or_default(),
                finish,
                checked,
            );
        } else {
            assert!(choice["text"].is_string(), "{number}: {answer}");
        }
    }
    let usage = &answer["usage"];
    let budget = body["max_tokens"].as_u64().unwrap() * body["n"].as_u64().unwrap();
    assert!((1..=budget).contains(&usage["completion_tokens"].as_u64().unwrap()), "{number}: {answer}");
}

fn check_stream(body: &Value, events: &[Value], number: usize, checked: &Checked) {
    let choices = body["n"].as_u64().unwrap() as usize;
    let mut contents = vec![String::new(); choices];
    let mut calls: Vec<Vec<Value>> = vec![Vec::new(); choices];
    let mut finishes: Vec<Option<String>> = vec![None; choices];
    for event in events {
        assert!(event["error"].is_null() && event["id"].is_string(), "{number}: {event}");
        for choice in event["choices"].as_array().unwrap_or_else(|| panic!("{number}: {event}")) {
            let index = choice["index"].as_u64().unwrap() as usize;
            let delta = &choice["delta"];
            assert!(delta.is_object() || choice["text"].is_string(), "{number}: {event}");
            // A raw completion's last text may come with its end; nothing may come after one.
            assert!(finishes[index].is_none(), "{number}: something follows the end: {event}");
            contents[index] += delta["content"].as_str().unwrap_or_default();
            for call in delta["tool_calls"].as_array().into_iter().flatten() {
                add_call(&mut calls[index], call);
            }
            if let Some(finish) = choice["finish_reason"].as_str() {
                finishes[index] = Some(finish.to_string());
            }
        }
    }
    for index in 0..choices {
        let finish = finishes[index].as_deref().unwrap_or_else(|| panic!("{number}: choice {index} has no end"));
        assert!(FINISHES.contains(&finish), "{number}: {finish}");
        if body.get("messages").is_some() {
            check_message(body, Some(&contents[index]), &json!(calls[index]), finish, checked);
        }
    }
    let usages = events.iter().filter(|event| event["usage"].is_object()).count();
    assert_eq!(usages, usize::from(body["stream_options"]["include_usage"] == true), "{number}");
}

fn add_call(calls: &mut Vec<Value>, delta: &Value) {
    let index = delta["index"].as_u64().unwrap() as usize;
    if index == calls.len() {
        assert!(delta["id"].is_string() && delta["function"]["name"].is_string(), "{delta}");
        calls.push(delta.clone());
    } else {
        let more = delta["function"]["arguments"].as_str().unwrap();
        let known = calls[index]["function"]["arguments"].as_str().unwrap().to_string();
        calls[index]["function"]["arguments"] = json!(known + more);
    }
}

/// What the request was promised of a reply that was not cut off.
fn check_message(body: &Value, content: Option<&str>, calls: &Value, finish: &str, checked: &Checked) {
    let calls = calls.as_array().map_or(&[][..], Vec::as_slice);
    assert_eq!(finish == "tool_calls", finish != "length" && !calls.is_empty(), "{calls:?}");
    let tools = body["tools"].as_array().map_or(&[][..], Vec::as_slice);
    for call in calls.iter().filter(|_| body["ignore_eos"].is_null()) {
        let known = tools.iter().any(|tool| tool["function"]["name"] == call["function"]["name"]);
        assert!(known, "{call} is of none of the tools");
        if finish == "tool_calls" && (tools[0]["function"]["strict"] == true || body["tool_choice"] != "auto") {
            let arguments = call["function"]["arguments"].as_str().unwrap();
            let value: Value = serde_json::from_str(arguments).unwrap_or_else(|error| panic!("{error}: {arguments}"));
            assert!(value["word"].is_string(), "{value}");
            Checked::count(&checked.calls);
        }
    }
    let is_formatted = body["response_format"].is_object() && finish == "stop" && body["stop"].is_null();
    if is_formatted {
        let content = content.unwrap_or_default();
        let value: Value = serde_json::from_str(content).unwrap_or_else(|error| panic!("{error}: {content}"));
        assert!(value.is_object(), "{value}");
        Checked::count(&checked.formats);
    }
}

/// Memory of a process that is in RAM, from `/proc`.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("VmRSS");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number of kB") * 1024
}
