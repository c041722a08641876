//! A few tokens through the chosen kernels before anybody is served, against values known to be right where there are any.

mod stored;

use std::fmt;
use std::time::Duration;

use tandem_step::{
    BlockAssignment, Capacity, Input, Pool, Row, Sampling, Score, Start, StepPlan, StepResult, TokenLogprobs, Worker,
    WorkerError,
};

use crate::{Config, Formats, SyntheticKind};

/// Log-probabilities that a model is known to give.
#[derive(Clone, Debug, PartialEq)]
pub struct Reference {
    /// Where they come from, for the log.
    pub source: &'static str,
    /// A text.
    pub tokens: Vec<u32>,
    /// Log-probabilities of its last tokens, each given all those before it.
    pub logprobs: Vec<f32>,
    /// The mean deviation beyond which the model is not served.
    pub mean_max: f64,
    /// The mean deviation allowed between the text computed whole and its end computed token by token.
    pub ways_max: f64,
    /// What both may be more where a device has activations of prompts in 8 bits.
    pub eight_bit_prompts: f64,
    /// The deviation of single values that its publisher tolerates, absolute and relative alike; larger ones are told.
    pub tolerated: Option<f64>,
}

/// What was seen.
#[derive(Clone, Debug, PartialEq)]
pub struct Verdict {
    /// What the values were compared with.
    source: Option<&'static str>,
    /// Values.
    count: usize,
    /// From stored values, or between the two ways.
    deviation: Deviation,
    /// Values beyond the publisher's tolerance.
    pub beyond: usize,
}

/// How far values are apart.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Deviation {
    mean: f64,
    worst: f64,
}

/// Why a model is not served.
#[derive(Debug, thiserror::Error)]
pub enum SelfTestError {
    /// It could not be run.
    #[error("self-test: {0}")]
    Worker(#[from] WorkerError),
    /// It computes things that are no numbers, or the same for every token.
    #[error("self-test failed: {0}; the weights or this device's kernels are damaged, refusing to serve")]
    Degenerate(String),
    /// It is far from what is known, or from itself.
    #[error(
        "self-test failed: log-probabilities are {mean:.2} off {from} on average ({worst:.2} at worst) where {max} is allowed; \
         the weights or this device's kernels are damaged, refusing to serve"
    )]
    Apart {
        /// What they were compared with.
        from: String,
        /// Mean deviation.
        mean: f64,
        /// Largest deviation.
        worst: f64,
        /// Bound of the mean.
        max: f64,
    },
}

/// Tokens at the end that are computed one by one as well, which takes the kernels for decoding.
const SINGLE: usize = 4;
/// A prompt computed whole and token by token may differ by so much on average: other kernels, other rounding.
const WAYS_MAX: f64 = 0.3;
/// What 8-bit activations of prompts may add to that and to the deviation of small weights of our own.
const EIGHT_BIT_PROMPTS: f64 = 0.2;
/// A text for models of which nothing is known.
const UNKNOWN_TOKENS: usize = 16;

/// Has a worker score a short text, whole and its end token by token, and compares. To be done before it gets any other plan;
/// of several ranks all take part, as in every step. Overwrites the first blocks of either pool.
pub fn self_test(
    worker: &mut dyn Worker,
    capacity: &Capacity,
    reference: Option<&Reference>,
    patience: Duration,
) -> Result<Verdict, SelfTestError> {
    let mut tokens =
        reference.map_or_else(|| stored::scattered(UNKNOWN_TOKENS, capacity.vocab), |known| known.tokens.clone());
    tokens.truncate(capacity.context as usize);
    let mut reading = Reading::begin(worker, capacity, &tokens, patience)?;
    let whole = reading.score(0, capacity.max_step_tokens as usize)?;
    let single = reading.score(tokens.len().saturating_sub(SINGLE + 1), 1)?;
    reading.end()?;
    judge(reference, &whole, &single, worker.eight_bit_prompts())
}

fn judge(
    reference: Option<&Reference>,
    whole: &[f32],
    single: &[f32],
    eight_bit_prompts: bool,
) -> Result<Verdict, SelfTestError> {
    let end = &whole[whole.len() - single.len()..];
    let (ways_max, rounding) =
        reference.map_or((WAYS_MAX, EIGHT_BIT_PROMPTS), |known| (known.ways_max, known.eight_bit_prompts));
    let rounding = if eight_bit_prompts { rounding } else { 0.0 };
    compare("the same text computed whole", single, end, ways_max + rounding)?;
    let Some(known) = reference else {
        let deviation = Deviation::between(single, end);
        return Ok(Verdict { source: None, count: whole.len(), deviation, beyond: 0 });
    };
    let first = known.tokens.len() - 1 - known.logprobs.len();
    let scored = whole.get(first..).unwrap_or_default();
    let deviation = compare(known.source, scored, &known.logprobs, known.mean_max + rounding)?;
    let beyond = known.tolerated.map_or(0, |tolerated| {
        let far = |(got, want): (&f32, &f32)| f64::from((got - want).abs()) > tolerated * (1.0 + f64::from(want.abs()));
        scored.iter().zip(&known.logprobs).filter(|pair| far(*pair)).count()
    });
    Ok(Verdict { source: Some(known.source), count: scored.len(), deviation, beyond })
}

/// A text in a worker's first slot.
struct Reading<'a> {
    worker: &'a mut dyn Worker,
    tokens: &'a [u32],
    patience: Duration,
    vocab: u32,
    next_step: u64,
    /// Blocks that the worker has not been told yet.
    blocks: Vec<BlockAssignment>,
}

impl<'a> Reading<'a> {
    fn begin(
        worker: &'a mut dyn Worker,
        capacity: &Capacity,
        tokens: &'a [u32],
        patience: Duration,
    ) -> Result<Self, SelfTestError> {
        let count = tokens.len().div_ceil(capacity.block_tokens as usize) as u32;
        let all = |pool| (0..count).map(move |block| BlockAssignment { pool, index: block, block });
        let blocks = all(Pool::Full).chain(all(Pool::Sliding)).collect();
        let mut reading = Self { worker, tokens, patience, vocab: capacity.vocab, next_step: 0, blocks };
        let start =
            Start { slot: 0, sampling: Sampling::default(), history: Vec::new(), generated: 0, constraint: None };
        reading.run(StepPlan { starts: vec![start], ..StepPlan::default() })?;
        Ok(reading)
    }

    /// Log-probabilities of the tokens after `first`, from steps of at most `chunk` tokens. What is before `first` must have
    /// been computed.
    fn score(&mut self, first: usize, chunk: usize) -> Result<Vec<f32>, SelfTestError> {
        let last = self.tokens.len() - 1;
        let mut scored = Vec::new();
        for start in (first..last).step_by(chunk) {
            let end = last.min(start + chunk);
            let row = Row {
                slot: 0,
                input: Input::Tokens(self.tokens[start..end].to_vec()),
                position: start as u32,
                blocks: std::mem::take(&mut self.blocks),
                sample: false,
                score: Some(Score { targets: self.tokens[start + 1..end + 1].to_vec(), top: 1 }),
            };
            let result = self.run(StepPlan { rows: vec![row], ..StepPlan::default() })?;
            let scores = result.rows.into_iter().flat_map(|row| row.scores);
            for (position, score) in (start..).zip(scores) {
                let wrong = |what| SelfTestError::Degenerate(format!("{what} at position {position}"));
                scored.push(sound(&score, self.vocab).map_err(wrong)?);
            }
        }
        Ok(scored)
    }

    /// Leaves the worker with all its slots free.
    fn end(&mut self) -> Result<(), SelfTestError> {
        self.run(StepPlan { ends: vec![0], ..StepPlan::default() }).map(drop)
    }

    fn run(&mut self, plan: StepPlan) -> Result<StepResult, SelfTestError> {
        let step = self.next_step;
        self.next_step += 1;
        let asked = |row: &Row| row.score.as_ref().map_or(0, |score| score.targets.len());
        let scores: Vec<usize> = plan.rows.iter().map(asked).collect();
        self.worker.submit(StepPlan { step, ..plan })?;
        let result = self.worker.next(self.patience)?;
        let given: Vec<usize> = result.rows.iter().map(|row| row.scores.len()).collect();
        if given != scores {
            let reason = format!("{given:?} scores instead of {scores:?}");
            return Err(WorkerError::Failed { step, reason }.into());
        }
        Ok(result)
    }
}

/// A log-probability, if it is one.
fn sound(score: &TokenLogprobs, vocab: u32) -> Result<f32, &'static str> {
    let likeliest = score.top.first().map_or(score.logprob, |(_, logprob)| *logprob);
    if !score.logprob.is_finite() || !likeliest.is_finite() {
        return Err("logits that are not finite");
    }
    // The likeliest token of many is never as unlikely as any, unless all are.
    if f64::from(likeliest) <= 1e-3 - f64::from(vocab).ln() {
        return Err("the same logit for every token");
    }
    Ok(score.logprob)
}

fn compare(from: &str, got: &[f32], want: &[f32], max: f64) -> Result<Deviation, SelfTestError> {
    let deviation = Deviation::between(got, want);
    if deviation.mean <= max {
        return Ok(deviation);
    }
    let Deviation { mean, worst } = deviation;
    Err(SelfTestError::Apart { from: from.into(), mean, worst, max })
}

impl Deviation {
    fn between(got: &[f32], want: &[f32]) -> Self {
        let far: Vec<f64> = got.iter().zip(want).map(|(got, want)| f64::from((got - want).abs())).collect();
        let mean = far.iter().sum::<f64>() / far.len().max(1) as f64;
        Self { mean, worst: far.into_iter().fold(0.0, f64::max) }
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { source, count, deviation: Deviation { mean, worst }, beyond } = self;
        match source {
            Some(source) => {
                write!(f, "{count} log-probabilities are {mean:.3} off {source} on average, {worst:.3} at worst")?
            }
            None => write!(
                f,
                "{count} log-probabilities are finite, and whole or token by token differ by {mean:.3} on average; no values are \
                 known for these weights"
            )?,
        }
        if *beyond > 0 {
            write!(f, "; {beyond} are beyond what its publisher tolerates: are these weights fine-tuned, or damaged?")?;
        }
        Ok(())
    }
}

impl Reference {
    /// Of synthetic weights, loaded in these formats.
    pub fn synthetic(kind: SyntheticKind, formats: Formats) -> Self {
        let tokens = stored::scattered(stored::TOKENS, kind.config().vocab as u32);
        let large = |logprobs| Self {
            ways_max: stored::LARGE_WAYS_MAX,
            eight_bit_prompts: stored::LARGE_EIGHT_BIT_PROMPTS,
            ..Self::stored(tokens.clone(), logprobs, stored::large_max(formats))
        };
        match kind {
            SyntheticKind::Tiny => Self::stored(tokens, &stored::TINY, stored::small_max(formats)),
            SyntheticKind::Gpt20b => large(&stored::SYNTHETIC_20B),
            SyntheticKind::Gpt120b => large(&stored::SYNTHETIC_120B),
        }
    }

    /// Of the demonstration model, likewise.
    pub fn demo(formats: Formats) -> Self {
        Self::stored(stored::DEMO_TOKENS.to_vec(), &stored::DEMO, stored::small_max(formats))
    }

    fn stored(tokens: Vec<u32>, logprobs: &[f32], mean_max: f64) -> Self {
        let source = "the values stored for it";
        Self {
            source,
            tokens,
            logprobs: logprobs.to_vec(),
            mean_max,
            ways_max: WAYS_MAX,
            eight_bit_prompts: EIGHT_BIT_PROMPTS,
            tolerated: None,
        }
    }

    /// Of weights with the shape of gpt-oss-20b or -120b, as OpenAI published them; `encode` makes tokens of a text. The shape may
    /// be that of fine-tuned weights, which only must not be far off.
    pub fn published(config: &Config, encode: impl Fn(&str) -> Vec<u32>) -> Option<Self> {
        let (text, logprobs) = if same_shape(config, &Config::gpt_oss_20b()) {
            (stored::PUBLISHED_20B_TEXT, &stored::PUBLISHED_20B)
        } else if same_shape(config, &Config::gpt_oss_120b()) {
            (stored::PUBLISHED_120B_TEXT, &stored::PUBLISHED_120B)
        } else {
            return None;
        };
        Some(Self {
            source: "the values published for it",
            tokens: encode(text),
            logprobs: logprobs.to_vec(),
            mean_max: stored::PUBLISHED_MEAN_MAX,
            ways_max: WAYS_MAX,
            eight_bit_prompts: EIGHT_BIT_PROMPTS,
            tolerated: Some(stored::PUBLISHED_TOLERANCE),
        })
    }
}

/// Whether two configurations differ in nothing but the tokens that end a reply.
fn same_shape(one: &Config, other: &Config) -> bool {
    Config { eos: Vec::new(), pad: None, ..one.clone() } == Config { eos: Vec::new(), pad: None, ..other.clone() }
}
