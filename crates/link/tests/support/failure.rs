//! Peers that fail: a clean error, in time, and nothing after it.

use std::thread;
use std::time::Duration;

use tandem_link::{LinkError, Settings};

use super::{Make, PATIENCE, group, on_all, reduce_and_compare, settings};

/// Short enough for a test, long enough that a busy machine's ranks find each other before.
const IMPATIENCE: Duration = Duration::from_millis(300);

fn impatient() -> Settings {
    Settings { deadline: IMPATIENCE, ..settings(256) }
}

/// A peer that does not come is waited for as long as the setting says; then the link is dead, and the others hear of it.
pub fn stalled_peer(make: Make) {
    let mut links = group(make, 3, &impatient());
    let (_stalled, live) = links.split_last_mut().expect("three ranks");
    let errors = on_all(live, |link| {
        let error = link.all_reduce(&mut [1.0; 100]).expect_err("rank 2 never comes");
        let later = link.all_reduce(&mut [1.0; 100]).expect_err("the link is dead");
        assert!(matches!(later, LinkError::Dead(_)), "{later}");
        error
    });
    for error in errors {
        match error {
            LinkError::Timeout { peer: 2, waited: IMPATIENCE, .. } | LinkError::PeerGone { peer: 0 | 1, .. } => {}
            other => panic!("{other}"),
        }
    }
}

/// A peer that closes its link is gone at once, yet what it sent before still counts.
pub fn closed_peer(make: Make) {
    let mut links = group(make, 2, &settings(256));
    let last = links.pop().expect("two ranks");
    let first = &mut links[0];
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = last;
            reduce_and_compare(&mut last, 50, 1);
        });
        thread::sleep(Duration::from_millis(50));
        reduce_and_compare(first, 50, 1);
    });
    let error = first.all_reduce(&mut [0.0; 4]).expect_err("nobody is there");
    assert!(matches!(error, LinkError::PeerGone { peer: 1, .. }), "{error}");
}

/// Another thread ends a wait; peers that wait for the aborted rank need not wait for their deadline.
pub fn abort(make: Make) {
    let mut links = group(make, 3, &settings(256));
    let handle = links[0].abort_handle();
    thread::scope(|scope| {
        scope.spawn(move || {
            thread::sleep(Duration::from_millis(50));
            handle.clone().abort();
        });
        // Rank 2 stays away: without the abort, both others would wait for a minute.
        let errors = on_all(&mut links[..2], |link| link.all_reduce(&mut [1.0; 4]).expect_err("aborted"));
        assert!(matches!(errors[0], LinkError::Aborted), "{}", errors[0]);
        assert!(matches!(errors[1], LinkError::PeerGone { peer: 0, .. }), "{}", errors[1]);
    });
    let error = links[0].all_gather(&[1], &mut [0; 3]).expect_err("aborted for good");
    assert!(matches!(error, LinkError::Dead(_)), "{error}");
}

/// An abort between exchanges holds too.
pub fn abort_while_idle(make: Make) {
    let mut links = group(make, 2, &settings(256));
    links[1].abort_handle().abort();
    let errors = on_all(&mut links, |link| link.all_reduce(&mut [1.0; 4]).expect_err("aborted"));
    assert!(matches!(errors[0], LinkError::PeerGone { peer: 1, .. }), "{}", errors[0]);
    assert!(matches!(errors[1], LinkError::Aborted), "{}", errors[1]);
}

/// Ranks in different exchanges notice, and neither returns a result.
pub fn disagreement(make: Make) {
    for (first, second) in [((true, 10), (true, 11)), ((true, 16), (false, 64)), ((true, 100), (true, 1000))] {
        let mut links = group(make, 2, &Settings { deadline: PATIENCE, ..settings(256) });
        let errors = on_all(&mut links, |link| {
            let (reduce, count) = if link.rank() == 0 { first } else { second };
            match reduce {
                true => link.all_reduce(&mut vec![1.0; count]),
                false => link.all_gather(&vec![1; count], &mut vec![0; 2 * count]),
            }
            .expect_err("the ranks do not agree")
        });
        let told = |error: &LinkError| matches!(error, LinkError::Disagreement { .. } | LinkError::PeerGone { .. });
        assert!(errors.iter().all(told), "{errors:?}");
        assert!(errors.iter().any(|error| matches!(error, LinkError::Disagreement { .. })), "{errors:?}");
    }
}

/// A wrong call is the caller's fault and hurts nothing.
pub fn wrong_lengths(make: Make) {
    let mut links = group(make, 2, &settings(256));
    on_all(&mut links, |link| {
        let error = link.all_gather(&[1, 2], &mut [0; 3]).expect_err("3 bytes");
        assert!(matches!(error, LinkError::Shape(_)), "{error}");
        reduce_and_compare(link, 10, 3);
    });
}
