//! The protocol over RDMA. Where a machine has no device these tests say so and pass, unless `TANDEM_TEST_RDMA` demands one:
//! `.ci/run rdma` runs this very program in virtual machines with soft-RoCE devices.

mod support;

use std::env;
use std::process::Command;
use std::time::{Duration, Instant};

use support::device::{RDMA, with_device};
use support::machines::Machines;
use support::{failure, process, reduce_and_compare, settings};
use tandem_link::{Endpoint, LinkError, RdmaChoice, Settings};

#[test]
fn equals_a_plain_sum_in_rank_order() {
    with_device(|| (2..=4).for_each(|world| support::equals_a_plain_sum(RDMA, world)));
}

#[test]
fn carries_a_model() {
    with_device(|| support::carries_a_model(RDMA, 2));
}

#[test]
fn measures_itself() {
    with_device(|| support::measures_itself(RDMA));
}

#[test]
fn any_sequence_of_exchanges() {
    with_device(|| support::any_sequence(RDMA, 12));
}

#[test]
fn refuses_what_does_not_fit() {
    with_device(|| support::refuses_what_does_not_fit(RDMA));
}

#[test]
fn a_stalled_peer_times_out() {
    with_device(|| failure::stalled_peer(RDMA));
}

#[test]
fn a_closed_peer_is_gone() {
    with_device(|| failure::closed_peer(RDMA));
}

#[test]
fn abort_ends_a_wait() {
    with_device(|| failure::abort(RDMA));
}

#[test]
fn abort_holds_while_idle() {
    with_device(|| failure::abort_while_idle(RDMA));
}

#[test]
fn ranks_in_different_exchanges_notice() {
    with_device(|| failure::disagreement(RDMA));
}

#[test]
fn a_killed_process_is_noticed() {
    with_device(|| process::exchanges_and_survives(RDMA, "a_killed_process_is_noticed"));
}

#[test]
fn a_device_that_is_not_there_is_named() {
    let choice = RdmaChoice { devices: vec!["mlx5_99".into()], gid_index: None };
    let error = Endpoint::rdma(&settings(4096), &choice).err().expect("no such device");
    assert!(error.to_string().contains("mlx5_99"), "{error}");
}

/// As many devices as the machine has, and as the caller says there are, are used.
#[test]
fn all_devices_are_used() {
    let Some(count) = env::var("TANDEM_TEST_RDMA_DEVICES").ok() else {
        return eprintln!("skipped: TANDEM_TEST_RDMA_DEVICES does not say how many there are");
    };
    let links = support::group(RDMA, 2, &settings(4096));
    let described = links[0].describe();
    println!("{described}");
    assert_eq!(described.matches("GID").count().to_string(), count, "{described}");
}

#[test]
fn two_machines() {
    if let Some(machines) = Machines::from_environment() {
        machines.exchange(RDMA);
    }
}

/// The link between two machines is cut within a row of exchanges: both ends have an error soon.
#[test]
fn a_cut_cable_is_noticed() {
    let Some(cut) = env::var("TANDEM_TEST_LINK_CUT").ok() else {
        return eprintln!("skipped: TANDEM_TEST_LINK_CUT does not say how to cut the cable");
    };
    let Some(machines) = Machines::from_environment() else { return };
    let limit = Duration::from_secs(2);
    let settings = Settings { deadline: limit, ..settings(64 << 10) };
    let mut link = machines.connect(RDMA(&settings).expect("an endpoint"));
    reduce_and_compare(&mut link, 2880, 1);
    if machines.rank == 1 {
        let cut = Command::new("sh").args(["-c", &cut]).status().expect("a shell");
        assert!(cut.success());
    }
    let (started, error) = (0..)
        .find_map(|_| {
            let started = Instant::now();
            Some((started, link.all_reduce(&mut [1.0; 2880]).err()?))
        })
        .expect("the cable is cut");
    println!("{error} after {:?}", started.elapsed());
    assert!(matches!(error, LinkError::Timeout { .. } | LinkError::PeerGone { .. }), "{error}");
    // Twice the deadline is not a matter of a busy machine any more.
    assert!(started.elapsed() < 2 * limit + Duration::from_secs(1), "{:?}", started.elapsed());
}
