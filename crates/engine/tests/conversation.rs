//! What later requests read from the cache of earlier ones.

mod simulation;

use simulation::{Random, Simulation, request, roomy, settings};
use tandem_engine::RequestId;
use tandem_step::Capacity;

/// Window, block size, chunk and depth of the machines that conversations are held on.
fn machines() -> impl Iterator<Item = (Capacity, u32, u32)> {
    let shapes = [(16, 4, 64), (16, 4, 7), (5, 4, 3), (1, 4, 16), (12, 3, 10), (16, 16, 32), (3, 1, 8), (40, 8, 16)];
    shapes.into_iter().flat_map(|(window, block_tokens, chunk)| {
        let capacity = Capacity { window, block_tokens, context: 800, full_blocks: 2048 / block_tokens, ..roomy() };
        [(capacity, chunk, 1), (capacity, chunk, 2)]
    })
}

/// Some other request, run from time to time so that the conversation is not alone.
fn stranger(random: &mut Random, simulation: &mut Simulation) {
    let length = random.within(1, 60);
    let prompt = random.tokens(length, simulation.capacity.vocab);
    simulation.submit(request(prompt, 10));
}

#[test]
fn ten_turns_with_dropped_analysis_recompute_only_the_last_turn() {
    for (capacity, chunk, depth) in machines() {
        let mut simulation = Simulation::new(capacity, settings(chunk, depth));
        let mut random = Random(u64::from(capacity.window * 100 + chunk));
        let mut prompt = random.tokens(23, capacity.vocab);
        let mut previous = None;
        for turn in 0..10 {
            stranger(&mut random, &mut simulation);
            // What was generated, analysis first, is longer than the window, so that it has slid far from the prompt.
            let outcome = simulation.complete(request(prompt.clone(), 45));
            let cached = outcome.cached.unwrap() as usize;
            if let Some(previous) = previous {
                assert!(cached >= previous, "turn {turn} of {capacity:?}, chunk {chunk}: {cached} of {previous}");
            }
            previous = Some(prompt.len());
            // The next prompt goes on from this one with the final answer and what the user said, not the analysis.
            let (answer, said) = (random.within(1, 12), random.within(1, 20));
            prompt.extend(random.tokens(answer + said, capacity.vocab));
        }
        simulation.check_outcomes();
    }
}

#[test]
fn ten_tool_calls_recompute_only_the_result_and_the_last_token() {
    for (capacity, chunk, depth) in machines() {
        let mut simulation = Simulation::new(capacity, settings(chunk, depth));
        let mut random = Random(u64::from(capacity.window * 100 + chunk));
        let mut prompt = random.tokens(23, capacity.vocab);
        let mut previous: Option<usize> = None;
        for turn in 0..10 {
            stranger(&mut random, &mut simulation);
            let outcome = simulation.complete(request(prompt.clone(), 45));
            let cached = outcome.cached.unwrap() as usize;
            if let Some(previous) = previous {
                // The last token generated was never fed, so it is the first to be computed.
                assert_eq!(cached, previous - 1, "turn {turn} of {capacity:?}, chunk {chunk}");
            }
            prompt = outcome.sequence();
            previous = Some(prompt.len());
            let result = random.within(1, 20);
            prompt.extend(random.tokens(result, capacity.vocab));
        }
        simulation.check_outcomes();
    }
}

#[test]
fn the_same_prompt_again_recomputes_one_token() {
    for (capacity, chunk, depth) in machines() {
        for length in (1..40).step_by(3) {
            let mut simulation = Simulation::new(capacity, settings(chunk, depth));
            let prompt = Random(1).tokens(length, capacity.vocab);
            simulation.complete(request(prompt.clone(), 30));
            assert_eq!(
                simulation.complete(request(prompt, 30)).cached,
                Some(length - 1),
                "{capacity:?}, chunk {chunk}"
            );
            simulation.check_outcomes();
        }
    }
}

#[test]
fn copies_of_a_prompt_submitted_together_share_one_prefill() {
    for (capacity, chunk, depth) in machines() {
        let mut simulation = Simulation::new(capacity, settings(chunk, depth));
        let prompt = Random(1).tokens(90, capacity.vocab);
        let ids: Vec<_> = (0..5)
            .map(|seed| {
                let mut request = request(prompt.clone(), 20);
                request.sampling.seed = seed;
                simulation.submit(request)
            })
            .collect();
        simulation.finish();
        simulation.check_outcomes();
        assert_eq!(simulation.outcomes[&ids[0]].cached, Some(0));
        for id in &ids[1..] {
            // They wait for the first while at least a block of theirs is still to come.
            let cached = simulation.outcomes[id].cached.unwrap();
            assert!(cached > 89 - capacity.block_tokens, "{cached}: {capacity:?}, chunk {chunk}");
        }
    }
}

#[test]
fn a_common_beginning_is_found_from_the_third_request_on() {
    for (capacity, chunk, depth) in machines() {
        let mut simulation = Simulation::new(capacity, settings(chunk, depth));
        let mut random = Random(3);
        let system = random.tokens(77, capacity.vocab);
        let mut cached = Vec::new();
        for first in 0..3 {
            let mut prompt = system.clone();
            prompt.push(first);
            prompt.extend(random.tokens(50, capacity.vocab));
            cached.push(simulation.complete(request(prompt, 20)).cached.unwrap());
        }
        // The second shows where prompts part, and leaves a window there if that saves a block or more.
        assert_eq!(cached[0], 0);
        assert!(cached[2] > 77 - capacity.block_tokens, "{capacity:?}, chunk {chunk}: {cached:?}");
        simulation.check_outcomes();
    }
}

#[test]
fn prompts_that_begin_alike_and_come_together_compute_the_beginning_once() {
    let mut simulation = Simulation::new(roomy(), settings(16, 2));
    let mut random = Random(3);
    let system = random.tokens(77, 1000);
    let ids: Vec<RequestId> = (0..4)
        .map(|first| {
            let mut prompt = system.clone();
            prompt.push(first);
            prompt.extend(random.tokens(30, 1000));
            simulation.submit(request(prompt, 20))
        })
        .collect();
    simulation.finish();
    simulation.check_outcomes();
    let cached: Vec<_> = ids.iter().map(|id| simulation.outcomes[id].cached.unwrap()).collect();
    assert_eq!(cached, [0, 77, 77, 77]);
}

#[test]
fn a_sliding_block_is_not_read_beyond_what_the_prefix_shares_of_it() {
    let capacity = Capacity { window: 6, ..roomy() };
    let mut simulation = Simulation::new(capacity, settings(64, 1));
    // The first prompt ends inside block 2, whose sliding block is kept, and generates on into it.
    let first = Random(1).tokens(10, 1000);
    let running = simulation.submit(request(first.clone(), 60));
    while simulation.outcomes[&running].tokens.len() < 20 {
        simulation.step();
    }
    // The second goes on differently from there, and keeps a window that begins after block 2.
    let second = [first, Random(2).tokens(8, 1000)].concat();
    let id = simulation.submit(request(second.clone(), 30));
    while simulation.outcomes[&id].tokens.len() < 20 {
        simulation.step();
    }
    // A window before position 16 would reach back into block 2, where only the first request's sliding block is kept.
    let third = [&second[..16], &[1, 2, 3]].concat();
    assert_eq!(simulation.complete(request(third, 5)).cached, Some(10));
    simulation.check_outcomes();
}

#[test]
fn of_a_long_prefill_only_the_latest_chunk_ends_are_kept() {
    let ask = |shared: usize| {
        let mut simulation = Simulation::new(roomy(), settings(8, 2));
        let long = Random(1).tokens(203, 1000);
        simulation.complete(request(long.clone(), 30));
        simulation.complete(request([&long[..shared], &[1, 2, 3]].concat(), 5)).cached.unwrap()
    };
    // Windows are kept at 192, 200 and 203, where chunks and the prompt ended, and overlap; before them there is none.
    assert_eq!([ask(203), ask(202), ask(195), ask(191), ask(190), ask(100)], [203, 202, 195, 191, 0, 0]);
}

#[test]
fn scored_prompts_read_nothing_from_the_cache_but_leave_something_there() {
    let mut simulation = Simulation::new(roomy(), settings(7, 2));
    let prompt = Random(1).tokens(50, 1000);
    let mut scored = request(prompt.clone(), 0);
    scored.prompt_logprobs = Some(0);
    assert_eq!(simulation.complete(scored.clone()).scores.len(), 49);
    assert_eq!(simulation.complete(scored).cached, Some(0));
    assert_eq!(simulation.complete(request(prompt, 5)).cached, Some(49));
    simulation.check_outcomes();
    let stats = simulation.scheduler.stats();
    assert_eq!((stats.prefix_queries, stats.prefix_hits), (50, 49));
}

#[test]
fn what_was_used_last_is_evicted_last() {
    // Room for the blocks of two prompts at a time, and a bit.
    let capacity = Capacity { full_blocks: 64 + 20, ..roomy() };
    let mut simulation = Simulation::new(capacity, settings(64, 2));
    let mut random = Random(5);
    let favourite = random.tokens(100, 1000);
    simulation.complete(request(favourite.clone(), 1));
    for _ in 0..5 {
        let other = random.tokens(150, 1000);
        simulation.complete(request(other, 1));
        assert_eq!(simulation.complete(request(favourite.clone(), 1)).cached, Some(99));
    }
    simulation.check_outcomes();
}
