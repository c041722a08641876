//! RoPE, the KV cache and attention.

use super::{
    Suite, assert_close,
    data::{Random, Rows, widen},
};
use crate::{AttentionContext, AttentionKind, Backend, Batch, KvFormat, KvShape, Rope, Sequence};

pub(super) fn run<B: Backend>(suite: &mut Suite<'_, B>) {
    let sliding = AttentionKind::Sliding { window: 128 };
    for format in KvFormat::ALL {
        for kind in [AttentionKind::Full, sliding, AttentionKind::Sliding { window: 5 }] {
            // A prompt in chunks and then token by token over the window's edge (127 to 131 positions).
            let steps = [&[50, 73][..], &[1; 8]].concat();
            Case { heads: 8, kv_heads: 1, dim: 64, block_tokens: 16, format, kind, sink: 0.5 }.check(suite, 0, &steps);
            Case { heads: 4, kv_heads: 2, dim: 32, block_tokens: 32, format, kind, sink: 0.5 }.check(
                suite,
                0,
                &[40, 1, 3],
            );
            Case { heads: 6, kv_heads: 2, dim: 16, block_tokens: 5, format, kind, sink: 0.5 }.check(
                suite,
                0,
                &[1, 21, 1],
            );
        }
        Case { heads: 64, kv_heads: 8, dim: 64, block_tokens: 16, format, kind: sliding, sink: 0.0 }.check(
            suite,
            0,
            &[9, 1],
        );
        // Far out, where a cosine needs full range reduction; everything before the window is stale.
        for position in [1000, 131_000] {
            Case { heads: 8, kv_heads: 1, dim: 64, block_tokens: 16, format, kind: sliding, sink: 0.5 }.check(
                suite,
                position,
                &[30, 1],
            );
        }
        for sink in [60.0, -60.0] {
            Case { heads: 8, kv_heads: 1, dim: 64, block_tokens: 16, format, kind: AttentionKind::Full, sink }.check(
                suite,
                0,
                &[17],
            );
        }
        copied_blocks(suite, format);
    }
    for (dim, block_tokens) in [(64, 16), (32, 10)] {
        stored_fp8(suite, dim, block_tokens);
    }
}

/// A prompt of more keys than a pipeline holds, then single rows, split and not; a shape that has kernels of its own.
pub(super) fn small<B: Backend>(suite: &mut Suite<'_, B>) {
    for format in [KvFormat::Bf16, KvFormat::Fp8] {
        for kind in [AttentionKind::Full, AttentionKind::Sliding { window: 128 }] {
            let case = Case { heads: 8, kv_heads: 1, dim: 64, block_tokens: 16, format, kind, sink: 0.5 };
            case.check(suite, 0, &[210, 1, 1]);
        }
        let kind = AttentionKind::Full;
        Case { heads: 4, kv_heads: 2, dim: 32, block_tokens: 32, format, kind, sink: 0.5 }.check(suite, 0, &[40, 1]);
        copied_blocks(suite, format);
    }
}

/// One layer of attention.
#[derive(Clone, Copy)]
pub(super) struct Case {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    pub(super) dim: usize,
    pub(super) block_tokens: usize,
    pub(super) format: KvFormat,
    pub(super) kind: AttentionKind,
    /// Mean of the sinks.
    pub(super) sink: f32,
}

/// A stale entry of a block table.
const STALE: u32 = u32::MAX;
const LAYERS: usize = 2;
const LAYER: usize = 1;

impl Case {
    fn width(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.dim
    }

    pub(super) fn shape(&self, blocks: usize) -> KvShape {
        let Case { block_tokens, kv_heads, dim: head_dim, format, .. } = *self;
        KvShape { layers: LAYERS, blocks, block_tokens, kv_heads, head_dim, format }
    }

    pub(super) fn rope(&self) -> Rope {
        let half = self.dim / 2;
        let inv_freq = (0..half).map(|j| 150_000_f32.powf(-(j as f32) / half as f32)).collect();
        Rope { inv_freq, scale: 1.346_573_6 }
    }

    pub(super) fn sinks(&self) -> (Rows, Vec<f64>) {
        let noise = Random(77).normals(self.heads, 0.5);
        Rows::bf16(&noise.iter().map(|n| n + self.sink).collect::<Vec<_>>(), self.heads)
    }

    /// First position seen from `position`.
    fn first_seen(&self, position: usize) -> usize {
        match self.kind {
            AttentionKind::Full => 0,
            AttentionKind::Sliding { window } => (position + 1).saturating_sub(window),
        }
    }

    /// A block table for positions up to `end`, permuted, stale before the window of `position`, using only blocks
    /// congruent `which` modulo 2.
    pub(super) fn table(&self, start: usize, position: usize, end: usize, which: usize, blocks: usize) -> Vec<u32> {
        let begin = self.first_seen(start) / self.block_tokens;
        let entry = |i: usize| if i < begin { STALE } else { (2 * ((i * 7 + 3) % (blocks / 2)) + which) as u32 };
        let mut table: Vec<u32> = (0..end.div_ceil(self.block_tokens)).map(entry).collect();
        table[..self.first_seen(position) / self.block_tokens].fill(STALE);
        table
    }

    /// Runs one step over rows of qkv and gives back the output buffer.
    pub(super) fn step<B: Backend>(
        &self,
        backend: &B,
        kv: &mut B::Kv,
        qkv: &mut B::Buffer,
        sequences: &[Sequence<'_>],
    ) -> B::Buffer {
        let rows = sequences.last().unwrap().rows.end;
        let batch = Batch { tokens: &vec![0; rows], sequences };
        let context = AttentionContext { batch: &batch, kind: self.kind, layer: LAYER, heads: self.heads };
        let sinks = backend.vector(&self.sinks().0).unwrap();
        let mut out = backend.buffer(rows, self.heads * self.dim).unwrap();
        backend.begin(&batch).unwrap();
        backend.rope_store(qkv, &self.rope(), &context, kv).unwrap();
        backend.attention(qkv, &sinks, &context, kv, &mut out).unwrap();
        out
    }

    /// Two sequences side by side, the second three positions ahead, through steps of the given numbers of rows each.
    fn check<B: Backend>(self, suite: &mut Suite<'_, B>, start: usize, steps: &[usize]) {
        let what = format!(
            "{:?} attention, {} heads over {} of {}, {:?}, blocks of {}, from {start}, sink {}",
            self.kind, self.heads, self.kv_heads, self.dim, self.format, self.block_tokens, self.sink
        );
        // More blocks than either table has entries, so that the permutation repeats none; 7 must not divide half of it.
        let mut half = (steps.iter().sum::<usize>() + 130 + 2 * self.block_tokens) / self.block_tokens + 8;
        half += usize::from(half.is_multiple_of(7));
        let mut kv = suite.backend.kv(self.shape(2 * half)).unwrap();
        let mut references = [Reference::new(self, start), Reference::new(self, start + 3)];
        let mut positions = [start, start + 3];
        let mut random = Random(start as u64 + 11);
        for &rows in steps {
            let values = random.normals(2 * rows * self.width(), 1.0);
            let mut qkv = suite.upload(&values, self.width());
            let tables: Vec<_> =
                (0..2).map(|s| self.table(start + 3 * s, positions[s], positions[s] + rows, s, 2 * half)).collect();
            let sequences: Vec<_> =
                (0..2).map(|s| self.sequence(s * rows..(s + 1) * rows, positions[s] as u32, &tables[s])).collect();
            let out = self.step(suite.backend, &mut kv, &mut qkv, &sequences);
            let mut want = Vec::new();
            for (s, reference) in references.iter_mut().enumerate() {
                want.extend(reference.step(&widen(&values[s * rows * self.width()..][..rows * self.width()])));
                positions[s] += rows;
            }
            let got = suite.download(&out, 2 * rows, self.heads * self.dim);
            let tolerance = match self.format {
                KvFormat::F32 => suite.tolerance.attention_f32,
                KvFormat::Bf16 | KvFormat::Fp8 => suite.tolerance.attention_bf16,
            };
            // A dominant sink leaves next to nothing: exp(-60) of the values.
            assert_close(&what, &got, &want, self.heads * self.dim, tolerance);
        }
    }

    pub(super) fn sequence<'a>(&self, rows: std::ops::Range<usize>, position: u32, table: &'a [u32]) -> Sequence<'a> {
        // The other table must not be touched.
        match self.kind {
            AttentionKind::Full => Sequence { rows, position, full_blocks: table, sliding_blocks: &[] },
            AttentionKind::Sliding { .. } => Sequence { rows, position, full_blocks: &[], sliding_blocks: table },
        }
    }
}

/// One sequence in f64. Positions before the first step hold zeroes, as in a new pool.
struct Reference {
    case: Case,
    position: usize,
    /// `[positions from the first seen][kv heads * dim]`, keys and values.
    cache: Vec<(Vec<f64>, Vec<f64>)>,
    /// Position of the cache's first entry.
    first: usize,
}

impl Reference {
    fn new(case: Case, position: usize) -> Self {
        let first = case.first_seen(position);
        let zero = vec![0.0; case.kv_heads * case.dim];
        Self { case, position, cache: vec![(zero.clone(), zero); position - first], first }
    }

    fn step(&mut self, qkv: &[f64]) -> Vec<f64> {
        let Case { heads, kv_heads, dim, .. } = self.case;
        let mut out = Vec::new();
        for row in qkv.chunks(self.case.width()) {
            let mut row = row.to_vec();
            for head in row[..(heads + kv_heads) * dim].chunks_mut(dim) {
                self.rotate(head);
            }
            let (q, kv) = row.split_at(heads * dim);
            let (k, v) = kv.split_at(kv_heads * dim);
            self.cache.push((self.round(k), self.round(v)));
            let sinks = self.case.sinks().1;
            for (h, sink) in sinks.iter().enumerate() {
                out.extend(self.attend(&q[h * dim..][..dim], h / (heads / kv_heads) * dim, *sink));
            }
            self.position += 1;
        }
        out
    }

    fn rotate(&self, head: &mut [f64]) {
        let rope = self.case.rope();
        let half = head.len() / 2;
        for j in 0..half {
            let angle = f64::from(self.position as f32 * rope.inv_freq[j]);
            let (sin, cos) = (angle.sin() * f64::from(rope.scale), angle.cos() * f64::from(rope.scale));
            let (a, b) = (head[j], head[j + half]);
            (head[j], head[j + half]) = (a * cos - b * sin, b * cos + a * sin);
        }
    }

    fn round(&self, values: &[f64]) -> Vec<f64> {
        let round = |v: &f64| match self.case.format {
            KvFormat::F32 => f64::from(*v as f32),
            KvFormat::Bf16 => half::bf16::from_f32(*v as f32).to_f64(),
            KvFormat::Fp8 => round_e4m3(f64::from(*v as f32)),
        };
        values.iter().map(round).collect()
    }

    fn attend(&self, q: &[f64], at: usize, sink: f64) -> Vec<f64> {
        let dim = q.len();
        let seen = &self.cache[self.case.first_seen(self.position) - self.first..];
        let score = |k: &[f64]| q.iter().zip(&k[at..]).map(|(q, k)| q * k).sum::<f64>() / (dim as f64).sqrt();
        let scores: Vec<f64> = seen.iter().map(|(k, _)| score(k)).collect();
        let max = scores.iter().fold(sink, |m, s| m.max(*s));
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum::<f64>() + (sink - max).exp();
        let mut out = vec![0.0; dim];
        for (score, (_, v)) in scores.iter().zip(seen) {
            let weight = (score - max).exp() / total;
            out.iter_mut().zip(&v[at..]).for_each(|(o, v)| *o += weight * v);
        }
        out
    }
}

/// Rounds to E4M3: three bits of mantissa, exponents from -6, at most 448.
fn round_e4m3(x: f64) -> f64 {
    let step = (x.abs().log2().floor().max(-6.0) - 3.0).exp2();
    ((x / step).round_ties_even() * step).clamp(-448.0, 448.0)
}

/// Where a row sees itself alone and no sink, its result is its value as the cache holds it; stored one by one or together.
fn stored_fp8<B: Backend>(suite: &mut Suite<'_, B>, dim: usize, block_tokens: usize) {
    const ROWS: usize = 20;
    let (kind, format) = (AttentionKind::Sliding { window: 1 }, KvFormat::Fp8);
    let case = Case { heads: 8, kv_heads: 2, dim, block_tokens, format, kind, sink: -60.0 };
    let (group, blocks) = (case.heads / case.kv_heads, 2 * ROWS.div_ceil(block_tokens) + 2);
    let values: Vec<Vec<f32>> = (0..ROWS).map(|row| fp8_values(row, case.kv_heads * dim)).collect();
    for chunk in [1, ROWS] {
        let mut kv = suite.backend.kv(case.shape(blocks)).unwrap();
        for start in (0..ROWS).step_by(chunk) {
            let queries_and_keys = vec![0.0; (case.heads + case.kv_heads) * dim];
            let rows = values[start..start + chunk].iter().flat_map(|v| [&queries_and_keys, v].map(Vec::as_slice));
            let mut qkv = suite.upload(&rows.collect::<Vec<_>>().concat(), case.width());
            let table = case.table(0, start, start + chunk, 0, blocks);
            let sequence = case.sequence(0..chunk, start as u32, &table);
            let out = case.step(suite.backend, &mut kv, &mut qkv, &[sequence]);
            let got = suite.download(&out, chunk, case.heads * dim);
            for (i, got) in got.iter().enumerate() {
                let (row, head) = (start + i / (case.heads * dim), i / dim % case.heads);
                let want = round_e4m3(f64::from(values[row][head / group * dim + i % dim]));
                let error = (f64::from(*got) - want).abs();
                assert!(error <= 1e-6 * want.abs(), "FP8, width {dim}, row {row}: {got} where {want} is stored");
            }
        }
    }
}

/// Magnitudes from below the least to above the largest, row by row; some halfway between two.
fn fp8_values(row: usize, len: usize) -> Vec<f32> {
    let (scale, mut random) = (2_f32.powi(row as i32 - 10), Random(row as u64));
    (0..len).map(|i| scale * if i % 4 == 0 { (i as f32 + 1.0) / 16.0 } else { random.normal() }).collect()
}

/// A sequence continued from copied blocks gives the same bits.
fn copied_blocks<B: Backend>(suite: &mut Suite<'_, B>, format: KvFormat) {
    let case = Case { heads: 8, kv_heads: 1, dim: 64, block_tokens: 16, format, kind: AttentionKind::Full, sink: 0.0 };
    let mut kv = suite.backend.kv(case.shape(8)).unwrap();
    let mut random = Random(21);
    let mut qkv = suite.upload(&random.normals(33 * case.width(), 1.0), case.width());
    case.step(suite.backend, &mut kv, &mut qkv, &[case.sequence(0..33, 0, &[5, 2, 7])]);
    suite.backend.copy_blocks(&mut kv, &[(5, 0), (7, 1), (0, 3)]).unwrap();
    let last = random.normals(case.width(), 1.0);
    let mut results = Vec::new();
    for table in [[5, 2, 7], [0, 2, 1], [3, 2, 1]] {
        let mut qkv = suite.upload(&last, case.width());
        let out = case.step(suite.backend, &mut kv, &mut qkv, &[case.sequence(0..1, 33, &table)]);
        results.push(suite.download(&out, 1, case.heads * case.dim));
    }
    assert_eq!(results[0], results[1], "attention over copied blocks");
    assert_eq!(results[0], results[2], "attention over blocks copied in a chain, in order");
    assert!(suite.backend.copy_blocks(&mut kv, &[(0, 8)]).is_err(), "a copy to a block that does not exist");
}
