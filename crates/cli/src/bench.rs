//! `tandem bench`: how fast the engine is with this model on this machine, beside what the machine could do.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use serde_json::json;
use tandem_engine::{Engine, FinishReason, Request, Update};
use tandem_grammar::{Content, Rules};
use tandem_step::{Constraint, Sampling};

use crate::load::{self, Loaded};
use crate::settings::BenchArgs;

/// Longest wait for the next token of any stream.
const TOKEN_TIMEOUT: Duration = Duration::from_secs(600);
/// Buffer read to measure the machine's bandwidth: far larger than any cache.
const PROBE_BYTES: usize = 2 << 30;

/// Loads, warms up, measures and prints.
pub fn run(args: &BenchArgs) -> Result<()> {
    let mut args = args.clone();
    let needed = args.prompt_tokens + args.output_tokens;
    args.model.context.get_or_insert(needed);
    args.model.max_streams = args.streams;
    let bandwidth = load::read_bandwidth(&args.model, PROBE_BYTES)?;
    let loaded = load::load(&args.model, load::Progress::from_terminal())?;
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
    let report = Report::new(&args, &loaded, bandwidth, &runs, &constrained);
    loaded.engine.shutdown(Duration::from_secs(5));
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
    }
    Ok(())
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
}

impl Report {
    fn new(args: &BenchArgs, loaded: &Loaded, machine_bytes_per_s: f64, runs: &[Run], constrained: &[Run]) -> Self {
        let spread = |of: fn(&Run) -> f64| Spread::of(runs.iter().map(of).collect());
        let flat = |of: fn(&Run) -> &Vec<f64>| Spread::of(runs.iter().flat_map(|run| of(run).clone()).collect());
        let decode_tokens_per_s = spread(|run| run.decode_tokens_per_s);
        let achieved = (args.streams == 1).then_some(loaded.weight_bytes_per_token as f64 * decode_tokens_per_s.median);
        Self {
            model: loaded.name.clone(),
            device: loaded.nodes.iter().map(|node| node.device.as_str()).collect::<Vec<_>>().join("; "),
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
        }
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
    }
}
