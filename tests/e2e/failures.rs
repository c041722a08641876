//! What else goes wrong with several nodes: garbage on every port, and a node that stops for a while.

use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use crate::workers::{Meeting, assert_one_error, completion, failed_within, interrupted, is_there, send, wait_until};

const PROMPT: &str = "one two three four";
/// Connections of each kind to each port, all open at the same time.
const OF_EACH: u8 = 3;

/// Whatever is said, or not said, at a port: open and later requests get their answers, and nodes find each other.
#[test]
fn garbage_on_every_port_harms_nobody() {
    let meeting = Meeting::new();
    let ollama = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let ports = ["--grpc-port", "0", "--ollama-port", &ollama.port().to_string()];
    let (server, worker) = meeting.serve_with(&ports, || meeting.worker(&meeting.token()));
    let expected = completion(&server, PROMPT);
    let address = |url: &str| url.split('/').nth(2).unwrap().parse::<SocketAddr>().unwrap();
    let ports = [address(server.url()), address(server.grpc_url()), ollama, meeting.address.parse().unwrap()];
    let strangers: Vec<TcpStream> = ports.iter().flat_map(|port| strangers(*port)).collect();
    assert_eq!(completion(&server, PROMPT), expected, "while {} connections are open", strangers.len());
    assert_eq!(server.get("/ready").0, 200);
    assert!(is_there(worker.0.id()));
    // Whoever comes late finds the door, too, as soon as those before it that say nothing have been sent away.
    drop(worker);
    wait_until("the loss is noticed", || server.get("/ready").0 == 503);
    let _again = meeting.worker(&meeting.token());
    server.wait_ready();
    assert_eq!(completion(&server, PROMPT), expected);
    drop(strangers);
}

fn strangers(port: SocketAddr) -> Vec<TcpStream> {
    let each = (0..OF_EACH).flat_map(garbage);
    each.map(|words| {
        let mut stream = TcpStream::connect(port).expect("the port is open");
        stream.set_write_timeout(Some(Duration::from_secs(5))).unwrap();
        // It may be refused before all is sent.
        let _ = stream.write_all(&words);
        stream
    })
    .collect()
}

/// Nothing; noise; what begins like each protocol and goes on wrong, or not at all.
fn garbage(salt: u8) -> Vec<Vec<u8>> {
    let noise: Vec<u8> = (0..5000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8 ^ salt).collect();
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
    let settings = [0, 0, 0, 4, 0, 0, 0, 0, 0];
    // HEADERS of stream 1 whose length is a lie, and a frame as long as a frame can say.
    let headers = [0, 16, 0, 1, 5, 0, 0, 0, 1];
    let longest = [0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1];
    let post = |header: &str| format!("POST /v1/completions HTTP/1.1\r\nhost: x\r\n{header}\r\n\r\n{{\"prompt\":");
    vec![
        Vec::new(),
        noise.clone(),
        b"GET / HTTP/1.1\r\nhost:".to_vec(),
        format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(200_000)).into_bytes(),
        post("content-length: 999999999999999999").into_bytes(),
        post("transfer-encoding: chunked").into_bytes(),
        [&preface[..], &noise].concat(),
        [&preface[..], &settings, &headers, &noise[..4096]].concat(),
        [&preface[..], &settings, &longest].concat(),
        // TLS's first words, without the rest.
        [&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3][..], &noise[..40]].concat(),
        b"TDMLINK1".to_vec(),
    ]
}

#[test]
fn a_node_that_stops_for_a_while_is_let_in_again() {
    let meeting = Meeting::new();
    let (server, worker) = meeting.serve(|| meeting.worker(&meeting.token()));
    let expected = completion(&server, PROMPT);
    let (text, took) = interrupted(&server, || send("-STOP", worker.0.id()));
    assert_one_error(&text);
    assert!(took < failed_within(), "{took:?}");
    assert_eq!((server.get("/ready").0, server.get("/health").0), (503, 200));
    send("-CONT", worker.0.id());
    server.wait_ready();
    assert_eq!(completion(&server, PROMPT), expected);
    assert!(is_there(worker.0.id()), "it is the same process");
}
