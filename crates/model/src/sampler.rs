//! Choosing a token from logits.

use std::collections::HashMap;

use tandem_backend::Draw;
use tandem_step::{Sampling, TokenLogprobs};

use crate::draw;

/// How often each token occurred, for the penalties.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Token id to (occurrences in the prompt, occurrences in the output).
    counts: HashMap<u32, (u32, u32)>,
}

impl History {
    /// Counts `tokens`, of which the last `generated` are output and the others prompt.
    pub fn new(tokens: &[u32], generated: usize) -> Self {
        let mut history = Self::default();
        let prompt = tokens.len() - generated.min(tokens.len());
        for token in &tokens[..prompt] {
            history.counts.entry(*token).or_default().0 += 1;
        }
        for token in &tokens[prompt..] {
            history.push(*token);
        }
        history
    }

    /// Counts one more generated token.
    pub fn push(&mut self, token: u32) {
        self.counts.entry(token).or_default().1 += 1;
    }
}

/// Chooses the token at `position` from `logits`, which are changed on the way. `generated` tokens came before it.
///
/// Order: mask, penalties, bias, suppression, temperature, min_p, top_k, top_p, draw. `mask`, where given, leaves at
/// least one token, and suppression takes none away if it would take all.
pub fn sample(
    logits: &mut [f32],
    mask: Option<&[u32]>,
    sampling: &Sampling,
    history: &History,
    generated: u32,
    position: u32,
) -> u32 {
    if let Some(mask) = mask {
        apply_mask(logits, mask);
    }
    penalise(logits, sampling, history);
    bias(logits, sampling);
    if generated < sampling.suppress_until && mask.is_none_or(|mask| leaves_any(mask, &sampling.suppress)) {
        suppress(logits, &sampling.suppress);
    }
    if sampling.temperature <= 0.0 || sampling.top_k == 1 {
        return draw::argmax(logits) as u32;
    }
    let max = draw::max(logits);
    draw::weigh(logits, max, sampling.temperature);
    let uniform = uniform(sampling.seed, position);
    if sampling.top_k == 0 && sampling.top_p >= 1.0 && sampling.min_p <= 0.0 {
        draw::find(logits, draw::target(uniform, draw::sum(logits))).unwrap_or(0) as u32
    } else {
        draw_from(&truncate(logits, sampling), uniform)
    }
}

/// How the token at `position` is drawn, a mask aside, where neither penalties, biases nor truncation have a say; `None`
/// where they do.
pub fn plain_draw(sampling: &Sampling, generated: u32, position: u32) -> Option<Draw> {
    let suppressed = generated < sampling.suppress_until && !sampling.suppress.is_empty();
    if sampling.needs_history() || !sampling.logit_bias.is_empty() || suppressed {
        return None;
    }
    let greedy = sampling.temperature <= 0.0 || sampling.top_k == 1;
    let truncated = sampling.top_k != 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0;
    match (greedy, truncated) {
        (true, _) => Some(Draw { temperature: 0.0, uniform: 0.0, mask: None }),
        (false, false) => {
            let uniform = uniform(sampling.seed, position);
            Some(Draw { temperature: sampling.temperature, uniform, mask: None })
        }
        (false, true) => None,
    }
}

/// Log-probabilities of `token` and of the `top` likeliest under the model's own distribution.
pub fn logprobs(logits: &[f32], token: u32, top: u8) -> TokenLogprobs {
    let log_sum = log_sum_exp(logits);
    let logprob = |id: u32| logits.get(id as usize).map_or(f32::NEG_INFINITY, |l| (f64::from(*l) - log_sum) as f32);
    let top = likeliest(logits, top.into()).into_iter().map(|id| (id, logprob(id))).collect();
    TokenLogprobs { token, logprob: logprob(token), top }
}

/// Takes away the tokens whose bit in `mask` is not set: one bit per token id, 32 to a word, lowest bit first.
pub fn apply_mask(logits: &mut [f32], mask: &[u32]) {
    for (index, logits) in logits.chunks_mut(32).enumerate() {
        match mask.get(index).copied().unwrap_or(0) {
            u32::MAX => {}
            0 => logits.fill(f32::NEG_INFINITY),
            word => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    if word >> bit & 1 == 0 {
                        *logit = f32::NEG_INFINITY;
                    }
                }
            }
        }
    }
}

/// The same for logits of the tokens from `first` on.
pub fn apply_mask_from(first: usize, logits: &mut [f32], mask: &[u32]) {
    let (head, rest) = logits.split_at_mut((first.next_multiple_of(32) - first).min(logits.len()));
    for (token, logit) in (first..).zip(head) {
        if mask.get(token / 32).is_none_or(|word| word >> (token % 32) & 1 == 0) {
            *logit = f32::NEG_INFINITY;
        }
    }
    apply_mask(rest, mask.get(first.div_ceil(32)..).unwrap_or_default());
}

/// Whether `mask` allows a token that is not in `suppressed`.
fn leaves_any(mask: &[u32], suppressed: &[u32]) -> bool {
    let of_word = |index: usize| {
        let inside = suppressed.iter().filter(|token| **token as usize / 32 == index);
        inside.fold(0, |bits: u32, token| bits | 1 << (token % 32))
    };
    mask.iter().enumerate().any(|(index, word)| *word != 0 && word & !of_word(index) != 0)
}

/// Repetition as in CTRL (Keskar et al. 2019), presence and frequency as OpenAI documents them.
fn penalise(logits: &mut [f32], sampling: &Sampling, history: &History) {
    if !sampling.needs_history() {
        return;
    }
    for (token, (_, output)) in &history.counts {
        let Some(logit) = logits.get_mut(*token as usize) else { continue };
        let factor = sampling.repetition_penalty;
        *logit = if *logit > 0.0 { *logit / factor } else { *logit * factor };
        if *output > 0 {
            *logit -= sampling.presence_penalty + sampling.frequency_penalty * *output as f32;
        }
    }
}

fn bias(logits: &mut [f32], sampling: &Sampling) {
    for (token, bias) in &sampling.logit_bias {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit += bias;
        }
    }
}

fn suppress(logits: &mut [f32], tokens: &[u32]) {
    for token in tokens {
        if let Some(logit) = logits.get_mut(*token as usize) {
            *logit = f32::NEG_INFINITY;
        }
    }
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let max = draw::max(logits);
    let sum: f64 = logits.iter().map(|l| f64::from((l - max).exp())).sum();
    f64::from(max) + sum.ln()
}

/// The ids of the `n` largest values, largest first, lowest id first on a tie.
fn likeliest(logits: &[f32], n: usize) -> Vec<u32> {
    let mut best: Vec<u32> = Vec::with_capacity(n + 1);
    for (i, logit) in logits.iter().enumerate() {
        if best.len() == n && best.last().is_none_or(|last| *logit <= logits[*last as usize]) {
            continue;
        }
        let at = best.partition_point(|other| logits[*other as usize] >= *logit);
        best.insert(at, i as u32);
        best.truncate(n);
    }
    best
}

/// What min_p, top_k and top_p leave, likeliest first. Never empty.
fn truncate(weights: &[f32], sampling: &Sampling) -> Vec<(u32, f32)> {
    let total: f64 = weights.iter().map(|weight| f64::from(*weight)).sum();
    let limit = if sampling.top_k == 0 { usize::MAX } else { sampling.top_k as usize };
    // Sorting 200,000 candidates is slow and the tail rarely matters: widen the cut until it holds enough.
    for cut in [1e-3, 1e-7, 0.0_f32] {
        let cut = cut.max(sampling.min_p);
        let mut kept: Vec<(u32, f32)> =
            (0..).zip(weights.iter().copied()).filter(|(_, w)| *w >= cut && *w > 0.0).collect();
        let mass: f64 = kept.iter().map(|(_, w)| f64::from(*w)).sum();
        let complete = cut <= sampling.min_p;
        // Without min_p the nucleus is a share of everything top_k leaves, and top_k leaves what was kept.
        let enough = kept.len() >= limit || (limit == usize::MAX && mass >= f64::from(sampling.top_p) * total);
        if complete || (enough && sampling.min_p <= 0.0) {
            kept.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
            kept.truncate(limit);
            let whole = if limit == usize::MAX && sampling.min_p <= 0.0 { total } else { sum_of(&kept) };
            keep_nucleus(&mut kept, f64::from(sampling.top_p) * whole);
            return kept;
        }
    }
    unreachable!("the last cut is always complete")
}

fn sum_of(kept: &[(u32, f32)]) -> f64 {
    kept.iter().map(|(_, w)| f64::from(*w)).sum()
}

/// Keeps the shortest prefix whose weights reach `mass`, at least one entry.
fn keep_nucleus(kept: &mut Vec<(u32, f32)>, mass: f64) {
    let mut sum = 0.0;
    let reached = kept.iter().position(|(_, w)| {
        sum += f64::from(*w);
        sum >= mass
    });
    if let Some(i) = reached {
        kept.truncate(i + 1);
    }
}

fn draw_from(kept: &[(u32, f32)], uniform: f64) -> u32 {
    let target = uniform * sum_of(kept);
    let mut sum = 0.0;
    for (token, weight) in kept {
        sum += f64::from(*weight);
        if sum > target {
            return *token;
        }
    }
    kept.last().map_or(0, |(token, _)| *token)
}

/// A number in [0, 1) from seed and position alone: two rounds of SplitMix64's finaliser (Steele et al. 2014).
fn uniform(seed: u64, position: u32) -> f64 {
    let mixed = mix(mix(seed).wrapping_add(u64::from(position)).wrapping_add(0x9e37_79b9_7f4a_7c15));
    (mixed >> 11) as f64 / (1u64 << 53) as f64
}

fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: [f32; 6] = [0.5, 2.0, -1.0, 2.0, 1.0, f32::NEG_INFINITY];

    fn choose(sampling: &Sampling, position: u32) -> u32 {
        sample(&mut LOGITS.clone(), None, sampling, &History::default(), 0, position)
    }

    /// Shares of each token over many positions.
    fn shares(sampling: &Sampling) -> [f64; 6] {
        let draws = 40_000;
        let mut counts = [0.0; 6];
        for position in 0..draws {
            counts[choose(sampling, position) as usize] += 1.0 / f64::from(draws);
        }
        counts
    }

    #[test]
    fn temperature_zero_takes_the_first_of_equals() {
        assert_eq!(choose(&Sampling { temperature: 0.0, ..Sampling::default() }, 7), 1);
    }

    #[test]
    fn draws_follow_the_softmax() {
        for temperature in [0.7, 1.0, 1.8] {
            let got = shares(&Sampling { temperature, ..Sampling::default() });
            let weights = LOGITS.map(|l| f64::from(l / temperature).exp());
            let total: f64 = weights.iter().sum();
            for (share, weight) in got.iter().zip(weights) {
                assert!((share - weight / total).abs() < 0.01, "{got:?}");
            }
        }
    }

    #[test]
    fn truncation_keeps_what_it_says() {
        let only = |sampling: &Sampling| -> Vec<usize> {
            shares(sampling).iter().enumerate().filter(|(_, s)| **s > 0.0).map(|(i, _)| i).collect()
        };
        assert_eq!(only(&Sampling { top_k: 2, ..Sampling::default() }), [1, 3]);
        assert_eq!(only(&Sampling { top_k: 3, ..Sampling::default() }), [1, 3, 4]);
        // Probabilities: 1 and 3 have 0.376 each, 4 has 0.138, 0 has 0.084, 2 has 0.019.
        assert_eq!(only(&Sampling { top_p: 0.7, ..Sampling::default() }), [1, 3]);
        assert_eq!(only(&Sampling { top_p: 0.76, ..Sampling::default() }), [1, 3, 4]);
        assert_eq!(only(&Sampling { top_p: 0.3, ..Sampling::default() }), [1]);
        assert_eq!(only(&Sampling { min_p: 0.3, ..Sampling::default() }), [1, 3, 4]);
        assert_eq!(only(&Sampling { top_p: 0.999_999, ..Sampling::default() }), [0, 1, 2, 3, 4]);
    }

    #[test]
    fn top_p_counts_the_mass_of_the_whole_vocabulary() {
        // One likely token and a tail of 1,000 that together weigh as much: half the mass is the first alone.
        let mut logits = vec![0.0_f32; 1001];
        logits[500] = 1000.0_f32.ln();
        let sampling = Sampling { top_p: 0.45, ..Sampling::default() };
        for position in 0..200 {
            assert_eq!(sample(&mut logits.clone(), None, &sampling, &History::default(), 0, position), 500);
        }
        let sampling = Sampling { top_p: 0.95, ..Sampling::default() };
        let others =
            (0..200).filter(|p| sample(&mut logits.clone(), None, &sampling, &History::default(), 0, *p) != 500);
        assert!(others.count() > 50);
    }

    #[test]
    fn penalties_bias_and_suppression() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let pick = |sampling: &Sampling, history: &History, generated| {
            sample(&mut LOGITS.clone(), None, sampling, history, generated, 0)
        };
        let none = History::default();
        let seen = History::new(&[1, 3, 3], 2);
        assert_eq!(pick(&Sampling { presence_penalty: 0.5, ..greedy.clone() }, &seen, 2), 1);
        assert_eq!(pick(&Sampling { repetition_penalty: 4.0, ..greedy.clone() }, &seen, 2), 4);
        let twice = History::new(&[1, 1, 3], 3);
        assert_eq!(pick(&Sampling { frequency_penalty: 0.1, ..greedy.clone() }, &twice, 3), 3);
        assert_eq!(pick(&Sampling { logit_bias: vec![(2, 10.0)], ..greedy.clone() }, &none, 0), 2);
        let quiet = Sampling { suppress: vec![1, 3], suppress_until: 2, ..greedy };
        assert_eq!(pick(&quiet, &none, 1), 4);
        assert_eq!(pick(&quiet, &none, 2), 1);
    }

    #[test]
    fn a_mask_leaves_what_it_allows() {
        let pick = |sampling: &Sampling, mask: &[u32], generated| {
            sample(&mut LOGITS.clone(), Some(mask), sampling, &History::default(), generated, 0)
        };
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        assert_eq!(pick(&greedy, &[0b01_0101], 0), 4);
        assert_eq!(pick(&greedy, &[0b00_0100], 0), 2);
        assert_eq!(pick(&Sampling::default(), &[0b00_0100], 0), 2);
        // A mask comes before truncation: what it takes away takes up no place among the likeliest.
        assert_eq!(pick(&Sampling { top_k: 2, ..Sampling::default() }, &[0b00_0100], 0), 2);
        // Suppression yields where nothing would be left, and only there.
        let quiet = Sampling { suppress: vec![4], suppress_until: 9, ..greedy };
        assert_eq!(pick(&quiet, &[0b01_0100], 3), 2);
        assert_eq!(pick(&quiet, &[0b01_0000], 3), 4);
        assert_eq!(pick(&quiet, &[0b01_0100], 9), 4);
    }

    #[test]
    fn a_part_of_the_logits_is_masked_like_all_of_them() {
        let mask: Vec<u32> = (0..4).map(|word| 0x9e37_79b9_u32.wrapping_mul(word + 3)).collect();
        let mut whole = [1.0; 150];
        apply_mask(&mut whole, &mask);
        for (first, end) in [(0, 150), (1, 20), (31, 97), (32, 64), (77, 150), (128, 150), (140, 150)] {
            let mut part = vec![1.0; end - first];
            apply_mask_from(first, &mut part, &mask);
            assert_eq!(part, whole[first..end], "{first}..{end}");
        }
    }

    #[test]
    fn ids_beyond_a_mask_are_not_allowed() {
        let mut logits = [0.0_f32; 70];
        apply_mask(&mut logits, &[u32::MAX, 1 << 3]);
        let left: Vec<usize> = (0..70).filter(|&i| logits[i].is_finite()).collect();
        assert_eq!(left, (0..32).chain([35]).collect::<Vec<_>>());
    }

    #[test]
    fn a_draw_depends_on_seed_and_position_alone() {
        let a: Vec<u32> = (0..50).map(|p| choose(&Sampling { seed: 1, ..Sampling::default() }, p)).collect();
        let b: Vec<u32> = (0..50).map(|p| choose(&Sampling { seed: 1, ..Sampling::default() }, p)).collect();
        let c: Vec<u32> = (0..50).map(|p| choose(&Sampling { seed: 2, ..Sampling::default() }, p)).collect();
        assert_eq!(a, b);
        assert_ne!(a, c);
    }

    #[test]
    fn log_probabilities_are_the_models_own() {
        let got = logprobs(&LOGITS, 4, 3);
        assert_eq!(got.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), [1, 3, 4]);
        let total: f64 = LOGITS.iter().map(|l| f64::from(*l).exp()).sum();
        assert!((f64::from(got.logprob) - (1.0 - total.ln())).abs() < 1e-6);
        assert_eq!(got.logprob, got.top[2].1);
    }
}
