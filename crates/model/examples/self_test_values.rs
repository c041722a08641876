//! Computes the values that the self-test compares with: log-probabilities in exact mode, one layer in memory at a time, so that
//! any machine can do it. `cargo run --release -p tandem-model --example self_test_values -- tiny 20b 120b DEMO_FOLDER`
//! prints what belongs into `src/selftest/stored.rs`. Written on operations alone, apart from the forward pass it is to check.

use std::error::Error;
use std::path::Path;

use tandem_backend::cpu::{CpuBackend, CpuOptions};
use tandem_backend::{
    AttentionContext, AttentionKind, Backend, Batch, DenseFormat, ExpertsShape, ExpertsSource, KvFormat, KvShape,
    Precision, Sequence,
};
use tandem_model::layout::{LayerTensor, TensorId};
use tandem_model::selftest::Reference;
use tandem_model::{Checkpoint, Formats, LayerKind, Synthetic, SyntheticKind, WeightStore, qkv_bias, qkv_weight};

const EXACT: Formats = Formats { dense: DenseFormat::Bf16, kv: KvFormat::F32 };

fn main() -> Result<(), Box<dyn Error>> {
    for what in std::env::args().skip(1) {
        let (reference, store): (Reference, Box<dyn WeightStore>) = match what.parse::<SyntheticKind>() {
            Ok(kind) => (Reference::synthetic(kind, EXACT), Box::new(Synthetic::new(kind))),
            Err(_) => {
                let store = Checkpoint::open(Path::new(&what))?;
                (Reference::demo(EXACT), Box::new(store))
            }
        };
        let logprobs = logprobs(store.as_ref(), &reference.tokens)?;
        let wanted = &logprobs[logprobs.len() - reference.logprobs.len()..];
        println!("{what}: {wanted:.4?}");
    }
    Ok(())
}

/// Log-probabilities of all tokens but the first.
fn logprobs(store: &dyn WeightStore, tokens: &[u32]) -> Result<Vec<f32>, Box<dyn Error>> {
    let options = CpuOptions { precision: Precision::Exact, threads: None, isa: None };
    let (backend, config) = (CpuBackend::new(options)?, store.config().clone());
    let n = tokens.len() - 1;
    let blocks: Vec<u32> = (0..n.div_ceil(16) as u32).collect();
    let sequences = [Sequence { rows: 0..n, position: 0, full_blocks: &blocks, sliding_blocks: &blocks }];
    let batch = Batch { tokens: &tokens[..n], sequences: &sequences };
    let mut x = backend.buffer(n, config.hidden)?;
    backend.embed(&matrix(&backend, store, TensorId::Embedding)?, &batch, &mut x)?;
    for layer in 0..config.layers() {
        run_layer(&backend, store, layer, &batch, &mut x)?;
    }
    let (mut normed, mut logits) = (backend.buffer(n, config.hidden)?, backend.buffer(n, config.vocab)?);
    backend.rms_norm(&x, n, &vector(&backend, store, TensorId::FinalNorm)?, config.rms_eps, &mut normed)?;
    backend.linear(&normed, n, &matrix(&backend, store, TensorId::LmHead)?, None, &mut logits)?;
    let mut all = vec![0.0; n * config.vocab];
    backend.download(&logits, 0, &mut all)?;
    let logprob = |(row, target): (&[f32], &u32)| {
        let sum: f64 = row.iter().map(|logit| f64::from(*logit).exp()).sum();
        (f64::from(row[*target as usize]) - sum.ln()) as f32
    };
    Ok(all.chunks(config.vocab).zip(&tokens[1..]).map(logprob).collect())
}

fn run_layer(
    backend: &CpuBackend,
    store: &dyn WeightStore,
    layer: usize,
    batch: &Batch<'_>,
    x: &mut <CpuBackend as Backend>::Buffer,
) -> Result<(), Box<dyn Error>> {
    use LayerTensor::*;
    let (config, n) = (store.config(), batch.tokens.len());
    let id = |tensor| TensorId::Layer(layer, tensor);
    let kind = match config.layer_kinds[layer] {
        LayerKind::Full => AttentionKind::Full,
        LayerKind::Sliding => AttentionKind::Sliding { window: config.sliding_window },
    };
    let buffer = |width| backend.buffer(n, width);
    let (mut normed, mut update) = (buffer(config.hidden)?, buffer(config.hidden)?);
    let (mut qkv, mut attended) = (buffer(config.qkv_width())?, buffer(config.q_width())?);
    let mut kv = backend.kv(KvShape {
        layers: 1,
        blocks: n.div_ceil(16),
        block_tokens: 16,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        format: KvFormat::F32,
    })?;
    backend.rms_norm(x, n, &vector(backend, store, id(InputNorm))?, config.rms_eps, &mut normed)?;
    let weight = backend.matrix(&qkv_weight(store, layer)?, DenseFormat::Bf16)?;
    backend.linear(&normed, n, &weight, Some(&backend.vector(&qkv_bias(store, layer)?)?), &mut qkv)?;
    let context = AttentionContext { batch, kind, layer: 0, heads: config.heads };
    backend.rope_store(&mut qkv, &config.rope(), &context, &mut kv)?;
    backend.attention(&qkv, &vector(backend, store, id(Sinks))?, &context, &kv, &mut attended)?;
    let bias = vector(backend, store, id(OBias))?;
    backend.linear(&attended, n, &matrix(backend, store, id(OWeight))?, Some(&bias), &mut update)?;
    backend.add(x, n, &update)?;
    backend.rms_norm(x, n, &vector(backend, store, id(PostAttentionNorm))?, config.rms_eps, &mut normed)?;
    let mut routing = backend.routing(n, config.top_k)?;
    let bias = vector(backend, store, id(RouterBias))?;
    backend.route(&normed, n, &matrix(backend, store, id(RouterWeight))?, &bias, &mut routing)?;
    backend.moe(&normed, n, &routing, &experts(backend, store, layer)?, &mut update)?;
    Ok(backend.add(x, n, &update)?)
}

type Experts = <CpuBackend as Backend>::Experts;

fn experts(backend: &CpuBackend, store: &dyn WeightStore, layer: usize) -> Result<Experts, Box<dyn Error>> {
    use LayerTensor::*;
    let config = store.config();
    let tensor = |tensor| store.tensor(TensorId::Layer(layer, tensor));
    let (gate_up_blocks, gate_up_scales, gate_up_bias) =
        (tensor(GateUpBlocks)?, tensor(GateUpScales)?, tensor(GateUpBias)?);
    let (down_blocks, down_scales, down_bias) = (tensor(DownBlocks)?, tensor(DownScales)?, tensor(DownBias)?);
    let shape = ExpertsShape {
        experts: config.experts,
        first: 0,
        total: config.experts,
        hidden: config.hidden,
        intermediate: config.intermediate,
        limit: config.swiglu_limit,
        alpha: config.swiglu_alpha,
    };
    let source = ExpertsSource {
        gate_up_blocks: gate_up_blocks.as_ref(),
        gate_up_scales: gate_up_scales.as_ref(),
        gate_up_bias: gate_up_bias.as_ref(),
        down_blocks: down_blocks.as_ref(),
        down_scales: down_scales.as_ref(),
        down_bias: down_bias.as_ref(),
    };
    Ok(backend.experts(shape, &source)?)
}

type Matrix = <CpuBackend as Backend>::Matrix;

fn matrix(backend: &CpuBackend, store: &dyn WeightStore, id: TensorId) -> Result<Matrix, Box<dyn Error>> {
    Ok(backend.matrix(store.tensor(id)?.as_ref(), DenseFormat::Bf16)?)
}

fn vector(backend: &CpuBackend, store: &dyn WeightStore, id: TensorId) -> Result<Vec<f32>, Box<dyn Error>> {
    Ok(backend.vector(store.tensor(id)?.as_ref())?)
}
