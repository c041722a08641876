//! Router and experts.

use std::collections::BTreeSet;

use super::{
    Suite, assert_close,
    data::{Random, Rows, multiply, widen},
};
use crate::{Backend, Batch, DenseFormat, ExpertCount, ExpertsShape, ExpertsSource, Sequence};

pub(super) fn run<B: Backend>(suite: &mut Suite<'_, B>) {
    ties(suite);
    for (experts, hidden, intermediate) in [(4, 32, 32), (8, 96, 64), (32, 256, 192), (5, 320, 160)] {
        let layer = Layer::random(experts, hidden, intermediate);
        for n in [1, 2, 5, 9, 40] {
            let x = Random(n as u64).normals(n * hidden, 1.0);
            layer.check(suite, &x, n, experts.min(4), &format!("moe {experts} x {hidden} x {intermediate}, {n} rows"));
        }
    }
    let layer = Layer::random(4, 64, 64).with_one_expert(2);
    for n in [3, 70] {
        let x = Random(7).normals(n * 64, 1.0);
        layer.check(suite, &x, n, 1, &format!("moe, all {n} rows on one expert"));
    }
    let x = Random(8).normals(4096 * 32, 1.0);
    Layer::random(4, 32, 32).check(suite, &x, 4096, 2, "moe, 4096 rows");
    shards(suite);
    counts(suite);
    clamps(suite);
    extreme_scales(suite);
    bad_scale(suite);
}

/// Rows for one token, several, and each tile of many rows; more rows than the router's kernel for few takes.
pub(super) fn small<B: Backend>(suite: &mut Suite<'_, B>) {
    for (layer, batches) in [(Layer::random(5, 320, 160), &[1, 5, 9, 40, 70][..]), (Layer::random(4, 64, 32), &[130])] {
        let hidden = layer.shape.hidden;
        for &n in batches {
            let x = Random(n as u64).normals(n * hidden, 1.0);
            layer.check(suite, &x, n, 4, &format!("moe of width {hidden}, {n} rows"));
        }
    }
}

/// Values of the E2M1 codes.
const E2M1: [f64; 16] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0];

/// One layer's router and experts, as bytes and as numbers.
pub(super) struct Layer {
    shape: ExpertsShape,
    router: Vec<f32>,
    router_bias: Vec<f32>,
    gate_up: Mxfp4,
    gate_up_bias: Vec<f32>,
    down: Mxfp4,
    down_bias: Vec<f32>,
}

struct Mxfp4 {
    cols: usize,
    blocks: Vec<u8>,
    scales: Vec<u8>,
}

impl Mxfp4 {
    fn random(random: &mut Random, rows: usize, cols: usize, scales: std::ops::Range<usize>) -> Self {
        let blocks = (0..rows * cols / 2).map(|_| random.next() as u8).collect();
        let scales = (0..rows * cols / 32).map(|_| (scales.start + random.below(scales.len())) as u8).collect();
        Self { cols, blocks, scales }
    }

    /// By the specification: low nibble first, `LUT[nibble] · 2^(scale - 127)`.
    fn dequantise(&self) -> Vec<f64> {
        let nibble = |i: usize| self.blocks[i / 2] >> (4 * (i % 2)) & 15;
        let scale = |i: usize| 2.0_f64.powi(i32::from(self.scales[i / 32]) - 127);
        (0..self.blocks.len() * 2).map(|i| E2M1[usize::from(nibble(i))] * scale(i)).collect()
    }

    fn sources(&self) -> (Rows, Rows) {
        let blocks = Rows { row_bytes: self.cols / 2, bytes: self.blocks.clone() };
        (blocks, Rows { row_bytes: self.cols / 32, bytes: self.scales.clone() })
    }
}

impl Layer {
    pub(super) fn random(experts: usize, hidden: usize, intermediate: usize) -> Self {
        let mut random = Random((experts * hidden + intermediate) as u64);
        let shape = ExpertsShape { experts, first: 0, total: experts, hidden, intermediate, limit: 7.0, alpha: 1.702 };
        Self {
            router: random.normals(experts * hidden, 0.3),
            router_bias: random.normals(experts, 0.5),
            gate_up: Mxfp4::random(&mut random, experts * 2 * intermediate, hidden, 121..127),
            gate_up_bias: random.normals(experts * 2 * intermediate, 1.0),
            down: Mxfp4::random(&mut random, experts * hidden, intermediate, 120..126),
            down_bias: random.normals(experts * hidden, 0.2),
            shape,
        }
    }

    pub(super) fn with_one_expert(mut self, expert: usize) -> Self {
        self.router_bias[expert] = 1000.0;
        self
    }

    /// Only the bias chooses: activations at the ends of f32 would overflow.
    pub(super) fn without_router(&mut self) {
        self.router.fill(0.0);
    }

    pub(super) fn hidden(&self) -> usize {
        self.shape.hidden
    }

    /// The router's weights and bias.
    pub(super) fn router<B: Backend>(&self, backend: &B) -> (B::Matrix, B::Vector) {
        let (router, _) = Rows::bf16(&self.router, self.shape.hidden);
        let (bias, _) = Rows::bf16(&self.router_bias, self.shape.total);
        (backend.matrix(&router, DenseFormat::Bf16).unwrap(), backend.vector(&bias).unwrap())
    }

    fn route<B: Backend>(&self, backend: &B, x: &B::Buffer, n: usize, top_k: usize) -> B::Routing {
        let (router, bias) = self.router(backend);
        let mut routing = backend.routing(n, top_k).unwrap();
        backend.route(x, n, &router, &bias, &mut routing).unwrap();
        routing
    }

    pub(super) fn load<B: Backend>(&self, backend: &B) -> Result<B::Experts, crate::BackendError> {
        let (gate_up_blocks, gate_up_scales) = self.gate_up.sources();
        let (down_blocks, down_scales) = self.down.sources();
        let (gate_up_bias, _) = Rows::bf16(&self.gate_up_bias, 2 * self.shape.intermediate);
        let (down_bias, _) = Rows::bf16(&self.down_bias, self.shape.hidden);
        let source = ExpertsSource {
            gate_up_blocks: &gate_up_blocks,
            gate_up_scales: &gate_up_scales,
            gate_up_bias: &gate_up_bias,
            down_blocks: &down_blocks,
            down_scales: &down_scales,
            down_bias: &down_bias,
        };
        backend.experts(self.shape, &source)
    }

    /// The same router before some of the experts.
    fn holding(&self, held: std::ops::Range<usize>) -> Self {
        let ExpertsShape { hidden, intermediate, .. } = self.shape;
        let some = |values: &[f32], of_one: usize| values[held.start * of_one..held.end * of_one].to_vec();
        let matrices = |from: &Mxfp4, rows: usize| {
            let bytes = |all: &[u8], of_one: usize| all[held.start * of_one..held.end * of_one].to_vec();
            let (blocks, scales) = (rows * from.cols / 2, rows * from.cols / 32);
            Mxfp4 { cols: from.cols, blocks: bytes(&from.blocks, blocks), scales: bytes(&from.scales, scales) }
        };
        Self {
            shape: ExpertsShape { experts: held.len(), first: held.start, ..self.shape },
            router: self.router.clone(),
            router_bias: self.router_bias.clone(),
            gate_up: matrices(&self.gate_up, 2 * intermediate),
            gate_up_bias: some(&self.gate_up_bias, 2 * intermediate),
            down: matrices(&self.down, hidden),
            down_bias: some(&self.down_bias, hidden),
        }
    }

    /// Routes and runs `n` rows.
    pub(super) fn forward<B: Backend>(&self, backend: &B, x: &B::Buffer, n: usize, top_k: usize) -> B::Buffer {
        let routing = self.route(backend, x, n, top_k);
        let experts = self.load(backend).unwrap();
        let mut out = backend.buffer(n, self.shape.hidden).unwrap();
        backend.moe(x, n, &routing, &experts, &mut out).unwrap();
        out
    }

    fn check<B: Backend>(&self, suite: &mut Suite<'_, B>, x: &[f32], n: usize, top_k: usize, what: &str) {
        let buffer = suite.upload(x, self.shape.hidden);
        let out = self.forward(suite.backend, &buffer, n, top_k);
        let got = suite.download(&out, n, self.shape.hidden);
        let want = self.reference(&widen(x), top_k);
        assert_close(what, &got, &want, self.shape.hidden, suite.tolerance.moe);
    }

    /// The same in f64, one row and one expert at a time.
    pub(super) fn reference(&self, x: &[f64], top_k: usize) -> Vec<f64> {
        self.reference_rounding(x, top_k, &|_| {}, &|_| {})
    }

    /// With what each of the two products reads rounded.
    pub(super) fn reference_rounding(
        &self,
        x: &[f64],
        top_k: usize,
        round_x: &dyn Fn(&mut [f64]),
        round_z: &dyn Fn(&mut [f64]),
    ) -> Vec<f64> {
        let ExpertsShape { hidden, intermediate, .. } = self.shape;
        let router = Rows::bf16(&self.router, hidden).1;
        let router_bias = Rows::bf16(&self.router_bias, self.shape.experts).1;
        let (gate_up, down) = (self.gate_up.dequantise(), self.down.dequantise());
        let gate_up_bias = Rows::bf16(&self.gate_up_bias, hidden).1;
        let down_bias = Rows::bf16(&self.down_bias, hidden).1;
        let mut out = Vec::new();
        for row in x.chunks(hidden) {
            let mut y = vec![0.0; hidden];
            let mut input = row.to_vec();
            round_x(&mut input);
            for (e, weight) in choose(&multiply(row, &router, Some(&router_bias), hidden), top_k) {
                let (first, rows) = (e * 2 * intermediate, 2 * intermediate);
                let bias = &gate_up_bias[first..first + rows];
                let h = multiply(&input, &gate_up[first * hidden..][..rows * hidden], Some(bias), hidden);
                let mut z: Vec<f64> = h.chunks(2).map(|h| self.swiglu(h[0], h[1])).collect();
                round_z(&mut z);
                let weights = &down[e * hidden * intermediate..][..hidden * intermediate];
                let bias = &down_bias[e * hidden..][..hidden];
                let part = multiply(&z, weights, Some(bias), intermediate);
                y.iter_mut().zip(part).for_each(|(y, p)| *y += weight * p);
            }
            out.extend(y);
        }
        out
    }

    /// How many different experts the rows choose.
    fn distinct(&self, x: &[f64], top_k: usize) -> u64 {
        let hidden = self.shape.hidden;
        let (router, bias) = (Rows::bf16(&self.router, hidden).1, Rows::bf16(&self.router_bias, self.shape.experts).1);
        let chosen = |row: &[f64]| choose(&multiply(row, &router, Some(&bias), hidden), top_k);
        let all: BTreeSet<usize> = x.chunks(hidden).flat_map(chosen).map(|(expert, _)| expert).collect();
        all.len() as u64
    }

    fn swiglu(&self, gate: f64, up: f64) -> f64 {
        let limit = f64::from(self.shape.limit);
        let a = gate.min(limit);
        let sigmoid = 1.0 / (1.0 + (-f64::from(self.shape.alpha) * a).exp());
        // Far below zero the product of a huge number and an underflow is zero.
        let gated = if sigmoid == 0.0 { 0.0 } else { a * sigmoid };
        gated * (up.clamp(-limit, limit) + 1.0)
    }
}

/// The `k` largest, lowest index first on a tie, with the softmax over them.
fn choose(logits: &[f64], k: usize) -> Vec<(usize, f64)> {
    let mut order: Vec<usize> = (0..logits.len()).collect();
    order.sort_by(|a, b| logits[*b].total_cmp(&logits[*a]).then(a.cmp(b)));
    order.truncate(k);
    let total: f64 = order.iter().map(|e| (logits[*e] - logits[order[0]]).exp()).sum();
    order.iter().map(|e| (*e, (logits[*e] - logits[order[0]]).exp() / total)).collect()
}

/// Experts 1, 3, 4 and 6 tie for the second place: 1, 3 and 4 are taken.
fn ties<B: Backend>(suite: &mut Suite<'_, B>) {
    let mut layer = Layer::random(8, 64, 32);
    let row = layer.router[..64].to_vec();
    for e in 0..8 {
        layer.router[e * 64..][..64].copy_from_slice(&row);
        layer.router_bias[e] = [-1.0, 0.25, -1.0, 0.25, 0.25, 0.5, 0.25, -2.0][e];
    }
    let x = Random(5).normals(3 * 64, 1.0);
    layer.check(suite, &x, 3, 4, "moe with tied experts");
}

/// Experts shared out among three add up to all of them, also for rows of which one holds none.
fn shards<B: Backend>(suite: &mut Suite<'_, B>) {
    const HIDDEN: usize = 96;
    let layer = Layer::random(8, HIDDEN, 64);
    for n in [1, 2, 9, 40] {
        let x = Random(n as u64).normals(n * HIDDEN, 1.0);
        let buffer = suite.upload(&x, HIDDEN);
        let mut sum = suite.backend.buffer(n, HIDDEN).unwrap();
        for held in [0..3, 3..4, 4..8] {
            let part = layer.holding(held);
            let out = part.forward(suite.backend, &buffer, n, 2);
            suite.backend.add(&mut sum, n, &out).unwrap();
        }
        let got = suite.download(&sum, n, HIDDEN);
        let want = layer.reference(&widen(&x), 2);
        assert_close(&format!("experts of three shards, {n} rows"), &got, &want, HIDDEN, suite.tolerance.moe);
    }
}

/// The different experts of steps of single rows are counted where that is asked for, those of prompts never.
fn counts<B: Backend>(suite: &mut Suite<'_, B>) {
    let (layer, top_k) = (Layer::random(32, 64, 32), 4);
    let mut want = ExpertCount::default();
    suite.backend.count_experts(true).unwrap();
    for n in [1, 3, 8, 9, 40] {
        let x = Random(n as u64 + 20).normals(n * 64, 1.0);
        let buffer = suite.upload(&x, 64);
        for single in [true, false] {
            let each = if single { 1 } else { n };
            let rows = |i| i * each..(i + 1) * each;
            let sequence = |i| Sequence { rows: rows(i), position: 0, full_blocks: &[], sliding_blocks: &[] };
            let sequences: Vec<Sequence<'_>> = (0..n / each).map(sequence).collect();
            suite.backend.begin(&Batch { tokens: &vec![0; n], sequences: &sequences }).unwrap();
            layer.forward(suite.backend, &buffer, n, top_k);
            if single || n == 1 {
                want += ExpertCount { layers: 1, distinct: layer.distinct(&widen(&x), top_k) };
            }
        }
    }
    assert_eq!(suite.backend.experts_counted().unwrap(), want, "different experts chosen");
    suite.backend.count_experts(false).unwrap();
    let x = suite.upload(&[1.0; 64], 64);
    layer.forward(suite.backend, &x, 1, top_k);
    assert_eq!(suite.backend.experts_counted().unwrap(), ExpertCount::default(), "counted though nobody asked");
}

/// Gates far below -7 and above 7, ups beyond both limits.
fn clamps<B: Backend>(suite: &mut Suite<'_, B>) {
    let mut layer = Layer::random(4, 64, 64);
    for (i, bias) in layer.gate_up_bias.iter_mut().enumerate() {
        *bias = if i % 2 == 0 { [-30.0, -7.5, 7.5, 30.0, -200.0][i / 2 % 5] } else { [9.0, -9.0, 0.0][i / 2 % 3] };
    }
    let x = Random(6).normals(6 * 64, 0.3);
    layer.check(suite, &x, 6, 3, "moe with gates and ups beyond their limits");
}

fn extreme_scales<B: Backend>(suite: &mut Suite<'_, B>) {
    for (layer, x, what) in Layer::with_extreme_scales(3) {
        layer.check(suite, &x, 3, 1, &what);
    }
}

impl Layer {
    /// Scale bytes at the ends of their range, with `n` rows of activations that bring the products back to order one, and
    /// what each is.
    pub(super) fn with_extreme_scales(n: usize) -> Vec<(Self, Vec<f32>, String)> {
        let of_byte = |byte: u8| {
            let mut layer = Self::random(4, 64, 64).with_one_expert(1);
            layer.without_router();
            layer.gate_up.scales.fill(byte);
            layer
        };
        let what = |byte| format!("moe with scale byte {byte}");
        let usual = [(0, 3e36), (1, 3e36), (126, 1.0), (127, 0.5)].into_iter().map(|(byte, deviation)| {
            let x = Random(9).normals(n * 64, deviation);
            (of_byte(byte), x, what(byte))
        });
        // At 254 one code is as large as f32 goes. One weight per row, so that no sum overflows; all gates saturate.
        let mut largest = of_byte(254);
        for (row, blocks) in largest.gate_up.blocks.chunks_mut(32).enumerate() {
            blocks.fill(0);
            blocks[row % 32] = if row % 3 == 0 { 0x0a } else { 0x02 };
        }
        let x: Vec<f32> = (0..n * 64).map(|i| if i % 5 < 2 { -1e-36 } else { 2e-36 }).collect();
        usual.chain([(largest, x, what(254))]).collect()
    }
}

/// Scale byte 255 means "not a number" and is refused.
fn bad_scale<B: Backend>(suite: &mut Suite<'_, B>) {
    let mut layer = Layer::random(4, 64, 64);
    layer.down.scales[100] = 255;
    assert!(layer.load(suite.backend).is_err(), "scale byte 255 was accepted");
}
