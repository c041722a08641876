//! `POST /v1/completions`.

use serde_json::{Value, json};
use tandem_harmony::Tokenizer;

use crate::edge::{CONTEXT, Edge};
use crate::worker::logprob;

fn encode(text: &str) -> Vec<u32> {
    Tokenizer::shared().encode_with_special(text)
}

fn scripted() -> Edge {
    let edge = Edge::start();
    edge.script.tokens(encode("The cat"), encode(" sat on the mat.<|return|>"));
    edge.script.tokens(encode("Two dogs"), encode(" barked 🦀 loudly.<|return|>"));
    edge
}

#[tokio::test]
async fn text_and_token_ids_alike() {
    let edge = scripted();
    for prompt in [json!("The cat"), json!(encode("The cat"))] {
        let reply = edge.complete(json!({"prompt": prompt})).await;
        assert!(reply["id"].as_str().unwrap().starts_with("cmpl-"));
        assert_eq!((&reply["object"], &reply["model"]), (&json!("text_completion"), &json!("gpt-oss-test")));
        let expected = json!({"index": 0, "text": " sat on the mat.", "logprobs": null, "finish_reason": "stop"});
        assert_eq!(reply["choices"][0], expected);
        let usage = &reply["usage"];
        assert_eq!(usage["prompt_tokens"], encode("The cat").len());
        assert_eq!(usage["completion_tokens"], encode(" sat on the mat.<|return|>").len());
    }
}

#[tokio::test]
async fn batches_keep_their_order() {
    let edge = scripted();
    let texts = |reply: &Value| -> Vec<String> {
        let choices = reply["choices"].as_array().unwrap();
        choices.iter().map(|choice| choice["text"].as_str().unwrap().to_string()).collect()
    };
    let (cat, dogs) = (" sat on the mat.", " barked 🦀 loudly.");
    let reply = edge.complete(json!({"prompt": ["The cat", "Two dogs"], "n": 2})).await;
    assert_eq!(texts(&reply), [cat, cat, dogs, dogs]);
    let indices: Vec<&Value> = reply["choices"].as_array().unwrap().iter().map(|choice| &choice["index"]).collect();
    assert_eq!(indices, [0, 1, 2, 3]);
    let reply = edge.complete(json!({"prompt": [encode("Two dogs"), encode("The cat")]})).await;
    assert_eq!(texts(&reply), [dogs, cat]);
    // More choices than the engine is given at a time.
    let reply = edge.complete(json!({"prompt": vec!["The cat"; 250], "max_tokens": 2})).await;
    assert_eq!(texts(&reply), vec![" sat on"; 250]);
}

/// What lm-evaluation-harness sends for a log-likelihood, and how it reads the answer.
#[tokio::test]
async fn scores_for_every_prompt_position() {
    let edge = scripted();
    let prompts = [encode("The cat"), encode("Two dogs and more")];
    let request =
        json!({"prompt": prompts, "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": true});
    let reply = edge.complete(request).await;
    for (choice, prompt) in reply["choices"].as_array().unwrap().iter().zip(&prompts) {
        let logprobs = &choice["logprobs"];
        let list = |name: &str| logprobs[name].as_array().unwrap().clone();
        let count = prompt.len() + 1;
        for name in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
            assert_eq!(list(name).len(), count, "{name}");
        }
        assert_eq!((&list("token_logprobs")[0], &list("top_logprobs")[0]), (&Value::Null, &Value::Null));
        for (at, &token) in prompt.iter().enumerate().skip(1) {
            let scored = list("token_logprobs")[at].as_f64().unwrap();
            assert_eq!(scored, f64::from(logprob(token)));
            let top = list("top_logprobs")[at].as_object().unwrap().clone();
            // The harness takes a token for greedy if its value equals the largest.
            let largest = top.values().map(|value| value.as_f64().unwrap()).fold(f64::MIN, f64::max);
            assert_eq!(largest, scored);
        }
        let text: Vec<char> = choice["text"].as_str().unwrap().chars().collect();
        let offsets: Vec<usize> = list("text_offset").iter().map(|offset| offset.as_u64().unwrap() as usize).collect();
        for (at, token) in list("tokens").iter().enumerate().take(prompt.len()) {
            let end = offsets.get(at + 1).copied().unwrap_or(text.len());
            assert_eq!(text[offsets[at]..end].iter().collect::<String>(), token.as_str().unwrap());
        }
    }
}

#[tokio::test]
async fn scores_without_generation() {
    let edge = scripted();
    let request = json!({"prompt": "The cat", "max_tokens": 0, "logprobs": 0, "echo": true});
    let reply = edge.complete(request).await;
    let choice = &reply["choices"][0];
    assert_eq!((choice["text"].as_str(), choice["finish_reason"].as_str()), (Some("The cat"), Some("length")));
    assert_eq!(choice["logprobs"]["tokens"], json!(["The", " cat"]));
    assert_eq!(choice["logprobs"]["token_logprobs"].as_array().unwrap().len(), 2);
    assert_eq!(reply["usage"]["completion_tokens"], 0);
    let reply = edge.complete(json!({"prompt": ["The cat", "x"], "max_tokens": 0, "echo": true})).await;
    assert_eq!(reply["choices"][1]["text"], "x");
    let reply = edge.complete(json!({"prompt": vec![1; CONTEXT as usize - 1], "max_tokens": 0})).await;
    assert_eq!(reply["choices"][0]["text"], "");
}

#[tokio::test]
async fn logprobs_of_what_is_shown() {
    let edge = scripted();
    let reply = edge.complete(json!({"prompt": "The cat", "logprobs": 3, "stop": " the m"})).await;
    let choice = &reply["choices"][0];
    assert_eq!((choice["text"].as_str(), choice["finish_reason"].as_str()), (Some(" sat on"), Some("stop")));
    assert_eq!(choice["logprobs"]["tokens"], json!([" sat", " on"]));
    assert_eq!(choice["logprobs"]["text_offset"], json!([0, 4]));
    let reply = edge.complete(json!({"prompt": "Two dogs", "logprobs": 1})).await;
    let logprobs = &reply["choices"][0]["logprobs"];
    let tokens: Vec<&str> =
        logprobs["tokens"].as_array().unwrap().iter().map(|token| token.as_str().unwrap()).collect();
    assert!(tokens.iter().any(|token| token.starts_with("bytes:\\x")), "{tokens:?}");
    assert_eq!(tokens.last(), Some(&"<|return|>"));
}

#[tokio::test]
async fn streams_join_to_the_whole() {
    let edge = scripted();
    for extra in
        [json!({}), json!({"echo": true, "logprobs": 1}), json!({"stop": "loud"}), json!({"n": 2, "logprobs": 0})]
    {
        let mut request = json!({"prompt": "Two dogs", "stream_options": {"include_usage": true}});
        request.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        let whole = edge.complete(request.clone()).await;
        request["stream"] = json!(true);
        let events = edge.post("/v1/completions", &request).await.events();
        let (usage, chunks) = events.split_last().unwrap();
        assert_eq!(usage["usage"]["completion_tokens"], whole["usage"]["completion_tokens"]);
        for expected in whole["choices"].as_array().unwrap() {
            let (mut text, mut tokens, mut finish) = (String::new(), Vec::new(), Value::Null);
            let choices = chunks.iter().map(|chunk| &chunk["choices"][0]);
            for choice in choices.filter(|choice| choice["index"] == expected["index"]) {
                text += choice["text"].as_str().unwrap();
                tokens.extend(choice["logprobs"]["tokens"].as_array().cloned().unwrap_or_default());
                finish = choice["finish_reason"].clone();
            }
            assert_eq!((json!(text), finish), (expected["text"].clone(), expected["finish_reason"].clone()));
            let expected = expected["logprobs"]["tokens"].as_array().cloned().unwrap_or_default();
            assert_eq!(tokens, expected, "{extra}");
        }
    }
}

#[tokio::test]
async fn control_tokens_are_hidden_unless_asked_for() {
    let edge = Edge::start();
    edge.script.tokens(encode("<|start|>assistant"), encode("<|channel|>final<|message|>Hi<|return|>"));
    let mut request = json!({"prompt": "<|start|>assistant"});
    assert_eq!(edge.complete(request.clone()).await["choices"][0]["text"], "finalHi");
    request["skip_special_tokens"] = json!(false);
    assert_eq!(edge.complete(request).await["choices"][0]["text"], "<|channel|>final<|message|>Hi");
}

#[tokio::test]
async fn penalties_and_stop_ids_reach_the_engine() {
    let edge = scripted();
    let on = encode(" on")[0];
    let reply = edge.complete(json!({"prompt": "The cat", "stop_token_ids": [on], "presence_penalty": 1})).await;
    assert_eq!((&reply["choices"][0]["text"], &reply["choices"][0]["finish_reason"]), (&json!(" sat"), &json!("stop")));
    let reply = edge.complete(json!({"prompt": "The cat", "ignore_eos": true, "max_tokens": 30})).await;
    assert_eq!(reply["usage"]["completion_tokens"], 30);
}
