use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use prost::Message;

use super::*;

fn token() -> impl Strategy<Value = u32> {
    prop_oneof![0..201_088u32, any::<u32>()]
}

fn pool() -> impl Strategy<Value = Pool> {
    prop_oneof![Just(Pool::Full), Just(Pool::Sliding)]
}

fn number() -> impl Strategy<Value = f32> {
    prop_oneof![-4.0..4.0f32, proptest::num::f32::NORMAL, Just(0.0), Just(f32::NEG_INFINITY)]
}

prop_compose! {
    fn sampling()(
        (temperature, top_p, top_k, min_p, seed) in (number(), number(), any::<u32>(), number(), any::<u64>()),
        (presence_penalty, frequency_penalty, repetition_penalty) in (number(), number(), number()),
        logit_bias in vec((token(), number()), 0..4),
        suppress in vec(token(), 0..4),
        suppress_until in any::<u32>(),
        logprobs in option::of(any::<u8>()),
    ) -> Sampling {
        Sampling {
            temperature, top_p, top_k, min_p, seed, presence_penalty, frequency_penalty, repetition_penalty, logit_bias,
            suppress, suppress_until, logprobs,
        }
    }
}

prop_compose! {
    fn start()(
        slot in any::<u32>(),
        sampling in sampling(),
        history in vec(token(), 0..9),
        generated in any::<u32>(),
        constraint in option::of(".{0,20}"),
    ) -> Start {
        Start { slot, sampling, history, generated, constraint: constraint.map(Constraint::new) }
    }
}

prop_compose! {
    fn row()(
        slot in any::<u32>(),
        input in prop_oneof![Just(Input::Sampled), vec(token(), 0..9).prop_map(Input::Tokens)],
        position in any::<u32>(),
        blocks in vec((pool(), any::<u32>(), any::<u32>()), 0..4),
        sample in any::<bool>(),
        score in option::of((vec(token(), 0..4), any::<u8>())),
    ) -> Row {
        let blocks = blocks.into_iter().map(|(pool, index, block)| BlockAssignment { pool, index, block }).collect();
        Row { slot, input, position, blocks, sample, score: score.map(|(targets, top)| Score { targets, top }) }
    }
}

prop_compose! {
    fn plan()(
        (epoch, step) in (any::<u64>(), any::<u64>()),
        ends in vec(any::<u32>(), 0..4),
        starts in vec(start(), 0..3),
        copies in vec((pool(), any::<u32>(), any::<u32>()), 0..3),
        rows in vec(row(), 0..4),
        slice in option::of((vec(row(), 0..3), any::<u32>())),
    ) -> StepPlan {
        let copies = copies.into_iter().map(|(pool, from, to)| BlockCopy { pool, from, to }).collect();
        let slice = slice.map(|(rows, layers)| Slice { rows, layers });
        StepPlan { epoch, step, ends, starts, copies, slice, rows }
    }
}

prop_compose! {
    fn logprobs()(token in token(), logprob in number(), top in vec((token(), number()), 0..4)) -> TokenLogprobs {
        TokenLogprobs { token, logprob, top }
    }
}

prop_compose! {
    fn row_result()(
        slot in any::<u32>(),
        token in option::of(token()),
        logprobs_of_token in option::of(logprobs()),
        scores in vec(logprobs(), 0..4),
        error in option::of(".{0,20}"),
    ) -> RowResult {
        RowResult { slot, token, logprobs: logprobs_of_token, scores, error }
    }
}

prop_compose! {
    fn result()(
        (epoch, step) in (any::<u64>(), any::<u64>()),
        (slice_us, forward_us, sample_us) in (any::<u64>(), any::<u64>(), any::<u64>()),
        rows in vec(row_result(), 0..4),
    ) -> StepResult {
        StepResult { epoch, step, rows, timings: StepTimings { slice_us, forward_us, sample_us } }
    }
}

proptest! {
    #[test]
    fn plans_arrive_as_they_were_sent(plan in plan()) {
        let bytes = plan_to_wire(&plan).encode_to_vec();
        let arrived = plan_from_wire(plan.epoch, proto::StepPlan::decode(bytes.as_slice()).unwrap());
        prop_assert_eq!(arrived, Ok(plan));
    }

    #[test]
    fn results_arrive_as_they_were_sent(result in result()) {
        let bytes = result_to_wire(result.clone()).encode_to_vec();
        let arrived = result_from_wire(result.epoch, proto::StepResult::decode(bytes.as_slice()).unwrap());
        prop_assert_eq!(arrived, Ok(result));
    }

    /// Nothing that can be decoded makes the conversion panic.
    #[test]
    fn any_bytes_are_a_plan_or_an_error(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(plan) = proto::StepPlan::decode(bytes.as_slice()) {
            let _ = plan_from_wire(1, plan);
        }
    }
}

#[test]
fn what_a_type_cannot_hold_is_refused() {
    let row = proto::Row { score: Some(proto::Score { targets: vec![], top: 256 }), ..Default::default() };
    assert_eq!(row_from_wire(row), Err(WireError::Range { what: "a score's top", value: 256 }));
    assert_eq!(
        copy_from_wire(proto::BlockCopy::default()),
        Err(WireError::Range { what: "a pool", value: 0 }),
        "what was never said is no pool"
    );
    assert_eq!(start_from_wire(proto::Start::default()), Err(WireError::Missing("a start's sampling")));
    let uneven = proto::TokenLogprobs { top_tokens: vec![1], ..Default::default() };
    assert_eq!(logprobs_from_wire(uneven), Err(WireError::Lengths("alternatives")));
}
