//! Peers in processes of their own: this test program, started again with a variable that says so.

use std::env;
use std::io::{BufRead, BufReader, Write, stdin};
use std::process::{Child, ChildStdout, Command, Stdio};

use tandem_link::{Link, LinkError};

use super::{Make, PATIENCE, gather_and_compare, reduce_and_compare, settings};

const CHILD: &str = "TANDEM_TEST_LINK_CHILD";
/// What a child's offer begins with: the test harness talks on the same pipe.
const OFFER: &str = "offer ";

/// A test that is also the child's program. `name` is the test's own name.
pub fn exchanges_and_survives(make: Make, name: &str) {
    if env::var_os(CHILD).is_some() {
        return child(make);
    }
    let (mut link, mut peer) = parent(make, name);
    for salt in 0..20 {
        reduce_and_compare(&mut link, 3000, salt);
        gather_and_compare(&mut link, 100, salt);
    }
    // The child goes on exchanging and has no chance to say goodbye.
    peer.kill().expect("killing the child");
    let error = (0..).find_map(|_| link.all_reduce(&mut [1.0; 1000]).err()).expect("the peer is dead");
    peer.wait().expect("the child's end");
    assert!(matches!(error, LinkError::PeerGone { peer: 1, .. } | LinkError::Timeout { peer: 1, .. }), "{error}");
}

fn parent(make: Make, name: &str) -> (Link, Child) {
    let mut child = Command::new(env::current_exe().expect("this program"))
        .args([name, "--exact", "--nocapture"])
        .env(CHILD, "1")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("a child");
    let endpoint = make(&settings(4096)).expect("an endpoint");
    let ours = endpoint.offer();
    let mut input = child.stdin.take().expect("its input");
    writeln!(input, "{}", String::from_utf8_lossy(&ours)).expect("telling the child");
    let theirs = read_offer(child.stdout.take().expect("its output"));
    (endpoint.connect(0, 2, &[ours, theirs], PATIENCE).expect("a link"), child)
}

fn read_offer(output: ChildStdout) -> Vec<u8> {
    let mut lines = BufReader::new(output).lines().map(|line| line.expect("a line"));
    // The harness ends no line before the test's first output.
    let offer = lines.find_map(|line| line.split_once(OFFER).map(|(_, offer)| offer.to_owned()));
    // Whatever the child says later goes nowhere; it must not fail for a full pipe.
    std::thread::spawn(move || lines.for_each(drop));
    offer.expect("the child's offer").into_bytes()
}

fn child(make: Make) {
    let endpoint = make(&settings(4096)).expect("an endpoint");
    let ours = endpoint.offer();
    println!("{OFFER}{}", String::from_utf8_lossy(&ours));
    let mut theirs = String::new();
    stdin().read_line(&mut theirs).expect("the parent's offer");
    let offers = [theirs.trim_end().as_bytes().to_vec(), ours];
    let mut link = endpoint.connect(1, 2, &offers, PATIENCE).expect("a link");
    for salt in 0..20 {
        reduce_and_compare(&mut link, 3000, salt);
        gather_and_compare(&mut link, 100, salt);
    }
    // Until the parent kills us; if it dies instead, its end of the link closes.
    while link.all_reduce(&mut [1.0; 1000]).is_ok() {}
}
