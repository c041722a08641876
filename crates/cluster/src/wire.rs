//! Plans and results as messages, and back. The messages have the types' fields one by one; what a message cannot hold
//! (an unknown pool, lists of unequal length) is an error here, what a plan may not say is the worker's to refuse.

use tandem_step::{
    BlockAssignment, BlockCopy, Capacity, Constraint, Input, Pool, Row, RowResult, Sampling, Score, Slice, Start,
    StepPlan, StepResult, StepTimings, TokenLogprobs,
};

use crate::proto;

/// A message that no peer of this version sends.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A part is missing.
    #[error("{0} is missing")]
    Missing(&'static str),
    /// A number is outside its range.
    #[error("{what} cannot be {value}")]
    Range {
        /// Which number.
        what: &'static str,
        /// Its value.
        value: i64,
    },
    /// Two lists that belong together differ in length.
    #[error("{0} have different lengths")]
    Lengths(&'static str),
}

/// A plan as a message. Its epoch is the envelope's.
pub(crate) fn plan_to_wire(plan: &StepPlan) -> proto::StepPlan {
    proto::StepPlan {
        step: plan.step,
        ends: plan.ends.clone(),
        starts: plan.starts.iter().map(start_to_wire).collect(),
        copies: plan.copies.iter().map(copy_to_wire).collect(),
        rows: plan.rows.iter().map(row_to_wire).collect(),
        slice: plan.slice.as_ref().map(slice_to_wire),
    }
}

/// A plan of an epoch.
pub(crate) fn plan_from_wire(epoch: u64, plan: proto::StepPlan) -> Result<StepPlan, WireError> {
    Ok(StepPlan {
        epoch,
        step: plan.step,
        ends: plan.ends,
        starts: plan.starts.into_iter().map(start_from_wire).collect::<Result<_, _>>()?,
        copies: plan.copies.into_iter().map(copy_from_wire).collect::<Result<_, _>>()?,
        rows: plan.rows.into_iter().map(row_from_wire).collect::<Result<_, _>>()?,
        slice: plan.slice.map(slice_from_wire).transpose()?,
    })
}

/// A result as a message.
pub(crate) fn result_to_wire(result: StepResult) -> proto::StepResult {
    proto::StepResult {
        step: result.step,
        rows: result.rows.into_iter().map(row_result_to_wire).collect(),
        forward_us: result.timings.forward_us,
        sample_us: result.timings.sample_us,
        slice_us: result.timings.slice_us,
    }
}

/// A result of an epoch.
pub(crate) fn result_from_wire(epoch: u64, result: proto::StepResult) -> Result<StepResult, WireError> {
    Ok(StepResult {
        epoch,
        step: result.step,
        rows: result.rows.into_iter().map(row_result_from_wire).collect::<Result<_, _>>()?,
        timings: StepTimings { slice_us: result.slice_us, forward_us: result.forward_us, sample_us: result.sample_us },
    })
}

/// Capacity as a message.
pub(crate) fn capacity_to_wire(capacity: &Capacity) -> proto::Capacity {
    proto::Capacity {
        block_tokens: capacity.block_tokens,
        full_blocks: capacity.full_blocks,
        sliding_blocks: capacity.sliding_blocks,
        window: capacity.window,
        context: capacity.context,
        max_streams: capacity.max_streams,
        max_step_tokens: capacity.max_step_tokens,
        layers: capacity.layers,
        vocab: capacity.vocab,
    }
}

/// And back.
pub(crate) fn capacity_from_wire(capacity: &proto::Capacity) -> Capacity {
    Capacity {
        block_tokens: capacity.block_tokens,
        full_blocks: capacity.full_blocks,
        sliding_blocks: capacity.sliding_blocks,
        window: capacity.window,
        context: capacity.context,
        max_streams: capacity.max_streams,
        max_step_tokens: capacity.max_step_tokens,
        layers: capacity.layers,
        vocab: capacity.vocab,
    }
}

fn start_to_wire(start: &Start) -> proto::Start {
    proto::Start {
        slot: start.slot,
        sampling: Some(sampling_to_wire(&start.sampling)),
        history: start.history.clone(),
        generated: start.generated,
        constraint: start.constraint.as_ref().map(|constraint| constraint.spec().to_owned()),
    }
}

fn start_from_wire(start: proto::Start) -> Result<Start, WireError> {
    Ok(Start {
        slot: start.slot,
        sampling: sampling_from_wire(start.sampling.ok_or(WireError::Missing("a start's sampling"))?)?,
        history: start.history,
        generated: start.generated,
        constraint: start.constraint.map(Constraint::new),
    })
}

fn sampling_to_wire(sampling: &Sampling) -> proto::Sampling {
    let (bias_tokens, bias_values) = sampling.logit_bias.iter().copied().unzip();
    proto::Sampling {
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        min_p: sampling.min_p,
        seed: sampling.seed,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        repetition_penalty: sampling.repetition_penalty,
        bias_tokens,
        bias_values,
        suppress: sampling.suppress.clone(),
        suppress_until: sampling.suppress_until,
        logprobs: sampling.logprobs.map(u32::from),
    }
}

fn sampling_from_wire(sampling: proto::Sampling) -> Result<Sampling, WireError> {
    Ok(Sampling {
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: sampling.top_k,
        min_p: sampling.min_p,
        seed: sampling.seed,
        presence_penalty: sampling.presence_penalty,
        frequency_penalty: sampling.frequency_penalty,
        repetition_penalty: sampling.repetition_penalty,
        logit_bias: zip("biases", sampling.bias_tokens, sampling.bias_values)?,
        suppress: sampling.suppress,
        suppress_until: sampling.suppress_until,
        logprobs: sampling.logprobs.map(|logprobs| byte("logprobs", logprobs)).transpose()?,
    })
}

fn pool_to_wire(pool: Pool) -> i32 {
    match pool {
        Pool::Full => proto::Pool::Full.into(),
        Pool::Sliding => proto::Pool::Sliding.into(),
    }
}

fn pool_from_wire(pool: i32) -> Result<Pool, WireError> {
    match proto::Pool::try_from(pool) {
        Ok(proto::Pool::Full) => Ok(Pool::Full),
        Ok(proto::Pool::Sliding) => Ok(Pool::Sliding),
        _ => Err(WireError::Range { what: "a pool", value: pool.into() }),
    }
}

fn copy_to_wire(copy: &BlockCopy) -> proto::BlockCopy {
    proto::BlockCopy { pool: pool_to_wire(copy.pool), from: copy.from, to: copy.to }
}

fn copy_from_wire(copy: proto::BlockCopy) -> Result<BlockCopy, WireError> {
    Ok(BlockCopy { pool: pool_from_wire(copy.pool)?, from: copy.from, to: copy.to })
}

fn assignment_to_wire(blocks: &BlockAssignment) -> proto::BlockAssignment {
    proto::BlockAssignment { pool: pool_to_wire(blocks.pool), index: blocks.index, block: blocks.block }
}

fn assignment_from_wire(blocks: proto::BlockAssignment) -> Result<BlockAssignment, WireError> {
    Ok(BlockAssignment { pool: pool_from_wire(blocks.pool)?, index: blocks.index, block: blocks.block })
}

fn row_to_wire(row: &Row) -> proto::Row {
    let (sampled, tokens) = match &row.input {
        Input::Tokens(tokens) => (false, tokens.clone()),
        Input::Sampled => (true, Vec::new()),
    };
    let score = row.score.as_ref();
    proto::Row {
        slot: row.slot,
        sampled,
        tokens,
        position: row.position,
        blocks: row.blocks.iter().map(assignment_to_wire).collect(),
        sample: row.sample,
        score: score.map(|score| proto::Score { targets: score.targets.clone(), top: score.top.into() }),
    }
}

fn row_from_wire(row: proto::Row) -> Result<Row, WireError> {
    let score = |score: proto::Score| Ok(Score { targets: score.targets, top: byte("a score's top", score.top)? });
    Ok(Row {
        slot: row.slot,
        input: if row.sampled { Input::Sampled } else { Input::Tokens(row.tokens) },
        position: row.position,
        blocks: row.blocks.into_iter().map(assignment_from_wire).collect::<Result<_, _>>()?,
        sample: row.sample,
        score: row.score.map(score).transpose()?,
    })
}

fn slice_to_wire(slice: &Slice) -> proto::Slice {
    proto::Slice { rows: slice.rows.iter().map(row_to_wire).collect(), layers: slice.layers }
}

fn slice_from_wire(slice: proto::Slice) -> Result<Slice, WireError> {
    let rows = slice.rows.into_iter().map(row_from_wire).collect::<Result<_, _>>()?;
    Ok(Slice { rows, layers: slice.layers })
}

fn row_result_to_wire(row: RowResult) -> proto::RowResult {
    proto::RowResult {
        slot: row.slot,
        token: row.token,
        logprobs: row.logprobs.map(logprobs_to_wire),
        scores: row.scores.into_iter().map(logprobs_to_wire).collect(),
        error: row.error,
    }
}

fn row_result_from_wire(row: proto::RowResult) -> Result<RowResult, WireError> {
    Ok(RowResult {
        slot: row.slot,
        token: row.token,
        logprobs: row.logprobs.map(logprobs_from_wire).transpose()?,
        scores: row.scores.into_iter().map(logprobs_from_wire).collect::<Result<_, _>>()?,
        error: row.error,
    })
}

fn logprobs_to_wire(logprobs: TokenLogprobs) -> proto::TokenLogprobs {
    let (top_tokens, top_logprobs) = logprobs.top.into_iter().unzip();
    proto::TokenLogprobs { token: logprobs.token, logprob: logprobs.logprob, top_tokens, top_logprobs }
}

fn logprobs_from_wire(logprobs: proto::TokenLogprobs) -> Result<TokenLogprobs, WireError> {
    let top = zip("alternatives", logprobs.top_tokens, logprobs.top_logprobs)?;
    Ok(TokenLogprobs { token: logprobs.token, logprob: logprobs.logprob, top })
}

fn zip(what: &'static str, tokens: Vec<u32>, values: Vec<f32>) -> Result<Vec<(u32, f32)>, WireError> {
    if tokens.len() != values.len() {
        return Err(WireError::Lengths(what));
    }
    Ok(tokens.into_iter().zip(values).collect())
}

fn byte(what: &'static str, value: u32) -> Result<u8, WireError> {
    u8::try_from(value).map_err(|_| WireError::Range { what, value: value.into() })
}

#[cfg(test)]
mod tests;
