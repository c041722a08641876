//! What `tandem` refuses at start: one clear line and the right exit code.

use std::process::Output;

use crate::server::tandem;

fn run(args: &[&str], variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let Output { status, stderr, .. } = tandem(args).envs(variables.iter().copied()).output().expect("running tandem");
    (status.code(), String::from_utf8(stderr).expect("UTF-8"))
}

#[test]
fn misspelt_names() {
    let (code, message) = run(&["serve", "--max-stream", "3"], &[]);
    assert_eq!(code, Some(2));
    assert!(message.contains("--max-streams"), "{message}");

    let (code, message) = run(&["serve"], &[("TANDEM_MAX_STREAM", "3")]);
    assert_eq!(code, Some(2));
    assert!(message.contains("TANDEM_MAX_STREAMS"), "{message}");

    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("tandem.toml");
    std::fs::write(&file, "hots = \"0.0.0.0\"\n").unwrap();
    let (code, message) = run(&["serve", "--config", file.to_str().unwrap()], &[]);
    assert_eq!(code, Some(2));
    assert!(message.contains("hots") && message.contains("host"), "{message}");
}

#[test]
fn checkpoints_that_are_none() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().to_str().unwrap();
    for args in [["serve", path], ["inspect", path]] {
        let (code, message) = run(&args, &[]);
        assert_eq!(code, Some(1), "{message}");
        assert!(message.contains("config.json"), "{message}");
    }
    let (code, message) = run(&["inspect", "/no/such/folder"], &[]);
    assert_eq!(code, Some(1));
    assert!(message.contains("/no/such/folder"), "{message}");
}

#[test]
fn what_does_not_fit_is_refused_with_the_table() {
    let (code, message) = run(&["serve", "--synthetic", "120b", "--memory", "4G"], &[]);
    assert_eq!(code, Some(1), "{message}");
    assert!(message.contains("experts") && message.contains("4.29 GB"), "{message}");
}

#[test]
fn a_port_in_use() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let (code, message) = run(&["serve", "--synthetic", "tiny", "--port", &port], &[]);
    assert_eq!(code, Some(1));
    assert!(message.contains(&port), "{message}");
}

#[test]
fn cuda_is_named_as_missing() {
    let (code, message) = run(&["serve", "--synthetic", "tiny", "--device", "cuda"], &[]);
    assert_eq!(code, Some(1));
    assert!(message.to_lowercase().contains("cuda"), "{message}");
}

#[test]
fn keys_that_nobody_has_and_settings_of_access_that_make_no_sense() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("keys.toml");
    let path = file.to_str().unwrap();
    for (args, named) in [
        (&["serve", "--api-keys", path][..], "keys.toml"),
        (&["key", "list"], "--api-keys"),
        (&["key", "list", "--api-keys", path], "keys.toml"),
        (&["serve", "--cors-origin", "example.com"], "example.com"),
        (&["serve", "--tls-certificate", path, "--tls-key", path], "keys.toml"),
    ] {
        let (code, message) = run(args, &[]);
        assert_eq!(code, Some(1), "{args:?}: {message}");
        assert!(message.contains(named), "{args:?}: {message}");
    }
    std::fs::write(&file, "").unwrap();
    let (code, message) = run(&["serve", "--api-keys", path], &[]);
    assert_eq!(code, Some(1));
    assert!(message.contains("tandem key add"), "{message}");
    let (code, message) = run(&["serve", "--tls-certificate", path], &[]);
    assert_eq!(code, Some(2));
    assert!(message.contains("--tls-key"), "{message}");
}
