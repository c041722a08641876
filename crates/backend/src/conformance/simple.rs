//! Embedding, norm, sum, gather, transfers.

use super::{
    Suite, assert_close,
    data::{Random, Rows, widen},
};
use crate::{Backend, BackendError, Batch, DenseFormat, Sequence};

pub(super) fn run<B: Backend>(suite: &mut Suite<'_, B>) {
    for (rows, width) in [(1, 32), (3, 320), (17, 96), (2, 2880), (300, 64)] {
        norm(suite, rows, width);
        sum(suite, rows, width);
        gather(suite, rows, width);
    }
    embed(suite, 777, 320);
    embed(suite, 16, 32);
    transfers(suite);
}

pub(super) fn small<B: Backend>(suite: &mut Suite<'_, B>) {
    norm(suite, 3, 320);
    sum(suite, 3, 320);
    gather(suite, 3, 320);
    embed(suite, 16, 32);
}

fn norm<B: Backend>(suite: &mut Suite<'_, B>, rows: usize, width: usize) {
    let mut random = Random(1);
    let x = random.normals(rows * width, 3.0);
    let (source, weight) = Rows::bf16(&random.normals(width, 1.0), width);
    let vector = suite.backend.vector(&source).unwrap();
    let buffer = suite.upload(&x, width);
    let mut out = suite.backend.buffer(rows, width).unwrap();
    suite.backend.rms_norm(&buffer, rows, &vector, 1e-5, &mut out).unwrap();
    let mut want = Vec::new();
    for row in widen(&x).chunks(width) {
        let mean = row.iter().map(|v| v * v).sum::<f64>() / width as f64;
        want.extend(row.iter().zip(&weight).map(|(v, w)| v / (mean + 1e-5).sqrt() * w));
    }
    let got = suite.download(&out, rows, width);
    assert_close(&format!("rms_norm [{rows}, {width}]"), &got, &want, width, suite.tolerance.f32);
}

fn sum<B: Backend>(suite: &mut Suite<'_, B>, rows: usize, width: usize) {
    let mut random = Random(2);
    let (x, y) = (random.normals((rows + 1) * width, 1.0), random.normals((rows + 1) * width, 1.0));
    let (mut to, from) = (suite.upload(&x, width), suite.upload(&y, width));
    suite.backend.add(&mut to, rows, &from).unwrap();
    let got = suite.download(&to, rows + 1, width);
    let mut want = x.clone();
    want.iter_mut().zip(&y).take(rows * width).for_each(|(x, y)| *x += y);
    assert_eq!(got, want, "add [{rows}, {width}], and the row after it untouched");
}

fn gather<B: Backend>(suite: &mut Suite<'_, B>, rows: usize, width: usize) {
    let mut random = Random(3);
    let x = random.normals(rows * width, 1.0);
    let buffer = suite.upload(&x, width);
    let chosen: Vec<usize> = (0..rows + 2).map(|_| random.below(rows)).collect();
    let mut out = suite.backend.buffer(chosen.len(), width).unwrap();
    suite.backend.gather(&buffer, &chosen, &mut out).unwrap();
    let want: Vec<f32> = chosen.iter().flat_map(|r| x[r * width..][..width].to_vec()).collect();
    assert_eq!(suite.download(&out, chosen.len(), width), want, "gather [{rows}, {width}]");
}

fn embed<B: Backend>(suite: &mut Suite<'_, B>, vocabulary: usize, width: usize) {
    let mut random = Random(4);
    let (source, table) = Rows::bf16(&random.normals(vocabulary * width, 1.0), width);
    let matrix = suite.backend.matrix(&source, DenseFormat::Bf16).unwrap();
    let mut tokens: Vec<u32> = (0..9).map(|_| random.below(vocabulary) as u32).collect();
    tokens.extend([0, vocabulary as u32 - 1]);
    let mut out = suite.backend.buffer(tokens.len() + 1, width).unwrap();
    batch_of(&tokens, |batch| {
        suite.backend.begin(batch).unwrap();
        suite.backend.embed(&matrix, batch, &mut out).unwrap();
    });
    let want: Vec<f64> = tokens.iter().flat_map(|t| table[*t as usize * width..][..width].to_vec()).collect();
    let got = suite.download(&out, tokens.len(), width);
    assert_eq!(widen(&got), want, "embed {vocabulary} x {width}");
    batch_of(&[vocabulary as u32], |batch| {
        let refused = suite.backend.begin(batch).and_then(|()| suite.backend.embed(&matrix, batch, &mut out));
        assert!(refused.is_err(), "a token beyond the table");
    });
}

/// The tokens as one sequence that keeps nothing.
pub(super) fn batch_of(tokens: &[u32], each: impl FnOnce(&Batch<'_>)) {
    let sequences = [Sequence { rows: 0..tokens.len(), position: 0, full_blocks: &[], sliding_blocks: &[] }];
    each(&Batch { tokens, sequences: &sequences });
}

fn transfers<B: Backend>(suite: &mut Suite<'_, B>) {
    let mut buffer = suite.backend.buffer(4, 32).unwrap();
    let values: Vec<f32> = (0..64).map(|v| v as f32).collect();
    suite.backend.upload(&mut buffer, 1, &values).unwrap();
    let mut out = vec![0.0; 32];
    suite.backend.download(&buffer, 2, &mut out).unwrap();
    assert_eq!(out, values[32..], "row 2 of what was uploaded from row 1 on");
    assert_eq!(suite.download(&buffer, 4, 32)[96..], [0.0; 32], "new buffers are zero");
    assert!(suite.backend.upload(&mut buffer, 3, &values).is_err(), "an upload past the end");
    suite
        .backend
        .on_host::<BackendError>(&mut buffer, 40, &mut |host| {
            assert_eq!(host[32..], values[..8], "what the host is shown of row 1");
            host.iter_mut().for_each(|v| *v += 0.5);
            Ok(())
        })
        .unwrap();
    let changed: Vec<f32> = values.iter().enumerate().map(|(i, v)| if i < 8 { v + 0.5 } else { *v }).collect();
    assert_eq!(suite.download(&buffer, 3, 32)[32..], changed, "what the host changed, and no more");
    let past = suite.backend.on_host::<BackendError>(&mut buffer, 4 * 32 + 1, &mut |_| Ok(()));
    assert!(past.is_err(), "more values than there are");
}
