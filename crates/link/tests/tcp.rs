//! The protocol over TCP.

mod support;

use std::io::Write;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::thread;
use std::time::Duration;

use support::machines::Machines;
use support::proxy::{self, Mischief};
use support::{Make, failure, process, settings};
use tandem_link::{Endpoint, Link, LinkError, Settings};

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
fn measures_itself() {
    support::measures_itself(TCP);
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

/// A connection that garbles, loses, holds back or ends at any byte: both ranks have the right bits or an error, soon.
#[test]
fn a_bad_connection_gives_errors_and_no_wrong_bits() {
    // Within the greeting, a header, a payload, and later messages.
    let places = [0, 20, 47, 48, 50, 60, 70, 79, 80, 81, 200, 335, 336, 340, 1000, 3000, 5000];
    let kinds = [Mischief::Garble, Mischief::Cut, Mischief::Hold, Mischief::Lose(1), Mischief::Lose(40)];
    for at in places {
        for mischief in kinds {
            let ends = over_a_proxy(at, mischief);
            let all_right = ends.iter().all(|end| matches!(end, Ok(())));
            assert!(!all_right, "{mischief:?} at {at} was noticed by nobody");
        }
    }
}

/// A slow connection that cuts everything into single bytes is only slow.
#[test]
fn a_crumbling_connection_changes_nothing() {
    let ends = over_a_proxy(0, Mischief::Crumble);
    assert!(ends.iter().all(|end| matches!(end, Ok(()))), "{ends:?}");
}

/// How two ranks end whose connection goes through a proxy. All that they got before the end was right.
fn over_a_proxy(at: usize, mischief: Mischief) -> [Result<(), LinkError>; 2] {
    let patience = Duration::from_millis(if matches!(mischief, Mischief::Crumble) { 20_000 } else { 100 });
    let settings = Settings { deadline: patience, ..settings(256) };
    let endpoints = [TCP(&settings), TCP(&settings)].map(|endpoint| endpoint.expect("an endpoint"));
    let offers = endpoints.each_ref().map(Endpoint::offer);
    let mut detour: serde_json::Value = serde_json::from_slice(&offers[0]).expect("JSON");
    detour["tcp"]["address"] = proxy::between(address(&offers[0]), at, mischief).to_string().into();
    let detour = [detour.to_string().into_bytes(), offers[1].clone()];
    let [first, second] = endpoints;
    let run = |endpoint: Endpoint, rank: usize, offers: &[Vec<u8>]| {
        let mut link = endpoint.connect(rank, 2, offers, patience.min(Duration::from_millis(500)))?;
        for salt in 0..10 {
            let count = if salt % 2 == 0 { 64 } else { 150 };
            let mut values = support::values(rank, count, salt);
            link.all_reduce(&mut values)?;
            assert!(values == support::plain_sum(2, count, salt), "{mischief:?} at {at}: wrong bits on rank {rank}");
        }
        Ok(())
    };
    thread::scope(|scope| {
        let first = scope.spawn(|| run(first, 0, &offers));
        let second = scope.spawn(|| run(second, 1, &detour));
        [first, second].map(|rank| rank.join().expect("no wrong bits"))
    })
}

#[test]
fn two_machines() {
    if let Some(machines) = Machines::from_environment() {
        machines.exchange(|settings| Endpoint::tcp(settings, machines.address));
    }
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
