//! Requests over HTTP to a model with random weights: the machinery, not the sense.

use serde_json::{Value, json};

use crate::server::Server;

fn tiny() -> Server {
    Server::start(&["--synthetic", "tiny", "--exact", "--context", "2048", "--memory", "3G", "--threads", "2"])
}

/// A text prompt of `n` ordinary words, different for each `seed`.
fn words(seed: usize, n: usize) -> String {
    let list = ["river", "stone", "cloud", "seven", "paper", "green", "light", "under", "music", "wheel", "salt"];
    (0..n).map(|i| list[(i * 7 + i / 11 + seed * (i + 3)) % list.len()]).collect::<Vec<_>>().join(" ")
}

fn completion(server: &Server, prompt: &str, extra: Value) -> Value {
    let mut body = json!({"prompt": prompt, "max_tokens": 12, "seed": 5, "ignore_eos": true, "return_token_ids": true});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    server.ok("/v1/completions", &body)
}

fn text(answer: &Value) -> &str {
    answer["choices"][0]["text"].as_str().expect("text")
}

#[test]
fn chat_answers_and_streams_the_same() {
    let server = tiny();
    let body = json!({
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}],
        "max_tokens": 24, "seed": 7,
    });
    let whole = server.ok("/v1/chat/completions", &body);
    let message = &whole["choices"][0]["message"];
    assert_eq!(message["role"], "assistant");
    assert_eq!(message["reasoning"], message["reasoning_content"]);
    assert!(whole["usage"]["prompt_tokens"].as_u64().unwrap() > 20);

    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    streamed["stream_options"] = json!({"include_usage": true});
    let events = server.stream("/v1/chat/completions", &streamed);
    let joined = |field: &str| -> String {
        events.iter().filter_map(|event| event["choices"][0]["delta"][field].as_str()).collect()
    };
    assert_eq!(joined("content"), message["content"].as_str().unwrap_or_default());
    assert_eq!(joined("reasoning"), message["reasoning"].as_str().unwrap_or_default());
    let usage = &events.last().unwrap()["usage"];
    assert_eq!(usage["completion_tokens"], whole["usage"]["completion_tokens"]);
    // The second request's prompt was the first one's: all but its last token come from the cache.
    let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached, whole["usage"]["prompt_tokens"].as_u64().unwrap() - 1);
}

#[test]
fn effort_is_capped_for_all_requests() {
    let effort = |server: &Server, wanted: Option<&str>| {
        let messages = json!([{"role": "user", "content": "Hi"}]);
        let prompt = server.ok("/tokenize", &json!({"messages": messages, "reasoning_effort": wanted}));
        let text =
            server.ok("/detokenize", &json!({"tokens": prompt["tokens"]}))["prompt"].as_str().unwrap().to_string();
        let line =
            text.lines().find_map(|line| line.strip_prefix("Reasoning: ")).expect("a line of the system message");
        line.to_string()
    };
    let limits = ["--synthetic", "tiny", "--context", "512", "--memory", "2G"];
    for (cap, expected) in [
        (&[][..], ["low", "medium", "high", "medium"]),
        (&["--max-effort", "medium"], ["low", "medium", "medium", "medium"]),
        (&["--max-effort", "low"], ["low", "low", "low", "low"]),
    ] {
        let server = Server::start(&[&limits[..], cap].concat());
        let efforts = [Some("low"), Some("medium"), Some("high"), None].map(|wanted| effort(&server, wanted));
        assert_eq!(efforts, expected, "{cap:?}");
    }
}

#[test]
fn ollamas_port_is_used_where_it_is_free() {
    // Any port will do, as the real one may be Ollama's. It is free for the moment.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port().to_string();
    let args = ["--synthetic", "tiny", "--context", "256", "--memory", "3G", "--threads", "1", "--ollama-port", &port];
    let first = Server::start(&args);
    let url = format!("http://127.0.0.1:{port}");
    assert_eq!(first.get_from(&url), (200, "Ollama is running".to_string()));
    let tags: Value = serde_json::from_str(&first.get_from(&format!("{url}/api/tags")).1).unwrap();
    assert_eq!(tags["models"][0]["name"], "synthetic-tiny:latest");
    assert!(tags["models"][0]["size"].as_u64().unwrap() > 1_000_000);
    // A second server finds the port taken and serves all the same.
    let second = Server::start(&args);
    assert_eq!(second.get("/api/tags").0, 200);
}

#[test]
fn the_same_bits_alone_in_a_batch_and_from_the_cache() {
    let server = tiny();
    let prompts: Vec<String> = (0..8).map(|seed| words(seed, 90 + 30 * seed)).collect();
    let alone: Vec<Value> = prompts.iter().map(|prompt| completion(&server, prompt, json!({}))).collect();
    let fresh = tiny();
    let together: Vec<Value> = std::thread::scope(|scope| {
        let server = &fresh;
        let threads: Vec<_> =
            prompts.iter().map(|prompt| scope.spawn(move || completion(server, prompt, json!({})))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for ((prompt, alone), together) in prompts.iter().zip(&alone).zip(&together) {
        assert_eq!(text(alone), text(together));
        let again = completion(&server, prompt, json!({}));
        assert_eq!(text(alone), text(&again));
        assert!(again["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap() > 60);
    }
}

#[test]
fn chunk_size_and_pipelining_change_nothing() {
    let prompt = words(3, 400);
    let whole = completion(&tiny(), &prompt, json!({"logprobs": 3}));
    for extra in [["--prefill-chunk", "37"], ["--pipeline-depth", "2"], ["--threads", "1"], ["--isa", "scalar"]] {
        let args = ["--synthetic", "tiny", "--exact", "--context", "2048", "--memory", "3G"];
        let server = Server::start(&[&args[..], &extra].concat());
        let other = completion(&server, &prompt, json!({"logprobs": 3}));
        assert_eq!(whole["choices"][0]["logprobs"], other["choices"][0]["logprobs"], "{extra:?}");
    }
}

#[test]
fn prompt_log_probabilities_agree_with_generated_ones() {
    let server = tiny();
    let prompt = words(1, 40);
    let generated = completion(&server, &prompt, json!({"logprobs": 2, "temperature": 0}));
    let longer = format!("{prompt}{}", text(&generated));
    let scored = completion(&server, &longer, json!({"logprobs": 2, "echo": true, "max_tokens": 0}));
    let scores = scored["choices"][0]["logprobs"]["token_logprobs"].as_array().unwrap();
    assert!(scores[0].is_null() && scores[1..].iter().all(|score| score.as_f64().unwrap() <= 0.0));
}

#[test]
fn an_interrupt_ends_it_cleanly() {
    let mut server = tiny();
    let killed = std::process::Command::new("kill").args(["-INT", &server.pid().to_string()]).status().unwrap();
    assert!(killed.success());
    assert_eq!(server.exit_code(), Some(0));
}

#[test]
fn bad_requests_are_refused_precisely_and_harm_nothing() {
    let server = tiny();
    for (body, status, named) in [
        (&b"{\"messages\": [}"[..], 400, "line 1"),
        (b"{\"messages\": []}", 400, "messages"),
        (b"{\"messages\": \"hello\"}", 400, "messages"),
        (b"{\"messages\": [{\"role\": \"narrator\", \"content\": \"x\"}]}", 400, "narrator"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"temperature\": 9}", 400, "temperature"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"x\"}], \"model\": \"gpt-5\"}", 404, "gpt-5"),
        (b"{\"messages\": [{\"role\": \"user\", \"content\": \"\xff\"}]}", 400, "UTF-8"),
    ] {
        let (got, answer) = server.post_raw("/v1/chat/completions", body);
        assert_eq!(got, status, "{answer}");
        let answer: Value = serde_json::from_str(&answer).unwrap();
        assert!(answer["error"]["message"].as_str().unwrap().contains(named), "{answer}");
    }
    let long = words(1, 4000);
    let (status, answer) = server.post("/v1/completions", &json!({"prompt": long}));
    assert_eq!((status, answer["error"]["code"].as_str()), (400, Some("context_length_exceeded")));
    assert_eq!(server.get("/health").0, 200);
}
