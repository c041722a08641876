use super::math::exp;

/// Chosen experts and their weights, `top_k` for every row.
pub struct CpuRouting {
    pub(crate) rows: usize,
    pub(crate) top_k: usize,
    /// `[rows, top_k]`, the largest logit first.
    pub(crate) experts: Vec<u32>,
    /// `[rows, top_k]`.
    pub(crate) weights: Vec<f32>,
}

/// The `k` largest logits, lowest index on a tie, and the softmax over them.
pub(crate) fn choose(logits: &[f32], experts: &mut [u32], weights: &mut [f32]) {
    for rank in 0..experts.len() {
        let mut best = usize::MAX;
        for (e, logit) in logits.iter().enumerate() {
            if experts[..rank].contains(&(e as u32)) {
                continue;
            }
            // A NaN loses against everything, so that there always is a choice.
            if best == usize::MAX || *logit > logits[best] || logits[best].is_nan() {
                best = e;
            }
        }
        experts[rank] = best as u32;
        weights[rank] = logits[best];
    }
    let max = weights[0];
    let mut total = 0.0;
    for w in weights.iter_mut() {
        *w = exp(*w - max);
        total += *w;
    }
    for w in weights.iter_mut() {
        *w /= total;
    }
}
