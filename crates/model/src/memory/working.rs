use tandem_backend::StepLimits;

use super::plan::{MemoryRequest, logits_per_row};
use crate::Config;
use crate::forward::LOGIT_ROWS;
use crate::shard::Shard;

/// Bytes that a backend takes for steps within limits, beside the model's own buffers.
pub type DeviceWork = fn(&StepLimits) -> u64;

const F32: usize = size_of::<f32>();

/// Working memory of a device that reserves all of it: the model's buffers (residual stream, its norm, an update, q, k, v,
/// attention's result, a routing, a row of partial sums, a second residual stream for a token of every request, logits there
/// and on the host), and what the backend takes for steps of so many rows.
pub(super) fn device_bytes(
    config: &Config,
    request: &MemoryRequest,
    shard: &Shard,
    (rows, context): (u32, u32),
    work: DeviceWork,
) -> u64 {
    let limits = StepLimits {
        rows: rows as usize,
        sequences: request.max_streams as usize,
        blocks: context.div_ceil(request.block_tokens) as usize,
        widths: shard.widths(config),
    };
    let heads = shard.qkv_width(config) + shard.q_width(config);
    let per_row = (3 * config.hidden + heads + 2 * config.top_k) * F32;
    let logits = LOGIT_ROWS.min(limits.rows) * (2 * config.hidden + logits_per_row(config, shard)) * F32;
    (limits.rows * per_row + (1 + limits.sequences) * config.hidden * F32 + logits) as u64 + work(&limits)
}
