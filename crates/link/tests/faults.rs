//! Links with seeded faults: whatever happens, a rank has the right bits or an error.
//!
//! `TANDEM_TEST_LINK_SEEDS` is how many seeds each transport is tried with (default 200).

mod support;

use std::env;
use std::net::Ipv4Addr;
use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use support::{Make, connect, plain_sum, settings, values};
use tandem_link::{Endpoint, Fault, Faults, Link, LinkError, Settings};

/// Longer than any wait within a link that works, shorter than anybody's patience with thousands of seeds.
const DEADLINE: Duration = Duration::from_millis(40);
/// A rank that has not ended by then never will.
const HANG: Duration = Duration::from_secs(60);
const EXCHANGES: u64 = 12;

#[test]
fn shared_memory() {
    survives(Endpoint::shm);
}

#[test]
fn tcp() {
    survives(|settings| Endpoint::tcp(settings, Ipv4Addr::LOCALHOST.into()));
}

/// Faults that only take time change nothing, given the time.
#[test]
fn delays_and_pauses_change_nothing() {
    let patient = settings(256);
    for seed in 0..20 {
        let kinds = vec![Fault::Delay, Fault::Pause];
        let links = group(Endpoint::shm, 3, &patient, |rank| faults(seed * 4 + rank, 4, &kinds));
        let ends = ends(links, seed, &patient);
        assert!(ends.iter().all(Result::is_ok), "seed {seed}: {ends:?}");
    }
}

/// Each fault alone that must not go unnoticed is noticed by somebody.
#[test]
fn losses_are_noticed() {
    for kind in [Fault::Drop, Fault::Truncate] {
        let impatient = Settings { deadline: DEADLINE, ..settings(256) };
        let links = group(Endpoint::shm, 2, &impatient, |rank| faults(rank, 1, &[kind]));
        let ends = ends(links, 0, &impatient);
        assert!(ends.iter().any(Result::is_err), "{kind:?}: {ends:?}");
    }
}

fn survives(make: Make) {
    let seeds = env::var("TANDEM_TEST_LINK_SEEDS").map_or(200, |count| count.parse().expect("a number of seeds"));
    let (mut right, mut failed) = (0, 0);
    for seed in 0..seeds {
        // From every other message to one in a hundred.
        let one_in = 2 + seed * seed % 101;
        let world = 2 + (seed % 3) as usize;
        let impatient = Settings { deadline: DEADLINE, ..settings(64 * (1 + seed as usize % 4)) };
        let links = group(make, world, &impatient, |rank| faults(seed * 4 + rank, one_in, &Fault::ALL));
        let ends = ends(links, seed, &impatient);
        match ends.iter().all(Result::is_ok) {
            true => right += 1,
            false => failed += 1,
        }
    }
    println!("{seeds} seeds: {right} right to the end, {failed} ended by an error");
    // Otherwise the faults are too few or too many to have shown anything.
    assert!(seeds < 100 || right > seeds / 50 && failed > seeds / 50, "{right} right, {failed} failed");
}

fn faults(seed: u64, one_in: u64, kinds: &[Fault]) -> Faults {
    Faults { seed, one_in, kinds: kinds.to_vec(), pause_max: DEADLINE / 2 }
}

fn group(make: Make, world: usize, settings: &Settings, faults: impl Fn(u64) -> Faults) -> Vec<Link> {
    let faulty = |rank| make(settings).expect("an endpoint").with_faults(faults(rank as u64));
    connect((0..world).map(faulty).collect())
}

/// How each rank ended. All results before the end were right.
fn ends(links: Vec<Link>, seed: u64, settings: &Settings) -> Vec<Result<(), LinkError>> {
    let slot = settings.slot_bytes / 4;
    let (sender, receiver) = channel();
    let world = links.len();
    for link in links {
        let (sender, rank) = (sender.clone(), link.rank());
        thread::spawn(move || sender.send((rank, run(link, seed, slot))));
    }
    drop(sender);
    let mut ends: Vec<Option<Result<(), LinkError>>> = (0..world).map(|_| None).collect();
    for _ in 0..world {
        let (rank, end) =
            receiver.recv_timeout(HANG).unwrap_or_else(|_| panic!("seed {seed}: a rank hangs or is wrong"));
        ends[rank] = Some(end);
    }
    ends.into_iter().map(|end| end.expect("every rank ended")).collect()
}

/// Exchanges of one message and of several, as the seed says.
fn run(mut link: Link, seed: u64, slot: usize) -> Result<(), LinkError> {
    for turn in 0..EXCHANGES {
        let count = match (seed + turn) % 3 {
            0 => 1 + slot / 2,
            1 => slot,
            _ => 4 * slot + 1,
        };
        let mut mine = values(link.rank(), count, turn);
        link.all_reduce(&mut mine).inspect_err(expected)?;
        let right = mine.iter().zip(plain_sum(link.world(), count, turn)).all(|(a, b)| a.to_bits() == b.to_bits());
        assert!(right, "seed {seed}, exchange {turn}: wrong sum on rank {}", link.rank());
        let mut all = vec![0; 8 * link.world()];
        link.all_gather(&[link.rank() as u8 + turn as u8; 8], &mut all).inspect_err(expected)?;
        let right = all.chunks(8).enumerate().all(|(rank, part)| part == [rank as u8 + turn as u8; 8]);
        assert!(right, "seed {seed}, exchange {turn}: wrong parts on rank {}", link.rank());
    }
    Ok(())
}

/// What a fault may look like from a rank.
fn expected(error: &LinkError) {
    let known = matches!(
        error,
        LinkError::Timeout { .. }
            | LinkError::PeerGone { .. }
            | LinkError::Disagreement { .. }
            | LinkError::Protocol { .. }
    );
    assert!(known, "{error}");
}
