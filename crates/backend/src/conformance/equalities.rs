use super::{attention::Case, data::Random, data::Rows, experts::Layer};
use crate::{AttentionKind, Backend, DenseFormat, KvFormat};

/// The equalities of exact mode, to the bit: a row in a batch of strangers gives what it gives alone, and a prompt in
/// chunks what it gives whole, wherever its blocks lie.
pub fn equalities<B: Backend>(backend: &B) {
    for format in DenseFormat::ALL {
        linear(backend, format);
    }
    experts(backend);
    for format in KvFormat::ALL {
        for kind in [AttentionKind::Full, AttentionKind::Sliding { window: 128 }, AttentionKind::Sliding { window: 7 }]
        {
            attention(backend, Case { heads: 16, kv_heads: 2, dim: 32, block_tokens: 16, format, kind, sink: 0.3 });
            attention(backend, Case { heads: 4, kv_heads: 2, dim: 64, block_tokens: 10, format, kind, sink: 0.3 });
        }
    }
}

const ROWS: usize = 21;

fn upload<B: Backend>(backend: &B, values: &[f32], width: usize) -> B::Buffer {
    let mut buffer = backend.buffer(values.len() / width, width).unwrap();
    backend.upload(&mut buffer, 0, values).unwrap();
    buffer
}

fn download<B: Backend>(backend: &B, buffer: &B::Buffer, rows: usize, width: usize) -> Vec<u32> {
    let mut values = vec![0.0; rows * width];
    backend.download(buffer, 0, &mut values).unwrap();
    values.into_iter().map(f32::to_bits).collect()
}

fn linear<B: Backend>(backend: &B, format: DenseFormat) {
    let (features, cols) = (777, 320);
    let mut random = Random(1);
    let matrix = backend.matrix(&Rows::bf16(&random.normals(features * cols, 0.1), cols).0, format).unwrap();
    let x = random.normals(ROWS * cols, 1.0);
    let forward = |x: &[f32]| {
        let rows = x.len() / cols;
        let mut out = backend.buffer(rows, features).unwrap();
        backend.linear(&upload(backend, x, cols), rows, &matrix, None, &mut out).unwrap();
        download(backend, &out, rows, features)
    };
    let whole = forward(&x);
    for row in 0..ROWS {
        let alone = forward(&x[row * cols..][..cols]);
        assert_eq!(alone, whole[row * features..][..features], "linear {format:?}: row {row} alone and in a batch");
    }
}

fn experts<B: Backend>(backend: &B) {
    let layer = Layer::random(8, 96, 64);
    let x = Random(2).normals(ROWS * 96, 1.0);
    let forward = |x: &[f32]| {
        let rows = x.len() / 96;
        let out = layer.forward(backend, &upload(backend, x, 96), rows, 4);
        download(backend, &out, rows, 96)
    };
    let whole = forward(&x);
    for row in 0..ROWS {
        assert_eq!(forward(&x[row * 96..][..96]), whole[row * 96..][..96], "moe: row {row} alone and in a batch");
    }
}

fn attention<B: Backend>(backend: &B, case: Case) {
    let what = format!("{:?} attention, {:?}", case.kind, case.format);
    let (prompt, width, out_width) = (150, (case.heads + 2 * case.kv_heads) * case.dim, case.heads * case.dim);
    let blocks = 46;
    let values = Random(3).normals(prompt * width, 1.0);
    let stranger = Random(4).normals(prompt * width, 1.0);
    let whole = {
        let mut kv = backend.kv(case.shape(blocks)).unwrap();
        let table = case.table(0, 0, prompt, 0, blocks);
        let mut qkv = upload(backend, &values, width);
        let out = case.step(backend, &mut kv, &mut qkv, &[case.sequence(0..prompt, 0, &table)]);
        download(backend, &out, prompt, out_width)
    };
    let mut kv = backend.kv(case.shape(blocks)).unwrap();
    let mut position = 0;
    for rows in [3, 16, 1, 70, 37, 1, 1, 1, 20] {
        // The stranger comes first and is as long.
        let [ours, theirs] = [&values, &stranger].map(|v| &v[position * width..][..rows * width]);
        let mut qkv = upload(backend, &[theirs, ours].concat(), width);
        let tables = [1, 0].map(|which| case.table(0, position, position + rows, which, blocks));
        let sequences = [
            case.sequence(0..rows, position as u32, &tables[0]),
            case.sequence(rows..2 * rows, position as u32, &tables[1]),
        ];
        let out = case.step(backend, &mut kv, &mut qkv, &sequences);
        let got = &download(backend, &out, 2 * rows, out_width)[rows * out_width..];
        let want = &whole[position * out_width..][..rows * out_width];
        assert!(got == want, "{what}: {rows} rows from {position} beside a stranger and whole");
        position += rows;
    }
    assert_eq!(position, prompt);
}
