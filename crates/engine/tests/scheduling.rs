//! Who runs when: what a step carries, who waits, who has to go, and how requests end.

mod simulation;

use std::time::Duration;

use simulation::{Random, Simulation, request, roomy, settings};
use tandem_engine::{EngineSettings, FinishReason, RequestId, ResultError, Scheduler, StartError, SubmitError, Update};
use tandem_step::{Capacity, Input, StepPlan, StepResult};

fn prompt(seed: u64, length: u32) -> Vec<u32> {
    Random(seed).tokens(length, 1000)
}

fn is_finished(simulation: &Simulation, id: RequestId) -> bool {
    simulation.outcomes[&id].finished.is_some()
}

#[test]
fn a_long_prefill_stalls_no_decode() {
    for depth in [1, 2] {
        let mut simulation = Simulation::new(roomy(), settings(8, depth));
        let decodes: Vec<_> = (0..4).map(|seed| simulation.submit(request(prompt(seed, 5), 100))).collect();
        while simulation.outcomes[&decodes[3]].tokens.is_empty() {
            simulation.step();
        }
        let long = simulation.submit(request(prompt(9, 200), 5));
        simulation.step(); // At depth 2 one step was planned before the prompt came.
        let mut steps = 0;
        while simulation.outcomes[&long].tokens.is_empty() {
            let before: Vec<_> = decodes.iter().map(|id| simulation.outcomes[id].tokens.len()).collect();
            simulation.step();
            let after = decodes.iter().map(|id| simulation.outcomes[id].tokens.len());
            assert!(after.eq(before.iter().map(|count| count + 1)), "every decode gets one token in every step");
            steps += 1;
        }
        // 25 chunks, of which the step above ran one at depth 1 and none at depth 2.
        assert_eq!(steps, 23 + depth);
        simulation.finish();
        simulation.check_outcomes();
    }
}

#[test]
fn a_short_prompt_does_not_wait_for_a_long_one() {
    let mut simulation = Simulation::new(roomy(), settings(16, 2));
    let long = simulation.submit(request(prompt(1, 240), 2));
    simulation.step();
    let short = simulation.submit(request(prompt(2, 8), 2));
    (0..4).for_each(|_| assert!(simulation.step()));
    assert!(!simulation.outcomes[&short].tokens.is_empty() && simulation.outcomes[&long].tokens.is_empty());
    simulation.finish();
    simulation.check_outcomes();
}

#[test]
fn depth_two_plans_a_step_before_the_last_result() {
    let mut simulation = Simulation::new(roomy(), settings(8, 2));
    let id = simulation.submit(request(prompt(1, 6), 3));
    let inputs = |plan: StepPlan| plan.rows.into_iter().map(|row| (row.position, row.input)).collect::<Vec<_>>();
    assert_eq!(inputs(simulation.plan().unwrap()), [(0, Input::Tokens(prompt(1, 6)))]);
    assert_eq!(inputs(simulation.plan().unwrap()), [(6, Input::Sampled)]);
    assert_eq!(simulation.plan(), None);
    simulation.apply();
    assert_eq!(inputs(simulation.plan().unwrap()), [(7, Input::Sampled)]);
    simulation.apply();
    assert_eq!(simulation.plan(), None, "the third token is the last, and it is being sampled");
    simulation.finish();
    assert!(is_finished(&simulation, id));
    simulation.check_outcomes();
}

#[test]
fn the_row_after_a_stop_token_is_discarded_and_its_blocks_are_held_until_then() {
    let mut simulation = Simulation::new(roomy(), settings(8, 2));
    let mut stopping = request(prompt(1, 6), 50);
    stopping.stop_tokens = vec![simulation::expected(&stopping, &roomy()).0[2]];
    let id = simulation.submit(stopping);
    while !is_finished(&simulation, id) {
        simulation.plan();
        simulation.plan();
        simulation.apply();
    }
    assert_eq!(simulation.outcomes[&id].tokens.len(), 3);
    assert_eq!(simulation.scheduler.steps_in_flight(), 1);
    assert!(simulation.scheduler.stats().kv_usage > 0.0);
    simulation.finish();
    simulation.check_outcomes();
}

#[test]
fn an_aborted_request_is_in_no_later_plan() {
    for depth in [1, 2] {
        let mut simulation = Simulation::new(roomy(), settings(8, depth));
        let aborted = simulation.submit(request(prompt(1, 30), 50));
        let other = simulation.submit(request(prompt(2, 6), 50));
        simulation.step();
        while simulation.outcomes[&other].tokens.len() < 3 {
            simulation.step();
        }
        simulation.abort(aborted);
        assert_eq!(simulation.outcomes[&aborted].finished.as_ref().unwrap().reason, FinishReason::Aborted);
        let plan = simulation.plan().unwrap();
        assert_eq!((plan.rows.len(), plan.ends.len()), (1, 1));
        simulation.finish();
        simulation.check_outcomes();
    }
}

#[test]
fn the_youngest_is_preempted_and_starts_once() {
    // Two requests fit with their prompts, but not to their ends.
    let capacity = Capacity { full_blocks: 64, sliding_blocks: 40, max_streams: 2, ..roomy() };
    for depth in [1, 2] {
        let mut simulation = Simulation::new(capacity, settings(40, depth));
        let old = simulation.submit(request(prompt(1, 90), 150));
        let young = simulation.submit(request(prompt(2, 90), 150));
        while !is_finished(&simulation, old) {
            simulation.step();
        }
        assert!(simulation.scheduler.stats().preemptions > 0);
        assert!(simulation.outcomes[&young].tokens.len() < 60, "it must make way for the older");
        simulation.finish();
        // Its prompt had been evicted; recomputed, it serves the next turn like any other.
        let next = [&prompt(2, 90)[..], &[1, 2, 3]].concat();
        assert!(simulation.complete(request(next, 1)).cached >= Some(90));
        simulation.check_outcomes();
    }
}

#[test]
fn a_machine_that_fits_one_request_exactly_runs_it_to_the_end_of_its_context() {
    for (block_tokens, window, chunk) in [(4, 16, 8), (4, 16, 64), (3, 10, 7), (16, 5, 1), (1, 1, 1)] {
        for depth in [1, 2] {
            let settings = settings(chunk, depth);
            let mut capacity =
                Capacity { block_tokens, window, full_blocks: u32::div_ceil(256, block_tokens), ..roomy() };
            capacity.sliding_blocks = settings.sliding_blocks_needed(&capacity);
            let mut simulation = Simulation::new(capacity, settings.clone());
            for seed in 0..4 {
                let length = [100, 101, 250, 3][seed as usize];
                simulation.submit(request(prompt(seed % 2, length), 1000));
            }
            simulation.finish();
            simulation.check_outcomes();
            let full = simulation.outcomes.values().all(|outcome| outcome.sequence().len() == 256);
            assert!(full, "all run until the context is full");

            capacity.sliding_blocks -= 1;
            let refused = Scheduler::new(capacity, settings.clone()).err();
            assert!(matches!(refused, Some(StartError::Pool { pool: "sliding", .. })), "{refused:?}");
            let refused =
                Scheduler::new(Capacity { full_blocks: capacity.full_blocks - 1, ..capacity }, settings).err();
            assert!(matches!(refused, Some(StartError::Pool { pool: "full", .. })), "{refused:?}");
        }
    }
}

#[test]
fn a_hit_that_does_not_fit_beside_the_blocks_it_copies_is_forgone() {
    let capacity = Capacity { full_blocks: 64, ..roomy() };
    let mut simulation = Simulation::new(capacity, settings(8, 2));
    simulation.complete(request(prompt(1, 250), 6));
    // 62 whole blocks could be shared and one copied, but with the two that the rest needs that makes 65.
    let similar = [&prompt(1, 249)[..], &[1, 2, 3, 4, 5, 6]].concat();
    assert_eq!(simulation.complete(request(similar, 1)).cached, Some(0));
    simulation.check_outcomes();
}

#[test]
fn a_prompt_that_does_not_fit_beside_those_being_computed_waits() {
    let capacity = Capacity { full_blocks: 64, ..roomy() };
    let mut simulation = Simulation::new(capacity, settings(8, 2));
    (0..4).for_each(|seed| _ = simulation.submit(request(prompt(seed, 150), 5)));
    simulation.finish();
    simulation.check_outcomes();
    assert_eq!(simulation.scheduler.stats().preemptions, 0);
}

#[test]
fn sliding_layers_hold_their_window_only() {
    // 8 streams of 256 tokens would need 512 sliding blocks if these grew like the full ones.
    let settings = settings(8, 2);
    let each = settings.sliding_blocks_needed(&roomy());
    let capacity = Capacity { sliding_blocks: 8 * (each + 1), ..roomy() };
    let mut simulation = Simulation::new(capacity, settings);
    (0..8).for_each(|seed| _ = simulation.submit(request(prompt(seed, 30), 200)));
    simulation.finish();
    simulation.check_outcomes();
    assert_eq!(simulation.scheduler.stats().preemptions, 0);
}

#[test]
fn prompt_scores_come_in_order_across_chunks_and_preemptions() {
    let capacity = Capacity { full_blocks: 64, sliding_blocks: 40, max_streams: 2, ..roomy() };
    let mut simulation = Simulation::new(capacity, settings(7, 2));
    simulation.submit(request(prompt(1, 30), 220));
    (0..40).for_each(|_| _ = simulation.step());
    let mut scored = request(prompt(2, 200), 10);
    scored.prompt_logprobs = Some(3);
    simulation.submit(scored);
    simulation.finish();
    simulation.check_outcomes();
}

#[test]
fn the_queue_is_bounded_and_says_so() {
    let settings = EngineSettings { max_queue: 2, ..settings(8, 2) };
    let mut simulation = Simulation::new(Capacity { max_streams: 1, ..roomy() }, settings);
    let first = simulation.submit(request(prompt(1, 6), 20));
    simulation.step();
    simulation.submit(request(prompt(2, 6), 5));
    simulation.submit(request(prompt(3, 6), 5));
    assert_eq!(simulation.try_submit(request(prompt(4, 6), 5)), Err(SubmitError::QueueFull { waiting: 2 }));
    simulation.abort(first);
    simulation.submit(request(prompt(4, 6), 5));
    simulation.finish();
    simulation.check_outcomes();
}

#[test]
fn requests_that_cannot_be_served_are_refused() {
    let mut simulation = Simulation::new(roomy(), settings(8, 2));
    assert_eq!(simulation.try_submit(request(vec![], 5)), Err(SubmitError::EmptyPrompt));
    let too_long = SubmitError::PromptTooLong { prompt: 256, context: 256 };
    assert_eq!(simulation.try_submit(request(prompt(1, 256), 5)), Err(too_long));
    let unknown = SubmitError::UnknownToken { token: 1000, vocab: 1000 };
    assert_eq!(simulation.try_submit(request(vec![1, 1000], 5)), Err(unknown));
    simulation.complete(request(prompt(1, 255), 5));
    simulation.check_outcomes();
}

#[test]
fn who_waits_too_long_fails() {
    let settings = EngineSettings { queue_timeout: Some(Duration::from_secs(1)), ..settings(8, 2) };
    let mut simulation = Simulation::new(Capacity { max_streams: 1, ..roomy() }, settings);
    let running = simulation.submit(request(prompt(1, 6), 200));
    simulation.step();
    let waiting = simulation.submit(request(prompt(2, 6), 5));
    // A step takes 10 ms here.
    (0..98).for_each(|_| _ = simulation.step());
    assert!(!is_finished(&simulation, waiting));
    (0..4).for_each(|_| _ = simulation.step());
    let finished = simulation.outcomes[&waiting].finished.as_ref().unwrap();
    assert!(matches!(&finished.reason, FinishReason::Failed(reason) if reason.contains("1s")), "{finished:?}");
    simulation.finish();
    assert_eq!(simulation.outcomes[&running].finished.as_ref().unwrap().reason, FinishReason::Length);
}

#[test]
fn timings_tell_queue_prefill_and_decode_apart() {
    let mut simulation = Simulation::new(Capacity { max_streams: 1, ..roomy() }, settings(8, 1));
    simulation.submit(request(prompt(1, 6), 3));
    let second = simulation.submit(request(prompt(2, 16), 4));
    simulation.finish();
    let timings = simulation.outcomes[&second].finished.as_ref().unwrap().timings;
    // A step takes 10 ms here, and is planned and applied at the same time: 3 steps, then 2 chunks, then 3 tokens more.
    assert_eq!(timings.queue, Duration::from_millis(40));
    assert_eq!(timings.prefill, Duration::from_millis(10));
    assert_eq!(timings.decode, Duration::from_millis(30));
}

#[test]
fn settings_that_cannot_work_are_refused() {
    let refused = |settings, capacity| Scheduler::new(capacity, settings).err().map(|error| error.to_string());
    let streams = Capacity { max_step_tokens: 7, ..roomy() };
    let error = refused(settings(8, 2), streams).unwrap();
    assert_eq!(error, "a step of 7 tokens cannot carry one token for each of 8 streams");
    assert_eq!(refused(settings(8, 3), roomy()).unwrap(), "the pipeline depth must be 1 or 2, not 3");
    assert_eq!(refused(settings(0, 2), roomy()).unwrap(), "the prefill chunk must be at least 1");
    assert_eq!(refused(settings(8, 2), roomy()), None);
}

#[test]
fn a_result_that_answers_another_plan_is_an_error() {
    let mut scheduler = Scheduler::new(roomy(), settings(8, 2)).unwrap();
    let now = std::time::Instant::now();
    scheduler.submit(RequestId(0), request(prompt(1, 6), 3), now).unwrap();
    let plan = scheduler.next_plan(now).unwrap();
    let answer = |rows| StepResult { epoch: plan.epoch, step: plan.step, rows, ..StepResult::default() };
    let row = |slot, token| tandem_step::RowResult { slot, token, logprobs: None, scores: Vec::new(), error: None };
    let slot = plan.rows[0].slot;

    let late = StepResult { step: 9, ..answer(vec![row(slot, Some(1))]) };
    assert!(matches!(scheduler.apply(late, now), Err(ResultError::Step { step: 9, .. })));
    assert!(matches!(scheduler.apply(answer(vec![]), now), Err(ResultError::Rows { expected: 1, found: 0, .. })));
    for wrong in [row(slot, None), row(slot, Some(1000)), row(slot + 1, Some(1))] {
        assert!(matches!(scheduler.apply(answer(vec![wrong]), now), Err(ResultError::Row { .. })));
    }
    scheduler.apply(answer(vec![row(slot, Some(1))]), now).unwrap();
    scheduler.audit().unwrap();
}

#[test]
fn a_lost_worker_fails_everything_once_and_the_next_epoch_starts_clean() {
    let mut scheduler = Scheduler::new(Capacity { max_streams: 1, ..roomy() }, settings(8, 2)).unwrap();
    let now = std::time::Instant::now();
    (0..3).for_each(|id| scheduler.submit(RequestId(id), request(prompt(id, 6), 3), now).unwrap());
    scheduler.next_plan(now).unwrap();
    scheduler.take_updates();
    scheduler.fail_all("the worker burst", now);
    let updates = scheduler.take_updates();
    assert_eq!(updates.len(), 3);
    for (_, update) in updates {
        let Update::Finished(finished) = update else { panic!("{update:?}") };
        assert_eq!(finished.reason, FinishReason::Failed("the worker burst".to_owned()));
    }
    scheduler.audit().unwrap();
    scheduler.submit(RequestId(3), request(prompt(1, 6), 3), now).unwrap();
    let plan = scheduler.next_plan(now).unwrap();
    assert_eq!((plan.epoch, plan.step, plan.ends.len()), (1, 0, 0));
}
