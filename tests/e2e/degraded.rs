//! A node that serves alone while the other is missing.

use serde_json::{Value, json};

use crate::model::prompt;
use crate::server::Server;
use crate::workers::{Meeting, Worker, assert_one_error, completion, failed_within, interrupted, send, wait_until};

const PROMPT: &str = "one two three four";

fn status(server: &Server) -> Value {
    serde_json::from_str(&server.get("/status.json").1).unwrap()
}

fn nodes(server: &Server) -> usize {
    status(server)["nodes"].as_array().unwrap().len()
}

fn health(server: &Server) -> Value {
    let (status, text) = server.get("/health");
    assert_eq!(status, 200);
    serde_json::from_str(&text).unwrap()
}

/// Asks again and again until two nodes compute: each answer is whole, and the same.
fn ask_until_both(server: &Server, expected: &Value) {
    let body = json!({"prompt": prompt(PROMPT), "max_tokens": 200, "temperature": 0, "ignore_eos": true});
    wait_until("the other node takes part", || {
        let answer = server.ok("/v1/completions", &body);
        assert_eq!(answer["choices"][0]["finish_reason"], "length", "{answer}");
        assert_eq!(completion(server, PROMPT), *expected);
        nodes(server) == 2
    });
}

#[test]
fn one_node_serves_alone_until_the_other_is_there_and_when_it_is_lost() {
    let meeting = Meeting::new();
    let (server, ()) = meeting.serve_with(&["--degrade", "--degrade-after", "1s"], || ());
    let expected = completion(&server, PROMPT);
    let alone = status(&server);
    assert_eq!((nodes(&server), alone["link"].is_null()), (1, true), "{alone}");
    assert!(alone["degraded"].as_str().unwrap().contains("1 of 2 nodes"), "{alone}");
    assert_eq!(health(&server)["degraded"], alone["degraded"]);

    let worker = meeting.worker(&meeting.token());
    ask_until_both(&server, &expected);
    let both = status(&server);
    assert!(both["degraded"].is_null() && !both["link"].is_null(), "{both}");
    assert_eq!(health(&server), json!({"status": "ok"}));

    let (text, took) = interrupted(&server, || send("-KILL", worker.0.id()));
    assert_one_error(&text);
    assert!(took < failed_within(), "{took:?}");
    server.wait_ready();
    assert_eq!((completion(&server, PROMPT), nodes(&server)), (expected.clone(), 1));

    let _again: Worker = meeting.worker(&meeting.token());
    ask_until_both(&server, &expected);
}

#[test]
fn where_one_node_cannot_hold_the_model_the_other_is_waited_for() {
    let meeting = Meeting::new();
    // Half of the demonstration model fits into so much, all of it does not.
    let small = ["--memory", "440M", "--degrade", "--degrade-after", "1ms"];
    let token = meeting.token();
    let args = ["--nodes", "2", "--listen", &meeting.address, "--token-file", token.to_str().unwrap(), "--exact"];
    let server = Server::start_loading(&[&args[..], &["--context", "1024", "--max-streams", "4"], &small].concat());
    server.logged("does not serve alone");
    assert_eq!((server.get("/ready").0, server.get("/health").0), (503, 200));
    let _worker = meeting.worker(&token);
    server.wait_ready();
    assert_eq!(nodes(&server), 2);
}
