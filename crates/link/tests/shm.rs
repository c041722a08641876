//! The protocol over shared memory.

mod support;

use support::{Make, failure, process};
use tandem_link::Endpoint;

const SHM: Make = Endpoint::shm;

#[test]
fn equals_a_plain_sum_in_rank_order() {
    (2..=4).for_each(|world| support::equals_a_plain_sum(SHM, world));
}

#[test]
fn carries_a_model() {
    support::carries_a_model(SHM, 2);
}

#[test]
fn measures_itself() {
    support::measures_itself(SHM);
}

#[test]
fn any_sequence_of_exchanges() {
    support::any_sequence(SHM, 64);
}

#[test]
fn refuses_what_does_not_fit() {
    support::refuses_what_does_not_fit(SHM);
}

#[test]
fn a_stalled_peer_times_out() {
    failure::stalled_peer(SHM);
}

#[test]
fn a_closed_peer_is_gone() {
    failure::closed_peer(SHM);
}

#[test]
fn abort_ends_a_wait() {
    failure::abort(SHM);
}

#[test]
fn abort_holds_while_idle() {
    failure::abort_while_idle(SHM);
}

#[test]
fn ranks_in_different_exchanges_notice() {
    failure::disagreement(SHM);
}

#[test]
fn wrong_lengths_hurt_nothing() {
    failure::wrong_lengths(SHM);
}

#[test]
fn a_killed_process_is_noticed() {
    process::exchanges_and_survives(SHM, "a_killed_process_is_noticed");
}
