//! `tandem doctor`, on this very machine, and between two processes of it.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::server::tandem;

fn doctor(args: &[&str]) -> (Option<i32>, Value, String) {
    let output = tandem(&[&["doctor", "--json"], args].concat()).output().expect("running tandem");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), error)
}

fn check<'a>(findings: &'a Value, name: &str) -> &'a Value {
    let checks = findings["checks"].as_array().expect("checks");
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name} in {findings}"))
}

/// Whatever this machine is like: every finding has a fix, and the exit code says whether there are any.
#[test]
fn it_examines_this_machine() {
    let (code, findings, error) = doctor(&["--port", "0"]);
    let checks = findings["checks"].as_array().unwrap_or_else(|| panic!("{error}"));
    let is_wrong = |check: &&Value| check["status"] == "warn" || check["status"] == "fail";
    let wrong: Vec<&Value> = checks.iter().filter(is_wrong).collect();
    assert_eq!(code, Some(i32::from(!wrong.is_empty())), "{findings}");
    assert!(wrong.iter().all(|check| check["fix"].as_str().is_some_and(|fix| !fix.is_empty())), "{findings}");
    for name in ["versions", "gpu", "rdma devices", "free memory", "swap", "clock", "port"] {
        assert!(!check(&findings, name)["finding"].as_str().unwrap().is_empty());
    }
    assert_eq!(check(&findings, "port")["status"], "ok");
    let text = tandem(&["doctor", "--port", "0"]).output().expect("running tandem");
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("free memory") && text.contains("to mend"), "{text}");
}

#[test]
fn a_port_in_use_and_a_model_that_is_not_there_are_findings() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, findings, _) = doctor(&["--port", &port, "/no/such/folder"]);
    assert_eq!(code, Some(1));
    let found = check(&findings, "port");
    assert!(found["status"] == "warn" && found["fix"].as_str().unwrap().contains(&port), "{found}");
    let found = check(&findings, "model");
    assert!(found["status"] == "fail" && found["finding"].as_str().unwrap().contains("/no/such/folder"), "{found}");
    // An address of no interface.
    let (_, findings, _) = doctor(&["--port", "0", "--listen", "192.0.2.1:7000"]);
    assert_eq!(check(&findings, "cluster port")["status"], "fail", "{findings}");
}

/// The node that listens, and the address that it prints.
fn listener(token: &Path, wait: &str) -> (Child, String) {
    let token = token.to_str().unwrap();
    let args = ["doctor", "--json", "--peer", "--listen", "127.0.0.1:0", "--token-file", token, "--wait", wait];
    let mut child = tandem(&args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starting tandem");
    let mut invitation = BufReader::new(child.stderr.take().unwrap()).lines();
    let line = invitation.find_map(|line| line.unwrap().split_once("--peer ").map(|(_, rest)| rest.to_owned()));
    let address = line.expect("an invitation").split(' ').next().unwrap().to_owned();
    std::thread::spawn(move || invitation.count());
    (child, address)
}

fn end(mut child: Child) -> (Option<i32>, Value) {
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    (child.wait().unwrap().code(), serde_json::from_str(&text).unwrap_or_default())
}

#[test]
fn two_nodes_examine_each_other() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    let (listening, address) = listener(&token, "2m");
    let (code, dialled, error) = doctor(&["--peer", &address, "--token-file", token.to_str().unwrap()]);
    assert!(code.is_some() && !dialled.is_null(), "{error}");
    let (_, listened) = end(listening);
    for findings in [&dialled, &listened] {
        assert_eq!(check(findings, "build")["status"], "ok", "{findings}");
        assert_eq!(check(findings, "clocks")["status"], "ok", "one clock: {findings}");
        let tcp = check(findings, "tcp")["finding"].as_str().unwrap();
        assert!(tcp.starts_with("TCP to 127.0.0.1") && tcp.contains("Gb/s"), "{tcp}");
        assert!(check(findings, "rdma")["finding"].as_str().is_some_and(|finding| !finding.is_empty()));
    }
    // Both measured the same link.
    let measured = |findings: &Value| {
        let finding = check(findings, "tcp")["finding"].as_str().unwrap().to_owned();
        finding.split_once(": ").unwrap().1.to_owned()
    };
    assert_eq!(measured(&dialled), measured(&listened));
}

#[test]
fn who_does_not_know_the_token_learns_nothing_and_nobody_waits_forever() {
    let folder = tempfile::tempdir().unwrap();
    let (token, other) = (folder.path().join("token"), folder.path().join("other"));
    // Makes the other file.
    let (mut spare, address) = listener(&other, "2m");
    let (listening, wrong_address) = listener(&token, "3s");
    let (code, findings, error) = doctor(&["--peer", &wrong_address, "--token-file", other.to_str().unwrap()]);
    assert!(code == Some(1) && findings.is_null() && error.contains("does not know the token"), "{error}");
    assert_eq!(end(listening), (Some(1), Value::Null));
    spare.kill().unwrap();
    spare.wait().unwrap();
    let (code, _, error) = doctor(&["--peer", &address, "--token-file", other.to_str().unwrap(), "--wait", "300ms"]);
    assert!(code == Some(1) && error.contains(&address), "{error}");
    let (code, _, error) = doctor(&["--peer"]);
    assert!(code == Some(1) && error.contains("--listen"), "{error}");
    let missing = folder.path().join("missing");
    let (code, _, error) = doctor(&["--peer", &address, "--token-file", missing.to_str().unwrap()]);
    assert!(code == Some(1) && error.contains("copy it from there"), "{error}");
}
