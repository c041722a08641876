//! Faults on purpose, for tests: a transport that loses, delays, repeats, shortens and reorders what it is given, or pauses. A
//! seed decides all of it; no clock and no state outside the link has a part.

use std::collections::VecDeque;
use std::thread;
use std::time::Duration;

use crate::error::LinkError;
use crate::flag::Flag;
use crate::region::Region;
use crate::transport::{Awaited, Gone, Transport, Watch};

/// What may happen to a message or a credit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// It never arrives.
    Drop,
    /// It arrives later, and what is sent after it later still.
    Delay,
    /// It arrives twice, the second time later.
    Duplicate,
    /// It arrives shorter than it was.
    Truncate,
    /// It arrives after what was sent after it.
    Reorder,
    /// The sender stops for a while before sending it.
    Pause,
}

impl Fault {
    /// All there are.
    pub const ALL: [Self; 6] = [Self::Drop, Self::Delay, Self::Duplicate, Self::Truncate, Self::Reorder, Self::Pause];
}

/// Which faults a rank's link has, and how often.
#[derive(Clone, Debug)]
pub struct Faults {
    /// Decides when which fault happens.
    pub seed: u64,
    /// One fault in so many messages and credits, on average.
    pub one_in: u64,
    /// The kinds to choose from.
    pub kinds: Vec<Fault>,
    /// Longest pause.
    pub pause_max: Duration,
}

/// Looks of a waiting rank after which the longest delayed message is sent.
const DELAY_LOOKS_MAX: u64 = 200;

struct Faulty {
    inner: Box<dyn Transport>,
    faults: Faults,
    random: u64,
    /// How often this rank has looked for something: what delays are counted in.
    looks: u64,
    held: VecDeque<Held>,
}

struct Held {
    peer: usize,
    event: Event,
    until: Until,
    /// What is sent after it waits for it.
    blocks: bool,
}

#[derive(Clone, Copy)]
enum Event {
    Message(Flag),
    Credit(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Until {
    Looks(u64),
    NextEvent,
}

/// The transport with faults, if there are to be any.
pub(crate) fn wrap(inner: Box<dyn Transport>, faults: Option<Faults>) -> Box<dyn Transport> {
    match faults {
        Some(faults) => {
            let random = faults.seed;
            Box::new(Faulty { inner, faults, random, looks: 0, held: VecDeque::new() })
        }
        None => inner,
    }
}

impl Faulty {
    /// SplitMix64.
    fn next(&mut self, below: u64) -> u64 {
        self.random = self.random.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.random;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (mixed ^ (mixed >> 31)) % below.max(1)
    }

    fn draw(&mut self) -> Option<Fault> {
        if self.faults.kinds.is_empty() || self.next(self.faults.one_in) != 0 {
            return None;
        }
        let index = self.next(self.faults.kinds.len() as u64);
        Some(self.faults.kinds[index as usize])
    }

    fn send(&mut self, region: &mut Region, peer: usize, event: Event, watch: &Watch) -> Result<(), LinkError> {
        let later = Until::Looks(self.looks + 1 + self.next(DELAY_LOOKS_MAX));
        match self.draw() {
            None => self.pass(region, peer, event, watch)?,
            Some(Fault::Drop) => {}
            Some(Fault::Delay) => {
                let latest = self.held.iter().filter(|held| held.blocks).map(|held| held.until).max();
                let until = latest.map_or(later, |latest| latest.max(later));
                self.held.push_back(Held { peer, event, until, blocks: true });
            }
            Some(Fault::Duplicate) => {
                self.pass(region, peer, event, watch)?;
                self.held.push_back(Held { peer, event, until: later, blocks: false });
            }
            Some(Fault::Truncate) => {
                let shorter = self.shorten(event);
                self.pass(region, peer, shorter, watch)?;
            }
            Some(Fault::Reorder) => {
                // Not after itself, should others be held already.
                self.release(region, watch, |held| held.until == Until::NextEvent)?;
                self.held.push_back(Held { peer, event, until: Until::NextEvent, blocks: false });
                return Ok(());
            }
            Some(Fault::Pause) => {
                let micros = self.next(self.faults.pause_max.as_micros() as u64);
                thread::sleep(Duration::from_micros(micros));
                self.pass(region, peer, event, watch)?;
            }
        }
        self.release(region, watch, |held| held.until == Until::NextEvent && held.peer == peer)
    }

    fn shorten(&mut self, event: Event) -> Event {
        match event {
            Event::Message(flag) => {
                let bytes = self.next(flag.bytes() as u64) as usize;
                Event::Message(Flag::new(flag.seq(), flag.operation(), bytes))
            }
            // A number has no shorter form that means anything.
            Event::Credit(seq) => Event::Credit(seq),
        }
    }

    /// Sends it as it should be, unless something before it is late.
    fn pass(&mut self, region: &mut Region, peer: usize, event: Event, watch: &Watch) -> Result<(), LinkError> {
        match self.held.iter().rev().find(|held| held.peer == peer && held.blocks) {
            Some(&Held { until, .. }) => self.held.push_back(Held { peer, event, until, blocks: true }),
            None => self.deliver(region, peer, event, watch)?,
        }
        Ok(())
    }

    fn deliver(&mut self, region: &mut Region, peer: usize, event: Event, watch: &Watch) -> Result<(), LinkError> {
        match event {
            Event::Message(flag) => self.inner.publish(region, peer, flag, watch),
            Event::Credit(seq) => self.inner.credit(region, peer, seq, watch),
        }
    }

    fn release(&mut self, region: &mut Region, watch: &Watch, due: impl Fn(&Held) -> bool) -> Result<(), LinkError> {
        for _ in 0..self.held.len() {
            let Some(held) = self.held.pop_front() else { break };
            match due(&held) {
                true => self.deliver(region, held.peer, held.event, watch)?,
                false => self.held.push_back(held),
            }
        }
        Ok(())
    }
}

impl Transport for Faulty {
    fn publish(&mut self, region: &mut Region, peer: usize, flag: Flag, watch: &Watch) -> Result<(), LinkError> {
        self.send(region, peer, Event::Message(flag), watch)
    }

    fn credit(&mut self, region: &mut Region, peer: usize, seq: u64, watch: &Watch) -> Result<(), LinkError> {
        self.send(region, peer, Event::Credit(seq), watch)
    }

    fn poll(&mut self, region: &mut Region) -> Result<(), LinkError> {
        self.looks += 1;
        if !self.held.is_empty() {
            let (looks, watch) = (self.looks, Watch::new(region.own(), crate::transport::SLEEP));
            self.release(region, &watch, |held| matches!(held.until, Until::Looks(due) if due <= looks))?;
        }
        self.inner.poll(region)
    }

    fn sleep(
        &mut self,
        region: &mut Region,
        peer: usize,
        awaited: Awaited,
        at_most: Duration,
    ) -> Result<(), LinkError> {
        self.inner.sleep(region, peer, awaited, at_most)
    }

    fn sent(&mut self, slot: usize) -> bool {
        self.inner.sent(slot)
    }

    fn gone(&self, region: &Region, peer: usize) -> Option<Gone> {
        self.inner.gone(region, peer)
    }

    fn close(&mut self, region: &mut Region, failed: bool) {
        // Late is late, not lost. What cannot be sent any more has nobody to miss it.
        let watch = Watch::new(region.own(), crate::transport::SLEEP);
        let _ = self.release(region, &watch, |_| true);
        self.inner.close(region, failed);
    }

    fn describe(&self) -> String {
        format!("{} with faults of seed {}", self.inner.describe(), self.faults.seed)
    }
}
