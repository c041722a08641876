//! Constrained requests on a real engine and a real, if random, model: what they write does not depend on who runs beside
//! them, on how deep steps are pipelined, nor on whether they are preempted.

mod drawing;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use drawing::Drawing;
use serde_json::{Value, json};
use tandem_backend::cpu::{CpuBackend, CpuOptions};
use tandem_backend::{Backend, DenseFormat, KvFormat, Precision};
use tandem_engine::{EngineSettings, FinishReason, Request, RequestId, Scheduler, Update};
use tandem_grammar::{Call, Content, Masks, Reply, Rules};
use tandem_harmony::{STOP_TOKENS, Tokenizer, special};
use tandem_model::{Formats, Model, Runner, ShardPlan, Synthetic, SyntheticKind};
use tandem_step::{Ahead, Capacity, Constraint, Masker, Sampling, StepPlan};

const STREAMS: u32 = 4;
const CONTEXT: u32 = 256;

/// What became of one request.
#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    tokens: Vec<u32>,
    logprobs: Vec<f32>,
    reason: FinishReason,
}

/// Runs the requests together, at a pipeline depth, over a full pool of so many blocks. Also how often one was preempted.
fn run(requests: &[Request], pipeline_depth: u32, full_blocks: u32) -> (Vec<Outcome>, u64) {
    run_on(runner(cpu(), full_blocks), requests, pipeline_depth)
}

fn run_on<B: Backend>(mut runner: Runner<B>, requests: &[Request], pipeline_depth: u32) -> (Vec<Outcome>, u64) {
    let settings = EngineSettings { pipeline_depth, prefill_chunk: 32, ..EngineSettings::default() };
    let mut scheduler = Scheduler::new(runner.capacity(), settings).unwrap();
    let now = Instant::now();
    for (id, request) in (0..).zip(requests) {
        scheduler.submit(RequestId(id), request.clone(), now).unwrap();
    }
    let mut updates = Vec::new();
    let mut in_flight: std::collections::VecDeque<StepPlan> = std::collections::VecDeque::new();
    loop {
        while let Some(plan) = scheduler.next_plan(now) {
            in_flight.push_back(plan);
        }
        let Some(plan) = in_flight.pop_front() else { break };
        scheduler.apply(runner.run(&plan).unwrap(), now).unwrap();
        updates.extend(scheduler.take_updates());
    }
    scheduler.audit().unwrap();
    let outcome = |id| outcome(updates.iter().filter(|(of, _)| *of == RequestId(id)).map(|(_, update)| update));
    ((0..requests.len() as u64).map(outcome).collect(), scheduler.stats().preemptions)
}

fn outcome<'a>(updates: impl Iterator<Item = &'a Update>) -> Outcome {
    let (mut tokens, mut logprobs, mut reason) = (Vec::new(), Vec::new(), None);
    for update in updates {
        match update {
            Update::Token { token, logprobs: given } => {
                tokens.push(*token);
                logprobs.extend(given.as_ref().map(|given| given.logprob));
            }
            Update::Finished(finished) => assert!(reason.replace(finished.reason.clone()).is_none(), "ended twice"),
            Update::Started { .. } | Update::PromptScores(_) => {}
        }
    }
    Outcome { tokens, logprobs, reason: reason.expect("every request ends") }
}

fn cpu() -> CpuBackend {
    CpuBackend::new(CpuOptions { precision: Precision::Exact, threads: Some(1), isa: None }).unwrap()
}

fn runner<B: Backend>(backend: B, full_blocks: u32) -> Runner<B> {
    let capacity = Capacity {
        block_tokens: 16,
        full_blocks,
        sliding_blocks: STREAMS * CONTEXT / 16,
        window: 128,
        context: CONTEXT,
        max_streams: STREAMS,
        max_step_tokens: 64,
        layers: SyntheticKind::Tiny.config().layers() as u32,
        vocab: Tokenizer::VOCAB_SIZE as u32,
    };
    let formats = Formats { dense: DenseFormat::Bf16, kv: KvFormat::F32 };
    let store = Synthetic::new(SyntheticKind::Tiny);
    let model = Model::load(backend, &store, formats, capacity, ShardPlan::UNDIVIDED).unwrap();
    Runner::new(model).with_masker(Box::new(Masks::start(2).unwrap()))
}

/// Ample room for all streams.
const ROOMY: u32 = STREAMS * CONTEXT / 16;

fn schema() -> Value {
    json!({"type": "object", "properties": {"name": {"type": "string", "maxLength": 12}, "sizes": {"type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 99}, "minItems": 12, "maxItems": 20}},
        "required": ["name", "sizes"], "additionalProperties": false})
}

fn constraint(rules: &Rules) -> Option<Constraint> {
    Some(rules.constraint().unwrap())
}

/// A raw text under the schema.
fn json_text(seed: u64) -> Request {
    Request {
        prompt: (0..20).map(|i| 1000 + i * 7 + seed as u32).collect(),
        max_tokens: 200,
        sampling: Sampling { seed, logprobs: Some(0), ..Sampling::default() },
        stop_tokens: STOP_TOKENS.to_vec(),
        prompt_logprobs: None,
        constraint: constraint(&Rules::Text(Content::Json(schema()))),
    }
}

/// The text of an outcome that came to its end.
fn text(outcome: &Outcome) -> String {
    assert!(matches!(outcome.reason, FinishReason::Stop(_)), "{outcome:?}");
    let end = outcome.tokens.iter().position(|token| STOP_TOKENS.contains(token)).unwrap();
    Tokenizer::shared().decode(&outcome.tokens[..end])
}

fn check(text: &str) {
    let value: Value = serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"));
    assert!(value["name"].as_str().is_some_and(|name| name.chars().count() <= 12), "{text}");
    assert!((12..=20).contains(&value["sizes"].as_array().unwrap().len()), "{text}");
}

#[test]
fn crowded_pipelined_or_preempted_the_output_is_the_same() {
    let mut requests: Vec<Request> = (0..5).map(json_text).collect();
    // One without constraint among them, and one with penalties, whose history a worker is told in full.
    requests[1] = Request { constraint: None, max_tokens: 60, ..requests[1].clone() };
    requests[3].sampling.frequency_penalty = 0.5;
    let alone: Vec<Outcome> = requests.iter().map(|one| run(std::slice::from_ref(one), 1, ROOMY).0.remove(0)).collect();
    [0, 2, 3, 4].into_iter().for_each(|at| check(&text(&alone[at])));
    assert_ne!(alone[0].tokens, alone[2].tokens, "seeds matter");
    for depth in [1, 2] {
        let (together, _) = run(&requests, depth, ROOMY);
        assert_eq!(together, alone, "depth {depth}");
        let (preempted, times) = run(&requests, depth, CONTEXT / 16);
        assert!(times > 0, "a pool of one context cannot hold them all");
        assert_eq!(preempted, alone, "depth {depth}, preempted {times} times");
    }
}

#[test]
fn a_constraint_wins_over_suppression_where_nothing_else_is_left() {
    let choice = Rules::Text(Content::Choice(vec!["yes".into(), "no".into()]));
    let suppressed = |until| {
        let mut request = Request { constraint: constraint(&choice), max_tokens: 10, ..json_text(3) };
        request.sampling.suppress = STOP_TOKENS.to_vec();
        request.sampling.suppress_until = until;
        request
    };
    // As with min_tokens: the text is complete before, and ends.
    let (outcomes, _) = run(&[suppressed(8)], 2, ROOMY);
    assert!(["yes", "no"].contains(&&*text(&outcomes[0])), "{outcomes:?}");
    // As with ignore_eos: the budget is used up, with stop tokens that nobody sees.
    let endless = Request { stop_tokens: Vec::new(), ..suppressed(u32::MAX) };
    let (outcomes, _) = run(&[endless], 2, ROOMY);
    assert_eq!((outcomes[0].tokens.len(), &outcomes[0].reason), (10, &FinishReason::Length));
    let end = outcomes[0].tokens.iter().position(|token| STOP_TOKENS.contains(token)).unwrap();
    assert!(["yes", "no"].contains(&&*Tokenizer::shared().decode(&outcomes[0].tokens[..end])));
    assert!(outcomes[0].tokens[end..].iter().all(|token| STOP_TOKENS.contains(token)), "{outcomes:?}");
    // Where the text could go on, suppression holds.
    let open = Rules::Text(Content::Regex("a{1,50}".into()));
    let request = Request { constraint: constraint(&open), ..suppressed(6) };
    let (outcomes, _) = run(&[request], 2, ROOMY);
    let end = outcomes[0].tokens.iter().position(|token| STOP_TOKENS.contains(token));
    assert!(end.is_none_or(|end| end >= 6 || text(&outcomes[0]).len() == 50), "{outcomes:?}");
}

#[test]
fn a_reply_is_constrained_inside_its_answer_and_its_calls() {
    let call = Call { name: "f".into(), arguments: Some(Content::Json(schema())) };
    let forced = Tokenizer::shared().encode_with_special("<|channel|>commentary to=functions.f<|message|>");
    let reply = Reply { calls: vec![call], forced: forced.clone(), ..Reply::default() };
    let mut request = Request { constraint: constraint(&Rules::Reply(reply)), ..json_text(9) };
    request.prompt.extend(&forced);
    let (outcomes, _) = run(&[request], 2, ROOMY);
    let end = outcomes[0].tokens.iter().position(|token| [special::CALL, special::END].contains(token)).unwrap();
    check(&Tokenizer::shared().decode(&outcomes[0].tokens[..end]));
    assert_eq!(outcomes[0].tokens.last().filter(|token| STOP_TOKENS.contains(token)), outcomes[0].tokens.last());
}

#[test]
fn log_probabilities_are_the_models_own() {
    let free = Request { constraint: None, max_tokens: 1, ..json_text(0) };
    let bound = Request { max_tokens: 1, ..json_text(0) };
    let mut probing = free.clone();
    let (outcomes, _) = run(std::slice::from_ref(&bound), 1, ROOMY);
    // The same token, chosen without a constraint by a bias, has the same probability.
    probing.sampling.logit_bias = vec![(outcomes[0].tokens[0], 1000.0)];
    let (unbound, _) = run(&[probing], 1, ROOMY);
    assert_eq!(unbound[0].tokens, outcomes[0].tokens);
    assert_eq!(unbound[0].logprobs, outcomes[0].logprobs);
    assert!(outcomes[0].logprobs[0] < -1.0, "a random model is sure of nothing");
}

/// A device that draws gets the mask with the draw.
#[test]
fn on_a_device_that_draws_the_constraint_holds_as_well() {
    let device = |requests: &[Request], depth| {
        let backend = Drawing { cpu: cpu(), vocab: Tokenizer::VOCAB_SIZE };
        run_on(runner(backend, ROOMY), requests, depth).0
    };
    let plain = |seed| {
        let mut request = json_text(seed);
        request.sampling.logprobs = None;
        request
    };
    let requests: Vec<Request> = (0..4).map(plain).collect();
    let outcomes = device(&requests, 2);
    outcomes.iter().for_each(|outcome| check(&text(outcome)));
    assert_eq!(device(&requests, 1), outcomes, "the depth changes nothing");
    // What is drawn, and the likeliest of those allowed, is the same, wherever it is looked for.
    assert_eq!(outcomes, run(&requests, 2, ROOMY).0);
    let greedy: Vec<Request> = requests
        .iter()
        .map(|request| Request {
            sampling: Sampling { temperature: 0.0, ..request.sampling.clone() },
            ..request.clone()
        })
        .collect();
    assert_eq!(device(&greedy, 2), run(&greedy, 2, ROOMY).0);
}

/// Has every mask computed before its token is sampled, and knows what is allowed from the mask alone.
struct AllAhead {
    masks: Masks,
    narrow: Arc<AtomicU64>,
    allowed: Arc<AtomicU64>,
    refused: Arc<AtomicU64>,
}

impl Masker for AllAhead {
    fn begin(&mut self, slot: u32, constraint: &Constraint, output: &[u32]) {
        self.masks.begin(slot, constraint, output);
    }
    fn push(&mut self, slot: u32, token: u32, _ahead: Ahead) {
        self.masks.push(slot, token, Ahead::Always);
    }
    fn mask_at_hand(&mut self, slot: u32) -> Option<Arc<[u32]>> {
        self.masks.mask_at_hand(slot)
    }
    fn order(&mut self, slot: u32) {
        self.masks.order(slot);
    }
    fn ready(&mut self, slot: u32, until: Instant) -> Result<(), String> {
        self.masks.ready(slot, until)
    }
    fn is_narrow(&mut self, slot: u32) -> Result<bool, String> {
        let narrow = self.masks.is_narrow(slot)?;
        self.narrow.fetch_add(narrow.into(), Ordering::Relaxed);
        Ok(narrow)
    }
    fn allows(&mut self, slot: u32, token: u32) -> Result<bool, String> {
        let allows = self.masks.mask(slot)?[token as usize / 32] >> (token % 32) & 1 == 1;
        let count = if allows { &self.allowed } else { &self.refused };
        count.fetch_add(1, Ordering::Relaxed);
        Ok(allows)
    }
    fn mask(&mut self, slot: u32) -> Result<Arc<[u32]>, String> {
        self.masks.mask(slot)
    }
    fn end(&mut self, slot: u32) {
        self.masks.end(slot);
    }
}

/// Masks that are there before they are needed change no token, whatever the sampling.
#[test]
fn masks_on_demand_give_the_tokens_of_masks_computed_ahead() {
    let samplings = [
        Sampling { temperature: 0.0, ..Sampling::default() },
        Sampling::default(),
        Sampling { temperature: 0.6, top_p: 0.9, ..Sampling::default() },
        Sampling { temperature: 1.5, top_k: 40, ..Sampling::default() },
        Sampling { top_k: 5, top_p: 0.7, min_p: 0.05, ..Sampling::default() },
        Sampling { frequency_penalty: 0.7, repetition_penalty: 1.3, ..Sampling::default() },
        Sampling { suppress: STOP_TOKENS.to_vec(), suppress_until: 20, ..Sampling::default() },
        Sampling { logit_bias: vec![(1, 9.0), (90, 8.0)], logprobs: Some(2), ..Sampling::default() },
    ];
    // A random model's tokens are hardly ever JSON, and mostly short of these letters.
    let open = || constraint(&Rules::Text(Content::Regex(r"[^eEtT]{0,400}".into())));
    let requests: Vec<Request> = (0..16)
        .map(|seed| {
            let (request, sampling) = (json_text(seed), samplings[seed as usize % samplings.len()].clone());
            let sampling = Sampling { seed, ..sampling };
            let constraint = if seed % 3 == 0 { request.constraint } else { open() };
            Request { sampling, constraint, max_tokens: 20, ..request }
        })
        .collect();
    let counts: [Arc<AtomicU64>; 3] = std::array::from_fn(|_| Arc::default());
    let [narrow, allowed, refused] = counts.clone();
    let ahead = AllAhead { masks: Masks::start(2).unwrap(), narrow, allowed, refused };
    let expected = run_on(runner(cpu(), ROOMY).with_masker(Box::new(ahead)), &requests, 2).0;
    assert_eq!(run(&requests, 2, ROOMY).0, expected);
    assert_eq!(run(&requests, 1, CONTEXT / 16).0, expected, "preempted");
    let counts = counts.map(|count| count.load(Ordering::Relaxed));
    assert!(counts.iter().all(|count| *count > 30), "{counts:?} narrow places, first draws allowed and refused");
}

/// Allows the ids below half of the vocabulary.
struct LowerHalf {
    narrow: bool,
}

impl Masker for LowerHalf {
    fn begin(&mut self, _slot: u32, _constraint: &Constraint, _output: &[u32]) {}
    fn push(&mut self, _slot: u32, _token: u32, _ahead: Ahead) {}
    fn mask_at_hand(&mut self, slot: u32) -> Option<Arc<[u32]>> {
        self.mask(slot).ok()
    }
    fn order(&mut self, _slot: u32) {}
    fn end(&mut self, _slot: u32) {}
    fn ready(&mut self, _slot: u32, _until: Instant) -> Result<(), String> {
        Ok(())
    }
    fn is_narrow(&mut self, _slot: u32) -> Result<bool, String> {
        Ok(self.narrow)
    }
    fn allows(&mut self, _slot: u32, token: u32) -> Result<bool, String> {
        Ok(token < Tokenizer::VOCAB_SIZE as u32 / 2)
    }
    fn mask(&mut self, _slot: u32) -> Result<Arc<[u32]>, String> {
        let words = Tokenizer::VOCAB_SIZE / 32;
        Ok((0..words).map(|word| if word < words / 2 { u32::MAX } else { 0 }).collect())
    }
}

/// The random number says which of the tokens allowed is drawn, not which of all.
#[test]
fn a_draw_under_a_mask_spreads_over_all_that_is_allowed() {
    let hot = |seed| {
        // So hot that all tokens are equally likely.
        let sampling = Sampling { seed, temperature: 1e6, ..Sampling::default() };
        Request { prompt: vec![5, 6], max_tokens: 1, sampling, ..json_text(seed) }
    };
    let requests: Vec<Request> = (0..200).map(hot).collect();
    for narrow in [false, true] {
        let backend = Drawing { cpu: cpu(), vocab: Tokenizer::VOCAB_SIZE };
        let runner = runner(backend, ROOMY).with_masker(Box::new(LowerHalf { narrow }));
        let (outcomes, _) = run_on(runner, &requests, 2);
        let quarter = Tokenizer::VOCAB_SIZE as u32 / 4;
        assert!(outcomes.iter().all(|outcome| outcome.tokens[0] < 2 * quarter));
        let low = outcomes.iter().filter(|outcome| outcome.tokens[0] < quarter).count();
        assert!((80..120).contains(&low), "{low} of 200 in the lower quarter, narrow {narrow}");
    }
}

#[test]
fn a_constraint_that_fails_ends_its_request_alone() {
    let broken = Request { constraint: Some(Constraint::new("nonsense".into())), ..json_text(1) };
    let (outcomes, _) = run(&[broken, json_text(2)], 2, ROOMY);
    assert!(
        matches!(&outcomes[0].reason, FinishReason::Failed(reason) if reason.contains("constraint")),
        "{outcomes:?}"
    );
    check(&text(&outcomes[1]));
}
