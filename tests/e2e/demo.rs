//! The demonstration model behind the real binary: what it says, and what a conversation costs.

use serde::Deserialize;
use serde_json::{Value, json};

use crate::server::Server;

/// A conversation recorded in exact mode at temperature 0.
#[derive(Deserialize)]
struct Golden {
    name: String,
    prompt: Vec<u32>,
    reply: Vec<u32>,
}

fn goldens() -> Vec<Golden> {
    serde_json::from_str(include_str!("../golden/demo.json")).expect("demo.json")
}

fn weather_tool() -> Value {
    let parameters = json!({
        "type": "object",
        "properties": {"city": {"type": "string", "description": "Name of the city."}},
        "required": ["city"],
    });
    let function = json!({"name": "get_weather", "description": "Get the current weather.", "parameters": parameters});
    json!([{"type": "function", "function": function}])
}

#[test]
fn recorded_conversations_repeat_to_the_token_also_after_a_restart() {
    // A second server, differently threaded and chunked, must say the same; a few suffice.
    let (first, second) =
        (&["--threads", "2"][..], &["--threads", "1", "--prefill-chunk", "33", "--pipeline-depth", "2"]);
    // Under emulation exact mode takes seconds a token: a job that emulates says so, and gets by with a few as well.
    let emulated = std::env::var_os("TEST_EMULATED").is_some();
    let many = if emulated { 5 } else { usize::MAX };
    println!("{many} recorded conversations at most");
    for (extra, conversations) in [(first, many), (second, 3)] {
        let server = Server::start(&[&["--exact", "--context", "4096", "--memory", "3G"], extra].concat());
        for golden in goldens().into_iter().take(conversations) {
            let body = json!({
                "prompt": golden.prompt, "temperature": 0, "max_tokens": 160, "return_token_ids": true,
                "stop_token_ids": [200_002, 200_012],
            });
            let answer = server.ok("/v1/completions", &body);
            assert_eq!(answer["choices"][0]["token_ids"], json!(golden.reply), "{}", golden.name);
        }
    }
}

/// Harmony drops a turn's analysis once the user speaks again, so what was computed and what comes next part company where
/// that analysis began. All up to there must come from the cache, to the token.
#[test]
fn a_conversation_of_ten_turns_reads_again_all_that_was_computed_before() {
    let server = Server::start(&["--context", "8192", "--memory", "3G"]);
    let cities = ["Lisbon", "Oslo", "Rome", "Paris", "Berlin", "Madrid", "Athens", "Vienna", "Dublin", "Prague"];
    let mut messages = vec![json!({"role": "system", "content": "Be brief."})];
    let (mut computed, mut turn_start): (Vec<Vec<u64>>, u64) = (Vec::new(), 0);
    for (turn, city) in cities.iter().enumerate() {
        messages.push(json!({"role": "user", "content": format!("What is the weather in {city}?")}));
        // The model's part: a call, and an answer from the result.
        for step in 0..2 {
            let body = json!({
                "messages": messages, "tools": weather_tool(), "temperature": 0, "max_tokens": 200,
                "return_token_ids": true,
            });
            let answer = server.ok("/v1/chat/completions", &body);
            let (prompt, reply) = (ids(&answer["prompt_token_ids"]), ids(&answer["choices"][0]["token_ids"]));
            let cached = answer["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
            let known = computed.iter().map(|earlier| common_prefix(earlier, &prompt)).max().unwrap_or(0);
            assert!(cached >= known, "turn {turn} step {step}: {cached} of {} cached, {known} known", prompt.len());
            // So everything before the previous turn's model spoke is there, whatever it thought since.
            assert!(
                cached >= turn_start,
                "turn {turn} step {step}: {cached} cached, the last turn began at {turn_start}"
            );
            if step == 0 {
                turn_start = prompt.len() as u64;
            }
            // The last token of a reply is never fed to the model.
            computed.push([&prompt[..], &reply[..reply.len() - 1]].concat());
            let message = &answer["choices"][0]["message"];
            messages.push(message.clone());
            let Some(calls) = message["tool_calls"].as_array() else { break };
            let result = json!({"temperature": 20 + turn, "sky": "sunny"}).to_string();
            messages.push(json!({"role": "tool", "tool_call_id": calls[0]["id"], "content": result}));
        }
    }
    assert!(messages.iter().any(|message| message["role"] == "tool"), "the model never called the tool");
}

fn ids(value: &Value) -> Vec<u64> {
    value.as_array().expect("token ids").iter().map(|id| id.as_u64().expect("a token id")).collect()
}

fn common_prefix(a: &[u64], b: &[u64]) -> u64 {
    a.iter().zip(b).take_while(|(a, b)| a == b).count() as u64
}

#[test]
fn it_reasons_answers_and_follows_effort_and_stop_strings() {
    let server = Server::start(&["--exact", "--context", "4096", "--memory", "3G"]);
    let ask = |extra: Value| {
        let question = json!([{"role": "user", "content": "How many letters are in the word SGLang?"}]);
        let mut body = json!({"messages": question, "temperature": 0});
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        server.ok("/v1/chat/completions", &body)["choices"][0].clone()
    };
    let answer = ask(json!({}));
    assert_eq!(answer["finish_reason"], "stop");
    assert!(answer["message"]["content"].as_str().unwrap().contains('6'), "{answer}");
    let length = |effort| ask(json!({"reasoning_effort": effort}))["message"]["reasoning"].as_str().unwrap().len();
    assert!(length("low") < length("high"));

    // The reasoning says "letters" too; a stop string ends visible text alone.
    let stopped = ask(json!({"stop": ["letters"]}));
    assert_eq!(stopped["finish_reason"], "stop");
    assert!(!stopped["message"]["content"].as_str().unwrap().contains("letters"), "{stopped}");
    assert!(stopped["message"]["reasoning"].as_str().unwrap().contains("letters"), "{stopped}");

    let short = ask(json!({"max_tokens": 8}));
    assert_eq!((&short["finish_reason"], &short["message"]["content"]), (&json!("length"), &json!("")));
    assert!(!short["message"]["reasoning"].as_str().unwrap().is_empty());
}

#[test]
fn a_tool_loop_streams_and_comes_to_an_answer() {
    let server = Server::start(&["--exact", "--context", "4096", "--memory", "3G"]);
    let question = json!({"role": "user", "content": "What is the weather in Lisbon?"});
    let body = json!({"messages": [question], "tools": weather_tool(), "temperature": 0, "stream": true});
    let events = server.stream("/v1/chat/completions", &body);
    let calls: Vec<&Value> = events
        .iter()
        .filter_map(|event| event["choices"][0]["delta"]["tool_calls"][0].as_object().map(|_| event))
        .collect();
    let call = |event: &Value| event["choices"][0]["delta"]["tool_calls"][0].clone();
    let (id, name) = (call(calls[0])["id"].clone(), call(calls[0])["function"]["name"].clone());
    let arguments: String =
        calls.iter().filter_map(|event| Some(call(event)["function"]["arguments"].as_str()?.to_owned())).collect();
    assert_eq!(name, "get_weather");
    assert_eq!(serde_json::from_str::<Value>(&arguments).unwrap()["city"], "Lisbon");
    assert!(events.iter().any(|event| event["choices"][0]["finish_reason"] == "tool_calls"));

    let function = json!({"name": name, "arguments": arguments});
    let messages = json!([
        question,
        {"role": "assistant", "content": null, "tool_calls": [{"id": id, "type": "function", "function": function}]},
        {"role": "tool", "tool_call_id": id, "content": "{\"temperature\": 21, \"sky\": \"sunny\"}"},
    ]);
    let body = json!({"messages": messages, "tools": weather_tool(), "temperature": 0});
    let answer = server.ok("/v1/chat/completions", &body);
    assert!(answer["choices"][0]["message"]["content"].as_str().unwrap().contains("21"), "{answer}");
}
