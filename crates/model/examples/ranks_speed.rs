//! Two ranks with one thread each over shared memory beside one worker with two threads: a sixth of gpt-oss-20b, four layers
//! and a sixth of the vocabulary, with 8-bit attention. Turns alternate; the shortest of each counts, which on a busy
//! machine is the one least disturbed.
//!
//! `cargo run --release -p tandem-model --example ranks_speed [slice|whole]`

use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use tandem_backend::cpu::{CpuBackend, CpuOptions};
use tandem_backend::{Batch, DenseFormat, Draw, KvFormat, Precision, RowSource, Sequence};
use tandem_link::{Endpoint, Settings};
use tandem_model::layout::TensorId;
use tandem_model::{
    CheckpointError, Config, ExpertSplit, Formats, LayerKind, Model, ShardPlan, Synthetic, SyntheticKind, WeightStore,
};
use tandem_step::Capacity;

const LAYERS: usize = 4;
const VOCAB: usize = 33_536;
const ROUNDS: usize = 12;
const DECODED: usize = 16;
const PROMPT: usize = 128;
const CONTEXT: u32 = 1024;

fn main() {
    let experts = match std::env::args().nth(1).as_deref() {
        None | Some("slice") => ExpertSplit::Slice,
        Some("whole") => ExpertSplit::Whole,
        Some(other) => panic!("slice or whole, not {other}"),
    };
    let mut alone = Runs::new(load(2, ShardPlan::UNDIVIDED));
    println!("{}", alone.model.describe());
    let mut ranks = connected(experts);
    let (mut one, mut two) = (Times::default(), Times::default());
    for _ in 0..ROUNDS {
        one.add(alone.round());
        let barrier = &Arc::new(Barrier::new(ranks.len()));
        let times = std::thread::scope(|scope| {
            let running: Vec<_> = ranks
                .iter_mut()
                .map(|rank| {
                    scope.spawn(move || {
                        barrier.wait();
                        rank.round()
                    })
                })
                .collect();
            running.into_iter().map(|rank| rank.join().expect("a rank failed")).collect::<Vec<_>>()
        });
        two.add(times[0]);
    }
    let row = |what: &str, one: Duration, two: Duration| {
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        println!("{what:<24} {:>10.2} {:>10.2} {:>8.3}", ms(one), ms(two), ms(one) / ms(two));
    };
    println!("{:<24} {:>10} {:>10} {:>8}   experts: {experts:?}", "ms", "one worker", "two ranks", "speed");
    row(&format!("prefill of {PROMPT} tokens"), one.prefill, two.prefill);
    row("one decoded token", one.decode, two.decode);
}

/// The shortest times.
struct Times {
    prefill: Duration,
    decode: Duration,
}

impl Default for Times {
    fn default() -> Self {
        Self { prefill: Duration::MAX, decode: Duration::MAX }
    }
}

impl Times {
    fn add(&mut self, (prefill, decode): (Duration, Duration)) {
        self.prefill = self.prefill.min(prefill);
        self.decode = self.decode.min(decode);
    }
}

/// One rank's model and where it is in its only sequence.
struct Runs {
    model: Model<CpuBackend>,
    table: Vec<u32>,
}

impl Runs {
    fn new(model: Model<CpuBackend>) -> Self {
        Self { model, table: (0..CONTEXT / 16).collect() }
    }

    /// Time of a prefill, and of the fastest decoded token after it.
    fn round(&mut self) -> (Duration, Duration) {
        let prompt: Vec<u32> = (0..PROMPT as u32).map(|i| i * 7919 % VOCAB as u32).collect();
        let started = Instant::now();
        let mut token = self.step(&prompt, 0);
        let prefill = started.elapsed();
        let mut decode = Duration::MAX;
        for position in PROMPT..PROMPT + DECODED {
            let started = Instant::now();
            token = self.step(&[token], position);
            decode = decode.min(started.elapsed());
        }
        (prefill, decode)
    }

    /// Runs tokens and chooses the likeliest next.
    fn step(&mut self, tokens: &[u32], position: usize) -> u32 {
        let (rows, table) = (0..tokens.len(), &self.table);
        let sequence = Sequence { rows, position: position as u32, full_blocks: table, sliding_blocks: table };
        self.model.forward(&Batch { tokens, sequences: &[sequence] }).expect("forward pass");
        let last = tokens.len() - 1;
        if self.model.draws() {
            return self.model.draw(&[(last, Draw { temperature: 0.0, uniform: 0.0, mask: None })]).expect("draw")[0];
        }
        let mut token = 0;
        let likeliest = |logits: &[f32]| (0..logits.len()).fold(0, |a, b| if logits[b] > logits[a] { b } else { a });
        self.model.logits(&[last], |_, logits| token = likeliest(logits)).expect("logits");
        token as u32
    }
}

fn load(threads: usize, plan: ShardPlan) -> Model<CpuBackend> {
    let options = CpuOptions { precision: Precision::Fast, threads: Some(threads), isa: None };
    let backend = CpuBackend::new(options).expect("backend");
    let formats = Formats { dense: DenseFormat::Q8, kv: KvFormat::Bf16 };
    let capacity = Capacity {
        block_tokens: 16,
        full_blocks: CONTEXT / 16,
        sliding_blocks: CONTEXT / 16,
        window: 128,
        context: CONTEXT,
        max_streams: 1,
        max_step_tokens: PROMPT as u32,
        layers: LAYERS as u32,
        vocab: VOCAB as u32,
    };
    Model::load(backend, &Sixth::new(), formats, capacity, plan).expect("loading")
}

fn connected(experts: ExpertSplit) -> Vec<Runs> {
    let plans = ShardPlan::all(2, experts);
    let settings = Settings { deadline: Duration::from_secs(60), ..Settings::default() };
    let endpoints: Vec<Endpoint> = plans.iter().map(|_| Endpoint::shm(&settings).expect("shared memory")).collect();
    let offers: &Vec<Vec<u8>> = &endpoints.iter().map(Endpoint::offer).collect();
    std::thread::scope(|scope| {
        let rank = |(endpoint, plan): (Endpoint, ShardPlan)| {
            scope.spawn(move || {
                let link = endpoint.connect(plan.rank, plan.world, offers, Duration::from_secs(60)).expect("link");
                Runs::new(load(1, plan).with_exchange(Box::new(link)).expect("exchange"))
            })
        };
        let connecting: Vec<_> = endpoints.into_iter().zip(plans).map(rank).collect();
        connecting.into_iter().map(|rank| rank.join().expect("a rank failed")).collect()
    })
}

/// Weights of gpt-oss-20b as far as a sixth of it needs them.
struct Sixth {
    all: Synthetic,
    config: Config,
}

impl Sixth {
    fn new() -> Self {
        let all = Synthetic::new(SyntheticKind::Gpt20b);
        let config = Config { layer_kinds: LayerKind::alternating(LAYERS), vocab: VOCAB, ..all.config().clone() };
        Self { all, config }
    }
}

impl WeightStore for Sixth {
    fn config(&self) -> &Config {
        &self.config
    }

    fn tensor(&self, id: TensorId) -> Result<Box<dyn RowSource + '_>, CheckpointError> {
        let source = self.all.tensor(id)?;
        Ok(match id {
            TensorId::Embedding | TensorId::LmHead => Box::new(tandem_model::sources::RowCut::range(source, 0..VOCAB)),
            _ => source,
        })
    }
}
