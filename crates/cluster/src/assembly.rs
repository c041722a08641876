//! Who makes up the next group: our own workers, and others that join.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::runtime::Runtime;
use tokio::time::timeout;
use tracing::{info, warn};

use crate::hitch::Hitch;
use crate::member::{Member, SharedLobby};
use crate::{Children, ChildrenError, Decide, HostFacts, LoadOrder};

/// How often waits look whether they should end.
pub(crate) const POLL: Duration = Duration::from_millis(50);
/// How often it is said who is waited for.
const WAITING_INTERVAL: Duration = Duration::from_secs(30);
/// How long a node that serves alone leaves others waiting after a group with them could not be formed: from the first such
/// time, four times as long after each further.
const HOLD_FIRST: Duration = Duration::from_secs(30);
const HOLD_LAST: Duration = Duration::from_secs(1800);

/// Finds the members of one group after another.
pub(crate) struct Assembly {
    pub(crate) children: Children,
    lobby: SharedLobby,
    local: usize,
    others: usize,
    /// Workers of other machines that have joined.
    joined: Vec<Member>,
    degrade_after: Option<Duration>,
    /// When this machine's worker is to go on alone. `None`: never, or a group is there.
    alone_at: Option<Instant>,
    /// Whether a group with the others was tried since there was one.
    has_tried: bool,
    hold: Duration,
    /// While serving alone: when a group with the others may be tried.
    hold_until: Instant,
}

/// Members of a group, in rank order, and what they are to load.
pub(crate) struct Assembled {
    pub(crate) members: Vec<Member>,
    pub(crate) order: LoadOrder,
    /// How many take no part although they should.
    pub(crate) missing: usize,
}

impl Assembly {
    /// Of so many workers of this machine and of others.
    pub(crate) fn new(
        children: Children,
        lobby: SharedLobby,
        local: usize,
        others: usize,
        degrade_after: Option<Duration>,
    ) -> Self {
        let joined = Vec::new();
        let (alone_at, has_tried, hold, hold_until) = (None, false, Duration::ZERO, Instant::now());
        Self { children, lobby, local, others, joined, degrade_after, alone_at, has_tried, hold, hold_until }
    }

    /// Starts our own workers and waits until as many have joined as a group has ranks, or long enough to do without the
    /// others.
    pub(crate) fn assemble(
        &mut self,
        runtime: &Runtime,
        stop: &AtomicBool,
        decide: &mut Decide,
    ) -> Result<Assembled, Hitch> {
        self.children.start().map_err(refusal)?;
        if self.alone_at.is_none() {
            self.alone_at = self.degrade_after.map(|after| Instant::now() + after);
        }
        let mut local: Vec<Option<Member>> = Vec::new();
        local.resize_with(self.local, || None);
        let (mut next_word, mut may_be_alone) = (Instant::now(), true);
        loop {
            if stop.load(Ordering::Acquire) {
                return Err(Hitch::Stopped);
            }
            self.children.check().map_err(refusal)?;
            self.take_ours(&mut local);
            self.take_others();
            if local.iter().all(Option::is_some) {
                let is_late = may_be_alone && self.alone_at.is_some_and(|at| at <= Instant::now());
                if self.joined.len() == self.others && !(is_late && self.has_tried) && self.fit(&local)? {
                    return self.whole(local, decide);
                }
                if is_late {
                    match decide(&hosts(local.iter().flatten())) {
                        Ok(order) => return Ok(self.alone(local, order)),
                        Err(reason) => warn!("this node does not serve alone, but waits for the others: {reason}"),
                    }
                    may_be_alone = false;
                }
            }
            if self.joined.len() < self.others && next_word <= Instant::now() {
                info!("waiting for {} more worker(s) to join", self.others - self.joined.len());
                next_word = Instant::now() + WAITING_INTERVAL;
            }
            runtime.block_on(async {
                // Whether somebody came or not, the loop looks.
                let _ = timeout(POLL, self.lobby.arrived.notified()).await;
            });
        }
    }

    /// A group is there: what happened before it was is past.
    pub(crate) fn note_formed(&mut self, is_alone: bool) {
        self.alone_at = None;
        match (is_alone, self.has_tried) {
            (true, true) => self.hold = (self.hold * 4).clamp(HOLD_FIRST, HOLD_LAST),
            (true, false) => {}
            (false, _) => self.hold = Duration::ZERO,
        }
        self.has_tried = false;
        self.hold_until = Instant::now() + self.hold;
        if is_alone && !self.hold.is_zero() {
            info!("a group of all nodes is tried again after {:?} at the earliest", self.hold);
        }
    }

    /// While this machine's worker serves alone: whether a group of all could be formed.
    pub(crate) fn is_whole_again(&mut self) -> bool {
        self.take_others();
        self.joined.len() == self.others && self.hold_until <= Instant::now()
    }

    fn whole(&mut self, local: Vec<Option<Member>>, decide: &mut Decide) -> Result<Assembled, Hitch> {
        self.has_tried = true;
        let members: Vec<Member> = local.into_iter().flatten().chain(self.joined.drain(..)).collect();
        let order = decide(&hosts(&members)).map_err(|reason| Hitch::Ours { reason, is_refusal: true })?;
        Ok(Assembled { members, order, missing: 0 })
    }

    fn alone(&self, local: Vec<Option<Member>>, order: LoadOrder) -> Assembled {
        match self.others - self.joined.len() {
            0 => warn!("no group of all nodes could be formed: this one serves alone for now"),
            missing => warn!(
                "{missing} of {} nodes are missing: this one serves alone until all are there",
                self.local + self.others
            ),
        }
        Assembled { members: local.into_iter().flatten().collect(), order, missing: self.others }
    }

    fn take_ours(&self, local: &mut [Option<Member>]) {
        while let Some(member) = self.lobby.take(|member| member.is_local) {
            // A process of an earlier epoch has no place any more.
            if let Some(index) = self.children.index_of(member.host.pid) {
                local[index] = Some(member);
            }
        }
    }

    fn take_others(&mut self) {
        self.joined.retain(Member::is_there);
        while self.joined.len() < self.others
            && let Some(member) = self.lobby.take(|member| !member.is_local)
        {
            info!("{} has joined: {}", member.name(), member.host.device);
            self.joined.push(member);
        }
    }

    /// Whether all can be in one group. Who came from elsewhere and cannot is sent away.
    fn fit(&mut self, local: &[Option<Member>]) -> Result<bool, Hitch> {
        let ours: Vec<&Member> = local.iter().flatten().collect();
        for (index, member) in ours.iter().enumerate() {
            if let Some(reason) = ours[..index].iter().find_map(|other| member.clash(other)) {
                return Err(Hitch::Ours { reason: format!("{}: {reason}", member.name()), is_refusal: true });
            }
        }
        let mut fitting: Vec<Member> = Vec::new();
        for member in self.joined.drain(..) {
            match ours.iter().copied().chain(&fitting).find_map(|other| member.clash(other)) {
                None => fitting.push(member),
                Some(reason) => {
                    // As good as a group that failed: a node that serves alone is not to try again at once.
                    self.has_tried = true;
                    warn!("refused {}: {reason}", member.name());
                    member.refuse(reason);
                }
            }
        }
        self.joined = fitting;
        Ok(self.joined.len() == self.others)
    }
}

fn hosts<'a>(members: impl IntoIterator<Item = &'a Member>) -> Vec<HostFacts> {
    members.into_iter().map(|member| member.host.clone()).collect()
}

/// A process of ours that cannot be had is no accident.
fn refusal(error: ChildrenError) -> Hitch {
    Hitch::Ours { reason: error.to_string(), is_refusal: true }
}
