//! A worker that recites: what it samples is looked up in a script, by what the sequence so far ends with.
//!
//! Its KV pool is real in that it holds the tokens themselves. A sequence is read back out of the blocks that the engine
//! assigned, so a reply after a cached prefix is right only if the cache is.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tandem_harmony::{Tokenizer, special};
use tandem_step::{
    Capacity, Input, Pool, Row, RowResult, Sampling, StepPlan, StepResult, StepTimings, TokenLogprobs, Worker,
    WorkerError,
};

/// What a test can tell the worker while it runs.
#[derive(Clone, Default)]
pub struct Script {
    lines: Arc<Mutex<Vec<Line>>>,
    /// Time per step.
    pub step_us: Arc<AtomicU64>,
    /// Fail the next step.
    pub fail: Arc<AtomicBool>,
}

struct Line {
    cue: Cue,
    reply: Vec<u32>,
}

enum Cue {
    /// What the reply follows immediately.
    Ends(Vec<u32>),
    /// What the prompt holds anywhere.
    Holds(String),
}

impl Script {
    /// After a chat message `said`, by the user or a tool, the model writes `reply`, where control tokens are spelt out.
    pub fn chat(&self, said: &str, reply: &str) {
        let text = Tokenizer::shared().encode_with_special(reply);
        self.chat_tokens(said, text);
    }

    /// Likewise, with the reply's tokens.
    pub fn chat_tokens(&self, said: &str, reply: Vec<u32>) {
        let mut cue = vec![special::MESSAGE];
        cue.extend(Tokenizer::shared().encode(said));
        cue.extend(Tokenizer::shared().encode_with_special("<|end|><|start|>assistant"));
        self.tokens(cue, reply);
    }

    /// To a prompt that holds `seen` anywhere the model writes `reply`. The first such line that fits counts.
    pub fn seen(&self, seen: &str, reply: &str) {
        let reply = Tokenizer::shared().encode_with_special(reply);
        self.lines.lock().unwrap().push(Line { cue: Cue::Holds(seen.to_string()), reply });
    }

    /// After these tokens the model writes those.
    pub fn tokens(&self, cue: Vec<u32>, reply: Vec<u32>) {
        self.lines.lock().unwrap().push(Line { cue: Cue::Ends(cue), reply });
    }

    /// The next token of the reply to the last cue in `sequence`, of which the last `generated` tokens are the model's;
    /// `<|return|>` after the reply's end or without a cue.
    fn next(&self, sequence: &[u32], generated: u32) -> u32 {
        let lines = self.lines.lock().unwrap();
        let prompt_len = sequence.len() - generated as usize;
        let prompt = std::cell::LazyCell::new(|| Tokenizer::shared().decode(&sequence[..prompt_len]));
        let ends = |line: &Line| match &line.cue {
            Cue::Ends(cue) => {
                let starts = 0..=sequence.len().checked_sub(cue.len())?;
                Some(starts.rev().find(|&at| sequence[at..].starts_with(cue))? + cue.len())
            }
            Cue::Holds(seen) => prompt.contains(seen).then_some(prompt_len),
        };
        // Of several that end in one place the first.
        let last = lines.iter().rev().filter_map(|line| Some((ends(line)?, line))).max_by_key(|(end, _)| *end);
        last.and_then(|(end, line)| line.reply.get(sequence.len() - end).copied()).unwrap_or(special::RETURN)
    }
}

/// See the module.
pub struct RecitingWorker {
    script: Script,
    capacity: Capacity,
    /// The tokens in each block of the full pool.
    blocks: Vec<Vec<u32>>,
    slots: HashMap<u32, Slot>,
    results: VecDeque<StepResult>,
}

struct Slot {
    sampling: Sampling,
    generated: u32,
    table: HashMap<u32, u32>,
    sampled: u32,
}

impl RecitingWorker {
    pub fn new(script: Script, capacity: Capacity) -> Self {
        let blocks = vec![vec![u32::MAX; capacity.block_tokens as usize]; capacity.full_blocks as usize];
        Self { script, capacity, blocks, slots: HashMap::new(), results: VecDeque::new() }
    }

    fn row(&mut self, row: Row) -> RowResult {
        let slot = self.slots.get_mut(&row.slot).expect("rows belong to started slots");
        for assigned in row.blocks.iter().filter(|assigned| assigned.pool == Pool::Full) {
            slot.table.insert(assigned.index, assigned.block);
        }
        let tokens = match row.input {
            Input::Tokens(tokens) => tokens,
            Input::Sampled => vec![slot.sampled],
        };
        let size = self.capacity.block_tokens;
        for (position, &token) in (row.position..).zip(&tokens) {
            let block = slot.table[&(position / size)];
            self.blocks[block as usize][(position % size) as usize] = token;
        }
        let score = row.score.iter();
        let scores = score.flat_map(|score| score.targets.iter().map(|&target| logprobs(target, score.top))).collect();
        let mut result = RowResult { slot: row.slot, token: None, logprobs: None, scores, error: None };
        if row.sample {
            let end = row.position + tokens.len() as u32;
            let sequence: Vec<u32> =
                (0..end).map(|at| self.blocks[slot.table[&(at / size)] as usize][(at % size) as usize]).collect();
            let mut token = self.script.next(&sequence, slot.generated);
            if slot.sampling.suppress.contains(&token) && slot.generated < slot.sampling.suppress_until {
                token = Tokenizer::shared().encode(" more")[0];
            }
            slot.generated += 1;
            slot.sampled = token;
            result.token = Some(token);
            result.logprobs = slot.sampling.logprobs.map(|top| logprobs(token, top));
        }
        result
    }
}

/// Made up, but told apart by token: -0.25 to -1.125, and alternatives ever less likely.
pub fn logprobs(token: u32, top: u8) -> TokenLogprobs {
    let logprob = logprob(token);
    let top = (0..u32::from(top)).map(|rank| (token.wrapping_add(rank) % 1000, logprob - rank as f32)).collect();
    TokenLogprobs { token, logprob, top }
}

pub fn logprob(token: u32) -> f32 {
    -0.25 - (token % 8) as f32 / 8.0
}

impl Worker for RecitingWorker {
    fn submit(&mut self, plan: StepPlan) -> Result<(), WorkerError> {
        for slot in &plan.ends {
            self.slots.remove(slot);
        }
        for start in plan.starts {
            let slot = Slot { sampling: start.sampling, generated: start.generated, table: HashMap::new(), sampled: 0 };
            self.slots.insert(start.slot, slot);
        }
        for copy in plan.copies.iter().filter(|copy| copy.pool == Pool::Full) {
            self.blocks[copy.to as usize] = self.blocks[copy.from as usize].clone();
        }
        let rows = plan.rows.into_iter().map(|row| self.row(row)).collect();
        let (epoch, step) = (plan.epoch, plan.step);
        self.results.push_back(StepResult { epoch, step, rows, timings: StepTimings::default() });
        Ok(())
    }

    fn next(&mut self, _timeout: Duration) -> Result<StepResult, WorkerError> {
        std::thread::sleep(Duration::from_micros(self.script.step_us.load(Ordering::Relaxed)));
        let result = self.results.pop_front().expect("a plan was submitted for every result asked for");
        if self.script.fail.load(Ordering::Relaxed) {
            return Err(WorkerError::Failed { step: result.step, reason: "the test said so".to_string() });
        }
        Ok(result)
    }
}
