//! Random requests on random small machines: whatever arrives, is aborted, preempted or found in the cache, every request
//! gets what it would have got alone, no decode is stalled, and the books balance after every call.

mod simulation;

use std::time::Duration;

use simulation::{Random, Simulation};
use tandem_engine::{EngineSettings, Request, RequestId};
use tandem_step::{Capacity, Sampling};

/// Sets of requests tried; each takes a few milliseconds.
const SEEDS: u64 = 400;

#[test]
fn every_request_gets_what_it_would_get_alone() {
    let mut preemptions = 0;
    let mut hits = 0;
    let mut slices = 0;
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let simulation = scenario(&mut Random(seed));
        let stats = simulation.scheduler.stats();
        slices += simulation.slices;
        preemptions += stats.preemptions;
        hits += stats.prefix_hits;
    }
    // Otherwise the scenarios would not test what they are there for.
    assert!(preemptions > SEEDS && hits > 10 * SEEDS, "{preemptions} preemptions, {hits} tokens from the cache");
    assert!(slices > SEEDS, "{slices} slices");
}

fn scenario(random: &mut Random) -> Simulation {
    let (capacity, settings) = machine(random);
    let mut simulation = Simulation::new(capacity, settings);
    for _ in 0..random.within(20, 200) {
        match random.within(0, 9) {
            0..=2 => {
                let request = any_request(random, &simulation);
                // The bounded queue may be full.
                let _ = simulation.try_submit(request);
            }
            3 if !simulation.outcomes.is_empty() => {
                let newest = simulation.outcomes.len() as u32 - 1;
                simulation.abort(RequestId(random.within(newest.saturating_sub(6), newest).into()));
            }
            4..=6 => {
                simulation.plan();
            }
            _ => {
                simulation.apply();
            }
        }
    }
    simulation.finish();
    simulation.check_outcomes();
    simulation
}

/// A small machine; half of them have hardly more blocks than one request needs.
fn machine(random: &mut Random) -> (Capacity, EngineSettings) {
    let max_streams = random.within(1, 5);
    let mut capacity = Capacity {
        block_tokens: random.within(1, 5),
        full_blocks: 0,
        sliding_blocks: 0,
        window: random.within(1, 12),
        context: random.within(12, 70),
        max_streams,
        max_step_tokens: max_streams + random.within(0, 24),
        layers: random.within(1, 6),
        vocab: 50,
    };
    let settings = EngineSettings {
        max_queue: random.within(2, 12) as usize,
        prefill_chunk: random.within(1, 20),
        pipeline_depth: random.within(1, 2),
        prefill_slice: random.chance(70).then(|| Duration::from_micros(random.within(1, 150).into())),
        ..EngineSettings::default()
    };
    let slack = if random.chance(50) { 4 } else { 200 };
    capacity.full_blocks = capacity.context.div_ceil(capacity.block_tokens) + random.within(0, slack);
    capacity.sliding_blocks = settings.sliding_blocks_needed(&capacity) + random.within(0, slack);
    (capacity, settings)
}

/// A prompt that often begins like an earlier sequence.
fn any_request(random: &mut Random, simulation: &Simulation) -> Request {
    let capacity = &simulation.capacity;
    let mut prompt = match simulation.outcomes.len() as u32 {
        count if count > 0 && random.chance(70) => {
            let mut earlier = simulation.outcomes[&RequestId(random.within(0, count - 1).into())].sequence();
            if random.chance(70) {
                earlier.truncate(random.within(0, earlier.len() as u32) as usize);
            }
            earlier
        }
        _ => Vec::new(),
    };
    let fresh = random.within(u32::from(prompt.is_empty()), capacity.context / 2);
    let fresh = if random.chance(30) { fresh } else { fresh.min(3) };
    prompt.extend(random.tokens(fresh, capacity.vocab));
    prompt.truncate(capacity.context as usize - 1);
    if prompt.is_empty() {
        prompt.push(1);
    }
    let presence_penalty = if random.chance(20) { 0.5 } else { 0.0 };
    let logprobs = random.chance(20).then_some(2);
    let stops = random.within(0, 3);
    Request {
        prompt,
        max_tokens: random.within(0, 40),
        sampling: Sampling { seed: random.next(), presence_penalty, logprobs, ..Sampling::default() },
        stop_tokens: random.tokens(stops, capacity.vocab),
        prompt_logprobs: random.chance(10).then_some(0),
        constraint: None,
    }
}
