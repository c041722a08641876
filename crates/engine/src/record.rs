use std::collections::VecDeque;
use std::time::Instant;

use tandem_step::{BlockAssignment, BlockCopy};

use crate::cache::NodeId;
use crate::{FinishReason, Finished, Request, RequestTimings, Usage};

/// What the ledger knows of one open request. Finishing consumes it, so nothing can be said after the end.
pub(crate) struct Record {
    /// The request, its prompt moved to `tokens`.
    pub(crate) request: Request,
    /// Prompt and generated tokens.
    pub(crate) tokens: Vec<u32>,
    pub(crate) prompt: u32,
    /// Most tokens it may generate: what it asked for, or what the context leaves.
    pub(crate) limit: u32,
    pub(crate) submitted: Instant,
    pub(crate) started: Option<Instant>,
    pub(crate) first_token: Option<Instant>,
    pub(crate) last_token: Option<Instant>,
    pub(crate) cached: u32,
    /// Prompt scores delivered so far.
    pub(crate) scored: u32,
    /// Present while it runs; absent while it waits, for the first time or after a preemption.
    pub(crate) run: Option<Run>,
}

/// A request's stay in a slot. Positions below are counts of tokens from the start of the sequence.
pub(crate) struct Run {
    pub(crate) slot: u32,
    /// Whether a plan has told the worker of it.
    pub(crate) announced: bool,
    /// Prompt tokens from the cache at the start of this stay.
    pub(crate) hit: u32,
    /// Positions whose rows have been planned.
    pub(crate) planned: u32,
    /// Positions whose rows have returned: what their blocks hold is known.
    pub(crate) computed: u32,
    /// Tokens being sampled by rows in flight.
    pub(crate) sampling: u32,
    /// Full-pool blocks from the start of the sequence.
    pub(crate) full: Vec<u32>,
    /// Sliding-pool blocks, the first of them that of block index `sliding_first`.
    pub(crate) sliding: VecDeque<u32>,
    pub(crate) sliding_first: u32,
    /// Assignments and copies that the worker has not been told yet.
    pub(crate) assignments: Vec<BlockAssignment>,
    pub(crate) copies: Vec<BlockCopy>,
    /// Cache nodes of the first whole blocks; `full` starts with their blocks.
    pub(crate) path: Vec<NodeId>,
    /// Positions at which a prefill chunk should end, to leave a window for later prompts there.
    pub(crate) cuts: Vec<u32>,
    /// Latest chunk ends whose windows are kept.
    pub(crate) chunk_windows: VecDeque<ChunkWindow>,
}

/// The window kept at a chunk's end: its sliding blocks carry `stamp` until somebody else uses them.
#[derive(Clone, Copy)]
pub(crate) struct ChunkWindow {
    pub(crate) end: u32,
    pub(crate) stamp: u64,
}

impl Record {
    pub(crate) fn new(mut request: Request, context: u32, now: Instant) -> Self {
        let tokens = std::mem::take(&mut request.prompt);
        let prompt = tokens.len() as u32;
        Self {
            limit: request.max_tokens.min(context - prompt),
            request,
            tokens,
            prompt,
            submitted: now,
            started: None,
            first_token: None,
            last_token: None,
            cached: 0,
            scored: 0,
            run: None,
        }
    }

    /// The tokens of its prompt.
    pub(crate) fn prompt_tokens(&self) -> &[u32] {
        &self.tokens[..self.prompt as usize]
    }

    /// Tokens generated and known.
    pub(crate) fn generated(&self) -> u32 {
        self.tokens.len() as u32 - self.prompt
    }

    /// Tokens that could be fed next, known or being sampled; 0 where the request needs no further row.
    pub(crate) fn remaining(&self) -> u32 {
        let Some(run) = &self.run else { return 0 };
        let length = self.tokens.len() as u32 + run.sampling;
        let is_complete = run.planned >= self.prompt && length - self.prompt >= self.limit;
        if is_complete { 0 } else { length - run.planned }
    }

    /// Whether its next row continues from the token sampled last, by the row before.
    pub(crate) fn is_decoding(&self) -> bool {
        let is_past_prompt = |run: &Run| run.announced && run.planned >= self.prompt;
        self.remaining() == 1 && self.run.as_ref().is_some_and(is_past_prompt)
    }

    /// Whether its next row is a chunk of known tokens.
    pub(crate) fn is_prefilling(&self) -> bool {
        self.remaining() > 0 && !self.is_decoding()
    }

    /// Ends the request.
    pub(crate) fn finish(self, reason: FinishReason, now: Instant) -> Finished {
        let usage =
            Usage { prompt_tokens: self.prompt, cached_tokens: self.cached, generated_tokens: self.generated() };
        let started = self.started.unwrap_or(now);
        let first_token = self.first_token.unwrap_or(now);
        let timings = RequestTimings {
            queue: started.saturating_duration_since(self.submitted),
            prefill: first_token.saturating_duration_since(started),
            decode: self.last_token.unwrap_or(first_token).saturating_duration_since(first_token),
        };
        Finished { reason, usage, timings }
    }
}

impl Run {
    /// Index of the block after the last sliding one.
    pub(crate) fn sliding_end(&self) -> u32 {
        self.sliding_first + self.sliding.len() as u32
    }
}
