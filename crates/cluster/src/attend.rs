//! A worker's side: dial the coordinator, prove oneself, and do what it says.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep, timeout};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tracing::{info, warn};

use crate::dial::dial;
use crate::proto::cluster_client::ClusterClient;
use crate::proto::command::Body as Told;
use crate::proto::report::Body as Say;
use crate::proto::{self, Command, Report};
use crate::rank::{Job, RankThread};
use crate::token::{Nonces, Side, is_nonce, random_bytes};
use crate::{Address, Deadlines, HostFacts, PROTOCOL, Rank, RankOrder, Token, Trust, wire};

/// Reports that may wait for the connection.
const REPORTS_MAX: usize = 32;
/// Largest command: a plan whose starts tell long histories.
const COMMAND_BYTES_MAX: usize = 64 << 20;
/// Pauses before dialling again: doubled from the first to the last.
const REDIAL_FIRST: Duration = Duration::from_millis(250);
const REDIAL_LAST: Duration = Duration::from_secs(5);
/// How long a rank may take to end what it is doing when its membership is over.
const RANK_END: Duration = Duration::from_secs(20);

/// Where and as what a worker joins.
#[derive(Clone, Debug)]
pub struct JoinAt {
    /// The coordinator.
    pub address: Address,
    /// What both know.
    pub token: Token,
    /// Who vouches for it, where it speaks TLS.
    pub trust: Option<Trust>,
    /// Hash of the sources of this program.
    pub build: String,
    /// What the coordinator is told of this machine.
    pub host: HostFacts,
    /// Only those of the handshake and of silence count here, until the coordinator names its own.
    pub deadlines: Deadlines,
    /// Whether to dial again when the connection is lost.
    pub redial: bool,
}

/// Why a worker ends.
#[derive(Debug, thiserror::Error)]
pub enum AttendError {
    /// The coordinator does not want it, and would not later.
    #[error("the coordinator at {address} refused this worker: {reason}")]
    Refused {
        /// Where.
        address: Address,
        /// Its reason.
        reason: String,
    },
    /// Whoever is there does not know the token.
    #[error("whoever listens at {0} does not know the token: it is another coordinator's, or an impostor")]
    Impostor(Address),
    /// The rank failed in a way that would happen again.
    #[error("{0}")]
    Rank(String),
    /// The connection ended, and it was not to be made again.
    #[error("the connection to the coordinator at {address} ended: {reason}")]
    Lost {
        /// Where.
        address: Address,
        /// How.
        reason: String,
    },
    /// The rank goes on with something although its membership is over.
    #[error("the rank did not end within {0:?} after its membership")]
    Stuck(Duration),
    /// The operating system gave no runtime, thread or random bytes.
    #[error("starting the worker: {0}")]
    System(String),
}

/// How one connection ended.
enum End {
    /// Try again at once, or with patience.
    Again { reason: String, was_member: bool },
    /// This worker is done.
    Done,
}

/// Attends as a worker until told to end, by the coordinator or by SIGINT or SIGTERM. Every membership runs a rank of its
/// own from `make`.
pub fn attend<M>(at: &JoinAt, make: M) -> Result<(), AttendError>
where
    M: Fn() -> Box<dyn Rank> + Clone + Send + 'static,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| AttendError::System(error.to_string()))?;
    runtime.block_on(memberships(at, make))
}

async fn memberships<M>(at: &JoinAt, make: M) -> Result<(), AttendError>
where
    M: Fn() -> Box<dyn Rank> + Clone + Send + 'static,
{
    let stop = watch::Sender::new(false);
    tokio::spawn(raise_when_interrupted(stop.clone()));
    let mut pause = REDIAL_FIRST;
    let mut said = String::new();
    loop {
        let end = Membership { at, stop: &stop }.run(make.clone()).await?;
        let End::Again { reason, was_member } = end else { return Ok(()) };
        if !at.redial {
            return Err(AttendError::Lost { address: at.address.clone(), reason });
        }
        if was_member {
            pause = REDIAL_FIRST;
        }
        if reason != said || was_member {
            warn!("no connection to the coordinator at {}: {reason}; dialling again until there is", at.address);
            said = reason;
        }
        if timeout(pause, raised(&stop)).await.is_ok() {
            return Ok(());
        }
        pause = (pause * 2).min(REDIAL_LAST);
    }
}

struct Membership<'a> {
    at: &'a JoinAt,
    /// Becomes true when this worker is to end.
    stop: &'a watch::Sender<bool>,
}

/// A connection on which both sides have proved themselves.
struct Joined {
    commands: Streaming<Command>,
    reports: mpsc::Sender<Report>,
    silence: Duration,
}

impl Membership<'_> {
    async fn run<M>(&self, make: M) -> Result<End, AttendError>
    where
        M: FnOnce() -> Box<dyn Rank> + Send + 'static,
    {
        let joined = tokio::select! {
            joined = timeout(self.at.deadlines.handshake, self.join()) => joined,
            () = raised(self.stop) => return Ok(End::Done),
        };
        let joined = match joined {
            Ok(Ok(joined)) => joined,
            Ok(Err(Hurdle::Passing(reason))) => return Ok(again(reason, false)),
            Ok(Err(Hurdle::Final(error))) => return Err(error),
            Err(_) => return Ok(again("it does not answer".into(), false)),
        };
        info!("joined the coordinator at {}", self.at.address);
        let thread = RankThread::start(make, joined.reports.clone());
        let thread = thread.map_err(|error| AttendError::System(error.to_string()))?;
        let end = self.obey(joined, &thread).await;
        match self.dismiss(thread).await? {
            Some(reason) => Err(AttendError::Rank(reason)),
            None => end,
        }
    }

    /// Waits for the rank to end: its memory is needed for the next. Gives the reason if it could not load.
    async fn dismiss(&self, thread: RankThread) -> Result<Option<String>, AttendError> {
        let (thread, deadline) = (thread.dismiss(), Instant::now() + RANK_END);
        while !thread.is_finished() {
            if Instant::now() > deadline {
                return Err(AttendError::Stuck(RANK_END));
            }
            sleep(Duration::from_millis(10)).await;
        }
        // A panic has been printed; the next rank is a new one.
        Ok(thread.join().unwrap_or_default())
    }

    async fn join(&self) -> Result<Joined, Hurdle> {
        let channel = dial(&self.at.address, self.at.trust.as_ref(), self.at.deadlines.handshake).await;
        let channel = channel.map_err(|error| Hurdle::Passing(with_causes(&error)))?;
        let (reports, outgoing) = mpsc::channel(REPORTS_MAX);
        let own = random_bytes().map_err(|error| Hurdle::Final(AttendError::System(error.to_string())))?;
        say(&reports, Say::Hello(proto::Hello { protocol: PROTOCOL, nonce: own.to_vec() })).await;
        let mut client = ClusterClient::new(channel).max_decoding_message_size(COMMAND_BYTES_MAX);
        let answer = client.attend(ReceiverStream::new(outgoing)).await;
        let mut commands = answer.map_err(|status| Hurdle::Passing(self.unheard(&status)))?.into_inner();
        match self.hear(&mut commands).await? {
            Told::Challenge(challenge) => self.answer(&own, &challenge, &reports).await?,
            other => return Err(self.unexpected(other)),
        }
        match self.hear(&mut commands).await? {
            Told::Accepted(accepted) => {
                let silence = Duration::from_millis(accepted.silence_ms.into());
                Ok(Joined { commands, reports, silence: silence.max(Duration::from_millis(100)) })
            }
            other => Err(self.unexpected(other)),
        }
    }

    /// Why there was no answer. TLS looks like noise to who does not speak it.
    fn unheard(&self, status: &tonic::Status) -> String {
        let is_plain = self.at.trust.is_none() && matches!(self.at.address, Address::Tcp(_));
        let hint = if is_plain { " (does it speak TLS? then --cluster-ca-certificate is needed)" } else { "" };
        format!("{}{hint}", with_causes(status))
    }

    /// Proves that we know the token, to whoever has proved it to us.
    async fn answer(
        &self,
        own: &[u8],
        challenge: &proto::Challenge,
        reports: &mpsc::Sender<Report>,
    ) -> Result<(), Hurdle> {
        let nonces = Nonces { worker: own, coordinator: &challenge.nonce };
        let token = &self.at.token;
        if !is_nonce(&challenge.nonce) || !token.accepts(Side::Coordinator, &nonces, &challenge.proof) {
            return Err(Hurdle::Final(AttendError::Impostor(self.at.address.clone())));
        }
        let proof = token.proof(Side::Worker, &nonces);
        let host = Some(self.at.host.to_wire());
        say(reports, Say::Join(proto::Join { proof, build: self.at.build.clone(), host })).await;
        Ok(())
    }

    async fn hear(&self, commands: &mut Streaming<Command>) -> Result<Told, Hurdle> {
        match commands.message().await {
            Ok(Some(Command { body: Some(body), .. })) => Ok(body),
            Ok(_) => Err(Hurdle::Passing("it hung up".into())),
            Err(status) => Err(Hurdle::Passing(with_causes(&status))),
        }
    }

    fn unexpected(&self, told: Told) -> Hurdle {
        match told {
            Told::Refused(refused) if refused.retry => Hurdle::Passing(refused.reason),
            Told::Refused(refused) => Hurdle::Final(self.refused(refused.reason)),
            _ => Hurdle::Passing("it does not keep to the protocol".into()),
        }
    }

    fn refused(&self, reason: String) -> AttendError {
        AttendError::Refused { address: self.at.address.clone(), reason }
    }

    /// Does what the coordinator says, until it or a signal ends that.
    async fn obey(&self, mut joined: Joined, thread: &RankThread) -> Result<End, AttendError> {
        let mut course = Course { epoch: 0, thread, ended: None };
        loop {
            let command = tokio::select! {
                command = timeout(joined.silence, joined.commands.message()) => command,
                () = raised(self.stop) => {
                    // A signal is all the reason there is; the coordinator need not have heard it.
                    let _ = timeout(Duration::from_secs(1), say(&joined.reports, leave("it was interrupted"))).await;
                    return Ok(End::Done);
                }
            };
            let command = match command {
                Ok(Ok(Some(command))) => command,
                Ok(Ok(None)) => return course.end("it hung up".into()),
                Ok(Err(status)) => return course.end(with_causes(&status)),
                Err(_) => return course.end(format!("it has been silent for {:.1} s", joined.silence.as_secs_f64())),
            };
            match command.body {
                Some(Told::Ping(_)) => {
                    // Where there is no room, enough is being said.
                    let _ = joined.reports.try_send(Report { epoch: 0, body: Some(Say::Pong(proto::Pong {})) });
                }
                Some(Told::Refused(refused)) if refused.retry => return Ok(again(refused.reason, false)),
                Some(Told::Refused(refused)) => return Err(self.refused(refused.reason)),
                Some(body) => course.follow(command.epoch, body).map_err(AttendError::Rank)?,
                None => {}
            }
        }
    }
}

/// One membership's way through the epochs.
struct Course<'a> {
    epoch: u64,
    thread: &'a RankThread,
    /// Whether to dial again after the end that was announced.
    ended: Option<bool>,
}

impl Course<'_> {
    fn follow(&mut self, epoch: u64, body: Told) -> Result<(), String> {
        let job = match body {
            // A membership is of one group and loads once: whatever comes twice is one message.
            Told::Load(_) if self.epoch != 0 => return Ok(()),
            Told::Load(load) => {
                let order =
                    RankOrder::from_wire(epoch, load).map_err(|error| format!("the coordinator's order: {error}"))?;
                self.epoch = epoch;
                info!("rank {} of {} in epoch {epoch}", order.rank, order.world);
                Job::Load(order)
            }
            // Stale: whatever belonged to it is gone.
            _ if epoch != self.epoch => return Ok(()),
            Told::Connect(connect) => Job::Connect(connect.offers),
            Told::Plan(plan) => {
                Job::Run(wire::plan_from_wire(epoch, plan).map_err(|error| format!("the coordinator's plan: {error}"))?)
            }
            Told::Drain(drain) => {
                self.ended = Some(drain.rejoin);
                Job::Leave(drain.reason)
            }
            _ => return Ok(()),
        };
        // A thread that has ended has said why.
        if !self.thread.give(epoch, job) {
            warn!("the rank takes no more work");
        }
        Ok(())
    }

    fn end(&self, reason: String) -> Result<End, AttendError> {
        Ok(match self.ended {
            Some(false) => End::Done,
            _ => again(reason, true),
        })
    }
}

/// What stands between a worker and its membership.
enum Hurdle {
    Passing(String),
    Final(AttendError),
}

fn again(reason: String, was_member: bool) -> End {
    End::Again { reason, was_member }
}

fn leave(reason: &str) -> Say {
    Say::Leave(proto::Leave { reason: reason.into() })
}

async fn say(reports: &mpsc::Sender<Report>, body: Say) {
    // Nobody hears it only where the connection has ended, which is noticed at its other end.
    let _ = reports.send(Report { epoch: 0, body: Some(body) }).await;
}

/// An error with what caused it: transport errors say little themselves.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        if !text.contains(&inner.to_string()) {
            text = format!("{text}: {inner}");
        }
        cause = inner.source();
    }
    text
}

/// Waits until a flag is up.
async fn raised(flag: &watch::Sender<bool>) {
    // Its sender is at hand, so it cannot be closed.
    let _ = flag.subscribe().wait_for(|&up| up).await;
}

/// Raises the flag at SIGINT or SIGTERM.
async fn raise_when_interrupted(flag: watch::Sender<bool>) {
    let (Ok(mut interrupt), Ok(mut terminate)) = (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return;
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    flag.send_replace(true);
}

#[cfg(test)]
mod tests;
