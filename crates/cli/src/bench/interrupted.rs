//! `tandem bench --interrupt`: how long running answers wait for their next token while a long prompt comes in.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::Serialize;
use tandem_engine::{Engine, FinishReason, Request, RequestId, Update};

use super::{Spread, TOKEN_TIMEOUT, request};
use crate::load;
use crate::settings::BenchArgs;

/// Tokens that every answer gets before the prompt comes.
const TOKENS_BEFORE: usize = 64;
/// Room for what an answer gets in the meantime.
const TOKENS_MEANWHILE: u32 = 4096;

/// Loads, measures and prints.
pub(super) fn run(args: &BenchArgs, tokens: u32) -> Result<()> {
    let mut args = args.clone();
    let needed = (args.prompt_tokens + TOKENS_BEFORE as u32 + TOKENS_MEANWHILE).max(tokens + 2);
    args.model.context.get_or_insert(needed);
    args.model.max_streams = args.streams + 1;
    let loaded = load::load(&args.model, load::Progress::from_terminal())?.settled()?;
    let context = loaded.engine.capacity().context;
    ensure!(context >= needed, "{needed} tokens do not fit a context of {context}");
    let runs = (0..args.warm_up + args.runs).map(|index| Run::measure(&loaded.engine, &args, tokens, index));
    let runs: Vec<Run> = runs.collect::<Result<_>>()?;
    loaded.engine.shutdown(Duration::from_secs(5));
    let device = loaded.formation.devices();
    let report = Report::new(&args, tokens, (loaded.name, device), &runs[args.warm_up as usize..]);
    if args.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        report.print();
    }
    Ok(())
}

/// One prompt that came in.
struct Run {
    /// Seconds between an answer's tokens, all answers, before it came.
    alone_s: Vec<f64>,
    /// The same from then on until its own first token, the gap that this falls into included.
    beside_s: Vec<f64>,
    /// Seconds to that.
    first_token_s: f64,
}

impl Run {
    fn measure(engine: &Engine, args: &BenchArgs, tokens: u32, index: u32) -> Result<Self> {
        let (sender, updates) = channel();
        let mut running = Running { engine, sender, updates, requests: Vec::new(), times: Vec::new() };
        let seed = index * (args.streams + 1);
        for stream in 0..args.streams {
            running.submit(Request { max_tokens: u32::MAX, ..request(engine, args, seed + stream) })?;
        }
        let answers = args.streams as usize;
        running.until(|times| times[..answers].iter().all(|times| times.len() > TOKENS_BEFORE))?;
        let before = running.counts();
        let came = Instant::now();
        let long = BenchArgs { prompt_tokens: tokens, output_tokens: 2, ..args.clone() };
        running.submit(request(engine, &long, seed + args.streams))?;
        running.until(|times| {
            times[answers].first().is_some_and(|first| times[..answers].iter().all(|times| times.last() > Some(first)))
        })?;
        let times = running.end()?;
        let first = *times[answers].first().context("the prompt got no token")?;
        let gaps =
            |times: &[Instant]| times.windows(2).map(|pair| (pair[1] - pair[0]).as_secs_f64()).collect::<Vec<_>>();
        let answers = || times[..answers].iter().zip(&before);
        let beside = |(times, before): (&Vec<Instant>, &usize)| {
            let after = times.iter().position(|at| *at > first).unwrap_or(times.len() - 1);
            gaps(&times[before - 1..=after])
        };
        Ok(Self {
            alone_s: answers().flat_map(|(times, before)| gaps(&times[..*before])).collect(),
            beside_s: answers().flat_map(beside).collect(),
            first_token_s: (first - came).as_secs_f64(),
        })
    }
}

/// Requests under way, and when each got its tokens.
struct Running<'a> {
    engine: &'a Engine,
    sender: Sender<(usize, Instant, Update)>,
    updates: Receiver<(usize, Instant, Update)>,
    requests: Vec<RequestId>,
    times: Vec<Vec<Instant>>,
}

impl Running<'_> {
    fn submit(&mut self, request: Request) -> Result<()> {
        let (sender, index) = (self.sender.clone(), self.requests.len());
        let sink = Box::new(move |update| sender.send((index, Instant::now(), update)).is_ok());
        self.requests.push(self.engine.submit(request, sink)?);
        self.times.push(Vec::new());
        Ok(())
    }

    fn counts(&self) -> Vec<usize> {
        self.times.iter().map(Vec::len).collect()
    }

    /// Takes note of tokens until that is so.
    fn until(&mut self, is_so: impl Fn(&[Vec<Instant>]) -> bool) -> Result<()> {
        while !is_so(&self.times) {
            let (index, at, update) = self.next()?;
            match update {
                Update::Token { .. } => self.times[index].push(at),
                // The prompt's own answer may be short.
                Update::Finished(end) if end.reason != FinishReason::Length || index + 1 < self.times.len() => {
                    bail!("request {index} ended early: {:?}", end.reason)
                }
                Update::Finished(_) | Update::Started { .. } | Update::PromptScores(_) => {}
            }
        }
        Ok(())
    }

    /// Ends the requests, and waits for that.
    fn end(mut self) -> Result<Vec<Vec<Instant>>> {
        self.requests.iter().for_each(|id| self.engine.abort(*id));
        let times = std::mem::take(&mut self.times);
        // Sinks are dropped with their requests.
        let (unused, _) = channel();
        self.sender = unused;
        loop {
            match self.updates.recv_timeout(TOKEN_TIMEOUT) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(times),
                Err(RecvTimeoutError::Timeout) => bail!("requests did not end within {TOKEN_TIMEOUT:?}"),
            }
        }
    }

    fn next(&self) -> Result<(usize, Instant, Update)> {
        self.updates.recv_timeout(TOKEN_TIMEOUT).with_context(|| format!("no token within {TOKEN_TIMEOUT:?}"))
    }
}

#[derive(Debug, Serialize)]
struct Report {
    model: String,
    device: String,
    answers: u32,
    interrupting_prompt_tokens: u32,
    /// 0 where chunks are run whole.
    prefill_slice_s: f64,
    runs: u32,
    alone_s: Gaps,
    beside_s: Gaps,
    first_token_s: Spread,
}

impl Report {
    fn new(args: &BenchArgs, tokens: u32, (model, device): (String, String), runs: &[Run]) -> Self {
        let gaps = |of: fn(&Run) -> &Vec<f64>| Gaps::of(runs.iter().flat_map(|run| of(run).clone()).collect());
        Self {
            model,
            device,
            answers: args.streams,
            interrupting_prompt_tokens: tokens,
            prefill_slice_s: args.model.prefill_slice.as_secs_f64(),
            runs: args.runs,
            alone_s: gaps(|run| &run.alone_s),
            beside_s: gaps(|run| &run.beside_s),
            first_token_s: Spread::of(runs.iter().map(|run| run.first_token_s).collect()),
        }
    }

    fn print(&self) {
        println!("{} on {}", self.model, self.device);
        let how = match self.prefill_slice_s {
            0.0 => "chunks whole".to_owned(),
            slice => format!("chunks in slices of {:.0} ms", slice * 1e3),
        };
        println!(
            "{} runs, {} running answer(s), then a prompt of {} tokens, {how}\n",
            self.runs, self.answers, self.interrupting_prompt_tokens
        );
        println!("{:<28}{:>12}{:>12}{:>12}{:>12}", "", "gaps", "median", "p99", "longest");
        let row = |name: &str, gaps: &Gaps| {
            let [median, p99, max] = [gaps.median, gaps.p99, gaps.max].map(|seconds| seconds * 1e3);
            println!("{name:<28}{:>12}{median:>12.2}{p99:>12.2}{max:>12.2}", gaps.count);
        };
        row("between tokens before, ms", &self.alone_s);
        row("  while it is computed, ms", &self.beside_s);
        let Spread { min, median, max } = self.first_token_s;
        println!("\nits first token after {median:.3} s ({min:.3} to {max:.3})");
    }
}

/// Times between tokens, seconds.
#[derive(Clone, Copy, Debug, Serialize)]
struct Gaps {
    count: usize,
    median: f64,
    p99: f64,
    max: f64,
}

impl Gaps {
    fn of(mut gaps: Vec<f64>) -> Self {
        gaps.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (gaps.len() as f64 * share).ceil() as usize;
            gaps.get(index.saturating_sub(1)).copied().unwrap_or(f64::NAN)
        };
        Self { count: gaps.len(), median: at(0.5), p99: at(0.99), max: at(1.0) }
    }
}
