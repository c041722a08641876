//! What holds on every transport: each test file runs these bodies with endpoints of its own.
#![allow(dead_code, reason = "not every transport's tests use all of it")]

pub mod device;
pub mod failure;
pub mod machines;
pub mod process;
pub mod proxy;

use std::thread;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use tandem_link::{Endpoint, Link, LinkError, Settings};

/// How a test makes endpoints of its transport.
pub type Make = fn(&Settings) -> Result<Endpoint, LinkError>;

/// Generous: what these tests wait for comes, only the machine may be busy.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub fn settings(slot_bytes: usize) -> Settings {
    Settings { epoch: 7, deadline: PATIENCE, slot_bytes, ..Settings::default() }
}

/// A connected group within this process.
pub fn group(make: Make, world: usize, settings: &Settings) -> Vec<Link> {
    connect((0..world).map(|_| make(settings).expect("an endpoint")).collect())
}

/// A group of these endpoints, each a rank.
pub fn connect(endpoints: Vec<Endpoint>) -> Vec<Link> {
    let world = endpoints.len();
    let offers: Vec<Vec<u8>> = endpoints.iter().map(Endpoint::offer).collect();
    let connect = |(rank, endpoint): (usize, Endpoint)| {
        let offers = offers.clone();
        thread::spawn(move || endpoint.connect(rank, world, &offers, PATIENCE).expect("a link"))
    };
    let ranks: Vec<_> = endpoints.into_iter().enumerate().map(connect).collect();
    ranks.into_iter().map(|rank| rank.join().expect("connecting")).collect()
}

/// Runs `body` on every rank at once, in a thread each, and gives back what they returned, in the order of ranks.
pub fn on_all<T: Send>(links: &mut [Link], body: impl Fn(&mut Link) -> T + Sync) -> Vec<T> {
    thread::scope(|scope| {
        let ranks: Vec<_> = links.iter_mut().map(|link| scope.spawn(|| body(link))).collect();
        ranks.into_iter().map(|rank| rank.join().expect("a rank")).collect()
    })
}

/// Values whose sums depend on the order of summation.
pub fn values(rank: usize, count: usize, salt: u64) -> Vec<f32> {
    let mut state = (rank as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ salt;
    let mut next = || {
        // Knuth's MMIX generator.
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u32
    };
    let value = |bits: u32| (bits as f32 / (1u64 << 30) as f32 - 1.0) * 10f32.powi((bits % 13) as i32 - 6);
    (0..count).map(|_| value(next())).collect()
}

pub fn bytes(rank: usize, count: usize, salt: u64) -> Vec<u8> {
    values(rank, count.div_ceil(4), salt).into_iter().flat_map(f32::to_le_bytes).take(count).collect()
}

/// Rank 0's values plus rank 1's and so on, one after the other.
pub fn plain_sum(world: usize, count: usize, salt: u64) -> Vec<f32> {
    let mut sum = values(0, count, salt);
    for rank in 1..world {
        sum.iter_mut().zip(values(rank, count, salt)).for_each(|(sum, value)| *sum += value);
    }
    sum
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

pub fn reduce_and_compare(link: &mut Link, count: usize, salt: u64) {
    let mut mine = values(link.rank(), count, salt);
    link.all_reduce(&mut mine).expect("an all-reduce");
    assert!(bits(&mine) == bits(&plain_sum(link.world(), count, salt)), "{link:?}: {count} values, salt {salt}");
}

pub fn gather_and_compare(link: &mut Link, count: usize, salt: u64) {
    let mut all = vec![0; count * link.world()];
    link.all_gather(&bytes(link.rank(), count, salt), &mut all).expect("an all-gather");
    let expected: Vec<u8> = (0..link.world()).flat_map(|rank| bytes(rank, count, salt)).collect();
    assert!(all == expected, "{link:?}: {count} bytes, salt {salt}");
}

/// Lengths around a slot's, and beyond.
pub fn equals_a_plain_sum(make: Make, world: usize) {
    for slot_bytes in [64, 4096] {
        let mut links = group(make, world, &settings(slot_bytes));
        let slot = slot_bytes / 4;
        on_all(&mut links, |link| {
            for (salt, count) in [0, 1, slot - 1, slot, slot + 1, 2 * slot, 9 * slot + 3].into_iter().enumerate() {
                reduce_and_compare(link, count, salt as u64);
                gather_and_compare(link, count, salt as u64);
                gather_and_compare(link, slot_bytes + count, salt as u64);
            }
        });
    }
}

/// Measuring tells all ranks the same, and leaves the link as good as it was.
pub fn measures_itself(make: Make) {
    for (world, slot_bytes) in [(2, 256 << 10), (3, 64)] {
        let mut links = group(make, world, &settings(slot_bytes));
        let speeds = on_all(&mut links, |link| {
            let speed = link.measure().expect("a speed");
            reduce_and_compare(link, 2880, 1);
            gather_and_compare(link, 2 * slot_bytes + 1, 2);
            speed
        });
        assert!(speeds.iter().all(|speed| *speed == speeds[0]), "{speeds:?}");
        assert!(speeds[0].exchange > Duration::ZERO && speeds[0].bytes_per_s > 0.0, "{speeds:?}");
    }
}

/// What a model exchanges: a token's activations, a batch's, a prompt's.
pub fn carries_a_model(make: Make, world: usize) {
    let mut links = group(make, world, &settings(256 << 10));
    on_all(&mut links, |link| {
        for layer in 0..72 {
            reduce_and_compare(link, 2880, layer);
        }
        reduce_and_compare(link, 2880 * 16, 100);
        gather_and_compare(link, 64 * 8, 101);
        reduce_and_compare(link, 2880 * 256, 102);
    });
}

/// Any exchanges in a row, of any lengths.
pub fn any_sequence(make: Make, cases: u32) {
    let exchange = (any::<bool>(), 0usize..700, any::<u64>());
    let sequence = (2usize..=4, 1usize..=8, prop::collection::vec(exchange, 1..30));
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let run = |(world, lines, exchanges): (usize, usize, Vec<(bool, usize, u64)>)| {
        let mut links = group(make, world, &settings(64 * lines));
        on_all(&mut links, |link| {
            for (reduce, count, salt) in &exchanges {
                match reduce {
                    true => reduce_and_compare(link, *count, *salt),
                    false => gather_and_compare(link, *count, *salt),
                }
            }
        });
        Ok(())
    };
    TestRunner::new(config).run(&sequence, run).expect("all sequences");
}

/// Offers that do not belong together are refused, with the reason.
pub fn refuses_what_does_not_fit(make: Make) {
    let ours = make(&settings(4096)).expect("an endpoint");
    let other_epoch = make(&Settings { epoch: 8, ..settings(4096) }).expect("an endpoint");
    let offers = [ours.offer(), other_epoch.offer()];
    let error = ours.connect(0, 2, &offers, PATIENCE).expect_err("another epoch");
    assert_eq!(error.to_string(), "rank 1's offer is of no use: its epoch is 8, this rank's 7");

    let ours = make(&settings(4096)).expect("an endpoint");
    let other_slot = make(&settings(8192)).expect("an endpoint");
    let offers = [ours.offer(), other_slot.offer()];
    let error = ours.connect(0, 2, &offers, PATIENCE).expect_err("another slot length");
    assert_eq!(error.to_string(), "rank 1's offer is of no use: its slot length is 8192, this rank's 4096");

    for garbage in [&b""[..], b"{}", b"\xff\xfe", b"[1,2,3]", &[b'['; 1 << 20]] {
        let ours = make(&settings(4096)).expect("an endpoint");
        let offers = [ours.offer(), garbage.to_vec()];
        let error = ours.connect(0, 2, &offers, PATIENCE).expect_err("garbage");
        assert!(matches!(error, LinkError::Offer { peer: 1, .. }), "{error}");
    }

    for (rank, world) in [(0, 1), (0, 5), (2, 2)] {
        let ours = make(&settings(4096)).expect("an endpoint");
        let offers = vec![ours.offer(); world];
        let error = ours.connect(rank, world, &offers, PATIENCE).expect_err("no such group");
        assert!(matches!(error, LinkError::Setting(_)), "{error}");
    }
}
