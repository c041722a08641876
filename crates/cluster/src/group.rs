//! Making a group of workers that have joined: everybody loads, then everybody is connected.

use std::net::{IpAddr, Ipv4Addr};

use futures_util::future::try_join_all;
use tokio::time::Instant;

use crate::group_worker::GroupWorker;
use crate::member::Member;
use crate::proto::command::Body as Say;
use crate::proto::report::Body;
use crate::proto::{self, Command};
use crate::{Deadlines, LinkFacts, LoadOrder, RankOrder};

/// A group that is about to serve.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Ready {
    /// Counts groups.
    pub epoch: u64,
    /// Of every rank, in order: the machine's name and where it computes there.
    pub ranks: Vec<(String, String)>,
    /// How they are connected; `None` where one rank is alone.
    pub link: Option<LinkFacts>,
    /// Nodes that take no part although they should: while there are any, the first serves alone.
    pub missing: usize,
}

/// Why a group was not formed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("rank {rank} ({name}) {trouble}", trouble = if *.is_refusal { format!("failed: {reason}") } else { format!("was lost: {reason}") })]
pub struct GroupError {
    /// Whose fault it was.
    pub rank: usize,
    /// Which worker.
    pub name: String,
    /// Whether it is a child of this process.
    pub is_local: bool,
    /// Whether the worker said so itself, and would again; otherwise it was lost.
    pub is_refusal: bool,
    /// What happened.
    pub reason: String,
}

/// How far a rank's loading is: rank, bytes read, bytes in all.
pub(crate) type Progress<'a> = &'a (dyn Fn(usize, u64, u64) + Sync);

/// Members about to become a group, in rank order.
pub(crate) struct Forming<'a> {
    pub(crate) epoch: u64,
    pub(crate) deadlines: Deadlines,
    pub(crate) progress: Progress<'a>,
}

impl Forming<'_> {
    pub(crate) async fn form(
        &self,
        mut members: Vec<Member>,
        order: &LoadOrder,
    ) -> Result<(GroupWorker, Ready), GroupError> {
        let loaded = self.load(&mut members, order).await?;
        let link = self.connect(&mut members, loaded.iter().map(|loaded| loaded.offer.clone()).collect()).await?;
        let eight_bit_prompts = loaded.iter().any(|loaded| loaded.eight_bit_prompts);
        let names = members.iter().map(|member| member.host.name.clone());
        let ranks = names.zip(loaded).map(|(name, loaded)| (name, loaded.device)).collect();
        let worker = GroupWorker::start(self.epoch, self.deadlines, members, order.capacity, eight_bit_prompts);
        Ok((worker, Ready { epoch: self.epoch, ranks, link, missing: 0 }))
    }

    async fn load(&self, members: &mut [Member], all: &LoadOrder) -> Result<Vec<proto::Loaded>, GroupError> {
        let (world, deadline) = (members.len(), Instant::now() + self.deadlines.load);
        // Where the others see this machine, which those on it cannot know.
        let ours = members.iter().find_map(|member| member.addresses).map(|(_, ours)| ours);
        let here = ours.unwrap_or(IpAddr::V4(Ipv4Addr::LOCALHOST));
        let each = members.iter_mut().enumerate().map(|(rank, member)| async move {
            let address = member.addresses.map_or(here, |(theirs, _)| theirs);
            let order = RankOrder { rank, world, epoch: self.epoch, address, all: all.clone() };
            self.say(rank, member, Say::Load(order.to_wire()))?;
            loop {
                match self.hear(rank, member, deadline).await? {
                    Body::Progress(progress) => (self.progress)(rank, progress.read_bytes, progress.total_bytes),
                    Body::Loaded(loaded) => return Ok(loaded),
                    other => return Err(lost(rank, member, format!("it said {other:?} while loading"))),
                }
            }
        });
        try_join_all(each).await
    }

    async fn connect(&self, members: &mut [Member], offers: Vec<Vec<u8>>) -> Result<Option<LinkFacts>, GroupError> {
        let deadline = Instant::now() + self.deadlines.connect;
        let offers = &offers;
        let each = members.iter_mut().enumerate().map(|(rank, member)| async move {
            self.say(rank, member, Say::Connect(proto::Connect { offers: offers.clone() }))?;
            match self.hear(rank, member, deadline).await? {
                Body::Connected(connected) => Ok(LinkFacts::from_wire(connected)),
                other => Err(lost(rank, member, format!("it said {other:?} while connecting"))),
            }
        });
        Ok(try_join_all(each).await?.swap_remove(0))
    }

    fn say(&self, rank: usize, member: &Member, body: Say) -> Result<(), GroupError> {
        let command = Command { epoch: self.epoch, body: Some(body) };
        member.commands.try_send(command).map_err(|_| lost(rank, member, "it cannot be reached".into()))
    }

    /// What a member answers in this epoch.
    async fn hear(&self, rank: usize, member: &mut Member, deadline: Instant) -> Result<Body, GroupError> {
        loop {
            let report = member.hear(deadline).await.map_err(|reason| lost(rank, member, reason))?;
            match report.body {
                Some(Body::Failed(failed)) if report.epoch == self.epoch => {
                    return Err(GroupError { is_refusal: true, ..lost(rank, member, failed.reason) });
                }
                Some(Body::Leave(leave)) => return Err(lost(rank, member, format!("it left: {}", leave.reason))),
                Some(body) if report.epoch == self.epoch => return Ok(body),
                // Of an earlier epoch, or of a later version of the protocol.
                _ => {}
            }
        }
    }
}

fn lost(rank: usize, member: &Member, reason: String) -> GroupError {
    GroupError { rank, name: member.name(), is_local: member.is_local, is_refusal: false, reason }
}
