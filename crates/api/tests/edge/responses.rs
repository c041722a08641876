//! OpenAI's responses: items and events, and what is stored of them.

use std::time::Duration;

use axum::body::Body;
use serde_json::{Value, json};
use tandem_api::ApiSettings;
use tandem_engine::EngineSettings;

use crate::edge::{Answer, Edge};

const THOUGHT: &str =
    "<|channel|>analysis<|message|>Easy.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.<|return|>";
const PATH: &str = "/v1/responses";

fn call(tool: &str, arguments: &str) -> String {
    format!(
        "<|channel|>analysis<|message|>Need it.<|end|><|start|>assistant<|channel|>commentary<|message|>Let me look.<|end|>\
         <|start|>assistant<|channel|>commentary to=functions.{tool} <|constrain|>json<|message|>{arguments}<|call|>"
    )
}

fn tools() -> Value {
    json!([
        {"type": "function", "name": "get_weather", "description": "Weather", "strict": false, "parameters":
            {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}},
        {"type": "namespace", "name": "agents", "description": "Agents", "tools": [
            {"type": "function", "name": "spawn", "parameters": {"type": "object", "properties": {}}}]},
        {"type": "custom", "name": "apply_patch", "description": "Edits files"},
        {"type": "web_search", "external_web_access": false},
    ])
}

fn with(mut request: Value, more: Value) -> Value {
    request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    request
}

async fn respond(edge: &Edge, input: Value, more: Value) -> Value {
    edge.post(PATH, &with(json!({ "input": input }), more)).await.ok()
}

async fn events(edge: &Edge, input: Value, more: Value) -> Vec<Value> {
    let request = with(json!({"input": input, "stream": true}), more);
    let events = edge.post(PATH, &request).await.named_events();
    for (number, event) in events.iter().enumerate() {
        assert_eq!(event["sequence_number"], number);
    }
    events
}

/// The output without ids, which differ from reply to reply.
fn output(response: &Value) -> Vec<Value> {
    let mut items = response["output"].as_array().unwrap().clone();
    for item in &mut items {
        assert!(item["id"].as_str().is_some_and(|id| id.len() > 10), "{item}");
        item.as_object_mut().unwrap().retain(|name, _| name != "id" && name != "call_id");
    }
    items
}

/// The types of events, deltas of one kind in a row counted once, without their common prefix.
fn types(events: &[Value]) -> String {
    let mut types: Vec<&str> =
        events.iter().map(|event| event["type"].as_str().unwrap().trim_start_matches("response.")).collect();
    types.dedup();
    types.join(" ")
}

/// The items that the events build, put together as clients do it, and checked against the final response.
fn built(events: &[Value]) -> Value {
    let mut texts: Vec<String> = Vec::new();
    for event in events {
        let at = event["output_index"].as_u64().unwrap_or_default() as usize;
        match event["type"].as_str().unwrap() {
            "response.output_item.added" => {
                assert_eq!(at, texts.len());
                assert_eq!(event["item"]["status"], "in_progress");
                texts.push(String::new());
            }
            "response.reasoning_text.delta"
            | "response.output_text.delta"
            | "response.function_call_arguments.delta"
            | "response.custom_tool_call_input.delta" => texts[at] += event["delta"].as_str().unwrap(),
            "response.reasoning_text.done" | "response.output_text.done" => assert_eq!(event["text"], texts[at]),
            "response.function_call_arguments.done" => assert_eq!(event["arguments"], texts[at]),
            "response.custom_tool_call_input.done" => assert_eq!(event["input"], texts[at]),
            _ => {}
        }
    }
    let response = events.last().unwrap()["response"].clone();
    let items = response["output"].as_array().unwrap();
    assert_eq!(items.len(), texts.len());
    for (item, text) in items.iter().zip(&texts) {
        let whole = match item["type"].as_str().unwrap() {
            "function_call" => &item["arguments"],
            "custom_tool_call" => &item["input"],
            _ => &item["content"][0]["text"],
        };
        assert_eq!(whole, text);
    }
    response
}

#[tokio::test]
async fn a_response_whole_and_streamed() {
    let edge = Edge::start();
    edge.script.chat("2 + 2?", THOUGHT);
    let whole = respond(&edge, json!("2 + 2?"), json!({"metadata": {"a": "b"}, "max_output_tokens": 100})).await;
    assert_eq!((&whole["object"], &whole["status"]), (&json!("response"), &json!("completed")));
    assert_eq!((&whole["metadata"], &whole["max_output_tokens"]), (&json!({"a": "b"}), &json!(100)));
    let items = output(&whole);
    assert_eq!(items[0]["content"], json!([{"type": "reasoning_text", "text": "Easy."}]));
    assert_eq!(
        items[1],
        json!({"type": "message", "status": "completed", "role": "assistant", "content":
            [{"type": "output_text", "text": "It is 4.", "annotations": [], "logprobs": []}]})
    );
    let usage = &whole["usage"];
    assert_eq!(
        usage["total_tokens"],
        usage["input_tokens"].as_u64().unwrap() + usage["output_tokens"].as_u64().unwrap()
    );
    assert!(usage["output_tokens_details"]["reasoning_tokens"].as_u64().unwrap() > 0);
    edge.until_idle().await;
    let events = events(&edge, json!("2 + 2?"), json!({})).await;
    assert_eq!(
        types(&events),
        "created in_progress output_item.added content_part.added reasoning_text.delta reasoning_text.done \
         content_part.done output_item.done output_item.added content_part.added output_text.delta output_text.done \
         content_part.done output_item.done completed"
    );
    let streamed = built(&events);
    assert_eq!(output(&streamed), items);
    assert!(streamed["usage"]["input_tokens_details"]["cached_tokens"].as_u64().unwrap() > 0);
    let counted = edge.post("/v1/responses/input_tokens", &json!({"input": "2 + 2?"})).await.ok();
    assert_eq!(counted["input_tokens"], usage["input_tokens"]);
}

#[tokio::test]
async fn a_reply_that_is_cut_is_incomplete() {
    let edge = Edge::start();
    edge.script.chat("2 + 2?", THOUGHT);
    let more = json!({"max_output_tokens": 4});
    let whole = respond(&edge, json!("2 + 2?"), more.clone()).await;
    assert_eq!(
        (&whole["status"], &whole["incomplete_details"]),
        (&json!("incomplete"), &json!({"reason": "max_output_tokens"}))
    );
    assert_eq!(whole["output"][0]["status"], "incomplete");
    let events = events(&edge, json!("2 + 2?"), more).await;
    assert_eq!(events.last().unwrap()["type"], "response.incomplete");
    assert_eq!(output(&built(&events)), output(&whole));
}

#[tokio::test]
async fn tools_of_every_kind_and_what_they_return() {
    let edge = Edge::start();
    let cases = [
        ("get_weather", "{\"city\": \"Oslo\"}", "function_call"),
        ("agents_spawn", "{}", "function_call"),
        ("apply_patch", "{\"input\": \"*** Begin Patch\\n\"}", "custom_tool_call"),
    ];
    for (tool, arguments, kind) in cases {
        edge.script.chat(tool, &call(tool, arguments));
        edge.script.chat("Rain.", "<|channel|>final<|message|>Done.<|return|>");
        let options = json!({"tools": tools(), "store": false, "include": ["reasoning.encrypted_content"]});
        let first = built(&events(&edge, json!(tool), options.clone()).await);
        assert_eq!(first["status"], "completed");
        let items = first["output"].as_array().unwrap();
        assert_eq!(
            items.iter().map(|item| item["type"].as_str().unwrap()).collect::<Vec<_>>(),
            ["reasoning", "message", kind]
        );
        let item = &items[2];
        match kind {
            "custom_tool_call" => {
                assert_eq!((&item["name"], &item["input"]), (&json!("apply_patch"), &json!("*** Begin Patch\n")))
            }
            _ if tool == "agents_spawn" => {
                assert_eq!((&item["namespace"], &item["name"]), (&json!("agents"), &json!("spawn")));
            }
            _ => assert_eq!((&item["name"], &item["arguments"]), (&json!("get_weather"), &json!(arguments))),
        }
        edge.until_idle().await;
        // Sent back by a client that keeps the conversation itself, with reasoning in full, sealed, or lost.
        let computed =
            ["input_tokens", "output_tokens"].map(|name| first["usage"][name].as_u64().unwrap()).iter().sum::<u64>();
        for keep in ["content", "encrypted_content", ""] {
            let mut input = vec![json!({"role": "user", "content": tool})];
            input.extend(items.iter().cloned());
            match keep {
                "" => drop(input.remove(1)),
                "content" => input[1]["encrypted_content"] = Value::Null,
                _ => input[1]["content"] = Value::Null,
            }
            input.push(json!({"type": format!("{kind}_output"), "call_id": item["call_id"], "output": "Rain."}));
            let second = respond(&edge, json!(input), options.clone()).await;
            assert_eq!(output(&second)[0]["content"][0]["text"], "Done.");
            let cached = second["usage"]["input_tokens_details"]["cached_tokens"].as_u64().unwrap();
            assert!(cached + 1 >= computed, "{tool}, {keep:?}: {cached} of {computed} computed tokens were cached");
            edge.until_idle().await;
        }
    }
}

#[tokio::test]
async fn a_conversation_goes_on_from_a_stored_response() {
    let edge = Edge::start();
    edge.script.chat("Oslo?", &call("get_weather", "{\"city\": \"Oslo\"}"));
    edge.script.chat("Rain.", "<|channel|>final<|message|>Take an umbrella.<|return|>");
    edge.script.chat("And then?", "<|channel|>final<|message|>Come home.<|return|>");
    let tools = json!({"tools": tools()});
    let first = respond(&edge, json!("Oslo?"), with(tools.clone(), json!({"instructions": "Be brief."}))).await;
    let result = json!([{"type": "function_call_output", "call_id": first["output"][2]["call_id"], "output": "Rain."}]);
    let on = |id: &Value| with(tools.clone(), json!({"previous_response_id": id}));
    let second = built(&events(&edge, result, on(&first["id"])).await);
    assert_eq!(second["previous_response_id"], first["id"]);
    let third = respond(&edge, json!("And then?"), on(&second["id"])).await;
    assert_eq!(output(&third)[0]["content"][0]["text"], "Come home.");
    // All of the conversation is in the prompt, but not the instructions of the first request.
    let mut all = vec![json!({"role": "user", "content": "Oslo?"})];
    all.extend(first["output"].as_array().unwrap().clone());
    all.push(json!({"type": "function_call_output", "call_id": first["output"][2]["call_id"], "output": "Rain."}));
    all.extend(second["output"].as_array().unwrap().clone());
    all.push(json!({"role": "user", "content": "And then?"}));
    let counted = edge.post("/v1/responses/input_tokens", &with(json!({"input": all}), tools.clone())).await.ok();
    assert_eq!(counted["input_tokens"], third["usage"]["input_tokens"]);

    let path = format!("{PATH}/{}", third["id"].as_str().unwrap());
    assert_eq!(edge.get(&path).await.ok(), third);
    let listed = edge.get(&format!("{path}/input_items")).await.ok();
    assert_eq!((&listed["data"][0]["content"][0]["text"], &listed["has_more"]), (&json!("And then?"), &json!(false)));
    let reference = json!([{"role": "user", "content": "Say"}, {"type": "item_reference", "id": third["output"][0]["id"]},
        {"role": "user", "content": "And then?"}]);
    respond(&edge, reference, json!({})).await;

    assert_eq!(edge.request("DELETE", &path, Body::empty()).await.ok()["deleted"], true);
    assert_eq!(edge.get(&path).await.error()["code"], "response_not_found");
    assert_eq!(edge.request("DELETE", &path, Body::empty()).await.status, 404);
    let gone = edge.post(PATH, &with(json!({"input": "x"}), on(&third["id"]))).await;
    assert_eq!(gone.error()["code"], "previous_response_not_found");
    let kept = respond(&edge, json!("And then?"), json!({"store": false})).await;
    assert_eq!(edge.get(&format!("{PATH}/{}", kept["id"].as_str().unwrap())).await.status, 404);
}

#[tokio::test]
async fn what_is_stored_is_bounded() {
    let settings = ApiSettings { stored_responses_max: 2, ..ApiSettings::default() };
    let edge = Edge::with(settings, Edge::capacity(), EngineSettings::default());
    let mut ids = Vec::new();
    for _ in 0..3 {
        ids.push(respond(&edge, json!("x"), json!({})).await["id"].as_str().unwrap().to_string());
    }
    assert_eq!(edge.get(&format!("{PATH}/{}", ids[0])).await.status, 404);
    assert_eq!(edge.get(&format!("{PATH}/{}", ids[2])).await.status, 200);
}

async fn until_status(edge: &Edge, id: &str, wanted: &str) -> Value {
    for _ in 0..2000 {
        let response = edge.get(&format!("{PATH}/{id}")).await.ok();
        if response["status"] == wanted {
            return response;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{id} never became {wanted}");
}

#[tokio::test]
async fn responses_in_the_background() {
    let edge = Edge::start();
    edge.script.chat("2 + 2?", THOUGHT);
    let background = json!({"background": true});
    let queued = respond(&edge, json!("2 + 2?"), background.clone()).await;
    assert_eq!(queued["status"], "queued");
    let done = until_status(&edge, queued["id"].as_str().unwrap(), "completed").await;
    assert_eq!(output(&done)[1]["content"][0]["text"], "It is 4.");
    edge.script.chat("And on?", "<|channel|>final<|message|>8.<|return|>");
    respond(&edge, json!("And on?"), json!({"previous_response_id": done["id"]})).await;

    edge.script.chat("Long?", &format!("<|channel|>final<|message|>{}<|return|>", "word ".repeat(1500)));
    edge.slow_down(Duration::from_millis(20));
    let long = respond(&edge, json!("Long?"), background.clone()).await;
    let id = long["id"].as_str().unwrap();
    until_status(&edge, id, "in_progress").await;
    let early = edge.post(PATH, &json!({"input": "x", "previous_response_id": id})).await;
    assert_eq!(early.error()["param"], "previous_response_id");
    let cancelled = edge.request("POST", &format!("{PATH}/{id}/cancel"), Body::empty()).await.ok();
    assert_eq!(cancelled["status"], "cancelled");
    edge.until_idle().await;
    assert_eq!(edge.get(&format!("{PATH}/{id}")).await.ok()["status"], "cancelled");
    let deleted = respond(&edge, json!("Long?"), background.clone()).await;
    edge.request("DELETE", &format!("{PATH}/{}", deleted["id"].as_str().unwrap()), Body::empty()).await.ok();
    edge.until_idle().await;

    for more in [json!({"stream": true}), json!({"store": false})] {
        let refused = edge.post(PATH, &with(with(json!({"input": "x"}), background.clone()), more)).await;
        assert_eq!(refused.error()["param"], "background");
    }
    let foreground = respond(&edge, json!("2 + 2?"), json!({})).await;
    let path = format!("{PATH}/{}/cancel", foreground["id"].as_str().unwrap());
    assert_eq!(edge.request("POST", &path, Body::empty()).await.status, 400);
}

#[tokio::test]
async fn instructions_and_messages_in_place_are_all_read() {
    let developer = |text: &str| json!({"role": "developer", "content": [{"type": "input_text", "text": text}]});
    let input = json!([developer("First."), developer("Second."), {"role": "user", "content": "Hi"}]);
    let section = |text: &str| format!("<|start|>developer<|message|># Instructions\n\n{text}<|end|>");
    let cases = [(Value::Null, vec!["First.", "Second."]), (json!("Zero."), vec!["Zero.", "First.", "Second."])];
    for (instructions, sections) in cases {
        let edge = Edge::start();
        let prompt: String = sections.into_iter().map(section).collect();
        edge.script.seen(&format!("{prompt}<|start|>user"), "<|channel|>final<|message|>All.<|return|>");
        let response = respond(&edge, input.clone(), json!({ "instructions": instructions })).await;
        assert_eq!(output(&response)[0]["content"][0]["text"], "All.");
    }
}

#[tokio::test]
async fn log_probabilities_go_with_the_text() {
    let edge = Edge::start();
    edge.script.chat("2 + 2?", THOUGHT);
    let more = json!({"include": ["message.output_text.logprobs"], "top_logprobs": 2});
    let whole = respond(&edge, json!("2 + 2?"), more.clone()).await;
    let logprobs = whole["output"][1]["content"][0]["logprobs"].as_array().unwrap();
    let text: String = logprobs.iter().map(|logprob| logprob["token"].as_str().unwrap()).collect();
    assert_eq!((text.as_str(), logprobs[0]["top_logprobs"].as_array().unwrap().len()), ("It is 4.", 2));
    let events = events(&edge, json!("2 + 2?"), more).await;
    let deltas = events.iter().filter(|event| event["type"] == "response.output_text.delta");
    let streamed: Vec<Value> = deltas.flat_map(|delta| delta["logprobs"].as_array().unwrap().clone()).collect();
    assert_eq!(&streamed, logprobs);
}

#[tokio::test]
async fn what_cannot_be_done_is_refused_by_name() {
    let edge = Edge::start();
    let cases = [
        (json!({}), "input"),
        (json!({"input": []}), "input"),
        (json!({"input": 5}), "input"),
        (json!({"input": ["x"]}), "input[0]"),
        (json!({"input": "x", "tools": [{"type": "file_search", "vector_store_ids": []}]}), "tools[0].type"),
        (json!({"input": "x", "tools": [{"type": "mcp", "server_label": "s"}]}), "tools[0].type"),
        (json!({"input": "x", "tool_choice": "required"}), "tool_choice"),
        (json!({"input": "x", "conversation": "conv_1"}), "conversation"),
        (json!({"input": "x", "prompt": {"id": "pmpt_1"}}), "prompt"),
        (json!({"input": "x", "reasoning": {"effort": "some"}}), "reasoning.effort"),
        (json!({"input": "x", "max_output_tokens": -1}), "max_output_tokens"),
        (json!({"input": "x", "text": {"format": {"type": "json_schema", "name": "x"}}}), "text.format.schema"),
        (json!({"input": [{"type": "item_reference", "id": "msg_0"}]}), "input[0].id"),
        (json!({"input": [{"type": "compaction_trigger"}]}), "input[0].type"),
        (json!({"input": "word ".repeat(3000)}), "input"),
    ];
    for (request, param) in cases {
        let answer = edge.post(PATH, &request).await;
        assert_eq!(
            (answer.status.as_u16(), answer.error()["param"].as_str()),
            (400, Some(param)),
            "{param}: {}",
            answer.text()
        );
    }
}

#[tokio::test]
async fn a_failure_in_the_stream_is_a_failed_response() {
    let edge = Edge::start();
    edge.script.chat("2 + 2?", THOUGHT);
    edge.script.fail.store(true, std::sync::atomic::Ordering::Relaxed);
    let events = events(&edge, json!("2 + 2?"), json!({})).await;
    let last = events.last().unwrap();
    assert_eq!((&last["type"], &last["response"]["status"]), (&json!("response.failed"), &json!("failed")));
    assert!(last["response"]["error"]["message"].as_str().unwrap().contains("the test said so"));
    let whole: Answer = edge.post(PATH, &json!({"input": "2 + 2?"})).await;
    assert!(whole.status.is_server_error());
}
