//! What a worker does of what it is told.

use std::net::Ipv4Addr;

use tandem_step::{Capacity, StepPlan, StepResult};

use super::*;
use crate::{Experts, LinkFacts, LoadOrder, ModelSource, RankLoaded};

struct Willing;

impl Rank for Willing {
    fn load(&mut self, _order: &RankOrder, _progress: &(dyn Fn(u64, u64) + Sync)) -> Result<RankLoaded, String> {
        Ok(RankLoaded::default())
    }

    fn connect(&mut self, _offers: &[Vec<u8>]) -> Result<Option<LinkFacts>, String> {
        Ok(None)
    }

    fn run(&mut self, plan: &StepPlan) -> Result<StepResult, String> {
        Err(format!("step {} was not asked for", plan.step))
    }
}

fn load(epoch: u64) -> Told {
    let all = LoadOrder {
        experts: Experts::Slice,
        model: ModelSource::Demo,
        fingerprint: String::new(),
        exact: true,
        dense: String::new(),
        kv: String::new(),
        capacity: Capacity::default(),
        link: String::new(),
        eager: false,
        prefill_activations: String::new(),
    };
    Told::Load(RankOrder { rank: 0, world: 1, epoch, address: Ipv4Addr::LOCALHOST.into(), all }.to_wire())
}

#[test]
fn a_membership_loads_once_and_drops_what_is_of_another_epoch() {
    let (said, mut reports) = mpsc::channel(REPORTS_MAX);
    let thread = RankThread::start(|| Box::new(Willing) as Box<dyn Rank>, said).unwrap();
    let mut course = Course { epoch: 0, thread: &thread, ended: None };
    let connect = || Told::Connect(proto::Connect::default());
    let plan = || Told::Plan(proto::StepPlan::default());
    for (epoch, told) in
        [(3, connect()), (3, load(3)), (3, load(3)), (2, connect()), (4, load(4)), (4, plan()), (3, connect())]
    {
        course.follow(epoch, told).unwrap();
    }
    assert_eq!(thread.dismiss().join().unwrap(), None);
    let mut heard = Vec::new();
    while let Some(report) = reports.blocking_recv() {
        heard.push((report.epoch, report.body));
    }
    let [(3, Some(Say::Loaded(_))), (3, Some(Say::Connected(_)))] = heard.as_slice() else { panic!("{heard:?}") };
}
