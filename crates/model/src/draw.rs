//! Drawing a token by the inverse of the cumulative distribution, in order of token id.
//!
//! Weights are summed as whole numbers of 2^-44, so that a sum is the same in whatever pieces it is added up: ranks that
//! have some of the tokens each draw what one worker with all of them draws.

/// Weights of logits: probabilities but for a common factor, the one of `max`, the largest of all, being 1.
pub fn weights(logits: &[f32], max: f32, temperature: f32) -> impl Iterator<Item = f32> {
    logits.iter().copied().map(weight(max, temperature))
}

/// The same in place.
pub fn weigh(logits: &mut [f32], max: f32, temperature: f32) {
    let weight = weight(max, temperature);
    logits.iter_mut().for_each(|logit| *logit = weight(*logit));
}

fn weight(max: f32, temperature: f32) -> impl Fn(f32) -> f32 {
    let scale = 1.0 / temperature;
    move |logit| ((logit - max) * scale).exp()
}

/// Sum of weights, in units of 2^-44. A vocabulary of up to 2^19 fits.
pub fn sum(weights: &[f32]) -> u64 {
    weights.iter().map(|weight| units(*weight)).sum()
}

/// Where a number in [0, 1) falls in a sum that is not 0.
pub fn target(uniform: f64, sum: u64) -> u64 {
    ((uniform * sum as f64) as u64).min(sum.saturating_sub(1))
}

/// The first place up to which the weights' sum exceeds `target`, if there is one.
pub fn find(weights: &[f32], target: u64) -> Option<usize> {
    let mut sum = 0;
    weights.iter().position(|weight| {
        sum += units(*weight);
        sum > target
    })
}

/// Index of the largest value, the first on a tie; `None` where none is larger than minus infinity. What is not a number
/// counts for nothing.
pub fn argmax(logits: &[f32]) -> Option<usize> {
    let (mut best, mut largest) = (None, f32::NEG_INFINITY);
    for (i, logit) in logits.iter().enumerate() {
        if *logit > largest {
            (best, largest) = (Some(i), *logit);
        }
    }
    best
}

/// The largest value, of those that are numbers.
pub fn max(logits: &[f32]) -> f32 {
    logits.iter().copied().fold(f32::NEG_INFINITY, f32::max)
}

/// A weight of at most 1 in units of 2^-44, which is what the last bit of an f64 between 256 and 512 stands for. What is not
/// a number counts for nothing.
fn units(weight: f32) -> u64 {
    const BASE: f64 = 256.0;
    if weight > 0.0 { (BASE + f64::from(weight)).to_bits() - BASE.to_bits() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_weights_rounded() {
        let one = 1_u64 << 44;
        assert_eq!([1.0, 0.5, 0.0, f32::NAN, 1e-20].map(units), [one, one / 2, 0, 0, 0]);
        assert_eq!(units(0.3), (f64::from(0.3_f32) * one as f64).round() as u64);
    }

    #[test]
    fn pieces_add_up_and_a_target_is_found_where_it_lies() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1000) as f32 / 100.0).collect();
        let weights: Vec<f32> = weights(&logits, max(&logits), 0.7).collect();
        let whole = sum(&weights);
        for cut in [1, 333, 999] {
            let (head, tail) = weights.split_at(cut);
            assert_eq!(sum(head) + sum(tail), whole);
            for uniform in [0.0, 0.2, 0.5, 0.999_999, 1.0 - f64::EPSILON / 2.0] {
                let at = target(uniform, whole);
                let in_pieces = find(head, at).or_else(|| find(tail, at - sum(head)).map(|i| cut + i));
                assert_eq!(find(&weights, at), in_pieces);
                assert!(in_pieces.is_some());
            }
        }
    }
}
