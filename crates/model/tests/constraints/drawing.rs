//! The CPU backend as a device that draws tokens itself, as GPUs do: every operation is the CPU's, and so is the draw.

use tandem_backend::cpu::CpuBackend;
use tandem_backend::{
    AttentionContext, Backend, BackendError, Batch, Candidate, DenseFormat, Draw, ExpertsShape, ExpertsSource, KvShape,
    LogitsPart, Rope, RowSource,
};

pub struct Drawing {
    pub cpu: CpuBackend,
    /// Tokens that it has logits of: the vocabulary, or a rank's part of it.
    pub vocab: usize,
}

impl Drawing {
    /// The logits that a draw may choose from; the others are minus infinity. `first` is the token of the first of them.
    fn masked(&self, logits: &Buffer, first: usize, (row, draw): &(usize, Draw)) -> Result<Vec<f32>, BackendError> {
        let mut logits_row = vec![0.0; self.vocab];
        self.cpu.download(logits, *row, &mut logits_row)?;
        if let Some(mask) = &draw.mask {
            let allowed = |token: usize| mask[token / 32] >> (token % 32) & 1 == 1;
            let forbidden = (first..).zip(&mut logits_row).filter(|(token, _)| !allowed(*token));
            forbidden.for_each(|(_, logit)| *logit = f32::NEG_INFINITY);
        }
        Ok(logits_row)
    }
}

type Buffer = <CpuBackend as Backend>::Buffer;
type Matrix = <CpuBackend as Backend>::Matrix;
type Vector = <CpuBackend as Backend>::Vector;
type Experts = <CpuBackend as Backend>::Experts;
type Kv = <CpuBackend as Backend>::Kv;
type Routing = <CpuBackend as Backend>::Routing;
type Done = Result<(), BackendError>;

impl Backend for Drawing {
    type Buffer = Buffer;
    type Matrix = Matrix;
    type Vector = Vector;
    type Experts = Experts;
    type Kv = Kv;
    type Routing = Routing;

    const DRAWS: bool = true;

    fn draw(&self, logits: &Buffer, draws: &[(usize, Draw)], tokens: &mut [u32]) -> Done {
        for (draw, token) in draws.iter().zip(tokens) {
            *token = choose(&self.masked(logits, 0, draw)?, &draw.1);
        }
        Ok(())
    }

    fn likeliest(&self, part: &LogitsPart<'_, Buffer>, draws: &[(usize, Draw)], best: &mut [Candidate]) -> Done {
        for (draw, best) in draws.iter().zip(best) {
            let logits = self.masked(part.logits, part.first, draw)?;
            let logit = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let place = logits.iter().position(|its| *its == logit).unwrap_or(0);
            *best = Candidate { logit, token: (part.first + place) as u32 };
        }
        Ok(())
    }

    fn weigh(&self, part: &LogitsPart<'_, Buffer>, draws: &[(usize, Draw)], largest: &[f32], sums: &mut [u64]) -> Done {
        for ((draw, largest), sum) in draws.iter().zip(largest).zip(sums) {
            let logits = self.masked(part.logits, part.first, draw)?;
            *sum = logits.iter().map(|logit| weight(*logit, *largest, draw.1.temperature)).sum();
        }
        Ok(())
    }

    fn find(
        &self,
        part: &LogitsPart<'_, Buffer>,
        draws: &[(usize, Draw)],
        largest: &[f32],
        targets: &[Option<u64>],
        tokens: &mut [Option<u32>],
    ) -> Done {
        for (((draw, largest), target), token) in draws.iter().zip(largest).zip(targets).zip(tokens) {
            let Some(target) = *target else { continue };
            let logits = self.masked(part.logits, part.first, draw)?;
            let mut sum = 0;
            let place = logits.iter().position(|logit| {
                sum += weight(*logit, *largest, draw.1.temperature);
                sum > target
            });
            *token = place.map(|place| (part.first + place) as u32);
        }
        Ok(())
    }

    fn describe(&self) -> String {
        self.cpu.describe()
    }

    fn buffer(&self, rows: usize, width: usize) -> Result<Buffer, BackendError> {
        self.cpu.buffer(rows, width)
    }

    fn routing(&self, rows: usize, top_k: usize) -> Result<Routing, BackendError> {
        self.cpu.routing(rows, top_k)
    }

    fn kv(&self, shape: KvShape) -> Result<Kv, BackendError> {
        self.cpu.kv(shape)
    }

    fn vector(&self, source: &dyn RowSource) -> Result<Vector, BackendError> {
        self.cpu.vector(source)
    }

    fn matrix(&self, source: &dyn RowSource, format: DenseFormat) -> Result<Matrix, BackendError> {
        self.cpu.matrix(source, format)
    }

    fn experts(&self, shape: ExpertsShape, source: &ExpertsSource<'_>) -> Result<Experts, BackendError> {
        self.cpu.experts(shape, source)
    }

    fn download(&self, buffer: &Buffer, first: usize, out: &mut [f32]) -> Done {
        self.cpu.download(buffer, first, out)
    }

    fn upload(&self, buffer: &mut Buffer, first: usize, values: &[f32]) -> Done {
        self.cpu.upload(buffer, first, values)
    }

    fn copy_blocks(&self, kv: &mut Kv, pairs: &[(u32, u32)]) -> Done {
        self.cpu.copy_blocks(kv, pairs)
    }

    fn embed(&self, table: &Matrix, batch: &Batch<'_>, out: &mut Buffer) -> Done {
        self.cpu.embed(table, batch, out)
    }

    fn rms_norm(&self, x: &Buffer, n: usize, weight: &Vector, eps: f32, out: &mut Buffer) -> Done {
        self.cpu.rms_norm(x, n, weight, eps, out)
    }

    fn linear(&self, x: &Buffer, n: usize, weight: &Matrix, bias: Option<&Vector>, out: &mut Buffer) -> Done {
        self.cpu.linear(x, n, weight, bias, out)
    }

    fn rope_store(&self, qkv: &mut Buffer, rope: &Rope, context: &AttentionContext<'_>, kv: &mut Kv) -> Done {
        self.cpu.rope_store(qkv, rope, context, kv)
    }

    fn attention(
        &self,
        qkv: &Buffer,
        sinks: &Vector,
        context: &AttentionContext<'_>,
        kv: &Kv,
        out: &mut Buffer,
    ) -> Done {
        self.cpu.attention(qkv, sinks, context, kv, out)
    }

    fn route(&self, x: &Buffer, n: usize, weight: &Matrix, bias: &Vector, out: &mut Routing) -> Done {
        self.cpu.route(x, n, weight, bias, out)
    }

    fn moe(&self, x: &Buffer, n: usize, routing: &Routing, experts: &Experts, out: &mut Buffer) -> Done {
        self.cpu.moe(x, n, routing, experts, out)
    }

    fn add(&self, x: &mut Buffer, n: usize, y: &Buffer) -> Done {
        self.cpu.add(x, n, y)
    }

    fn gather(&self, x: &Buffer, rows: &[usize], out: &mut Buffer) -> Done {
        self.cpu.gather(x, rows, out)
    }
}

/// In units of 2^-44.
fn weight(logit: f32, largest: f32, temperature: f32) -> u64 {
    if temperature <= 0.0 {
        return 0;
    }
    let weight = ((logit - largest) * (1.0 / temperature)).exp();
    (f64::from(weight) * (1_u64 << 44) as f64).round_ties_even() as u64
}

fn choose(logits: &[f32], draw: &Draw) -> u32 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if draw.temperature <= 0.0 {
        return logits.iter().position(|logit| *logit == max).unwrap_or(0) as u32;
    }
    let weights = || logits.iter().map(|logit| f64::from((logit - max) / draw.temperature).exp());
    let target = draw.uniform * weights().sum::<f64>();
    let mut sum = 0.0;
    let reached = weights().position(|weight| {
        sum += weight;
        sum > target
    });
    reached.unwrap_or(logits.len() - 1) as u32
}
