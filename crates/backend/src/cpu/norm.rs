use super::{
    dot::GROUP,
    math::sum_lanes,
    rows::Rows,
    simd::{Kernel, LANES, Simd},
};

/// `out = x * rsqrt(mean(x²) + eps) * weight` for one row.
pub(crate) struct RmsNorm<'a> {
    pub(crate) x: &'a [f32],
    pub(crate) weight: &'a [f32],
    pub(crate) eps: f32,
    pub(crate) out: &'a mut [f32],
}

impl Kernel for RmsNorm<'_> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        // Lane l sums the squares of columns congruent l modulo 16.
        let mut sums = [0.0; LANES];
        for lanes in self.x.chunks(LANES) {
            for l in 0..lanes.len() {
                sums[l] += lanes[l] * lanes[l];
            }
        }
        let scale = 1.0 / (sum_lanes(&sums) / self.x.len() as f32 + self.eps).sqrt();
        for i in 0..self.x.len() {
            self.out[i] = self.x[i] * scale * self.weight[i];
        }
    }
}

/// Quantises one row.
pub(crate) struct Quantise<'a, R> {
    pub(crate) values: &'a [f32],
    pub(crate) rows: R,
    pub(crate) row: usize,
}

impl<R: Rows> Kernel for Quantise<'_, R> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        for (group, values) in self.values.as_chunks::<GROUP>().0.iter().enumerate() {
            // SAFETY: the row exists and is this thread's.
            unsafe { self.rows.put_group(self.row, group, values) };
        }
    }
}
