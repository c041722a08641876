//! Two nodes examine each other: what they have in common, what their clocks differ by, and what the link between them reaches.
//!
//! Both do the same, step by step, and both tell what was found. One listens and has rank 0 of the links.

use std::net::TcpListener;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tandem_cluster::{Pair, Token};
use tandem_link::{Endpoint, LinkError, LinkSpeed, RdmaChoice, Settings as LinkSettings, TransportKind};

use crate::nodes::{open_token, token_file};
use crate::settings::DoctorArgs;

use super::check::{Check, Findings};
use super::facts::Facts;
use super::machine::Machine;
use super::verdict;

/// Longest wait for the other node's next word, and for its link.
const PATIENCE: Duration = Duration::from_secs(20);
const CONNECT: Duration = Duration::from_secs(10);
/// Questions for the time: the quickest answer says most.
const QUESTIONS: usize = 8;

/// Finds the other node and examines the pair.
pub fn examine(args: &DoctorArgs, machine: &Machine) -> Result<Findings> {
    let mut pair = meet(args)?;
    let ours = Facts::of(machine);
    let theirs: Facts = swap(&mut pair, &ours).context("hearing what the other node is")?;
    let mut findings = Findings::default();
    findings.push(Check::ok("peer", format!("{} at {}", theirs.host, pair.addresses().1)));
    findings.extend(verdict::of_facts(&ours, &theirs));
    findings.push(verdict::of_clocks(clock_offset_s(&mut pair).context("comparing clocks")?));
    for kind in [TransportKind::Tcp, TransportKind::Rdma] {
        let reached = measure(&mut pair, kind).with_context(|| format!("measuring {kind}"))?;
        findings.push(verdict::of_link(machine, &ours, &theirs, pair.addresses().1, kind, reached));
    }
    Ok(findings)
}

fn meet(args: &DoctorArgs) -> Result<Pair> {
    let file = token_file(args.token_file.as_deref());
    match (args.peer.as_ref().and_then(Option::as_ref), &args.listen) {
        (Some(address), _) => {
            let token = Token::read(&file)
                .context("the other node's token is needed: copy it from there, and name it with --token-file")?;
            Ok(Pair::dial(address, &token, args.wait)?)
        }
        (None, Some(address)) => {
            let token = open_token(&file)?;
            let listener = TcpListener::bind(address).with_context(|| format!("listening on {address}"))?;
            let at = listener.local_addr().context("listening")?;
            let (file, wait_s) = (file.canonicalize().unwrap_or(file), args.wait.as_secs());
            eprintln!(
                "copy {} to the other node, and run there within {wait_s} s:\n    tandem doctor --peer {at} --token-file join-token",
                file.display()
            );
            Ok(Pair::accept(&listener, &token, args.wait)?)
        }
        (None, None) => bail!(
            "--peer: on one node tandem doctor --peer --listen ADDRESS, on the other tandem doctor --peer ADDRESS"
        ),
    }
}

/// Seconds by which the other node's clock is ahead of this one's.
fn clock_offset_s(pair: &mut Pair) -> Result<f64> {
    if pair.listened() {
        for _ in 0..QUESTIONS {
            pair.hear(PATIENCE)?;
            pair.send(&now_s().to_le_bytes(), PATIENCE)?;
        }
        return Ok(-hear_time(pair)?);
    }
    let mut best = (f64::INFINITY, 0.0);
    for _ in 0..QUESTIONS {
        let asked = now_s();
        pair.send(&[], PATIENCE)?;
        let theirs = hear_time(pair)?;
        let answered = now_s();
        if answered - asked < best.0 {
            best = (answered - asked, theirs - (asked + answered) / 2.0);
        }
    }
    pair.send(&best.1.to_le_bytes(), PATIENCE)?;
    Ok(best.1)
}

fn hear_time(pair: &mut Pair) -> Result<f64> {
    let bytes = pair.hear(PATIENCE)?;
    let bytes: [u8; 8] = bytes.as_slice().try_into().context("a time has eight bytes")?;
    Ok(f64::from_le_bytes(bytes))
}

fn now_s() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// What a link reached, or why there is none.
pub type Reached = Result<(String, LinkSpeed), NoLink>;

/// Why there is no link of a kind.
#[derive(Serialize, Deserialize)]
pub enum NoLink {
    /// A node cannot have one.
    Absent(String),
    /// Both should have it, and it does not work.
    Broken(String),
}

/// Makes a link of this kind and measures it. An error only where the other node is lost.
fn measure(pair: &mut Pair, kind: TransportKind) -> Result<Reached> {
    let endpoint = endpoint(pair, kind).map_err(|error| error.to_string());
    let ours: Result<String, String> = match &endpoint {
        Ok(endpoint) => Ok(String::from_utf8_lossy(&endpoint.offer()).into_owned()),
        Err(why) => Err(why.clone()),
    };
    let theirs: Result<String, String> = swap(pair, &ours)?;
    let reached = match (endpoint, ours, theirs) {
        (Ok(endpoint), Ok(ours), Ok(theirs)) => connect_and_measure(pair, endpoint, ours, theirs),
        (Ok(_), _, Err(why)) => Err(NoLink::Absent(format!("not on the other node: {why}"))),
        (Err(why), _, _) | (_, Err(why), _) => Err(NoLink::Absent(format!("not on this node: {why}"))),
    };
    // Nobody goes on before both are through.
    let other: Option<NoLink> = swap(pair, &reached.as_ref().err())?;
    Ok(match (reached, other) {
        (Ok(_), Some(NoLink::Absent(why) | NoLink::Broken(why))) => {
            Err(NoLink::Broken(format!("the other node: {why}")))
        }
        (reached, _) => reached,
    })
}

fn endpoint(pair: &Pair, kind: TransportKind) -> Result<Endpoint, LinkError> {
    let settings = LinkSettings::default();
    match kind {
        TransportKind::Tcp => Endpoint::tcp(&settings, pair.addresses().0),
        TransportKind::Rdma => Endpoint::rdma(&settings, &RdmaChoice::default()),
        TransportKind::Shm => Endpoint::shm(&settings),
    }
}

fn connect_and_measure(pair: &Pair, endpoint: Endpoint, ours: String, theirs: String) -> Reached {
    let (rank, offers) = if pair.listened() { (0, [ours, theirs]) } else { (1, [theirs, ours]) };
    let measured = endpoint.connect(rank, 2, &offers, CONNECT).and_then(|mut link| {
        let speed = link.measure()?;
        Ok((link.describe(), speed))
    });
    measured.map_err(|error| NoLink::Broken(error.to_string()))
}

fn swap<Mine: Serialize, Theirs: DeserializeOwned>(pair: &mut Pair, mine: &Mine) -> Result<Theirs> {
    let theirs = pair.swap(&serde_json::to_vec(mine)?, PATIENCE)?;
    serde_json::from_slice(&theirs).context("the other node is another version of tandem, or broken")
}
