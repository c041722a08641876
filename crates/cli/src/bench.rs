//! `tandem bench`: how fast the engine is with this model on this machine, beside what the machine could do.

mod interrupted;

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use tandem_engine::{Engine, FinishReason, Request, Update};
use tandem_grammar::{Content, Rules};
use tandem_step::{Constraint, Sampling};

use crate::load::{self, Loaded};
use crate::roofline::{self, Card, Figure, Subject};
use crate::settings::{BenchArgs, PredictedCard};

/// Longest wait for the next token of any stream.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(600);
/// Buffer read to measure the machine's bandwidth: far larger than any cache.
const PROBE_BYTES: usize = 2 << 30;

/// Loads, warms up, measures and prints.
pub fn run(args: &BenchArgs) -> Result<()> {
    if let Some(card) = args.predict {
        return predict(args, card);
    }
    if let Some(tokens) = args.interrupt {
        return interrupted::run(args, tokens);
    }
    let mut args = args.clone();
    let needed = args.prompt_tokens + args.output_tokens;
    args.model.context.get_or_insert(needed);
    args.model.max_streams = args.streams;
    let bandwidth = load::read_bandwidth(&args.model, PROBE_BYTES)?;
    let loaded = load::load(&args.model, load::Progress::from_terminal())?.settled()?;
    ensure!(
        loaded.engine.capacity().context >= needed,
        "{needed} tokens a run do not fit a context of {}",
        loaded.engine.capacity().context
    );
    let constraint = args.constrained.then(constraint).transpose()?;
    let (mut runs, mut constrained) = (Vec::new(), Vec::new());
    for index in 0..args.warm_up + args.runs {
        let run = Run::measure(&loaded.engine, &args, index, None)?;
        let beside = constraint.as_ref().map(|constraint| {
            // Its prompts are not those of the free runs, or the cache would have them.
            Run::measure(&loaded.engine, &args, args.warm_up + args.runs + index, Some(constraint))
        });
        let beside = beside.transpose()?;
        if index >= args.warm_up {
            runs.push(run);
            constrained.extend(beside);
        }
    }
    let experts = (args.streams > 1).then(|| experts_read(&loaded, &args)).transpose()?;
    let device = loaded.formation.nodes.first().map_or("", |node| &node.device);
    let comparison = args.compare_model.then(|| load::card(&args.model, device, bandwidth)).transpose()?;
    let subject = Subject::new(&loaded.config, load::formats(&args.model)?, 1)?;
    let mut report = Report::new(&args, &loaded, bandwidth, &runs, &constrained);
    report.experts = experts.map(|mean| {
        let load = decode_load(&args, Some(mean));
        let bytes = subject.decode_bytes(load);
        Experts {
            read_by_a_layer: mean,
            of: loaded.config.experts,
            step_bytes: bytes,
            roof_tokens_per_s: f64::from(args.streams) * bandwidth / bytes,
        }
    });
    report.compared = comparison.as_ref().map(|card| report.figures(&args, &subject, card));
    loaded.engine.shutdown(Duration::from_secs(5));
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
        if let (Some(card), Some(figures)) = (&comparison, &report.compared) {
            roofline::print_figures(card, figures);
            print_steps(&args, &subject, card, experts);
        }
    }
    Ok(())
}

/// Different experts that a layer of a decode step reads on the average, in a run of its own: counting takes time.
fn experts_read(loaded: &Loaded, args: &BenchArgs) -> Result<f64> {
    loaded.experts_read.start();
    let beside = 2 * (args.warm_up + args.runs);
    let run = Run::measure(&loaded.engine, args, beside, None);
    loaded.experts_read.stop();
    run?;
    loaded.experts_read.mean().context("no decode step was counted")
}

/// Prints what the model of a card makes of this bench, without running it.
fn predict(args: &BenchArgs, card: PredictedCard) -> Result<()> {
    let card = match card {
        PredictedCard::Gb10 => Card::gb10(),
        PredictedCard::TwoGb10 => Card::two_gb10(),
        PredictedCard::H100 => Card::h100(),
        PredictedCard::H200 => Card::h200(),
    };
    let source = load::Source::open(&args.model)?;
    let subject = Subject::new(source.store.config(), load::formats(&args.model)?, card.nodes)?;
    println!(
        "{}: {} stream(s), {} prompt tokens, {} generated",
        source.name, args.streams, args.prompt_tokens, args.output_tokens
    );
    roofline::print_figures(&card, &predicted(args, &subject, &card, None));
    print_steps(args, &subject, &card, None);
    Ok(())
}

/// The decode step in the middle of a run.
fn decode_load(args: &BenchArgs, experts: Option<f64>) -> roofline::Load {
    let depth = f64::from(args.prompt_tokens) + f64::from(args.output_tokens) / 2.0;
    Subject::decode(args.streams, depth, experts)
}

/// What the model of a card predicts, nothing measured.
fn predicted(args: &BenchArgs, subject: &Subject<'_>, card: &Card, experts: Option<f64>) -> Vec<Figure> {
    let figure = |name, predicted| Figure { name, measured: None, predicted };
    let decode = subject.decode_rate(card, decode_load(args, experts));
    let prefill = subject.prefill_seconds(card, args.prompt_tokens, chunk(args, card), args.streams);
    let prompts = f64::from(args.prompt_tokens * args.streams);
    vec![
        figure("memory reads, GB/s", Some(card.read / 1e9)),
        figure("prefill, tokens/s", prefill.map(|seconds| prompts / seconds)),
        figure("all first tokens, ms", prefill.map(|seconds| seconds * 1e3)),
        figure("decode, tokens/s", decode),
        figure("between tokens, ms", decode.map(|rate| f64::from(args.streams) / rate * 1e3)),
    ]
}

fn chunk(args: &BenchArgs, card: &Card) -> u32 {
    load::prefill_chunk(&args.model, card.gpu)
}

fn print_steps(args: &BenchArgs, subject: &Subject<'_>, card: &Card, experts: Option<f64>) {
    let decode = subject.step(decode_load(args, experts));
    roofline::print_prediction("predicted: a decode step", card, &decode);
    let chunk = Subject::chunk(args.prompt_tokens, chunk(args, card));
    let what = format!("a step of {} prompt tokens", chunk.rows);
    roofline::print_prediction(&what, card, &subject.step(chunk));
}

/// What one run took. All streams start together.
struct Run {
    /// Seconds from submission to each stream's first token.
    first_token_s: Vec<f64>,
    /// Seconds between tokens, all streams.
    between_tokens_s: Vec<f64>,
    /// Prompt tokens over the time until the last stream had its first token.
    prefill_tokens_per_s: f64,
    /// Tokens after the first ones, all streams, over the time they took.
    decode_tokens_per_s: f64,
}

impl Run {
    fn measure(engine: &Engine, args: &BenchArgs, index: u32, constraint: Option<&Constraint>) -> Result<Self> {
        let (sender, updates) = channel();
        let start = Instant::now();
        for stream in 0..args.streams {
            let sender = sender.clone();
            let sink = Box::new(move |update| sender.send((stream, Instant::now(), update)).is_ok());
            let free = request(engine, args, index * args.streams + stream);
            engine.submit(Request { constraint: constraint.cloned(), ..free }, sink)?;
        }
        drop(sender);
        let mut times: Vec<Vec<Instant>> = vec![Vec::new(); args.streams as usize];
        let mut open = args.streams;
        while open > 0 {
            let (stream, at, update) = match updates.recv_timeout(TOKEN_TIMEOUT) {
                Ok(update) => update,
                Err(RecvTimeoutError::Timeout) => bail!("no token within {TOKEN_TIMEOUT:?}"),
                Err(RecvTimeoutError::Disconnected) => bail!("the engine stopped"),
            };
            match update {
                Update::Token { .. } => times[stream as usize].push(at),
                Update::Finished(end) if end.reason == FinishReason::Length => open -= 1,
                Update::Finished(end) => bail!("stream {stream} ended early: {:?}", end.reason),
                Update::Started { .. } | Update::PromptScores(_) => {}
            }
        }
        Self::from_times(args, start, &times).context("the model gave too few tokens")
    }

    fn from_times(args: &BenchArgs, start: Instant, times: &[Vec<Instant>]) -> Option<Self> {
        let firsts: Option<Vec<Instant>> = times.iter().map(|stream| stream.first().copied()).collect();
        let firsts = firsts?;
        let prefilled = *firsts.iter().max()?;
        let last = *times.iter().flatten().max()?;
        let decoded = times.iter().flatten().filter(|at| **at > prefilled).count();
        Some(Self {
            first_token_s: firsts.iter().map(|at| (*at - start).as_secs_f64()).collect(),
            between_tokens_s: times
                .iter()
                .flat_map(|stream| stream.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()))
                .collect(),
            prefill_tokens_per_s: f64::from(args.prompt_tokens * args.streams) / (prefilled - start).as_secs_f64(),
            decode_tokens_per_s: decoded as f64 / (last - prefilled).as_secs_f64(),
        })
    }
}

/// A prompt of random tokens that no other request shares, and no way to end early.
fn request(engine: &Engine, args: &BenchArgs, seed: u32) -> Request {
    let vocab = u64::from(engine.capacity().vocab);
    let mut state = u64::from(seed) + 1;
    let prompt = (0..args.prompt_tokens)
        .map(|_| {
            // Knuth's MMIX generator; the high bits are random enough for picking tokens.
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 33) % vocab) as u32
        })
        .collect();
    Request {
        prompt,
        max_tokens: args.output_tokens,
        sampling: Sampling { seed: seed.into(), ..Sampling::default() },
        stop_tokens: Vec::new(),
        prompt_logprobs: None,
        constraint: None,
    }
}

/// JSON that does not end within a run, of the kinds that schemas are made of: names, texts, numbers, choices, lists.
fn constraint() -> Result<Constraint> {
    let schema = json!({"type": "array", "minItems": 1000, "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string", "maxLength": 24},
            "count": {"type": "integer", "minimum": 0, "maximum": 100_000},
            "kind": {"enum": ["small", "medium", "large"]},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 8}, "maxItems": 3},
        },
        "required": ["name", "count", "kind", "tags"],
        "additionalProperties": false,
    }});
    Rules::Text(Content::Json(schema)).constraint().context("compiling the schema")
}

/// Smallest, middle and largest of several measurements.
#[derive(Clone, Copy, Debug, Serialize)]
struct Spread {
    min: f64,
    median: f64,
    max: f64,
}

impl Spread {
    fn of(mut values: Vec<f64>) -> Self {
        values.sort_by(f64::total_cmp);
        let at = |i: usize| values.get(i).copied().unwrap_or(f64::NAN);
        Self { min: at(0), median: at(values.len() / 2), max: at(values.len().saturating_sub(1)) }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    formats: String,
    prompt_tokens: u32,
    output_tokens: u32,
    streams: u32,
    runs: u32,
    first_token_s: Spread,
    between_tokens_s: Spread,
    prefill_tokens_per_s: Spread,
    decode_tokens_per_s: Spread,
    /// The same under a JSON schema, where that was measured, and the share of the free speed: each run over the free one
    /// before it, the middle of all.
    constrained_decode_tokens_per_s: Option<Spread>,
    constrained_share: Option<f64>,
    /// Weight bytes a decode step reads, for one stream.
    weight_bytes_per_token: u64,
    /// Read bandwidth of this machine with the same threads, in the same process.
    machine_bytes_per_s: f64,
    /// Weight bytes over decode time, one stream only: with several, how many experts a step reads depends on them.
    achieved_bytes_per_s: Option<f64>,
    share_of_machine: Option<f64>,
    /// Several streams only.
    experts: Option<Experts>,
    /// Beside the model of the card, where that was asked for.
    compared: Option<Vec<Figure>>,
}

/// What several streams read together, from the routing of a run like those measured.
#[derive(Debug, Serialize)]
struct Experts {
    /// Different experts that a layer of a decode step reads, on the average.
    read_by_a_layer: f64,
    /// Experts that a layer has.
    of: usize,
    /// Bytes that such a step reads, keys and values included.
    step_bytes: f64,
    /// Tokens per second, all streams, if nothing but reading these bytes took time.
    roof_tokens_per_s: f64,
}

impl Report {
    fn new(args: &BenchArgs, loaded: &Loaded, machine_bytes_per_s: f64, runs: &[Run], constrained: &[Run]) -> Self {
        let spread = |of: fn(&Run) -> f64| Spread::of(runs.iter().map(of).collect());
        let flat = |of: fn(&Run) -> &Vec<f64>| Spread::of(runs.iter().flat_map(|run| of(run).clone()).collect());
        let decode_tokens_per_s = spread(|run| run.decode_tokens_per_s);
        let achieved = (args.streams == 1).then_some(loaded.weight_bytes_per_token as f64 * decode_tokens_per_s.median);
        Self {
            model: loaded.name.clone(),
            device: loaded.formation.devices(),
            formats: loaded.formats.clone(),
            prompt_tokens: args.prompt_tokens,
            output_tokens: args.output_tokens,
            streams: args.streams,
            runs: args.runs,
            first_token_s: flat(|run| &run.first_token_s),
            between_tokens_s: flat(|run| &run.between_tokens_s),
            prefill_tokens_per_s: spread(|run| run.prefill_tokens_per_s),
            decode_tokens_per_s,
            constrained_decode_tokens_per_s: (!constrained.is_empty())
                .then(|| Spread::of(constrained.iter().map(|run| run.decode_tokens_per_s).collect())),
            constrained_share: (!constrained.is_empty()).then(|| {
                let pairs = constrained.iter().zip(runs);
                Spread::of(pairs.map(|(one, free)| one.decode_tokens_per_s / free.decode_tokens_per_s).collect()).median
            }),
            weight_bytes_per_token: loaded.weight_bytes_per_token,
            machine_bytes_per_s,
            achieved_bytes_per_s: achieved,
            share_of_machine: achieved.map(|bytes| bytes / machine_bytes_per_s),
            experts: None,
            compared: None,
        }
    }

    /// What was measured beside what the model of the card predicts.
    fn figures(&self, args: &BenchArgs, subject: &Subject<'_>, card: &Card) -> Vec<Figure> {
        let measured = [
            self.machine_bytes_per_s / 1e9,
            self.prefill_tokens_per_s.median,
            f64::from(self.prompt_tokens * self.streams) / self.prefill_tokens_per_s.median * 1e3,
            self.decode_tokens_per_s.median,
            self.between_tokens_s.median * 1e3,
        ];
        let experts = self.experts.as_ref().map(|experts| experts.read_by_a_layer);
        let predicted = predicted(args, subject, card, experts).into_iter().zip(measured);
        predicted.map(|(figure, measured)| Figure { measured: Some(measured), ..figure }).collect()
    }

    fn print(&self) {
        println!("{} on {} ({})", self.model, self.device, self.formats);
        println!(
            "{} runs, {} stream(s), {} prompt tokens, {} generated\n",
            self.runs, self.streams, self.prompt_tokens, self.output_tokens
        );
        println!("{:<28}{:>12}{:>12}{:>12}", "", "min", "median", "max");
        let row = |name: &str, spread: Spread, scale: f64| {
            let [min, median, max] = [spread.min, spread.median, spread.max].map(|value| value * scale);
            println!("{name:<28}{min:>12.2}{median:>12.2}{max:>12.2}");
        };
        row("time to first token, ms", self.first_token_s, 1e3);
        row("between tokens, ms", self.between_tokens_s, 1e3);
        row("prefill, tokens/s", self.prefill_tokens_per_s, 1.0);
        row("decode, tokens/s", self.decode_tokens_per_s, 1.0);
        if let (Some(spread), Some(share)) = (self.constrained_decode_tokens_per_s, self.constrained_share) {
            row("  under a JSON schema", spread, 1.0);
            println!("  which is                  {:>11.1} %", share * 100.0);
        }
        println!();
        println!("weights read per token      {:>9.3} GB", self.weight_bytes_per_token as f64 / 1e9);
        println!("this machine reads          {:>9.2} GB/s", self.machine_bytes_per_s / 1e9);
        if let (Some(achieved), Some(share)) = (self.achieved_bytes_per_s, self.share_of_machine) {
            println!("decode reads                {:>9.2} GB/s, {:.0} % of it", achieved / 1e9, share * 100.0);
        }
        if let Some(experts) = &self.experts {
            let share = self.decode_tokens_per_s.median / experts.roof_tokens_per_s;
            println!("experts a layer reads       {:>9.2} of {}", experts.read_by_a_layer, experts.of);
            println!("a decode step reads         {:>9.3} GB", experts.step_bytes / 1e9);
            println!(
                "so the roof is              {:>9.1} tokens/s, decode has {:.0} % of it",
                experts.roof_tokens_per_s,
                share * 100.0
            );
        }
    }
}
