//! A rank whose tokens depend on all plans so far: one that is missing, altered, out of place or there twice changes
//! whatever follows.

use tandem_cluster::{LinkFacts, Rank, RankLoaded, RankOrder};
use tandem_step::{Input, Row, RowResult, Sampling, Score, Start, StepPlan, StepResult, StepTimings, TokenLogprobs};

use crate::random::{Random, mix};

/// Vocabulary of the made-up tokens.
const VOCAB: u64 = 200_000;
/// A prompt that fills several frames of HTTP/2, and a window.
const LONG_PROMPT: u64 = 30_000;

#[derive(Default)]
pub struct Chain(u64);

impl Rank for Chain {
    fn load(&mut self, order: &RankOrder, progress: &(dyn Fn(u64, u64) + Sync)) -> Result<RankLoaded, String> {
        (0..4).for_each(|read| progress(read, 4));
        let (offer, device) = (vec![order.rank as u8; 200], format!("device {}", order.rank));
        Ok(RankLoaded { offer, device, eight_bit_prompts: order.rank == 1 })
    }

    fn connect(&mut self, offers: &[Vec<u8>]) -> Result<Option<LinkFacts>, String> {
        match offers == [[0; 200], [1; 200]] {
            true => Ok(None),
            false => Err(format!("{} offers, of which not all are right", offers.len())),
        }
    }

    fn run(&mut self, plan: &StepPlan) -> Result<StepResult, String> {
        let rows = self.follow(plan);
        Ok(StepResult { epoch: plan.epoch, step: plan.step, rows, timings: StepTimings::default() })
    }
}

impl Chain {
    fn follow(&mut self, plan: &StepPlan) -> Vec<RowResult> {
        // A group has epochs of its own, which are no part of what is computed.
        let said = format!("{:?}", StepPlan { epoch: 0, ..plan.clone() });
        self.0 = said.bytes().fold(self.0, |state, byte| mix(state ^ u64::from(byte)));
        plan.rows.iter().map(|row| self.answer(row)).collect()
    }

    fn answer(&self, row: &Row) -> RowResult {
        let draw = |salt: u64| mix(self.0 ^ (u64::from(row.slot) << 32 | salt));
        let token = |salt| (draw(salt) % VOCAB) as u32;
        let logprobs = |salt| TokenLogprobs {
            token: token(salt),
            logprob: -(draw(salt + 1) as f32 / 1e18),
            top: (2..5).map(|other| (token(salt + other), -(other as f32))).collect(),
        };
        let scored = row.score.as_ref().map_or(0, |score| score.targets.len() as u64);
        RowResult {
            token: row.sample.then(|| token(0)),
            logprobs: row.sample.then(|| logprobs(0)),
            scores: (1..=scored).map(|position| logprobs(100 * position)).collect(),
            ..RowResult::empty(row.slot)
        }
    }
}

/// A run of steps that a seed makes up: requests begin, go on and end.
pub fn plans(seed: u64, count: u64) -> Vec<StepPlan> {
    let mut random = Random::new(seed).fork(1);
    (0..count).map(|step| plan(step, &mut random)).collect()
}

fn plan(step: u64, random: &mut Random) -> StepPlan {
    let starts = if step.is_multiple_of(4) { vec![start(step as u32, random)] } else { Vec::new() };
    let ends = if step % 4 == 3 { vec![step as u32 - 3] } else { Vec::new() };
    let rows = (0..1 + random.below(3) as u32).map(|slot| row(slot, random)).collect();
    StepPlan { step, ends, starts, rows, ..StepPlan::default() }
}

fn start(slot: u32, random: &mut Random) -> Start {
    let length = if random.below(8) == 0 { LONG_PROMPT } else { random.below(50) };
    let history = (0..length).map(|_| random.below(VOCAB) as u32).collect();
    Start {
        slot,
        sampling: Sampling { seed: random.below(1000), ..Sampling::default() },
        history,
        generated: 0,
        constraint: None,
    }
}

fn row(slot: u32, random: &mut Random) -> Row {
    let tokens = |random: &mut Random| (0..3).map(|_| random.below(VOCAB) as u32).collect::<Vec<_>>();
    let score = (random.below(4) == 0).then(|| Score { targets: tokens(random), top: 3 });
    let input = if random.below(2) == 0 { Input::Sampled } else { Input::Tokens(tokens(random)) };
    Row { slot, input, position: random.below(1000) as u32, blocks: Vec::new(), sample: true, score }
}

/// What a run without faults gives.
pub fn without_faults(plans: &[StepPlan]) -> Vec<Vec<RowResult>> {
    let mut chain = Chain::default();
    plans.iter().map(|plan| chain.follow(plan)).collect()
}
