//! What a group makes of reports that are stale, out of order or there twice.

use tandem_step::RowResult;
use tokio::runtime::Runtime;

use super::*;
use crate::HostFacts;
use crate::member::{COMMANDS_MAX, reports};

const EPOCH: u64 = 7;
const WAIT: Duration = Duration::from_secs(60);

/// A group of two, and what its ranks say.
struct Ranks {
    group: GroupWorker,
    said: Vec<mpsc::Sender<Heard>>,
    _told: Vec<mpsc::Receiver<Command>>,
    _runtime: Runtime,
}

impl Ranks {
    fn new() -> Self {
        let runtime = Runtime::new().unwrap();
        let (mut members, mut said, mut told) = (Vec::new(), Vec::new(), Vec::new());
        for rank in 0..2 {
            let ((commands, receiver), (heard, reports)) = (mpsc::channel(COMMANDS_MAX), reports());
            let host = HostFacts { name: format!("node {rank}"), ..HostFacts::default() };
            members.push(Member { host, is_local: false, source: "there".into(), addresses: None, commands, reports });
            told.push(receiver);
            said.push(heard);
        }
        let group = runtime
            .block_on(async { GroupWorker::start(EPOCH, Deadlines::default(), members, Capacity::default(), false) });
        Self { group, said, _told: told, _runtime: runtime }
    }

    /// A group that awaits these steps.
    fn awaiting(steps: std::ops::Range<u64>) -> Self {
        let mut ranks = Self::new();
        for step in steps {
            ranks.group.submit(StepPlan { epoch: 1, step, ..StepPlan::default() }).unwrap();
        }
        ranks
    }

    fn say(&self, rank: usize, epoch: u64, step: u64, token: u32) {
        let row = RowResult { token: Some(token), ..RowResult::empty(0) };
        let result = StepResult { epoch, step, rows: vec![row], timings: tandem_step::StepTimings::default() };
        let body = Some(Body::Result(wire::result_to_wire(result)));
        assert!(self.said[rank].try_send(Heard::Report(Report { epoch, body })).is_ok());
    }

    fn next(&mut self) -> Result<(u64, Option<u32>), String> {
        self.group.next(WAIT).map(|result| (result.step, result.rows[0].token)).map_err(|error| error.to_string())
    }
}

#[test]
fn what_belongs_to_another_epoch_is_dropped() {
    let mut ranks = Ranks::awaiting(0..1);
    for stale in [0, EPOCH - 1, EPOCH + 1] {
        ranks.say(0, stale, 0, 1);
        ranks.say(1, stale, 0, 1);
    }
    ranks.say(0, EPOCH, 0, 2);
    ranks.say(1, EPOCH, 0, 2);
    assert_eq!(ranks.next(), Ok((0, Some(2))));
}

#[test]
fn results_that_were_not_asked_for_now_end_the_group() {
    for (awaited, said) in [
        // Twice; the second before the first; one that was never asked for; one too many.
        (0..2, &[0, 0][..]),
        (0..2, &[1, 0]),
        (0..1, &[5]),
        (0..1, &[0, 1]),
        (0..0, &[0]),
    ] {
        let mut ranks = Ranks::awaiting(awaited);
        for step in said {
            ranks.say(1, EPOCH, *step, 3);
        }
        let error = ranks.next().unwrap_err();
        assert!(error.contains("rank 1 (node 1 at there) answers a step"), "{said:?}: {error}");
    }
}

#[test]
fn ranks_may_answer_at_different_times_but_not_differently() {
    let mut ranks = Ranks::awaiting(0..2);
    for (rank, step) in [(1, 0), (1, 1), (0, 0)] {
        ranks.say(rank, EPOCH, step, 4 + step as u32);
    }
    assert_eq!(ranks.next(), Ok((0, Some(4))));
    ranks.say(0, EPOCH, 1, 6);
    assert!(ranks.next().unwrap_err().contains("differ: tokens Some(6) and Some(5)"));
}
