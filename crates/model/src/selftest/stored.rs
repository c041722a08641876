//! Log-probabilities known to be right. Those of our own weights are exact mode's in f32 with BF16 attention and lm_head, and
//! come from `cargo run --release -p tandem-model --example self_test_values`.

use tandem_backend::{DenseFormat, KvFormat};

use crate::Formats;

/// Mean deviation allowed of small weights of our own, by the formats they are loaded in: two to four times what sound ones
/// show. One tensor of one layer that is off shows 0.2 (scales four times as large) to 2.
pub(super) fn small_max(formats: Formats) -> f64 {
    let dense = match formats.dense {
        DenseFormat::Bf16 => 0.06,
        DenseFormat::Q8 => 0.12,
        DenseFormat::Mxfp4 => 1.2,
    };
    dense + fp8_allowance(formats)
}

/// The same of random weights of the real shapes, where routers that change their minds add up: sound 8-bit weights show 0.2
/// (20b) to 0.8 (120b) and FP8 keys and values make 1.5 of that; noise would show 2.3. In MXFP4 they show up to 1.9, so that
/// only what is worse than noise is refused.
pub(super) fn large_max(formats: Formats) -> f64 {
    match (formats.dense, formats.kv) {
        (DenseFormat::Mxfp4, _) => 3.0,
        (_, KvFormat::Fp8) => 2.1,
        _ => 1.4,
    }
}

/// What such weights may show between a text computed whole and token by token: on a GPU, whose kernels for these round at
/// different places, 36 layers show 0.3 to 0.6.
pub(super) const LARGE_WAYS_MAX: f64 = 1.5;

/// What 8-bit activations of prompts may add to either: as FP8 keys and values do.
pub(super) const LARGE_EIGHT_BIT_PROMPTS: f64 = 0.7;

fn fp8_allowance(formats: Formats) -> f64 {
    if formats.kv == KvFormat::Fp8 { 0.2 } else { 0.0 }
}

/// Tokens of such a text.
pub(super) const TOKENS: usize = 17;

/// Tokens all over a vocabulary.
pub(super) fn scattered(count: usize, vocab: u32) -> Vec<u32> {
    (0..count as u32).map(|i| (i * 48_271 + 11) % vocab).collect()
}

pub(super) const TINY: [f32; 12] = [
    -12.9772, -10.0515, -15.5184, -15.3853, -14.2675, -15.0740, -12.4401, -11.0544, -13.1528, -12.8847, -13.2565,
    -12.8765,
];
pub(super) const SYNTHETIC_20B: [f32; 12] = [
    -18.0571, -14.0399, -12.1153, -12.2662, -15.5540, -12.7898, -14.3655, -13.0471, -14.6182, -14.4952, -11.8771,
    -11.2395,
];
pub(super) const SYNTHETIC_120B: [f32; 12] = [
    -16.1720, -10.6843, -12.7397, -8.7708, -13.8543, -15.6024, -14.8288, -14.8174, -16.2807, -15.1830, -12.6410,
    -12.5071,
];
/// `<|start|>user<|message|>What is 47 + 58?<|end|><|start|>assistant<|channel|>analysis<|message|>47+58`, or the like.
pub(super) const DEMO_TOKENS: [u32; 20] = [
    200_006, 1428, 200_008, 4827, 382, 220, 4146, 659, 220, 3150, 30, 200_007, 200_006, 173_781, 200_005, 35_644,
    200_008, 4146, 10, 3150,
];
pub(super) const DEMO: [f32; 12] =
    [-0.0000, -10.0043, -19.5824, -10.5500, -0.0000, -0.0000, -0.0000, -0.0001, -0.0000, -17.3050, -0.0001, -0.0010];

/// Deviation that transformers' own tests tolerate, absolute and relative alike.
pub(super) const PUBLISHED_TOLERANCE: f64 = 0.1;
/// Fine-tuned weights have the same shape and are welcome; noise is about 12 off.
pub(super) const PUBLISHED_MEAN_MAX: f64 = 1.5;

/// The text whose last twelve tokens the published values are of.
pub(super) const PUBLISHED_20B_TEXT: &str = "Roses are red, violets are blue, I love you, and I love you too";
/// From transformers' tests, there from OpenAI's reference.
pub(super) const PUBLISHED_20B: [f32; 12] = [
    -0.03735, -0.08154, -1.21875, -1.95313, -2.23438, -0.96875, -1.54688, -1.64063, -0.93359, -1.60938, -1.625,
    -0.85547,
];

/// The text whose last twelve tokens the published values are of.
pub(super) const PUBLISHED_120B_TEXT: &str = "Roses are red, violets are blue,\nI am a language model, not a human";
/// From transformers' tests, there from OpenAI's reference.
pub(super) const PUBLISHED_120B: [f32; 12] = [
    -0.90234, -0.66016, -1.54688, -2.70313, -2.07813, -1.21875, -2.48438, -0.03198, -0.84766, -1.89063, -0.19238,
    -2.04688,
];
