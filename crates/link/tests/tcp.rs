//! The protocol over TCP.

mod support;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use support::{Make, failure, process, settings};
use tandem_link::{Endpoint, Link, LinkError};

const TCP: Make = |settings| Endpoint::tcp(settings, Ipv4Addr::LOCALHOST.into());

#[test]
fn equals_a_plain_sum_in_rank_order() {
    (2..=4).for_each(|world| support::equals_a_plain_sum(TCP, world));
}

#[test]
fn carries_a_model() {
    support::carries_a_model(TCP, 2);
}

#[test]
fn any_sequence_of_exchanges() {
    support::any_sequence(TCP, 64);
}

#[test]
fn refuses_what_does_not_fit() {
    support::refuses_what_does_not_fit(TCP);
}

#[test]
fn a_stalled_peer_times_out() {
    failure::stalled_peer(TCP);
}

#[test]
fn a_closed_peer_is_gone() {
    failure::closed_peer(TCP);
}

#[test]
fn abort_ends_a_wait() {
    failure::abort(TCP);
}

#[test]
fn abort_holds_while_idle() {
    failure::abort_while_idle(TCP);
}

#[test]
fn ranks_in_different_exchanges_notice() {
    failure::disagreement(TCP);
}

#[test]
fn wrong_lengths_hurt_nothing() {
    failure::wrong_lengths(TCP);
}

#[test]
fn a_killed_process_is_noticed() {
    process::exchanges_and_survives(TCP, "a_killed_process_is_noticed");
}

/// Scanners, wrong numbers, the silent: none of them keeps the ranks from finding each other, or disturbs them later.
#[test]
fn garbage_on_the_port_disturbs_nobody() {
    let endpoints = [TCP(&settings(4096)), TCP(&settings(4096))].map(|endpoint| endpoint.expect("an endpoint"));
    let offers = endpoints.each_ref().map(Endpoint::offer);
    let port = address(&offers[0]);
    let strangers: Vec<TcpStream> = (0..40).map(|kind| stranger(port, kind)).collect();
    let ranks: Vec<_> = endpoints.into_iter().enumerate().collect();
    let mut links: Vec<Link> = thread::scope(|scope| {
        let connect = |(rank, endpoint): (usize, Endpoint)| {
            let offers = &offers;
            scope.spawn(move || endpoint.connect(rank, 2, offers, support::PATIENCE).expect("a link"))
        };
        let ranks: Vec<_> = ranks.into_iter().map(connect).collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank")).collect()
    });
    drop(strangers);
    assert!(TcpStream::connect(port).is_err(), "the port is closed once the ranks have met");
    support::on_all(&mut links, |link| support::reduce_and_compare(link, 5000, 1));
}

/// The right words with another link's secret are turned away like anything else.
#[test]
fn a_wrong_secret_is_refused() {
    let endpoints = [TCP(&settings(4096)), TCP(&settings(4096))].map(|endpoint| endpoint.expect("an endpoint"));
    let offers = endpoints.each_ref().map(Endpoint::offer);
    let [first, second] = endpoints;
    // What the second rank believes to be the first one's offer has the right address and another secret.
    let mut forged: serde_json::Value = serde_json::from_slice(&offers[0]).expect("JSON");
    forged["tcp"]["nonce"] = serde_json::json!([1, 2]);
    let forged = [forged.to_string().into_bytes(), offers[1].clone()];
    let short = Duration::from_millis(500);
    thread::scope(|scope| {
        let first = scope.spawn(|| first.connect(0, 2, &offers, short));
        let second = second.connect(1, 2, &forged, short).expect_err("turned away");
        assert!(matches!(second, LinkError::PeerGone { peer: 0, .. }), "{second}");
        let first = first.join().expect("a rank").expect_err("nobody came");
        assert!(matches!(first, LinkError::NotConnected { peer: 1, .. }), "{first}");
    });
}

#[test]
fn no_address_is_no_address() {
    let error = Endpoint::tcp(&settings(4096), Ipv4Addr::UNSPECIFIED.into()).err().expect("0.0.0.0");
    assert_eq!(error.to_string(), "0.0.0.0 is no address that peers could connect to");
}

fn address(offer: &[u8]) -> SocketAddr {
    let offer: serde_json::Value = serde_json::from_slice(offer).expect("JSON");
    offer["tcp"]["address"].as_str().expect("an address").parse().expect("an address")
}

fn stranger(port: SocketAddr, kind: usize) -> TcpStream {
    let mut stream = TcpStream::connect(port).expect("the port is open");
    let words: &[u8] = [&b"GET / HTTP/1.1\r\n\r\n"[..], &[0xFF; 4096], b"TDMLINK1", b""][kind % 4];
    // It may have been turned away already.
    let _ = stream.write_all(words);
    stream
}
