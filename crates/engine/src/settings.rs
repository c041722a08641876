use std::time::Duration;

use tandem_step::Capacity;

/// How the engine schedules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineSettings {
    /// Most requests that may wait for a slot.
    pub max_queue: usize,
    /// Most prompt tokens per step, over all requests; the rest of a step is for running decodes.
    pub prefill_chunk: u32,
    /// How long prompt tokens may keep running decodes from their next token; a chunk that would take longer is run in slices
    /// of as many layers as fit, at least one. `None`: chunks are run whole.
    pub prefill_slice: Option<Duration>,
    /// Steps that may be under way at once, 1 or 2. At 2 the next step is planned before the last one's tokens are known.
    pub pipeline_depth: u32,
    /// How long a step may take before the worker counts as lost.
    pub step_timeout: Duration,
    /// A request that waited this long without having started fails; `None` lets it wait.
    pub queue_timeout: Option<Duration>,
    /// How long open requests wait while one worker is replaced by another in order; then they fail.
    pub handover_timeout: Duration,
}

impl Default for EngineSettings {
    /// 256 waiting, chunks of 512 tokens in slices of 50 ms, two steps under way, a minute per step, no limit on waiting, two
    /// minutes for a handover.
    fn default() -> Self {
        Self {
            max_queue: 256,
            prefill_chunk: 512,
            prefill_slice: Some(Duration::from_millis(50)),
            pipeline_depth: 2,
            step_timeout: Duration::from_secs(60),
            queue_timeout: None,
            handover_timeout: Duration::from_secs(120),
        }
    }
}

/// Why an engine cannot start with these settings on this capacity.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A number that must be at least 1 is 0.
    #[error("{0} must be at least 1")]
    Zero(&'static str),
    /// Only depths 1 and 2 exist.
    #[error("the pipeline depth must be 1 or 2, not {0}")]
    PipelineDepth(u32),
    /// A request needs one position for its prompt and one for its output.
    #[error("a context of {0} tokens has no room for a prompt and a token of output")]
    Context(u32),
    /// Running requests could not all get a token in one step.
    #[error("a step of {step_tokens} tokens cannot carry one token for each of {streams} streams")]
    StepTokens {
        /// Most tokens of a step.
        step_tokens: u32,
        /// Most running requests.
        streams: u32,
    },
    /// A pool cannot hold even one request of the whole context.
    #[error("the {pool} pool has {blocks} blocks, and one request of {context} tokens needs {needed}")]
    Pool {
        /// `full` or `sliding`.
        pool: &'static str,
        /// Its blocks.
        blocks: u32,
        /// Blocks that one request may hold at once.
        needed: u32,
        /// Positions a request may occupy.
        context: u32,
    },
    /// Another worker's capacity differs in more than the sizes of its pools.
    #[error("the next worker offers {offered:?}, and {expected:?} was promised")]
    OtherCapacity {
        /// What it would have to be, with its own pools.
        expected: Capacity,
        /// What it is.
        offered: Capacity,
    },
    /// The operating system gave no thread.
    #[error("starting the engine's thread: {0}")]
    Thread(#[source] std::io::Error),
}

impl EngineSettings {
    /// Checks the settings against the capacity: that alone, any request can run to the end of the context.
    pub fn check(&self, capacity: &Capacity) -> Result<(), StartError> {
        check_nonzero(self, capacity)?;
        if self.pipeline_depth > 2 {
            return Err(StartError::PipelineDepth(self.pipeline_depth));
        }
        if capacity.context < 2 {
            return Err(StartError::Context(capacity.context));
        }
        if capacity.max_step_tokens < capacity.max_streams {
            return Err(StartError::StepTokens {
                step_tokens: capacity.max_step_tokens,
                streams: capacity.max_streams,
            });
        }
        let context = capacity.context;
        let full = full_blocks_needed(capacity);
        if capacity.full_blocks < full {
            return Err(StartError::Pool { pool: "full", blocks: capacity.full_blocks, needed: full, context });
        }
        let sliding = self.sliding_blocks_needed(capacity);
        if capacity.sliding_blocks < sliding {
            return Err(StartError::Pool {
                pool: "sliding",
                blocks: capacity.sliding_blocks,
                needed: sliding,
                context,
            });
        }
        Ok(())
    }

    /// Most prompt tokens that one request can get in one step.
    pub fn chunk(&self, capacity: &Capacity) -> u32 {
        self.prefill_chunk.min(capacity.max_step_tokens)
    }

    /// Blocks of the sliding pool that one request holds at most: those of a window, one position more (see
    /// [`crate::Scheduler`]), and a chunk, wherever they lie relative to block boundaries.
    pub fn sliding_blocks_needed(&self, capacity: &Capacity) -> u32 {
        let tokens = capacity.window.saturating_add(self.chunk(capacity));
        let spanned = tokens.saturating_add(capacity.block_tokens - 1).saturating_sub(1) / capacity.block_tokens + 1;
        spanned.min(full_blocks_needed(capacity))
    }
}

fn full_blocks_needed(capacity: &Capacity) -> u32 {
    capacity.context.div_ceil(capacity.block_tokens)
}

fn check_nonzero(settings: &EngineSettings, capacity: &Capacity) -> Result<(), StartError> {
    let numbers = [
        ("the queue's bound", settings.max_queue as u64),
        ("the prefill chunk", settings.prefill_chunk.into()),
        ("the pipeline depth", settings.pipeline_depth.into()),
        ("the tokens per block", capacity.block_tokens.into()),
        ("the sliding window", capacity.window.into()),
        ("the number of streams", capacity.max_streams.into()),
        ("the tokens per step", capacity.max_step_tokens.into()),
        ("the number of layers", capacity.layers.into()),
        ("the vocabulary", capacity.vocab.into()),
    ];
    match numbers.iter().find(|(_, value)| *value == 0) {
        Some((name, _)) => Err(StartError::Zero(name)),
        None => Ok(()),
    }
}
