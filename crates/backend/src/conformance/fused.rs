//! Operations that follow one another, as one, against the same one by one.

use super::{
    Suite, assert_close,
    attention::Case,
    data::{Random, Rows, widen},
    experts::Layer,
};
use crate::{AttentionContext, AttentionKind, Backend, Batch, DenseFormat, KvFormat};

pub(super) fn run<B: Backend>(suite: &mut Suite<'_, B>) {
    for format in DenseFormat::ALL {
        for n in [1, 2, 7, 8, 9, 40] {
            norm_linear_add(suite, format, n);
        }
    }
    for n in [1, 5, 8, 9, 33] {
        norm_route_moe(suite, n);
    }
    for kind in [AttentionKind::Full, AttentionKind::Sliding { window: 128 }] {
        // Steps of decoding over a window's edge and far enough for several splits; two prompts beside each other.
        for format in [KvFormat::Bf16, KvFormat::Fp8] {
            decode(suite, kind, format);
        }
    }
}

pub(super) fn small<B: Backend>(suite: &mut Suite<'_, B>) {
    for format in DenseFormat::ALL {
        [1, 8, 40].into_iter().for_each(|n| norm_linear_add(suite, format, n));
    }
    [1, 5, 33].into_iter().for_each(|n| norm_route_moe(suite, n));
}

const EPS: f32 = 1e-5;

fn norm_linear_add<B: Backend>(suite: &mut Suite<'_, B>, format: DenseFormat, n: usize) {
    let (cols, features) = (320, 336);
    let mut random = Random(n as u64);
    let weights = Rows::bf16(&random.normals(features * cols, 0.05), cols).0;
    let matrix = suite.backend.matrix(&weights, format).unwrap();
    let bias = suite.backend.vector(&Rows::bf16(&random.normals(features, 0.1), features).0).unwrap();
    let norm = suite.backend.vector(&Rows::bf16(&random.normals(cols, 1.0), cols).0).unwrap();
    let x = suite.upload(&random.normals(n * cols, 3.0), cols);
    let start = random.normals(n * features, 1.0);
    let buffer = |width| suite.backend.buffer(n, width).unwrap();
    let (mut between, mut want, mut got) =
        (buffer(cols), suite.upload(&start, features), suite.upload(&start, features));
    let (mut update, mut out) = (buffer(features), buffer(features));
    let backend = suite.backend;

    backend.rms_norm(&x, n, &norm, EPS, &mut between).unwrap();
    backend.linear(&between, n, &matrix, Some(&bias), &mut update).unwrap();
    backend.norm_linear(&x, n, (&norm, EPS), &matrix, Some(&bias), &mut between, &mut out).unwrap();
    let expected = widen(&suite.read(&update, n, features));
    let what = format!("norm and linear {format:?}, {n} rows");
    assert_close(&what, &suite.read(&out, n, features), &expected, features, suite.tolerance.linear);

    backend.linear(&x, n, &matrix, Some(&bias), &mut update).unwrap();
    backend.add(&mut want, n, &update).unwrap();
    backend.linear_add(&x, n, &matrix, Some(&bias), &mut update, &mut got).unwrap();
    let expected = widen(&suite.read(&want, n, features));
    let what = format!("linear and sum {format:?}, {n} rows");
    assert_close(&what, &suite.read(&got, n, features), &expected, features, suite.tolerance.linear);
}

fn norm_route_moe<B: Backend>(suite: &mut Suite<'_, B>, n: usize) {
    const HIDDEN: usize = 96;
    const TOP_K: usize = 4;
    let layer = Layer::random(8, HIDDEN, 64);
    let mut random = Random(n as u64);
    let norm = suite.backend.vector(&Rows::bf16(&random.normals(HIDDEN, 1.0), HIDDEN).0).unwrap();
    let x = random.normals(n * HIDDEN, 3.0);
    let (x, mut want, mut got) = (suite.upload(&x, HIDDEN), suite.upload(&x, HIDDEN), suite.upload(&x, HIDDEN));
    let backend = suite.backend;
    let buffer = || backend.buffer(n, HIDDEN).unwrap();
    let (mut normed, mut update) = (buffer(), buffer());

    backend.rms_norm(&x, n, &norm, EPS, &mut normed).unwrap();
    let y = layer.forward(backend, &normed, n, TOP_K);
    backend.add(&mut want, n, &y).unwrap();

    let (router, bias) = layer.router(backend);
    let mut routing = backend.routing(n, TOP_K).unwrap();
    backend.norm_route(&x, n, (&norm, EPS), &router, &bias, &mut normed, &mut routing).unwrap();
    let experts = layer.load(backend).unwrap();
    backend.moe_add(&normed, n, &routing, &experts, &mut update, &mut got).unwrap();
    let expected = widen(&suite.read(&want, n, HIDDEN));
    let what = format!("norm, router, experts and sum, {n} rows");
    assert_close(&what, &suite.read(&got, n, HIDDEN), &expected, HIDDEN, suite.tolerance.moe);
}

fn decode<B: Backend>(suite: &mut Suite<'_, B>, kind: AttentionKind, format: KvFormat) {
    let case = Case { heads: 16, kv_heads: 2, dim: 64, block_tokens: 16, format, kind, sink: 0.3 };
    let (backend, blocks, width) = (suite.backend, 64, 20 * 64);
    let mut random = Random(5);
    let mut pools = [backend.kv(case.shape(blocks)).unwrap(), backend.kv(case.shape(blocks)).unwrap()];
    let sinks = backend.vector(&case.sinks().0).unwrap();
    let mut position = 0;
    for rows in [90, 36, 1, 1, 1, 1, 1, 150, 1, 100, 1] {
        let values = random.normals(2 * rows * width, 1.0);
        let tables = [0, 1].map(|which| case.table(0, position, position + rows, which, blocks));
        let sequences = [
            case.sequence(0..rows, position as u32, &tables[0]),
            case.sequence(rows..2 * rows, position as u32, &tables[1]),
        ];
        let tokens = vec![0; 2 * rows];
        let batch = Batch { tokens: &tokens, sequences: &sequences };
        let context = AttentionContext { batch: &batch, kind, layer: 1, heads: case.heads };
        backend.begin(&batch).unwrap();
        let outs = [false, true].map(|fused| {
            let mut qkv = suite.upload(&values, width);
            let mut out = backend.buffer(2 * rows, case.heads * case.dim).unwrap();
            let kv = &mut pools[usize::from(fused)];
            if fused {
                backend.rope_attention(&mut qkv, &case.rope(), &sinks, &context, kv, &mut out).unwrap();
            } else {
                backend.rope_store(&mut qkv, &case.rope(), &context, kv).unwrap();
                backend.attention(&qkv, &sinks, &context, kv, &mut out).unwrap();
            }
            out
        });
        let [want, got] = outs.map(|out| suite.read(&out, 2 * rows, case.heads * case.dim));
        let what = format!("rotation, storing and {kind:?} attention, {format:?}, {rows} rows from {position}");
        assert_close(&what, &got, &widen(&want), case.heads * case.dim, suite.tolerance.attention_bf16);
        position += rows;
    }
}
