use crate::{CheckpointSpec, Philox};

/// A tensor under its hub name, as it lies in a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Name.
    pub name: String,
    /// Type as safetensors spells it: `BF16` or `U8`.
    pub dtype: &'static str,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Contents, row-major, little-endian.
    pub bytes: Vec<u8>,
}

/// All tensors of a checkpoint, in file order. The order matters: they share one stream of random words.
///
/// Gains are chosen so that the model behaves like a trained one where that matters to comparisons: scores and router
/// logits of order one, block outputs small beside the residual stream.
pub fn tensors(spec: &CheckpointSpec) -> Vec<Tensor> {
    let mut generator = Generator { philox: Philox::new(spec.seed), tensors: Vec::new() };
    generator.matrix("model.embed_tokens.weight", spec.vocab, spec.hidden, (spec.hidden as f64 / 3.0).sqrt());
    for layer in 0..spec.layers {
        generator.layer(spec, layer);
    }
    generator.norm("model.norm.weight", spec.hidden);
    generator.matrix("lm_head.weight", spec.vocab, spec.hidden, 2.0);
    generator.tensors
}

struct Generator {
    philox: Philox,
    tensors: Vec<Tensor>,
}

impl Generator {
    fn layer(&mut self, spec: &CheckpointSpec, layer: usize) {
        let name = |rest: &str| format!("model.layers.{layer}.{rest}");
        let (q, kv) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        self.norm(&name("input_layernorm.weight"), spec.hidden);
        for (projection, rows, gain, bias_gain) in [("q", q, 1.5, 0.3), ("k", kv, 1.5, 0.3), ("v", kv, 1.0, 0.2)] {
            self.matrix(&name(&format!("self_attn.{projection}_proj.weight")), rows, spec.hidden, gain);
            self.vector(&name(&format!("self_attn.{projection}_proj.bias")), rows, bias_gain);
        }
        self.matrix(&name("self_attn.o_proj.weight"), spec.hidden, q, 0.5);
        self.vector(&name("self_attn.o_proj.bias"), spec.hidden, 0.1);
        self.vector(&name("self_attn.sinks"), spec.heads, 1.0);
        self.norm(&name("post_attention_layernorm.weight"), spec.hidden);
        self.matrix(&name("mlp.router.weight"), spec.experts, spec.hidden, 1.5);
        self.vector(&name("mlp.router.bias"), spec.experts, 0.3);
        let low = lowest_scale(spec.hidden);
        let (hidden, inner) = (spec.hidden, spec.intermediate);
        self.experts(&name("mlp.experts.gate_up_proj"), [spec.experts, 2 * inner, hidden], low);
        self.experts(&name("mlp.experts.down_proj"), [spec.experts, hidden, inner], low - 3);
    }

    fn matrix(&mut self, name: &str, rows: usize, cols: usize, gain: f64) {
        let values = self.scaled(rows * cols, gain * (3.0 / cols as f64).sqrt(), 0.0);
        self.push(name, "BF16", vec![rows, cols], values);
    }

    fn vector(&mut self, name: &str, n: usize, gain: f64) {
        let values = self.scaled(n, gain * 3f64.sqrt(), 0.0);
        self.push(name, "BF16", vec![n], values);
    }

    fn norm(&mut self, name: &str, n: usize) {
        let values = self.scaled(n, 0.15 * 3f64.sqrt(), 1.0);
        self.push(name, "BF16", vec![n], values);
    }

    /// Random codes, and per group of 32 one of the three scales from `low` on.
    fn experts(&mut self, name: &str, [experts, rows, cols]: [usize; 3], low: u8) {
        let groups = experts * rows * cols / 32;
        let blocks = self.philox.bytes(16 * groups);
        self.push(&format!("{name}_blocks"), "U8", vec![experts, rows, cols / 32, 16], blocks);
        let scales = self.philox.bytes(groups).iter().map(|raw| low + raw % 3).collect();
        self.push(&format!("{name}_scales"), "U8", vec![experts, rows, cols / 32], scales);
        let bias = self.scaled(experts * rows, 0.5, 0.0);
        self.push(&format!("{name}_bias"), "BF16", vec![experts, rows], bias);
    }

    fn scaled(&mut self, n: usize, gain: f64, offset: f64) -> Vec<u8> {
        let uniform = self.philox.uniform(n);
        uniform.iter().flat_map(|&x| bf16((f64::from(x) * gain + offset) as f32).to_le_bytes()).collect()
    }

    fn push(&mut self, name: &str, dtype: &'static str, shape: Vec<usize>, bytes: Vec<u8>) {
        self.tensors.push(Tensor { name: name.to_owned(), dtype, shape, bytes });
    }
}

/// The E8M0 scale that gives an expert matrix a gain near one, given that a random E2M1 code has an rms of 2.9; one less,
/// since it is the lowest of three.
fn lowest_scale(hidden: usize) -> u8 {
    let exponent = (1.0 / (2.9 * (hidden as f64).sqrt())).log2();
    (127.0 + exponent).round_ties_even() as u8 - 1
}

/// Rounds to nearest, ties to even; the values here are finite.
fn bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}
