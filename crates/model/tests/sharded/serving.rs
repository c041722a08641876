//! Whole requests through the engine: several ranks generate what one worker with all shards does, log-probabilities to the
//! bit, and the tokens of the undivided model.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tandem_backend::cpu::{CpuBackend, CpuOptions};
use tandem_backend::{Backend, DenseFormat, KvFormat, Precision};
use tandem_engine::{EngineSettings, FinishReason, Request, RequestId, Scheduler, Update};
use tandem_grammar::{Content, Masks, Rules};
use tandem_harmony::{STOP_TOKENS, Tokenizer};
use tandem_link::TransportKind;
use tandem_model::{
    Checkpoint, Exchange, ExchangeError, ExpertSplit, Formats, LocalWorker, Model, Runner, ShardPlan, Synthetic,
    SyntheticKind, WeightStore,
};
use tandem_step::{Ahead, Capacity, Constraint, Masker, Sampling, StepResult, TokenLogprobs, Worker};
use tandem_testkit::{CheckpointSpec, Conversation, demo_conversations, golden, write_demo};

use crate::drawing::Drawing;
use crate::links::links;

const STREAMS: u32 = 4;
const CONTEXT: u32 = 512;
/// Longer than any step on a busy machine, also an emulated one.
const PATIENCE: Duration = Duration::from_secs(600);
const SPLITS: [ExpertSplit; 2] = [ExpertSplit::Slice, ExpertSplit::Whole];

/// Whoever carries out plans: one worker, or all ranks in lock-step.
struct Group {
    workers: Vec<LocalWorker>,
    /// Slices of passes that it was given.
    slices: usize,
}

impl Group {
    fn undivided(store: &dyn WeightStore) -> Self {
        Self::of([Model::load(cpu(), store, FORMATS, capacity(store), ShardPlan::UNDIVIDED).unwrap()])
    }

    /// One worker with all shards.
    fn together(store: &dyn WeightStore, world: usize, experts: ExpertSplit) -> Self {
        Self::of([Model::load_all(cpu(), store, FORMATS, capacity(store), world, experts).unwrap()])
    }

    /// One worker for every rank.
    fn ranks(store: &dyn WeightStore, experts: ExpertSplit, exchanges: Vec<Box<dyn Exchange>>) -> Self {
        let plans = ShardPlan::all(exchanges.len(), experts).into_iter();
        Self::of(plans.zip(exchanges).map(|(plan, exchange)| {
            let model = Model::load(cpu(), store, FORMATS, capacity(store), plan).unwrap();
            model.with_exchange(exchange).unwrap()
        }))
    }

    /// The same on devices that draw: each says what it has of its part, and no logits are brought to the host.
    fn ranks_that_draw(store: &dyn WeightStore, exchanges: Vec<Box<dyn Exchange>>) -> Self {
        let world = exchanges.len();
        let plans = ShardPlan::all(world, ExpertSplit::Slice).into_iter();
        Self::of(plans.zip(exchanges).map(|(plan, exchange)| {
            let vocab = store.config().vocab;
            assert!(vocab.is_multiple_of(world), "{vocab} tokens are to be shared evenly");
            let device = Drawing { cpu: cpu(), vocab: vocab / world };
            Model::load(device, store, FORMATS, capacity(store), plan).unwrap().with_exchange(exchange).unwrap()
        }))
    }

    fn of<B: Backend + 'static>(models: impl IntoIterator<Item = Model<B>>) -> Self
    where
        Model<B>: Send,
    {
        let start = |model| {
            let masks = Box::new(Masks::start(1).unwrap());
            LocalWorker::start(Runner::new(model).with_masker(masks)).unwrap()
        };
        Self { workers: models.into_iter().map(start).collect(), slices: 0 }
    }

    /// The result of the oldest step, which is the same on all ranks.
    fn next(&mut self) -> StepResult {
        let mut results = self.workers.iter_mut().map(|worker| worker.next(PATIENCE).unwrap());
        let first = results.next().unwrap();
        results.for_each(|result| assert_eq!(result.rows, first.rows, "a rank chose otherwise"));
        first
    }
}

/// Between the processes of a machine, and RDMA where a variable says that there is a device: then that alone is of interest.
fn transports() -> Vec<TransportKind> {
    match std::env::var_os("TANDEM_TEST_RDMA") {
        Some(_) => vec![TransportKind::Rdma],
        None => vec![TransportKind::Shm, TransportKind::Tcp],
    }
}

const FORMATS: Formats = Formats { dense: DenseFormat::Bf16, kv: KvFormat::F32 };

fn cpu() -> CpuBackend {
    CpuBackend::new(CpuOptions { precision: Precision::Exact, threads: Some(1), isa: None }).unwrap()
}

fn capacity(store: &dyn WeightStore) -> Capacity {
    let config = store.config();
    Capacity {
        block_tokens: 16,
        full_blocks: STREAMS * CONTEXT / 16,
        sliding_blocks: STREAMS * CONTEXT / 16,
        window: config.sliding_window as u32,
        context: CONTEXT,
        max_streams: STREAMS,
        max_step_tokens: 128,
        layers: config.layers() as u32,
        vocab: config.vocab as u32,
    }
}

/// How the engine goes about it.
#[derive(Clone, Copy, Debug)]
struct Manner {
    pipeline_depth: u32,
    prefill_chunk: u32,
    /// One layer at a time beside decodes, or chunks whole.
    sliced: bool,
    /// All requests at once, or one after another.
    together: bool,
}

const MANNERS: [Manner; 6] = [
    Manner { pipeline_depth: 1, prefill_chunk: 100, sliced: false, together: false },
    Manner { pipeline_depth: 2, prefill_chunk: 100, sliced: false, together: false },
    Manner { pipeline_depth: 2, prefill_chunk: 13, sliced: false, together: true },
    Manner { pipeline_depth: 1, prefill_chunk: 33, sliced: false, together: true },
    Manner { pipeline_depth: 2, prefill_chunk: 13, sliced: true, together: true },
    Manner { pipeline_depth: 1, prefill_chunk: 33, sliced: true, together: true },
];

/// What a client gets of one request.
#[derive(Clone, Debug, Default, PartialEq)]
struct Outcome {
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    prompt: Vec<TokenLogprobs>,
    reason: Option<FinishReason>,
}

fn run(group: &mut Group, scheduler: &mut Scheduler, requests: &[Request], together: bool) -> Vec<Outcome> {
    let size = if together { requests.len() } else { 1 };
    requests.chunks(size).flat_map(|some| run_together(group, scheduler, some)).collect()
}

fn run_together(group: &mut Group, scheduler: &mut Scheduler, requests: &[Request]) -> Vec<Outcome> {
    let now = Instant::now();
    for (id, request) in (0..).zip(requests) {
        scheduler.submit(RequestId(id), request.clone(), now).unwrap();
    }
    let (mut outcomes, mut in_flight) = (vec![Outcome::default(); requests.len()], 0);
    loop {
        while let Some(plan) = scheduler.next_plan(now) {
            group.slices += usize::from(plan.slice.is_some());
            group.workers.iter_mut().for_each(|worker| worker.submit(plan.clone()).unwrap());
            in_flight += 1;
        }
        if in_flight == 0 {
            return outcomes;
        }
        in_flight -= 1;
        scheduler.apply(group.next(), now).unwrap();
        for (RequestId(id), update) in scheduler.take_updates() {
            note(&mut outcomes[id as usize], update);
        }
    }
}

fn note(outcome: &mut Outcome, update: Update) {
    match update {
        Update::Token { token, logprobs } => {
            outcome.tokens.push(token);
            outcome.logprobs.extend(logprobs);
        }
        Update::PromptScores(scores) => outcome.prompt.extend(scores),
        Update::Finished(finished) => assert!(outcome.reason.replace(finished.reason).is_none(), "ended twice"),
        Update::Started { .. } => {}
    }
}

/// Runs the requests in every manner and expects the same each time.
fn in_every_manner(group: impl FnMut() -> Group, requests: &[Request], capacity: Capacity) -> Vec<Outcome> {
    in_manners(&MANNERS, group, requests, capacity)
}

fn in_manners(
    manners: &[Manner],
    mut group: impl FnMut() -> Group,
    requests: &[Request],
    capacity: Capacity,
) -> Vec<Outcome> {
    let mut outcomes: Option<Vec<Outcome>> = None;
    for &manner in manners {
        let Manner { pipeline_depth, prefill_chunk, sliced, together } = manner;
        let prefill_slice = sliced.then_some(Duration::ZERO);
        let settings = EngineSettings { pipeline_depth, prefill_chunk, prefill_slice, ..EngineSettings::default() };
        let mut scheduler = Scheduler::new(capacity, settings).unwrap();
        let mut group = group();
        let got = run(&mut group, &mut scheduler, requests, together);
        assert_eq!(group.slices > 0, sliced && (requests.len() > STREAMS as usize || prefill_chunk < 33), "{manner:?}");
        assert!(got.iter().all(|outcome| outcome.reason.is_some()));
        match &outcomes {
            Some(want) => assert_eq!(&got, want, "{manner:?}"),
            None => outcomes = Some(got),
        }
    }
    outcomes.unwrap()
}

/// One of every kind of sampling that there is.
fn requests(prompts: &[Vec<u32>]) -> Vec<Request> {
    let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
    let samplings = [
        greedy.clone(),
        Sampling { seed: 7, logprobs: Some(3), ..Sampling::default() },
        Sampling { seed: 8, top_p: 0.8, temperature: 0.7, ..Sampling::default() },
        Sampling { seed: 9, presence_penalty: 0.5, repetition_penalty: 1.2, ..Sampling::default() },
        Sampling { seed: 10, temperature: 1.3, ..Sampling::default() },
        Sampling { logprobs: Some(0), ..greedy },
    ];
    let prompts = [&prompts[1], &prompts[2], &prompts[1], &prompts[0], &prompts[2], &prompts[1]];
    let request = |(prompt, sampling): (&Vec<u32>, Sampling)| Request {
        prompt: prompt.clone(),
        max_tokens: 24,
        prompt_logprobs: (sampling.seed == 7).then_some(2),
        sampling,
        stop_tokens: Vec::new(),
        constraint: None,
    };
    prompts.into_iter().zip(samplings).map(request).collect()
}

#[test]
fn ranks_serve_what_one_worker_serves() {
    // An emulator is slow: the smallest checkpoint is to show the same there.
    if std::env::var_os("TEST_EMULATED").is_some() {
        let spec = CheckpointSpec::SMALL;
        let prompt = |tokens: u32| (0..tokens).map(|i| i * i * 7 % spec.vocab as u32).collect();
        return ranks_serve(&spec, &[prompt(40), prompt(65), prompt(90)]);
    }
    for (name, spec) in [("a", CheckpointSpec::A), ("b", CheckpointSpec::B)] {
        let prompts: Vec<Vec<u32>> = golden(name).unwrap().into_iter().map(|prompt| prompt.tokens).collect();
        ranks_serve(&spec, &prompts);
    }
}

/// What one worker serves, over all transports and both splits.
fn ranks_serve(spec: &CheckpointSpec, prompts: &[Vec<u32>]) {
    let folder = tempfile::tempdir().unwrap();
    tandem_testkit::write_hub(folder.path(), spec).unwrap();
    let store = Checkpoint::open(folder.path()).unwrap();
    let (requests, capacity) = (requests(prompts), capacity(&store));
    let plain = in_every_manner(|| Group::undivided(&store), &requests, capacity);
    for experts in SPLITS {
        let together = in_every_manner(|| Group::together(&store, 2, experts), &requests, capacity);
        for kind in transports() {
            let ranks = in_every_manner(|| Group::ranks(&store, experts, links(kind, 2)), &requests, capacity);
            assert_eq!(ranks, together, "seed {}, {experts:?} over {kind}: to the bit", spec.seed);
        }
        assert_tokens(&together, &plain, &format!("seed {}, {experts:?}", spec.seed));
    }
}

/// The same tokens; log-probabilities as near as sums in another order let them be.
fn assert_tokens(got: &[Outcome], want: &[Outcome], what: &str) {
    const NEAR: f32 = 1e-3;
    for (got, want) in got.iter().zip(want) {
        assert_eq!((&got.tokens, &got.reason), (&want.tokens, &want.reason), "{what}");
        let both = |outcome: &Outcome| [&outcome.prompt[..], &outcome.logprobs[..]].concat();
        for (got, want) in both(got).iter().zip(both(want)) {
            assert!((got.logprob - want.logprob).abs() < NEAR, "{what}: {got:?}, {want:?}");
        }
    }
}

/// Every rank follows the constraint with a masker of its own.
#[test]
fn a_constraint_holds_on_ranks_as_on_one_worker() {
    let store = Synthetic::new(SyntheticKind::Tiny);
    let schema = json!({"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99},
        "minItems": 5, "maxItems": 8});
    let rules = Rules::Text(Content::Json(schema));
    let request = |seed| Request {
        // The longer prompt goes on while the other request is answered.
        prompt: (0..20 * seed as u32).map(|i| 1000 + i * 7 + seed as u32).collect(),
        max_tokens: 60,
        sampling: Sampling { seed, logprobs: (seed == 1).then_some(1), ..Sampling::default() },
        stop_tokens: STOP_TOKENS.to_vec(),
        prompt_logprobs: None,
        constraint: Some(rules.constraint().unwrap()),
    };
    let (requests, capacity) = ([request(1), request(2)], capacity(&store));
    // With all the vocabulary a step takes long under emulation.
    let manners = if std::env::var_os("TEST_EMULATED").is_some() { &MANNERS[3..5] } else { &MANNERS };
    let in_manners = |group: &dyn Fn() -> Group| in_manners(manners, group, &requests, capacity);
    let plain = in_manners(&|| Group::undivided(&store));
    for outcome in &plain {
        let end = outcome.tokens.iter().position(|token| STOP_TOKENS.contains(token)).unwrap();
        let text = Tokenizer::shared().decode(&outcome.tokens[..end]);
        let numbers: Vec<u8> = serde_json::from_str(&text).unwrap();
        assert!((5..=8).contains(&numbers.len()), "{text}");
    }
    let ranks = in_manners(&|| Group::ranks(&store, ExpertSplit::Slice, links(TransportKind::Tcp, 2)));
    assert_tokens(&ranks, &plain, "constrained");
    let drawing = in_manners(&|| Group::ranks_that_draw(&store, links(TransportKind::Tcp, 2)));
    assert_eq!(drawing, ranks, "on devices that draw");
}

/// Follows constraints, but for slot 0, where it never is in time.
struct Late(Masks);

impl Masker for Late {
    fn begin(&mut self, slot: u32, constraint: &Constraint, output: &[u32]) {
        self.0.begin(slot, constraint, output);
    }
    fn push(&mut self, slot: u32, token: u32, ahead: Ahead) {
        self.0.push(slot, token, ahead);
    }
    fn mask_at_hand(&mut self, slot: u32) -> Option<Arc<[u32]>> {
        self.0.mask_at_hand(slot)
    }
    fn order(&mut self, slot: u32) {
        self.0.order(slot);
    }
    fn ready(&mut self, slot: u32, until: Instant) -> Result<(), String> {
        if slot == 0 { Err("too late".into()) } else { self.0.ready(slot, until) }
    }
    fn is_narrow(&mut self, slot: u32) -> Result<bool, String> {
        self.0.is_narrow(slot)
    }
    fn allows(&mut self, slot: u32, token: u32) -> Result<bool, String> {
        self.0.allows(slot, token)
    }
    fn mask(&mut self, slot: u32) -> Result<Arc<[u32]>, String> {
        self.0.mask(slot)
    }
    fn end(&mut self, slot: u32) {
        self.0.end(slot);
    }
}

/// The request ends with one error on both ranks, and others go on.
#[test]
fn a_constraint_that_one_rank_cannot_follow_in_time_ends_its_request_alone() {
    let store = Synthetic::new(SyntheticKind::Tiny);
    let constraint = Rules::Text(Content::Json(json!({"type": "array"}))).constraint().unwrap();
    let request = |logprobs| Request {
        sampling: Sampling { logprobs, ..Sampling::default() },
        constraint: Some(constraint.clone()),
        ..short(Sampling::default())
    };
    for logprobs in [None, Some(0)] {
        let exchanges = links(TransportKind::Shm, 2).into_iter();
        let ranks = ShardPlan::all(2, ExpertSplit::Slice).into_iter().zip(exchanges).map(|(plan, exchange)| {
            let masks = Masks::start(1).unwrap();
            let masker: Box<dyn Masker> = if plan.rank == 1 { Box::new(Late(masks)) } else { Box::new(masks) };
            let model = Model::load(cpu(), &store, FORMATS, capacity(&store), plan).unwrap();
            let runner = Runner::new(model.with_exchange(exchange).unwrap()).with_masker(masker);
            LocalWorker::start(runner).unwrap()
        });
        let mut ranks: Vec<LocalWorker> = ranks.collect();
        let now = Instant::now();
        let mut scheduler = Scheduler::new(capacity(&store), EngineSettings::default()).unwrap();
        (0..2).for_each(|id| scheduler.submit(RequestId(id), request(logprobs), now).unwrap());
        let mut outcomes = vec![Outcome::default(); 2];
        while let Some(plan) = scheduler.next_plan(now) {
            ranks.iter_mut().for_each(|rank| rank.submit(plan.clone()).unwrap());
            let results: Vec<StepResult> = ranks.iter_mut().map(|rank| rank.next(PATIENCE).unwrap()).collect();
            let said = |result: &StepResult| -> Vec<(Option<u32>, bool)> {
                result.rows.iter().map(|row| (row.token, row.error.is_some())).collect()
            };
            assert_eq!(said(&results[0]), said(&results[1]));
            scheduler.apply(results.into_iter().next().unwrap(), now).unwrap();
            for (RequestId(id), update) in scheduler.take_updates() {
                note(&mut outcomes[id as usize], update);
            }
        }
        let reason = format!("{:?}", outcomes[0].reason);
        assert!(reason.contains("another rank could not follow the constraint in time"), "{reason}");
        assert_eq!((outcomes[1].tokens.len(), &outcomes[1].reason), (5, &Some(FinishReason::Length)));
    }
}

/// The demonstration model says over two and four ranks what it was recorded to say on one.
#[test]
fn the_demonstration_model_says_the_same_over_several_ranks() {
    let folder = tempfile::tempdir().unwrap();
    write_demo(folder.path()).unwrap();
    let store = Checkpoint::open(folder.path()).unwrap();
    let recorded = demo_conversations().unwrap();
    // Under emulation one conversation over one group takes a minute: there one of each split over RDMA, and one elsewhere.
    let (few, groups_max) = match std::env::var_os("TEST_EMULATED") {
        Some(_) if transports() == [TransportKind::Rdma] => (1, SPLITS.len()),
        Some(_) => (1, 1),
        None => (3, usize::MAX),
    };
    let short: Vec<&Conversation> = recorded.iter().filter(|recorded| recorded.reply.len() < 32).take(few).collect();
    let request = |conversation: &&Conversation| Request {
        prompt: conversation.prompt.clone(),
        max_tokens: 64,
        sampling: Sampling { temperature: 0.0, ..Sampling::default() },
        stop_tokens: STOP_TOKENS.to_vec(),
        prompt_logprobs: None,
        constraint: None,
    };
    let requests: Vec<Request> = short.iter().map(request).collect();
    // Every transport and manner meets every split, without all meeting all.
    let groups = [2, 4].into_iter().flat_map(|world| SPLITS.map(|experts| (world, experts)));
    let all = (0..).zip(groups).flat_map(|(turn, group)| transports().into_iter().map(move |kind| (turn, group, kind)));
    for (index, (turn, (world, experts), kind)) in all.enumerate().take(groups_max) {
        let manner = MANNERS[(index + turn) % MANNERS.len()];
        let Manner { pipeline_depth, prefill_chunk, sliced, together } = manner;
        let prefill_slice = sliced.then_some(Duration::ZERO);
        let settings = EngineSettings { pipeline_depth, prefill_chunk, prefill_slice, ..EngineSettings::default() };
        let mut scheduler = Scheduler::new(capacity(&store), settings).unwrap();
        let mut group = Group::ranks(&store, experts, links(kind, world));
        let said = run(&mut group, &mut scheduler, &requests, together);
        for (said, recorded) in said.iter().zip(&short) {
            assert_eq!(said.tokens, recorded.reply, "{experts:?} over {world}, {kind}, {manner:?}");
        }
    }
}

/// An exchange that counts what is gathered.
struct Gathered {
    exchange: Box<dyn Exchange>,
    bytes: Arc<AtomicU64>,
}

impl Exchange for Gathered {
    fn rank(&self) -> usize {
        self.exchange.rank()
    }

    fn world(&self) -> usize {
        self.exchange.world()
    }

    fn deadline(&self) -> Duration {
        self.exchange.deadline()
    }

    fn all_reduce(&mut self, values: &mut [f32]) -> Result<(), ExchangeError> {
        self.exchange.all_reduce(values)
    }

    fn all_gather(&mut self, mine: &[u8], all: &mut [u8]) -> Result<(), ExchangeError> {
        self.bytes.fetch_add(mine.len() as u64, Ordering::Relaxed);
        self.exchange.all_gather(mine, all)
    }
}

/// Ranks exchange the likeliest token's id and logit, a sum and a token; all logits only where somebody wants to know more.
#[test]
fn a_token_costs_a_few_bytes_of_exchange() {
    let folder = tempfile::tempdir().unwrap();
    tandem_testkit::write_hub(folder.path(), &CheckpointSpec::B).unwrap();
    let store = Checkpoint::open(folder.path()).unwrap();
    let vocab_max = CheckpointSpec::B.vocab.div_ceil(2) as u64;
    let samplings = [
        (Sampling { temperature: 0.0, ..Sampling::default() }, 8),
        (Sampling::default(), 8 + 8 + 4),
        (Sampling { top_k: 5, ..Sampling::default() }, 4 * vocab_max),
    ];
    for (sampling, expected) in samplings {
        let bytes = Arc::new(AtomicU64::new(0));
        let counted = |exchange| Box::new(Gathered { exchange, bytes: Arc::clone(&bytes) }) as Box<dyn Exchange>;
        let exchanges = links(TransportKind::Shm, 2).into_iter().map(counted).collect();
        let mut group = Group::ranks(&store, ExpertSplit::Slice, exchanges);
        let mut scheduler = Scheduler::new(capacity(&store), EngineSettings::default()).unwrap();
        let tokens = run(&mut group, &mut scheduler, &[short(sampling)], true)[0].tokens.len() as u64;
        // The group's threads are through with all steps, of which a pipelined one may have been too many.
        drop(group);
        let each = bytes.load(Ordering::Relaxed) / 2;
        assert!((tokens * expected..=(tokens + 1) * expected).contains(&each), "{each} bytes for {tokens} tokens");
    }
}

fn short(sampling: Sampling) -> Request {
    let (prompt, stop_tokens) = (vec![1, 2, 3], Vec::new());
    Request { prompt, max_tokens: 5, sampling, stop_tokens, prompt_logprobs: None, constraint: None }
}

/// A rank that is left alone fails the step and does not wait for ever.
#[test]
fn a_rank_whose_peer_is_gone_fails_its_step() {
    let folder = tempfile::tempdir().unwrap();
    tandem_testkit::write_hub(folder.path(), &CheckpointSpec::SMALL).unwrap();
    let store = Checkpoint::open(folder.path()).unwrap();
    for kind in [TransportKind::Shm, TransportKind::Tcp] {
        let Ok([mut left, gone]) =
            <[LocalWorker; 2]>::try_from(Group::ranks(&store, ExpertSplit::Whole, links(kind, 2)).workers)
        else {
            panic!("two ranks")
        };
        drop(gone);
        let now = Instant::now();
        let mut scheduler = Scheduler::new(capacity(&store), EngineSettings::default()).unwrap();
        scheduler.submit(RequestId(0), short(Sampling::default()), now).unwrap();
        left.submit(scheduler.next_plan(now).unwrap()).unwrap();
        let error = left.next(PATIENCE).unwrap_err().to_string();
        assert!(error.contains("failed: exchange with the other ranks: "), "{kind}: {error}");
    }
}
