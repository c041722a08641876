//! An exchange between threads of this process.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use tandem_model::{Exchange, ExchangeError};

/// Longer than any step on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// One rank's end.
pub struct Threads {
    rank: usize,
    meeting: Arc<Meeting>,
}

struct Meeting {
    round: Mutex<Round>,
    changed: Condvar,
}

struct Round {
    brought: Vec<Option<Vec<u8>>>,
    /// What everybody brought, until everybody took it.
    complete: Option<Arc<Vec<Vec<u8>>>>,
    taken: usize,
}

/// All ranks' ends.
pub fn threads(world: usize) -> Vec<Box<dyn Exchange>> {
    let round = Mutex::new(Round { brought: vec![None; world], complete: None, taken: 0 });
    let meeting = Arc::new(Meeting { round, changed: Condvar::new() });
    (0..world).map(|rank| Box::new(Threads { rank, meeting: Arc::clone(&meeting) }) as Box<dyn Exchange>).collect()
}

impl Threads {
    fn meet(&self, mine: &[u8]) -> Result<Arc<Vec<Vec<u8>>>, ExchangeError> {
        let Meeting { round, changed } = &*self.meeting;
        let wait = |round, blocked: fn(&mut Round) -> bool| {
            let (round, waited) = changed.wait_timeout_while(round, DEADLINE, blocked).unwrap();
            if waited.timed_out() { Err(ExchangeError::new("a rank did not come")) } else { Ok(round) }
        };
        let mut round = wait(round.lock().unwrap(), |round| round.complete.is_some())?;
        round.brought[self.rank] = Some(mine.to_vec());
        if round.brought.iter().all(Option::is_some) {
            let all = round.brought.iter_mut().filter_map(Option::take).collect();
            (round.complete, round.taken) = (Some(Arc::new(all)), 0);
            changed.notify_all();
        }
        let mut round = wait(round, |round| round.complete.is_none())?;
        let all = round.complete.clone().unwrap();
        round.taken += 1;
        if round.taken == all.len() {
            round.complete = None;
            changed.notify_all();
        }
        Ok(all)
    }
}

impl Exchange for Threads {
    fn rank(&self) -> usize {
        self.rank
    }

    fn world(&self) -> usize {
        self.meeting.round.lock().unwrap().brought.len()
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), ExchangeError> {
        let all = self.meet(bytemuck::cast_slice(values))?;
        values.copy_from_slice(&bytemuck::pod_collect_to_vec(&all[0]));
        for theirs in &all[1..] {
            let theirs: Vec<f32> = bytemuck::pod_collect_to_vec(theirs);
            assert_eq!(theirs.len(), values.len(), "all ranks make the same calls");
            values.iter_mut().zip(theirs).for_each(|(sum, value)| *sum += value);
        }
        Ok(())
    }

    fn all_gather(&mut self, mine: &[u8], all: &mut [u8]) -> Result<(), ExchangeError> {
        all.copy_from_slice(&self.meet(mine)?.concat());
        Ok(())
    }
}
