//! A group of ranks as the one worker that the engine drives.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use tandem_step::{Capacity, StepPlan, StepResult, Worker, WorkerError};
use tokio::sync::{mpsc, watch};
use tokio::time::timeout;

use crate::Deadlines;
use crate::member::{Heard, Member};
use crate::proto::command::Body as Say;
use crate::proto::report::Body;
use crate::proto::{self, Command, Report};
use crate::wire;

/// Most plans under way; the engine's pipeline depth stays below it.
const PLANS_MAX: usize = 4;
/// Reports that may wait for the engine: a result of every plan under way from every rank, and their losses.
const REPORTS_MAX: usize = 64;

/// Sends every plan to every rank, and gives rank 0's result once all ranks have come to the same tokens.
pub(crate) struct GroupWorker {
    epoch: u64,
    capacity: Capacity,
    eight_bit_prompts: bool,
    ranks: Vec<Seat>,
    reports: Receiver<(usize, Heard)>,
    awaited: VecDeque<Awaited>,
    /// Becomes true when the group is over: a rank is lost, or this is dropped.
    over: watch::Sender<bool>,
    /// Raised when a better group could take its place.
    relieved: Arc<AtomicBool>,
}

struct Seat {
    name: String,
    commands: mpsc::Sender<Command>,
}

/// A plan under way.
struct Awaited {
    /// The engine's epoch; ranks know the group's alone.
    engine_epoch: u64,
    step: u64,
    /// By rank.
    results: Vec<Option<StepResult>>,
}

impl GroupWorker {
    /// Takes the members over; call it where tokio runs.
    pub(crate) fn start(
        epoch: u64,
        deadlines: Deadlines,
        members: Vec<Member>,
        capacity: Capacity,
        eight_bit_prompts: bool,
    ) -> Self {
        let (report, reports) = sync_channel(REPORTS_MAX);
        let over = watch::Sender::new(false);
        let mut ranks = Vec::with_capacity(members.len());
        for (rank, member) in members.into_iter().enumerate() {
            ranks.push(Seat { name: member.name(), commands: member.commands.clone() });
            tokio::spawn(pump(rank, epoch, member, report.clone(), over.clone(), deadlines.drain));
        }
        let (awaited, relieved) = (VecDeque::new(), Arc::default());
        Self { epoch, capacity, eight_bit_prompts, ranks, reports, awaited, over, relieved }
    }

    /// Becomes true when the group is over.
    pub(crate) fn over(&self) -> watch::Receiver<bool> {
        self.over.subscribe()
    }

    /// To be raised when a better group could take its place.
    pub(crate) fn relieved(&self) -> Arc<AtomicBool> {
        self.relieved.clone()
    }

    fn take(&mut self, rank: usize, heard: Heard) -> Result<(), WorkerError> {
        let report = match heard {
            Heard::Lost(reason) => return Err(self.gone(rank, &reason)),
            // A stale report says nothing about this group.
            Heard::Report(report) if report.epoch != self.epoch => return Ok(()),
            Heard::Report(report) => report,
        };
        match report.body {
            Some(Body::Result(result)) => self.note(rank, result),
            Some(Body::Failed(failed)) => Err(WorkerError::Failed {
                step: failed.step,
                reason: format!("{}: {}", self.name(rank), failed.reason),
            }),
            Some(Body::Leave(leave)) => Err(self.gone(rank, &format!("it left: {}", leave.reason))),
            // Late progress, or something of a later version.
            _ => Ok(()),
        }
    }

    fn note(&mut self, rank: usize, result: proto::StepResult) -> Result<(), WorkerError> {
        let step = result.step;
        let result = wire::result_from_wire(self.epoch, result)
            .map_err(|error| WorkerError::Failed { step, reason: format!("{}: {error}", self.name(rank)) })?;
        // Results come in the order of the plans, each once.
        match self.awaited.iter_mut().find(|awaited| awaited.results[rank].is_none()) {
            Some(awaited) if awaited.step == step => {
                awaited.results[rank] = Some(result);
                Ok(())
            }
            _ => {
                let reason = format!("{} answers a step that it was not asked for now", self.name(rank));
                Err(WorkerError::Failed { step, reason })
            }
        }
    }

    /// The oldest plan's result, if all ranks have answered it.
    fn complete(&mut self) -> Result<Option<StepResult>, WorkerError> {
        if !self.awaited.front().is_some_and(|awaited| awaited.results.iter().all(Option::is_some)) {
            return Ok(None);
        }
        let Some(awaited) = self.awaited.pop_front() else { return Ok(None) };
        let mut results = awaited.results.into_iter().flatten();
        let Some(first) = results.next() else { return Ok(None) };
        for (rank, other) in results.enumerate() {
            if let Some(difference) = difference(&first, &other) {
                let reason = format!("{} and {} differ: {difference}", self.name(0), self.name(rank + 1));
                return Err(WorkerError::Failed { step: awaited.step, reason });
            }
        }
        Ok(Some(StepResult { epoch: awaited.engine_epoch, ..first }))
    }

    fn name(&self, rank: usize) -> String {
        format!("rank {rank} ({})", self.ranks[rank].name)
    }

    fn gone(&self, rank: usize, reason: &str) -> WorkerError {
        WorkerError::Gone(format!("{} was lost: {reason}", self.name(rank)))
    }
}

impl Worker for GroupWorker {
    fn submit(&mut self, plan: StepPlan) -> Result<(), WorkerError> {
        if self.awaited.len() >= PLANS_MAX {
            let reason = format!("{PLANS_MAX} plans are under way already");
            return Err(WorkerError::Failed { step: plan.step, reason });
        }
        let command = Command { epoch: self.epoch, body: Some(Say::Plan(wire::plan_to_wire(&plan))) };
        for rank in 0..self.ranks.len() {
            if self.ranks[rank].commands.try_send(command.clone()).is_err() {
                return Err(self.gone(rank, "it takes no more plans"));
            }
        }
        let results = vec![None; self.ranks.len()];
        self.awaited.push_back(Awaited { engine_epoch: plan.epoch, step: plan.step, results });
        Ok(())
    }

    fn check(&mut self) -> Result<(), WorkerError> {
        while let Ok((rank, heard)) = self.reports.try_recv() {
            self.take(rank, heard)?;
        }
        Ok(())
    }

    fn next(&mut self, wait: Duration) -> Result<StepResult, WorkerError> {
        let step = self.awaited.front().map_or(0, |awaited| awaited.step);
        let deadline = Instant::now() + wait;
        loop {
            if let Some(result) = self.complete()? {
                return Ok(result);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.reports.recv_timeout(left) {
                Ok((rank, heard)) => self.take(rank, heard)?,
                Err(RecvTimeoutError::Timeout) => return Err(WorkerError::Timeout { step, waited: wait }),
                Err(RecvTimeoutError::Disconnected) => return Err(WorkerError::Gone("all ranks are gone".into())),
            }
        }
    }

    fn is_to_be_replaced(&self) -> bool {
        self.relieved.load(Ordering::Acquire)
    }

    fn eight_bit_prompts(&self) -> bool {
        self.eight_bit_prompts
    }

    fn capacity(&self) -> Option<Capacity> {
        Some(self.capacity)
    }
}

impl Drop for GroupWorker {
    fn drop(&mut self) {
        self.over.send_replace(true);
    }
}

/// What two ranks do not agree on.
fn difference(first: &StepResult, other: &StepResult) -> Option<String> {
    if first.rows.len() != other.rows.len() {
        return Some(format!("{} and {} rows", first.rows.len(), other.rows.len()));
    }
    first.rows.iter().zip(&other.rows).find_map(|(a, b)| {
        let same = (a.slot, a.token, a.error.is_some()) == (b.slot, b.token, b.error.is_some());
        (!same).then(|| format!("tokens {:?} and {:?} in slots {} and {}", a.token, b.token, a.slot, b.slot))
    })
}

/// Passes a member's reports on until it is lost or the group is over; then lets it go.
async fn pump(
    rank: usize,
    epoch: u64,
    mut member: Member,
    reports: SyncSender<(usize, Heard)>,
    over: watch::Sender<bool>,
    drain: Duration,
) {
    let mut is_over = over.subscribe();
    loop {
        tokio::select! {
            heard = member.reports.recv() => {
                let heard = heard.unwrap_or_else(|| Heard::Lost("its connection ended".into()));
                let is_lost = matches!(heard, Heard::Lost(_));
                // Where there is no room the group has come to its end and nobody reads.
                if reports.try_send((rank, heard)).is_err() || is_lost {
                    over.send_replace(true);
                    return;
                }
            }
            _ = is_over.wait_for(|&over| over) => break,
        }
    }
    let body = Some(Say::Drain(proto::Drain { reason: "the group is over".into(), rejoin: !member.is_local }));
    if member.commands.try_send(Command { epoch, body }).is_ok() {
        // Whether it says goodbye or not, it is let go.
        let _ = timeout(drain, goodbye(&mut member)).await;
    }
}

async fn goodbye(member: &mut Member) {
    while let Some(Heard::Report(Report { body, .. })) = member.reports.recv().await {
        if matches!(body, Some(Body::Leave(_) | Body::Failed(_))) {
            return;
        }
    }
}

#[cfg(test)]
mod tests;
