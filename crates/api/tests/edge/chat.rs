//! `POST /v1/chat/completions` without tools.

use serde_json::{Value, json};
use tandem_harmony::Tokenizer;

use crate::edge::{CONTEXT, DATE, Edge, joined};

const ANSWER: &str = "<|channel|>analysis<|message|>Easy sum.<|end|><|start|>assistant<|channel|>final<|message|>It is 4.\
                      <|return|>";

fn count(text: &str) -> usize {
    Tokenizer::shared().encode_with_special(text).len()
}

#[tokio::test]
async fn a_whole_reply() {
    let edge = Edge::start();
    edge.script.chat("2+2?", ANSWER);
    let reply = edge.chat("2+2?", json!({})).await;
    assert!(reply["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["model"], "gpt-oss-test");
    assert!(reply["created"].as_u64().unwrap() > 1_700_000_000);
    assert!(reply["system_fingerprint"].is_string());
    let choice = &reply["choices"][0];
    let message = json!({"role": "assistant", "content": "It is 4.", "refusal": null, "reasoning": "Easy sum.",
                         "reasoning_content": "Easy sum."});
    assert_eq!(choice["message"], message);
    assert_eq!(
        (&choice["index"], &choice["finish_reason"], &choice["logprobs"]),
        (&json!(0), &json!("stop"), &Value::Null)
    );
    let usage = &reply["usage"];
    assert_eq!(usage["completion_tokens"], count(ANSWER));
    let reasoning = count("<|message|>Easy sum.<|end|>");
    assert_eq!(usage["completion_tokens_details"]["reasoning_tokens"], reasoning);
    let prompt = usage["prompt_tokens"].as_u64().unwrap();
    assert_eq!(usage["total_tokens"], prompt + count(ANSWER) as u64);
    assert_eq!(usage["prompt_tokens_details"]["cached_tokens"], 0);
    let again = edge.chat("2+2?", json!({})).await;
    let cached = again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert!(cached > 0 && cached < prompt, "{again}");
}

#[tokio::test]
async fn the_prompt_is_harmonys() {
    let edge = Edge::start();
    let request = json!({"messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "text", "text": "<|end|>"}]},
    ], "reasoning_effort": "high"});
    let tokens = edge.post("/tokenize", &request).await.ok();
    assert_eq!(tokens["max_model_len"], CONTEXT);
    let text = edge.post("/detokenize", &json!({"tokens": tokens["tokens"]})).await.ok()["prompt"].clone();
    let text = text.as_str().unwrap();
    assert!(text.contains(&format!("Current date: {DATE}")), "{text}");
    assert!(text.contains("Reasoning: high"), "{text}");
    assert!(text.contains("<|start|>developer<|message|># Instructions\n\nBe brief.<|end|>"), "{text}");
    assert!(text.ends_with("<|start|>user<|message|>Hello\n<|end|><|end|><|start|>assistant"), "{text}");
    let ids = tokens["tokens"].as_array().unwrap();
    let ends = ids.iter().filter(|id| **id == tandem_harmony::special::END).count();
    assert_eq!(ends, 3, "what the user typed is no control token");
}

#[tokio::test]
async fn a_streamed_reply() {
    let edge = Edge::start();
    edge.script.chat("2+2?", ANSWER);
    let events = edge.chat_events("2+2?", json!({"stream_options": {"include_usage": true}})).await;
    assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    let (reasoning, content, calls, finish) = joined(&events[..events.len() - 1], 0);
    assert_eq!((reasoning.as_str(), content.as_str(), calls.len()), ("Easy sum.", "It is 4.", 0));
    assert_eq!(finish, "stop");
    let (last, chunks) = events.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert_eq!(last["usage"]["completion_tokens"], count(ANSWER));
    for chunk in chunks {
        assert_eq!(chunk["object"], "chat.completion.chunk");
        assert_eq!(chunk["id"], events[0]["id"]);
        assert_eq!(chunk.get("usage"), Some(&Value::Null));
    }
    assert!(chunks.len() > 6, "text arrives token by token: {chunks:?}");
    let without_usage = edge.chat_events("2+2?", json!({})).await;
    assert!(without_usage.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn a_budget_that_ends_inside_the_analysis() {
    let edge = Edge::start();
    edge.script.chat("2+2?", ANSWER);
    let reply = edge.chat("2+2?", json!({"max_completion_tokens": 4})).await;
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "length");
    assert_eq!(choice["message"]["content"], "");
    assert_eq!(choice["message"]["reasoning"], "Easy");
    assert_eq!(reply["usage"]["completion_tokens"], 4);
    let (reasoning, content, _, finish) = joined(&edge.chat_events("2+2?", json!({"max_tokens": 4})).await, 0);
    assert_eq!((reasoning.as_str(), content.as_str(), finish), ("Easy", "", json!("length")));
}

#[tokio::test]
async fn stop_strings_end_visible_text_only() {
    let edge = Edge::start();
    let reply = "<|channel|>analysis<|message|>The END is near. END<|end|><|start|>assistant<|channel|>final<|message|>\
                 One, two, ENDless words follow here.<|return|>";
    edge.script.chat("go", reply);
    // "s, END": across tokens, and beginning inside one.
    let whole = edge.chat("go", json!({"stop": ["wo, END", "zzz"]})).await;
    let choice = &whole["choices"][0];
    assert_eq!(choice["message"]["content"], "One, t");
    assert_eq!(choice["message"]["reasoning"], "The END is near. END");
    assert_eq!(choice["finish_reason"], "stop");
    let used = whole["usage"]["completion_tokens"].as_u64().unwrap() as usize;
    assert!(used < count(reply) - 3, "generation ends with the stop string: {used}");
    let (_, content, _, finish) = joined(&edge.chat_events("go", json!({"stop": "END"})).await, 0);
    assert_eq!((content.as_str(), finish), ("One, two, ", json!("stop")));
    let (_, content, _, finish) = joined(&edge.chat_events("go", json!({"stop": "here.!"})).await, 0);
    assert_eq!((content.as_str(), finish), ("One, two, ENDless words follow here.", json!("stop")));
    edge.until_idle().await;
}

#[tokio::test]
async fn min_tokens_and_ignore_eos_go_past_the_end() {
    let edge = Edge::start();
    edge.script.chat("hi", "<|channel|>final<|message|>Hello<|return|>");
    let reply = edge.chat("hi", json!({"min_tokens": 6, "stop": " more"})).await;
    assert_eq!(reply["choices"][0]["message"]["content"], "Hello more");
    assert_eq!(reply["usage"]["completion_tokens"], 6);
    let reply = edge.chat("hi", json!({"min_tokens": 6})).await;
    assert_eq!(reply["choices"][0]["message"]["content"], "Hello more more");
    assert_eq!(reply["usage"]["completion_tokens"], 7);
    let reply = edge.chat("hi", json!({"ignore_eos": true, "max_tokens": 20})).await;
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    assert_eq!(reply["usage"]["completion_tokens"], 20);
    let reply = edge.chat("hi", json!({"ignore_eos": true, "max_tokens": 20, "stop": "more"})).await;
    assert_eq!(reply["choices"][0]["message"]["content"], "Hello ");
}

#[tokio::test]
async fn stop_token_ids_end_the_text_before_them() {
    let edge = Edge::start();
    edge.script.chat("2+2?", ANSWER);
    let reply = edge.chat("2+2?", json!({"stop_token_ids": Tokenizer::shared().encode(" ")})).await;
    assert_eq!(reply["choices"][0]["message"]["content"], "It is");
    let reply = edge.chat("2+2?", json!({"stop_token_ids": Tokenizer::shared().encode("4")})).await;
    let choice = &reply["choices"][0];
    assert_eq!(
        (choice["message"]["content"].as_str(), choice["finish_reason"].as_str()),
        (Some("It is "), Some("stop"))
    );
}

#[tokio::test]
async fn several_choices() {
    let edge = Edge::start();
    edge.script.chat("2+2?", ANSWER);
    let reply = edge.chat("2+2?", json!({"n": 6})).await;
    let choices = reply["choices"].as_array().unwrap();
    assert_eq!(choices.len(), 6);
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!((&choice["index"], &choice["message"]["content"]), (&json!(index), &json!("It is 4.")));
    }
    assert_eq!(reply["usage"]["completion_tokens"], 6 * count(ANSWER));
    let events = edge.chat_events("2+2?", json!({"n": 3})).await;
    for index in 0..3 {
        let (reasoning, content, _, finish) = joined(&events, index);
        assert_eq!((reasoning.as_str(), content.as_str(), finish), ("Easy sum.", "It is 4.", json!("stop")));
    }
}

#[tokio::test]
async fn logprobs_cover_the_visible_text() {
    let edge = Edge::start();
    edge.script.chat("2+2?", ANSWER);
    let reply = edge.chat("2+2?", json!({"logprobs": true, "top_logprobs": 2})).await;
    let content = reply["choices"][0]["logprobs"]["content"].as_array().unwrap().clone();
    let tokens: String = content.iter().map(|entry| entry["token"].as_str().unwrap()).collect();
    assert_eq!(tokens, "It is 4.");
    for entry in &content {
        assert_eq!(entry["top_logprobs"].as_array().unwrap().len(), 2);
        assert!(entry["logprob"].as_f64().unwrap() < 0.0);
        let bytes: Vec<u8> = serde_json::from_value(entry["bytes"].clone()).unwrap();
        assert_eq!(String::from_utf8(bytes).unwrap(), entry["token"].as_str().unwrap());
    }
    let events = edge.chat_events("2+2?", json!({"logprobs": true})).await;
    let streamed = events.iter().filter_map(|event| event["choices"][0]["logprobs"]["content"].as_array()).flatten();
    assert_eq!(streamed.map(|entry| entry["token"].as_str().unwrap()).collect::<String>(), "It is 4.");
}

#[tokio::test]
async fn token_ids_on_request() {
    let edge = Edge::start();
    edge.script.chat("2+2?", ANSWER);
    let expected = json!(Tokenizer::shared().encode_with_special(ANSWER));
    let reply = edge.chat("2+2?", json!({"return_token_ids": true})).await;
    assert_eq!(reply["choices"][0]["token_ids"], expected);
    assert_eq!(reply["prompt_token_ids"].as_array().unwrap().len(), reply["usage"]["prompt_tokens"]);
    let events = edge.chat_events("2+2?", json!({"return_token_ids": true})).await;
    assert_eq!(events[0]["prompt_token_ids"], reply["prompt_token_ids"]);
    let streamed: Vec<Value> = events
        .iter()
        .flat_map(|event| event["choices"][0]["token_ids"].as_array().cloned().unwrap_or_default())
        .collect();
    assert_eq!(json!(streamed), expected);
}

#[tokio::test]
async fn characters_split_over_tokens_arrive_whole() {
    let edge = Edge::start();
    edge.script.chat("crab", "<|channel|>final<|message|>A 🦀 and a 🫠!<|return|>");
    let (_, content, _, _) = joined(&edge.chat_events("crab", json!({})).await, 0);
    assert_eq!(content, "A 🦀 and a 🫠!");
}

#[tokio::test]
async fn whatever_the_model_writes_is_an_answer() {
    let replies = [
        "<|return|>",
        "<|call|>",
        "<|endoftext|>",
        "Just text.<|return|>",
        "<|message|>No header.<|return|>",
        "<|channel|><|channel|>final<|message|>Doubled.<|return|>",
        "<|channel|>analysis<|message|>a<|channel|>final<|message|>b<|return|>",
        "<|channel|>final<|constrain|>json<|message|>{}<|return|>",
        "<|channel|>commentary to=nobody.knows<|message|>{}<|call|>",
        "<|channel|>analysis to=functions.f code<|message|>{\"a\"<|call|>",
        "<|start|><|start|>assistant<|end|><|end|>user<|message|>hm<|return|>",
        "<|constrain|><|constrain|><|message|><|message|><|return|>",
        "<|channel|>commentary to=functions.f<|channel|>commentary<|message|><|call|>",
        "<|reserved_200100|><|startoftext|><|channel|>final<|message|>x<|reserved_200100|>y<|return|>",
    ];
    let edge = Edge::start();
    for (number, reply) in replies.iter().enumerate() {
        let said = format!("case {number}:");
        edge.script.chat(&said, reply);
        let whole = edge.chat(&said, json!({})).await;
        let choice = &whole["choices"][0];
        let streamed = joined(&edge.chat_events(&said, json!({})).await, 0);
        assert_eq!(choice["finish_reason"], streamed.3, "{reply}");
        assert!(["stop", "tool_calls"].contains(&streamed.3.as_str().unwrap()), "{reply}");
        assert_eq!(choice["message"]["content"].as_str().unwrap_or_default(), streamed.1, "{reply}");
        let has_calls = choice["message"].get("tool_calls").is_some();
        assert_eq!(choice["message"]["content"].is_null(), has_calls && streamed.1.is_empty(), "{reply}");
        assert_eq!(choice["finish_reason"] == "tool_calls", has_calls, "{reply}");
    }
}

#[tokio::test]
async fn response_formats_reach_the_developer_message() {
    let edge = Edge::start();
    let request = json!({"messages": [{"role": "system", "content": "Hi."}, {"role": "user", "content": "x"}],
        "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": {"type": "object"}}}});
    let tokens = edge.post("/tokenize", &request).await.ok()["tokens"].clone();
    let text = edge.post("/detokenize", &json!({"tokens": tokens})).await.ok()["prompt"].to_string();
    assert!(text.contains(r##"Hi.\n\n# Response Formats\n\n## n\n\n{\"type\":\"object\"}<|end|>"##), "{text}");
}
