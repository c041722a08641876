//! `tandem top` beside a running server, and beside none.

use serde_json::{Value, json};

use crate::server::{Server, tandem};

#[test]
fn it_shows_a_server_at_work() {
    let server = Server::start(&["--synthetic", "tiny", "--context", "2048", "--memory", "3G", "--exact"]);
    server.ok("/v1/completions", &json!({"prompt": "a b c", "max_tokens": 20, "ignore_eos": true}));
    let top = |args: &[&str]| {
        let out = tandem(&[&["top", "--url", server.url()], args].concat()).output().expect("running tandem");
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).expect("UTF-8")
    };
    let text = top(&[]);
    for part in
        ["synthetic-tiny", "0 of 16 running", "KV cache", "1 cut off", "time to first token", "experts", "resident"]
    {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    let status: Value = serde_json::from_str(&top(&["--json"])).expect("JSON");
    assert_eq!(status["engine"]["generated_tokens"], 20);
    assert!(status["latency"]["time_to_first_token"]["p50_s"].as_f64().unwrap() > 0.0);
}

#[test]
fn no_server_is_said_plainly() {
    let unused = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let out = tandem(&["top", "--once", "--url", &format!("http://{unused}")]).output().expect("running tandem");
    assert_eq!(out.status.code(), Some(1));
    let message = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(message.contains("no answer") && message.contains(&unused.to_string()), "{message}");
}
