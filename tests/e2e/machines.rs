//! Two nodes on two machines whose cable carries RDMA. Where no variables say which of them this one is, the test says so and
//! passes; .ci/run rdma boots such machines.

use std::net::{TcpListener, TcpStream};
use std::process::Command;

use crate::model;
use crate::workers::{
    Meeting, answers, assert_one_error, failed_within, interrupted, start, transport, wait_until, write_token,
};

/// Where the coordinator listens, and where its machine says that it is done.
const PORTS: [u16; 2] = [7117, 7118];

#[test]
fn two_machines_serve_over_rdma_also_after_their_cable_was_pulled() {
    let variable = |name: &str| std::env::var(format!("TANDEM_TEST_LINK_{name}")).ok();
    let (Some(rank), Some(mine), Some(peer)) = (variable("RANK"), variable("ADDRESS"), variable("PEER")) else {
        return eprintln!("skipped: this is not one of two machines with RDMA devices and a cable");
    };
    let address = |port: u16| format!("{}:{port}", if rank == "0" { &mine } else { &peer });
    let meeting = Meeting { address: address(PORTS[0]), ..Meeting::new() };
    write_token(&meeting.token(), "a", 0o600);
    if rank == "0" {
        coordinate(&meeting, &variable("INTERFACE").expect("the cable's interface"));
        TcpListener::bind(address(PORTS[1])).unwrap().accept().unwrap();
    } else {
        let folder = model::arguments();
        let _worker = meeting.worker_with(&meeting.token(), &["--model", folder[0]]);
        wait_until("the other machine is done", || TcpStream::connect(address(PORTS[1])).is_ok());
    }
}

fn coordinate(meeting: &Meeting, interface: &str) {
    let set = |state: &str| {
        assert!(Command::new("ip").args(["link", "set", interface, state]).status().unwrap().success());
    };
    let expected = answers(&start(&[]));
    let (server, ()) = meeting.serve_with(&["--link", "rdma"], || ());
    assert_eq!(answers(&server), expected);
    assert!(transport(&server).contains("RDMA"), "{}", transport(&server));
    let (text, took) = interrupted(&server, || set("down"));
    assert_one_error(&text);
    assert!(took < failed_within(), "{took:?}");
    set("up");
    server.wait_ready();
    assert_eq!(answers(&server), expected);
    assert!(transport(&server).contains("RDMA"), "{}", transport(&server));
}
