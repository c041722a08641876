//! Choosing a token from logits.

use std::collections::HashMap;
use std::sync::Arc;

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

/// What a token has to keep to, asked one by one or for all at once.
pub trait Limit {
    /// Whether so few may be chosen that their mask comes first.
    fn is_narrow(&mut self) -> Result<bool, String>;

    /// Whether this token may be chosen.
    fn allows(&mut self, token: u32) -> Result<bool, String>;

    /// Which may: one bit per token id, 32 to a word, lowest bit first, at least one set; ids beyond its end may not.
    fn mask(&mut self) -> Result<Arc<[u32]>, String>;
}

/// Chooses tokens, with working memory of its own.
#[derive(Default)]
pub struct Sampler {
    weights: Vec<f32>,
}

impl Sampler {
    /// Chooses the token at `position` from `logits`, which are changed on the way. `generated` tokens came before it.
    ///
    /// Order: penalties, bias, suppression, temperature, min_p, top_k, top_p, draw. A token drawn so is the one unless
    /// `limit` forbids it. Then a mask of those allowed comes before all the rest, and a second draw with another random
    /// number decides; suppression takes none away there if it would take all. Where `limit` is narrow there is only that
    /// draw: few tokens are quicker to draw from than all.
    ///
    /// Where nothing is truncated both together are a draw from those allowed, in proportion to their probabilities: the
    /// first gives each its own and what was forbidden is divided among all in proportion. The likeliest of all, if
    /// allowed, is the likeliest of those allowed. So a mask is needed only where the first draw was in vain, and whether
    /// one was at hand changes nothing.
    pub fn sample(
        &mut self,
        logits: &mut [f32],
        limit: Option<&mut dyn Limit>,
        sampling: &Sampling,
        history: &History,
        generated: u32,
        position: u32,
    ) -> Result<u32, String> {
        penalise(logits, sampling, history);
        bias(logits, sampling);
        let suppressed: &[u32] = if generated < sampling.suppress_until { &sampling.suppress } else { &[] };
        let mut first = |logits: &[f32]| {
            let place = self.draw(logits, sampling, uniform(sampling.seed, position, Attempt::First));
            place.map(|place| place as u32).ok_or(NO_NUMBERS)
        };
        let Some(limit) = limit else {
            suppress(logits, suppressed);
            return Ok(first(logits)?);
        };
        if !limit.is_narrow()? {
            let held = suppress(logits, suppressed);
            let token = first(logits)?;
            if limit.allows(token)? {
                return Ok(token);
            }
            held.into_iter().for_each(|(token, logit)| logits[token as usize] = logit);
        }
        let (tokens, logits) = allowed(logits, &limit.mask()?, suppressed);
        let place = self.draw(&logits, sampling, uniform(sampling.seed, position, Attempt::Second));
        Ok(tokens[place.ok_or(NO_NUMBERS)?])
    }

    /// The place of the logit chosen; `None` where none is a number.
    fn draw(&mut self, logits: &[f32], sampling: &Sampling, uniform: f64) -> Option<usize> {
        if is_greedy(sampling) {
            return draw::argmax(logits).filter(|place| logits[*place].is_finite());
        }
        let max = Some(draw::max(logits)).filter(|max| max.is_finite())?;
        self.weights.clear();
        self.weights.extend(draw::weights(logits, max, sampling.temperature));
        if is_truncated(sampling) {
            Some(draw_from(&truncate(&self.weights, sampling), uniform) as usize)
        } else {
            draw::find(&self.weights, draw::target(uniform, draw::sum(&self.weights)))
        }
    }
}

/// Why no token can be chosen.
pub const NO_NUMBERS: &str = "the model's logits are no finite numbers";

/// The tokens that `mask` allows, in ascending order, and their logits: without those suppressed, unless these are all.
fn allowed(logits: &[f32], mask: &[u32], suppressed: &[u32]) -> (Vec<u32>, Vec<f32>) {
    let all = || (0..).zip(mask).flat_map(|(index, word)| set_bits(*word).map(move |bit| 32 * index + bit));
    let known = || all().filter(|id| (*id as usize) < logits.len());
    let mut tokens: Vec<u32> = known().filter(|id| !suppressed.contains(id)).collect();
    if tokens.is_empty() {
        tokens = known().collect();
    }
    let logits = tokens.iter().map(|id| logits[*id as usize]).collect();
    (tokens, logits)
}

/// The places of the bits that are set, lowest first.
fn set_bits(word: u32) -> impl Iterator<Item = u32> {
    std::iter::successors(Some(word), |word| Some(word & word.wrapping_sub(1)))
        .take_while(|word| *word != 0)
        .map(u32::trailing_zeros)
}

fn is_greedy(sampling: &Sampling) -> bool {
    sampling.temperature <= 0.0 || sampling.top_k == 1
}

fn is_truncated(sampling: &Sampling) -> bool {
    sampling.top_k != 0 || sampling.top_p < 1.0 || sampling.min_p > 0.0
}

/// How the token at `position` is drawn at first, where neither penalties, biases nor truncation have a say; `None` where
/// they do.
pub fn plain_draw(sampling: &Sampling, generated: u32, position: u32) -> Option<Draw> {
    let suppressed = generated < sampling.suppress_until && !sampling.suppress.is_empty();
    if sampling.needs_history() || !sampling.logit_bias.is_empty() || suppressed {
        return None;
    }
    if is_greedy(sampling) {
        Some(Draw { temperature: 0.0, uniform: 0.0, mask: None })
    } else if is_truncated(sampling) {
        None
    } else {
        let uniform = uniform(sampling.seed, position, Attempt::First);
        Some(Draw { temperature: sampling.temperature, uniform, mask: None })
    }
}

/// The draw among the tokens that `mask` allows: where these are few, or `first` gave one that is not among them.
pub fn masked_draw(first: &Draw, sampling: &Sampling, position: u32, mask: Arc<[u32]>) -> Draw {
    let uniform = uniform(sampling.seed, position, Attempt::Second);
    Draw { temperature: first.temperature, uniform, mask: Some(mask) }
}

/// Log-probabilities of `token` and of the `top` likeliest under the model's own distribution.
pub fn logprobs(logits: &[f32], token: u32, top: u8) -> TokenLogprobs {
    let log_sum = log_sum_exp(logits);
    let logprob = |id: u32| logits.get(id as usize).map_or(f32::NEG_INFINITY, |l| (f64::from(*l) - log_sum) as f32);
    let top = likeliest(logits, top.into()).into_iter().map(|id| (id, logprob(id))).collect();
    TokenLogprobs { token, logprob: logprob(token), top }
}

/// Whether `mask` allows a token: one bit per token id, 32 to a word, lowest bit first.
fn allows(mask: &[u32], token: u32) -> bool {
    mask.get(token as usize / 32).is_some_and(|word| word >> (token % 32) & 1 == 1)
}

/// Takes away the tokens whose bit in `mask` is not set, from logits of the tokens from `first` on.
pub fn apply_mask_from(first: usize, logits: &mut [f32], mask: &[u32]) {
    let (head, rest) = logits.split_at_mut((first.next_multiple_of(32) - first).min(logits.len()));
    for (token, logit) in (first..).zip(head) {
        if !allows(mask, token as u32) {
            *logit = f32::NEG_INFINITY;
        }
    }
    apply_mask(rest, mask.get(first.div_ceil(32)..).unwrap_or_default());
}

/// The same for logits of the tokens from 0 on: one bit per token id, 32 to a word, lowest bit first.
fn apply_mask(logits: &mut [f32], mask: &[u32]) {
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

/// Takes tokens away and returns what their logits were.
fn suppress(logits: &mut [f32], tokens: &[u32]) -> Vec<(u32, f32)> {
    let mut held = Vec::with_capacity(tokens.len());
    for token in tokens {
        if let Some(logit) = logits.get_mut(*token as usize).filter(|logit| **logit != f32::NEG_INFINITY) {
            held.push((*token, std::mem::replace(logit, f32::NEG_INFINITY)));
        }
    }
    held
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

/// Which of a position's two random numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Attempt {
    First,
    Second,
}

/// A number in [0, 1) from seed, position and attempt alone: two rounds of SplitMix64's finaliser (Steele et al. 2014), and
/// a third for the second attempt.
fn uniform(seed: u64, position: u32, attempt: Attempt) -> f64 {
    const GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;
    let first = mix(mix(seed).wrapping_add(u64::from(position)).wrapping_add(GAMMA));
    let mixed = match attempt {
        Attempt::First => first,
        Attempt::Second => mix(first.wrapping_add(GAMMA)),
    };
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
        sample(&LOGITS, sampling, &History::default(), 0, position)
    }

    fn sample(logits: &[f32], sampling: &Sampling, history: &History, generated: u32, position: u32) -> u32 {
        Sampler::default().sample(&mut logits.to_vec(), None, sampling, history, generated, position).unwrap()
    }

    /// A limit with a mask at hand, and how often it was needed.
    struct Masked<'a> {
        mask: &'a [u32],
        narrow: bool,
        needed: u32,
    }

    impl Limit for Masked<'_> {
        fn allows(&mut self, token: u32) -> Result<bool, String> {
            Ok(allows(self.mask, token))
        }

        fn is_narrow(&mut self) -> Result<bool, String> {
            Ok(self.narrow)
        }

        fn mask(&mut self) -> Result<Arc<[u32]>, String> {
            self.needed += 1;
            Ok(self.mask.into())
        }
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
            assert_eq!(sample(&logits, &sampling, &History::default(), 0, position), 500);
        }
        let sampling = Sampling { top_p: 0.95, ..Sampling::default() };
        let others = (0..200).filter(|p| sample(&logits, &sampling, &History::default(), 0, *p) != 500);
        assert!(others.count() > 50);
    }

    #[test]
    fn penalties_bias_and_suppression() {
        let greedy = Sampling { temperature: 0.0, ..Sampling::default() };
        let pick = |sampling: &Sampling, history: &History, generated| sample(&LOGITS, sampling, history, generated, 0);
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
        [false, true].into_iter().for_each(a_mask_leaves_what_it_allows_to);
    }

    fn a_mask_leaves_what_it_allows_to(narrow: bool) {
        let pick = |sampling: &Sampling, mask: &[u32], generated| {
            let mut limit = Masked { mask, narrow, needed: 0 };
            let (logits, history) = (&mut LOGITS.clone(), History::default());
            Sampler::default().sample(logits, Some(&mut limit), sampling, &history, generated, 0).unwrap()
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
    fn draws_under_a_limit_follow_what_is_left_of_the_softmax() {
        // Tokens 1 and 4 are drawn first, in vain, with their own probability.
        let forbidden = [1, 4].map(|token: usize| f64::from(LOGITS[token]).exp()).iter().sum::<f64>();
        let all = LOGITS.iter().map(|logit| f64::from(*logit).exp()).sum::<f64>();
        assert!((masks_for_draws_under_a_limit(false) - forbidden / all).abs() < 0.01);
        assert_eq!(masks_for_draws_under_a_limit(true), 1.0);
    }

    /// Masks that were needed for each draw.
    fn masks_for_draws_under_a_limit(narrow: bool) -> f64 {
        let (allowed, draws) = ([0, 2, 3], 40_000);
        let sampling = Sampling { seed: 5, ..Sampling::default() };
        let mut limit = Masked { mask: &[0b00_1101], narrow, needed: 0 };
        let mut shares = [0.0; 6];
        for position in 0..draws {
            let logits = &mut LOGITS.clone();
            let token =
                Sampler::default().sample(logits, Some(&mut limit), &sampling, &History::default(), 0, position);
            shares[token.unwrap() as usize] += 1.0 / f64::from(draws);
        }
        let weight = |token: usize| f64::from(LOGITS[token]).exp();
        let total: f64 = allowed.iter().map(|token| weight(*token)).sum();
        for (token, share) in shares.iter().enumerate() {
            let want = if allowed.contains(&token) { weight(token) / total } else { 0.0 };
            assert!((share - want).abs() < 0.01, "{token}: {share}, not {want}");
        }
        f64::from(limit.needed) / f64::from(draws)
    }

    #[test]
    fn logits_that_are_no_numbers_are_an_error() {
        for temperature in [0.0, 1.0] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let sample = |logits: &mut [f32]| {
                Sampler::default().sample(logits, None, &sampling, &History::default(), 0, 0).map_err(|_| ())
            };
            assert_eq!(sample(&mut [f32::NAN; 40]), Err(()));
            assert_eq!(sample(&mut [f32::NEG_INFINITY; 40]), Err(()));
            assert_eq!(sample(&mut [0.0, f32::INFINITY]), Err(()));
            assert_eq!(sample(&mut [f32::NAN, 1.0, f32::NEG_INFINITY]), Ok(1));
        }
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
