use std::io;

use crate::RowSource;

/// A small generator of random numbers (SplitMix64), seeded per case.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`.
    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// About normal, of deviation 1.
    pub(super) fn normal(&mut self) -> f32 {
        let sum: f64 = (0..12).map(|_| (self.next() >> 11) as f64 / (1_u64 << 53) as f64).sum();
        (sum - 6.0) as f32
    }

    /// Normal values of the given deviation.
    pub(super) fn normals(&mut self, len: usize, deviation: f32) -> Vec<f32> {
        (0..len).map(|_| self.normal() * deviation).collect()
    }
}

/// Rows of bytes in memory.
pub(super) struct Rows {
    pub(super) row_bytes: usize,
    pub(super) bytes: Vec<u8>,
}

impl Rows {
    /// BF16 values, rounded; also gives back what they were rounded to.
    pub(super) fn bf16(values: &[f32], width: usize) -> (Rows, Vec<f64>) {
        let rounded: Vec<half::bf16> = values.iter().map(|v| half::bf16::from_f32(*v)).collect();
        let bytes = rounded.iter().flat_map(|v| v.to_bits().to_le_bytes()).collect();
        (Rows { row_bytes: 2 * width, bytes }, rounded.iter().map(|v| v.to_f64()).collect())
    }
}

impl RowSource for Rows {
    fn rows(&self) -> usize {
        self.bytes.len() / self.row_bytes
    }

    fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()> {
        let bytes = self.bytes.get(first * self.row_bytes..first * self.row_bytes + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// `x · weightᵀ + bias` in f64, `weight` being `[features, cols]`.
pub(super) fn multiply(x: &[f64], weight: &[f64], bias: Option<&[f64]>, cols: usize) -> Vec<f64> {
    let features = weight.len() / cols;
    let mut out = Vec::with_capacity(x.len() / cols * features);
    for row in x.chunks(cols) {
        for (feature, weight) in weight.chunks(cols).enumerate() {
            let sum: f64 = row.iter().zip(weight).map(|(x, w)| x * w).sum();
            out.push(sum + bias.map_or(0.0, |b| b[feature]));
        }
    }
    out
}

pub(super) fn widen(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}
