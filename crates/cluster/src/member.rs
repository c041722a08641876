//! A worker that has joined, as the coordinator sees it.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval, timeout_at};
use tonic::Streaming;

use crate::proto::command::Body as Say;
use crate::proto::report::Body;
use crate::proto::{self, Command, Report};
use crate::token::{Nonces, Side, is_nonce, random_bytes};
use crate::{Deadlines, HostFacts, PROTOCOL, Token};

/// Commands that may wait for a worker's connection: a pipeline's plans, and pings until its silence is noticed.
pub(crate) const COMMANDS_MAX: usize = 32;
/// Reports that may wait for whoever reads them.
const REPORTS_MAX: usize = 64;
/// Room among them that progress leaves to others: for more than answer all commands under way.
const ANSWERS_MAX: usize = 32;

/// One worker's connection. The worker is dismissed when this is dropped.
pub(crate) struct Member {
    pub(crate) host: HostFacts,
    /// Whether it is a child of this process.
    pub(crate) is_local: bool,
    /// From where it came, for messages.
    pub(crate) source: String,
    /// Its machine's address and ours, where it came over the network.
    pub(crate) addresses: Option<(IpAddr, IpAddr)>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) reports: mpsc::Receiver<Heard>,
}

/// What comes from a worker.
pub(crate) enum Heard {
    Report(Report),
    /// Nothing comes after this.
    Lost(String),
}

/// Workers that wait to be taken into a group.
pub(crate) struct Lobby {
    waiting: Mutex<VecDeque<Member>>,
    pub(crate) arrived: Notify,
    /// Seats for children and for others.
    seats: [usize; 2],
}

/// What every worker must agree on.
pub(crate) struct Terms {
    pub(crate) build: String,
    pub(crate) deadlines: Deadlines,
}

/// A conversation with somebody who wants to join.
pub(crate) struct Caller<'a> {
    pub(crate) terms: &'a Terms,
    pub(crate) token: &'a Token,
    pub(crate) commands: &'a mpsc::Sender<Command>,
    pub(crate) reports: &'a mut Streaming<Report>,
}

impl Member {
    /// Whether its connection still stands.
    pub(crate) fn is_there(&self) -> bool {
        !self.commands.is_closed() && !self.reports.is_closed()
    }

    /// Which worker it is, for messages.
    pub(crate) fn name(&self) -> String {
        if self.is_local {
            format!("process {}", self.host.pid)
        } else {
            format!("{} at {}", self.host.name, self.source)
        }
    }

    /// Sends it away for good.
    pub(crate) fn refuse(self, reason: String) {
        let body = Some(Say::Refused(proto::Refused { reason, retry: false }));
        // If it is gone already there is nobody to tell.
        let _ = self.commands.try_send(Command { epoch: 0, body });
    }

    /// Why it cannot be in a group with another; `None` if it can.
    pub(crate) fn clash(&self, other: &Self) -> Option<String> {
        let (mine, theirs) = (&self.host.device_id, &other.host.device_id);
        if mine.is_empty() != theirs.is_empty() {
            return Some(format!(
                "it computes on {}, and {} on {}, which would not give the same: choose one kind for all with --device",
                self.host.device,
                other.name(),
                other.host.device
            ));
        }
        (!mine.is_empty() && mine == theirs).then(|| {
            format!(
                "its {} is the very GPU of {}, and two ranks cannot share one: give each its own with --gpu",
                self.host.device,
                other.name()
            )
        })
    }

    /// The next report that is not progress.
    pub(crate) async fn hear(&mut self, deadline: Instant) -> Result<Report, String> {
        match timeout_at(deadline, self.reports.recv()).await {
            Ok(Some(Heard::Report(report))) => Ok(report),
            Ok(Some(Heard::Lost(reason))) => Err(reason),
            Ok(None) => Err("its connection ended".into()),
            Err(_) => Err("it took too long".into()),
        }
    }
}

impl Lobby {
    pub(crate) fn new(local: usize, others: usize) -> Self {
        Self { waiting: Mutex::default(), arrived: Notify::new(), seats: [local, others] }
    }

    /// Lets a worker wait, if there is a seat.
    pub(crate) fn enter(&self, member: Member) -> bool {
        let mut waiting = self.waiting();
        waiting.retain(Member::is_there);
        let taken = waiting.iter().filter(|other| other.is_local == member.is_local).count();
        if taken >= self.seats[usize::from(!member.is_local)] {
            return false;
        }
        waiting.push_back(member);
        self.arrived.notify_one();
        true
    }

    /// Takes the one that has waited longest, if it still does.
    pub(crate) fn take(&self, mut is_wanted: impl FnMut(&Member) -> bool) -> Option<Member> {
        let mut waiting = self.waiting();
        waiting.retain(Member::is_there);
        let at = waiting.iter().position(&mut is_wanted)?;
        waiting.remove(at)
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Member>> {
        // A list of connections stays usable whatever happened to whoever held it.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Caller<'_> {
    /// Lets the worker in, or says why not.
    pub(crate) async fn handshake(&mut self) -> Result<HostFacts, String> {
        let Body::Hello(hello) = self.report().await? else { return Err("it did not begin with Hello".into()) };
        if hello.protocol != PROTOCOL {
            let reason = format!("the worker speaks version {} of the protocol, not {PROTOCOL}", hello.protocol);
            return self.refuse(reason, false).await;
        }
        if !is_nonce(&hello.nonce) {
            return Err("its nonce has a wrong length".into());
        }
        let own = random_bytes().map_err(|error| error.to_string())?;
        let nonces = Nonces { worker: &hello.nonce, coordinator: &own };
        let proof = self.token.proof(Side::Coordinator, &nonces);
        self.say(Say::Challenge(proto::Challenge { nonce: own.to_vec(), proof })).await?;
        let Body::Join(join) = self.report().await? else { return Err("it did not go on with Join".into()) };
        if !self.token.accepts(Side::Worker, &nonces, &join.proof) {
            return self.refuse("the worker has another token".into(), false).await;
        }
        if join.build != self.terms.build {
            let reason =
                format!("the worker is another build: {}, not {} as the coordinator", join.build, self.terms.build);
            return self.refuse(reason, false).await;
        }
        Ok(HostFacts::from_wire(join.host.unwrap_or_default()))
    }

    pub(crate) async fn accept(&self) -> Result<(), String> {
        let ms = |duration: Duration| u32::try_from(duration.as_millis()).unwrap_or(u32::MAX);
        let Deadlines { ping, silence, .. } = self.terms.deadlines;
        self.say(Say::Accepted(proto::Accepted { ping_ms: ms(ping), silence_ms: ms(silence) })).await
    }

    pub(crate) async fn refuse<T>(&self, reason: String, retry: bool) -> Result<T, String> {
        self.say(Say::Refused(proto::Refused { reason: reason.clone(), retry })).await?;
        Err(reason)
    }

    async fn report(&mut self) -> Result<Body, String> {
        match self.reports.message().await {
            Ok(Some(Report { body: Some(body), .. })) => Ok(body),
            Ok(Some(_)) => Err("it said nothing that is known here".into()),
            Ok(None) => Err("it hung up".into()),
            Err(status) => Err(status.message().to_owned()),
        }
    }

    async fn say(&self, body: Say) -> Result<(), String> {
        let command = Command { epoch: 0, body: Some(body) };
        self.commands.send(command).await.map_err(|_| "it hung up".to_owned())
    }
}

/// Keeps a member's connection: asks whether it is there, and passes on what it says. Ends when the member is gone or
/// dismissed.
pub(crate) async fn keep(
    mut reports: Streaming<Report>,
    commands: mpsc::Sender<Command>,
    heard: mpsc::Sender<Heard>,
    deadlines: Deadlines,
) {
    let reason = listen(&mut reports, &commands, &heard, deadlines).await;
    // Nobody listens when the member was dismissed.
    let _ = heard.try_send(Heard::Lost(reason));
}

async fn listen(
    reports: &mut Streaming<Report>,
    commands: &mpsc::Sender<Command>,
    heard: &mpsc::Sender<Heard>,
    deadlines: Deadlines,
) -> String {
    let mut pings = interval(deadlines.ping);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut last_word = Instant::now();
    loop {
        tokio::select! {
            report = reports.message() => match report {
                Ok(Some(Report { body: Some(Body::Pong(_)), .. })) => last_word = Instant::now(),
                Ok(Some(report)) => {
                    last_word = Instant::now();
                    if matches!(report.body, Some(Body::Progress(_))) && heard.capacity() <= ANSWERS_MAX {
                        // The next one says more.
                        continue;
                    }
                    if heard.try_send(Heard::Report(report)).is_err() {
                        return "it says more than it was asked".into();
                    }
                }
                Ok(None) => return "it hung up".into(),
                Err(status) => return format!("its connection broke: {}", status.message()),
            },
            _ = pings.tick() => {
                // Where there is no room the worker does not read, and its silence will tell.
                let _ = commands.try_send(Command { epoch: 0, body: Some(Say::Ping(proto::Ping {})) });
            }
            () = tokio::time::sleep_until(last_word + deadlines.silence) => {
                return format!("it has been silent for {:.1} s", deadlines.silence.as_secs_f64());
            }
            () = heard.closed() => return "it was dismissed".into(),
        }
    }
}

/// The two ends of what a member says.
pub(crate) fn reports() -> (mpsc::Sender<Heard>, mpsc::Receiver<Heard>) {
    mpsc::channel(REPORTS_MAX)
}

/// Where callers wait, shared by all connections.
pub(crate) type SharedLobby = Arc<Lobby>;
