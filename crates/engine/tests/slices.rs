//! Long prompts beside running decodes: a chunk's pass in slices of some layers, and a token for everybody in between.

mod simulation;

use std::time::Duration;

use simulation::{LAYER_TOKEN_US, Random, Simulation, request, roomy, settings};
use tandem_engine::{EngineSettings, FinishReason, RequestId, Scheduler};
use tandem_step::{Capacity, Row, RowResult, StepPlan, StepResult, StepTimings};

const CHUNK: u32 = 48;
const LAYERS: u32 = 6;

/// Time for so many layers of a whole chunk.
fn sliced(layers: u64, depth: u32) -> EngineSettings {
    let time = Duration::from_micros(layers * u64::from(CHUNK) * LAYER_TOKEN_US);
    EngineSettings { prefill_slice: Some(time), ..settings(CHUNK, depth) }
}

fn prompt(seed: u64, length: u32) -> Vec<u32> {
    Random(seed).tokens(length, 1000)
}

/// With a request that decodes, and nothing of which is in flight.
fn decoding(capacity: Capacity, settings: EngineSettings) -> (Simulation, RequestId) {
    let mut simulation = Simulation::new(capacity, settings);
    let chat = simulation.submit(request(prompt(1, 5), 200));
    while simulation.outcomes[&chat].tokens.len() < 2 {
        simulation.step();
    }
    while simulation.apply() {}
    (simulation, chat)
}

/// Layers of a plan's slice.
fn layers(plan: &StepPlan) -> u32 {
    plan.slice.as_ref().map_or(0, |slice| slice.layers)
}

/// Plans and applies one step, at depth 1 or as if it were.
fn one(simulation: &mut Simulation) -> StepPlan {
    let plan = simulation.plan().expect("there is something to do");
    assert!(simulation.apply());
    plan
}

#[test]
fn a_decode_gets_a_token_between_slices() {
    let (mut simulation, chat) = decoding(roomy(), sliced(2, 1));
    let long = simulation.submit(request(prompt(2, 2 * CHUNK), 5));
    let mut slices = Vec::new();
    while simulation.outcomes[&long].tokens.is_empty() {
        let before = simulation.outcomes[&chat].tokens.len();
        slices.push(layers(&one(&mut simulation)));
        assert_eq!(simulation.outcomes[&chat].tokens.len(), before + 1, "a token with every slice");
    }
    // What the chat's own prompt of five tokens took says little of so many; then two layers fit, as measured.
    assert_eq!(slices, [1, 2, 2, 1, 2, 2, 2]);
    simulation.finish();
    simulation.check_outcomes();
}

#[test]
fn at_depth_two_slices_follow_one_another_and_passes_wait_for_results() {
    let (mut simulation, chat) = decoding(roomy(), sliced(2, 2));
    let long = simulation.submit(request(prompt(2, 2 * CHUNK), 5));
    let (mut slices, before) = (Vec::new(), simulation.outcomes[&chat].tokens.len());
    slices.push(layers(&simulation.plan().unwrap()));
    while simulation.outcomes[&long].tokens.is_empty() {
        slices.extend(simulation.plan().iter().map(layers));
        simulation.apply();
    }
    // The first pass's last slice is in flight when the second could begin.
    assert_eq!(slices, [1, 1, 2, 2, 0, 2, 2, 2, 0]);
    assert_eq!(simulation.outcomes[&chat].tokens.len() - before, slices.len() - 1, "a token with every step");
    simulation.finish();
    simulation.check_outcomes();
}

#[test]
fn what_takes_no_longer_than_it_may_is_run_whole() {
    for depth in [1, 2] {
        let (mut simulation, _) = decoding(roomy(), sliced(u64::from(LAYERS), depth));
        for (seed, lengths) in [(2, 20), (3, CHUNK), (4, CHUNK)] {
            simulation.submit(request(prompt(seed, lengths), 5));
            (0..20).for_each(|_| _ = simulation.step());
        }
        // By now it is known how long chunks of this size take.
        simulation.submit(request(prompt(5, CHUNK), 5));
        while simulation.apply() {}
        let plan = one(&mut simulation);
        assert_eq!((plan.rows.len(), plan.slice), (2, None));
        simulation.finish();
        simulation.check_outcomes();
    }
}

#[test]
fn where_nobody_decodes_nothing_is_sliced() {
    let mut simulation = Simulation::new(roomy(), sliced(1, 1));
    simulation.submit(request(prompt(1, 100), 3));
    let whole = one(&mut simulation);
    assert_eq!((whole.rows.len(), whole.slice), (1, None));
    simulation.finish();

    // When the last decode ends, the rest of the pass is run at once.
    let (mut simulation, chat) = decoding(roomy(), sliced(1, 1));
    simulation.submit(request(prompt(2, CHUNK), 3));
    assert_eq!(layers(&one(&mut simulation)), 1);
    simulation.abort(chat);
    let rest = one(&mut simulation);
    assert_eq!((rest.rows.len(), layers(&rest)), (0, LAYERS - 1));
    simulation.finish();
    simulation.check_outcomes();
}

#[test]
fn who_comes_during_a_pass_waits_for_its_end() {
    let (mut simulation, _) = decoding(roomy(), sliced(1, 1));
    let long = simulation.submit(request(prompt(2, CHUNK), 3));
    one(&mut simulation);
    let short = simulation.submit(request(prompt(3, 4), 3));
    let starts = (1..LAYERS).map(|_| one(&mut simulation).starts.len()).sum::<usize>();
    assert_eq!((starts, simulation.outcomes[&long].tokens.len()), (0, 1));
    while simulation.outcomes[&short].tokens.is_empty() {
        one(&mut simulation);
    }
    simulation.finish();
    simulation.check_outcomes();
}

#[test]
fn a_pass_whose_requests_are_aborted_is_dropped() {
    for depth in [1, 2] {
        let (mut simulation, _) = decoding(roomy(), sliced(1, depth));
        let long = simulation.submit(request(prompt(2, CHUNK), 3));
        let slot = simulation.plan().unwrap().slice.unwrap().rows[0].slot;
        (1..depth).for_each(|_| assert_eq!(layers(&simulation.plan().unwrap()), 1));
        simulation.abort(long);
        while simulation.apply() {}
        let plan = one(&mut simulation);
        assert_eq!((plan.ends, plan.slice), (vec![slot], None));
        simulation.finish();
        simulation.check_outcomes();
    }
}

#[test]
fn a_pass_goes_on_for_those_who_stay() {
    for depth in [1, 2] {
        let (mut simulation, _) = decoding(roomy(), sliced(1, depth));
        let leaving = simulation.submit(request(prompt(2, 20), 3));
        let staying = simulation.submit(request(prompt(3, 20), 3));
        let rows = simulation.plan().unwrap().slice.unwrap().rows;
        assert_eq!(rows.len(), 2);
        simulation.abort(leaving);
        assert!(simulation.outcomes[&leaving].finished.is_some(), "the client need not wait");
        while simulation.outcomes[&staying].tokens.is_empty() {
            let plan = simulation.plan();
            assert!(plan.is_none_or(|plan| plan.ends.is_empty() || plan.slice.is_none()), "its slot stays to the end");
            simulation.apply();
        }
        simulation.finish();
        simulation.check_outcomes();
    }
}

#[test]
fn nothing_of_a_pass_is_cached_before_its_end() {
    for depth in [1, 2] {
        let (mut simulation, _) = decoding(roomy(), sliced(1, depth));
        let first = simulation.submit(request(prompt(2, 2 * CHUNK), 3));
        // Into the second chunk.
        for _ in 0..=LAYERS + depth {
            simulation.plan();
            simulation.apply();
        }
        assert!(simulation.outcomes[&first].tokens.is_empty());
        simulation.abort(first);
        let again = simulation.submit(request(prompt(2, 2 * CHUNK), 3));
        simulation.finish();
        assert_eq!(simulation.outcomes[&again].cached, Some(CHUNK), "the chunk that was computed");
        simulation.check_outcomes();
    }
}

#[test]
fn without_blocks_the_rest_of_a_pass_is_run_before_anybody_is_preempted() {
    let capacity = Capacity { full_blocks: 64, sliding_blocks: 40, max_streams: 3, ..roomy() };
    for depth in [1, 2] {
        let mut simulation = Simulation::new(capacity, sliced(1, depth));
        let old = simulation.submit(request(prompt(1, 90), 150));
        let other = simulation.submit(request(prompt(2, 60), 150));
        let mut starved = 0;
        for seed in 3.. {
            // One prompt after another, so that passes are under way when blocks run out.
            if seed < 30 {
                simulation.submit(request(prompt(seed, 44), 2));
            }
            for _ in 0..12 {
                let decoding = simulation.outcomes.values().filter(|o| o.finished.is_none() && !o.tokens.is_empty());
                let decoding = decoding.count();
                let plan = simulation.plan();
                let is_rest = plan.is_some_and(|plan| plan.rows.is_empty() && plan.slice.is_some());
                starved += usize::from(is_rest && decoding > 0);
                simulation.apply();
            }
            if simulation.outcomes[&old].finished.is_some() && simulation.outcomes[&other].finished.is_some() {
                break;
            }
        }
        assert!(simulation.scheduler.stats().preemptions > 0, "otherwise this tests nothing");
        assert!(starved > 0, "no pass was under way when blocks ran out");
        simulation.finish();
        simulation.check_outcomes();
    }
}

#[test]
fn a_worker_lost_in_the_middle_of_a_pass_takes_it_along() {
    for depth in [1, 2] {
        let mut scheduler = Scheduler::new(roomy(), sliced(1, depth)).unwrap();
        let now = std::time::Instant::now();
        scheduler.submit(RequestId(0), request(prompt(1, 5), 50), now).unwrap();
        let answer = |plan: &StepPlan| {
            let row = |row: &Row| RowResult { token: Some(1), ..RowResult::empty(row.slot) };
            let rows = plan.rows.iter().map(row).collect();
            let timings = StepTimings { forward_us: 1_000_000, ..StepTimings::default() };
            StepResult { epoch: plan.epoch, step: plan.step, rows, timings }
        };
        let first = scheduler.next_plan(now).unwrap();
        scheduler.apply(answer(&first), now).unwrap();
        (1..3).for_each(|id| scheduler.submit(RequestId(id), request(prompt(id, 20), 3), now).unwrap());
        let begun = scheduler.next_plan(now).unwrap();
        assert_eq!(begun.slice.as_ref().map(|slice| (slice.rows.len(), slice.layers)), Some((2, 1)));
        // One of its requests has left before.
        scheduler.abort(RequestId(1), now);
        scheduler.fail_all("the worker burst", now);
        scheduler.audit().unwrap();
        scheduler.submit(RequestId(3), request(prompt(1, 6), 3), now).unwrap();
        let plan = scheduler.next_plan(now).unwrap();
        assert_eq!((plan.epoch, plan.step, plan.ends.len(), plan.rows.len(), plan.slice), (1, 0, 0, 1, None));
    }
}

#[test]
fn a_model_of_one_layer_cannot_be_sliced() {
    let (mut simulation, _) = decoding(Capacity { layers: 1, ..roomy() }, sliced(1, 2));
    simulation.submit(request(prompt(2, CHUNK), 3));
    let plan = one(&mut simulation);
    assert_eq!((plan.rows.len(), plan.slice), (2, None));
    simulation.finish();
}

#[test]
fn scores_of_a_prompt_come_from_passes_too() {
    for depth in [1, 2] {
        let (mut simulation, _) = decoding(roomy(), sliced(1, depth));
        let mut scored = request(prompt(2, 130), 4);
        scored.prompt_logprobs = Some(2);
        let id = simulation.submit(scored);
        simulation.finish();
        assert_eq!(simulation.outcomes[&id].finished.as_ref().unwrap().reason, FinishReason::Length);
        assert_eq!(simulation.outcomes[&id].scores.len(), 129);
        simulation.check_outcomes();
    }
}
