//! Tools: calls, results, and the loop of both.

use serde_json::{Value, json};
use tandem_harmony::{Tokenizer, special};

use crate::edge::{Edge, joined};

const CALL: &str = "<|channel|>analysis<|message|>Need the weather.<|end|><|start|>assistant<|channel|>commentary \
                    to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"Oslo\"}<|call|>";

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "get_weather", "description": "Weather", "parameters":
            {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}}},
        {"type": "function", "function": {"name": "python", "parameters": null}},
    ])
}

#[tokio::test]
async fn a_call_whole_and_streamed() {
    let edge = Edge::start();
    edge.script.chat("Oslo?", CALL);
    let reply = edge.chat("Oslo?", json!({"tools": tools()})).await;
    let choice = &reply["choices"][0];
    assert_eq!(choice["finish_reason"], "tool_calls");
    assert_eq!(choice["message"]["content"], Value::Null);
    assert_eq!(choice["message"]["reasoning"], "Need the weather.");
    let call = &choice["message"]["tool_calls"][0];
    assert!(call["id"].as_str().unwrap().starts_with("call_"));
    assert_eq!(call["type"], "function");
    assert_eq!(call["function"], json!({"name": "get_weather", "arguments": "{\"city\": \"Oslo\"}"}));
    let events = edge.chat_events("Oslo?", json!({"tools": tools()})).await;
    let (reasoning, content, calls, finish) = joined(&events, 0);
    assert_eq!((reasoning.as_str(), content.as_str(), finish), ("Need the weather.", "", json!("tool_calls")));
    assert_eq!(calls[0]["function"], call["function"]);
    assert_ne!(calls[0]["id"], call["id"]);
    let pieces = events.iter().filter(|event| event["choices"][0]["delta"].get("tool_calls").is_some()).count();
    assert!(pieces > 3, "arguments are streamed");
}

#[tokio::test]
async fn a_preamble_is_content_and_names_are_mapped_back() {
    let edge = Edge::start();
    let reply = "<|channel|>commentary<|message|>Let me compute.<|end|><|start|>assistant to=functions.python_tool\
                 <|channel|>commentary json<|message|>{\"code\": \"1\"}<|end|>Ignored from here on.";
    edge.script.chat("go", reply);
    let reply = edge.chat("go", json!({"tools": tools(), "parallel_tool_calls": false})).await;
    let message = &reply["choices"][0]["message"];
    assert_eq!(message["content"], "Let me compute.");
    assert_eq!(message["tool_calls"][0]["function"]["name"], "python");
    assert_eq!(message["tool_calls"].as_array().unwrap().len(), 1);
    assert_eq!(reply["choices"][0]["finish_reason"], "tool_calls");
    edge.until_idle().await;
}

#[tokio::test]
async fn a_call_cut_off_by_the_budget() {
    let edge = Edge::start();
    edge.script.chat("Oslo?", CALL);
    let used = Tokenizer::shared().encode_with_special(CALL).len() - 3;
    let reply = edge.chat("Oslo?", json!({"tools": tools(), "max_tokens": used})).await;
    assert_eq!(reply["choices"][0]["finish_reason"], "length");
    let arguments = &reply["choices"][0]["message"]["tool_calls"][0]["function"]["arguments"];
    assert!("{\"city\": \"Oslo\"}".starts_with(arguments.as_str().unwrap()), "{arguments}");
}

#[tokio::test]
async fn a_choice_of_none_hides_the_tools() {
    let edge = Edge::start();
    let prompt = async |choice: &str| {
        let request = json!({"messages": [{"role": "user", "content": "x"}], "tools": tools(), "tool_choice": choice});
        let tokens = edge.post("/tokenize", &request).await.ok()["tokens"].clone();
        edge.post("/detokenize", &json!({"tokens": tokens})).await.ok()["prompt"].to_string()
    };
    assert!(!prompt("none").await.contains("get_weather"));
    assert!(prompt("auto").await.contains("get_weather"));
    assert!(prompt("required").await.ends_with("<|start|>assistant<|channel|>commentary to=functions\""));
}

#[tokio::test]
async fn a_forced_call_is_one() {
    let edge = Edge::start();
    let header = "<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>";
    edge.script.chat("Oslo?", &format!("{header}{{\"city\": \"Oslo\"}}<|call|>"));
    let named = json!({"type": "function", "function": {"name": "get_weather"}});
    for choice in [named, json!("required")] {
        let request = json!({"tools": tools(), "tool_choice": choice});
        let reply = edge.chat("Oslo?", request.clone()).await;
        let choice = &reply["choices"][0];
        assert_eq!(choice["finish_reason"], "tool_calls", "{reply}");
        let function = json!({"name": "get_weather", "arguments": "{\"city\": \"Oslo\"}"});
        assert_eq!(choice["message"]["tool_calls"][0]["function"], function, "{reply}");
        let (_, _, calls, finish) = joined(&edge.chat_events("Oslo?", request).await, 0);
        assert_eq!((&calls[0]["function"], finish), (&function, json!("tool_calls")));
    }
}

/// The second request of a loop finds the first with its whole reply in the cache, whatever tokens the model chose and
/// whether or not the client sends the reasoning back.
#[tokio::test]
async fn a_loop_finds_the_models_own_tokens_in_the_cache() {
    let edge = Edge::start();
    // The recipient in the other place, and arguments in single-character tokens: nothing that rendering comes up with.
    let mut reply = Tokenizer::shared().encode_with_special(
        "<|channel|>analysis<|message|>Think.<|end|><|start|>assistant to=functions.get_weather<|channel|>commentary <|constrain|>json\
         <|message|>",
    );
    reply.extend("{\"city\": \"Oslo\"}".chars().flat_map(|char| Tokenizer::shared().encode(&char.to_string())));
    reply.push(special::CALL);
    edge.script.chat_tokens("Oslo?", reply.clone());
    edge.script.chat("rain", "<|channel|>final<|message|>Take an umbrella.<|return|>");
    let first = edge.chat("Oslo?", json!({"tools": tools(), "return_token_ids": true})).await;
    assert_eq!(first["choices"][0]["token_ids"], json!(reply));
    edge.until_idle().await;
    let mut message = first["choices"][0]["message"].clone();
    message.as_object_mut().unwrap().retain(|key, _| key != "reasoning" && key != "reasoning_content");
    let call_id = message["tool_calls"][0]["id"].clone();
    let messages = json!([
        {"role": "user", "content": "Oslo?"},
        message,
        {"role": "tool", "tool_call_id": call_id, "content": "rain"},
    ]);
    let request = json!({"messages": messages, "tools": tools(), "return_token_ids": true});
    let second = edge.chat("", request).await;
    assert_eq!(second["choices"][0]["message"]["content"], "Take an umbrella.");
    let mut prefix: Vec<u32> = serde_json::from_value(first["prompt_token_ids"].clone()).unwrap();
    prefix.extend(&reply);
    let prompt: Vec<u32> = serde_json::from_value(second["prompt_token_ids"].clone()).unwrap();
    let shared = prompt.iter().zip(&prefix).take_while(|(ours, theirs)| ours == theirs).count();
    let difference = (Tokenizer::shared().decode(&prefix[shared..]), Tokenizer::shared().decode(&prompt[shared..]));
    assert_eq!(shared, prefix.len(), "the prompt repeats the first request and its reply: {difference:?}");
    let cached = second["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() as usize;
    // The last token of a reply is never fed to the model, and so is not in the cache.
    assert!(cached >= prefix.len() - 1, "{cached} of {} tokens are cached", prefix.len());
}

#[tokio::test]
async fn an_edited_call_is_rendered_anew() {
    let edge = Edge::start();
    edge.script.chat("Oslo?", CALL);
    let first = edge.chat("Oslo?", json!({"tools": tools()})).await;
    let mut message = first["choices"][0]["message"].clone();
    message["tool_calls"][0]["function"]["arguments"] = json!("{\"city\": \"Rome\"}");
    let request = json!({"messages": [{"role": "user", "content": "Oslo?"}, message], "tools": tools()});
    let tokens = edge.post("/tokenize", &request).await.ok()["tokens"].clone();
    let text = edge.post("/detokenize", &json!({"tokens": tokens})).await.ok()["prompt"].to_string();
    assert!(text.contains("Rome") && !text.contains("Oslo\\\\\\\""), "{text}");
}
