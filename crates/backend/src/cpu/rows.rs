use super::{
    dot::{F32Row, GROUP, Q8Row},
    pages::{Pages, Shared},
};
use crate::BackendError;

/// Activation rows in one of the formats a [`Dot`](super::dot::Dot) reads, written a group of 32 at a time by any thread.
pub(crate) trait Rows: Copy + Send + Sync {
    /// A row as the dot products take it.
    type Row: Copy;
    /// Row `index`.
    ///
    /// # Safety
    /// The row exists and has been written.
    unsafe fn row(self, index: usize) -> Self::Row;
    /// Writes 32 values of row `index`, from column `32 * group` on.
    ///
    /// # Safety
    /// The row exists and no other thread touches the group.
    unsafe fn put_group(self, index: usize, group: usize, values: &[f32; GROUP]);
}

/// Rows of f32.
#[derive(Clone, Copy)]
pub(crate) struct F32Rows {
    values: Shared<f32>,
    width: usize,
}

impl F32Rows {
    /// Over row-major values.
    pub(crate) fn new(values: Shared<f32>, width: usize) -> Self {
        Self { values, width }
    }
}

impl Rows for F32Rows {
    type Row = F32Row;

    #[inline(always)]
    unsafe fn row(self, index: usize) -> F32Row {
        // SAFETY: the row exists.
        F32Row(unsafe { self.values.at(index * self.width) })
    }

    #[inline(always)]
    unsafe fn put_group(self, index: usize, group: usize, values: &[f32; GROUP]) {
        // SAFETY: the row exists and the group is ours.
        unsafe { self.values.slice(index * self.width + group * GROUP, GROUP) }.copy_from_slice(values);
    }
}

/// Rows of int8 with one scale per group, and per group the sum of the integers.
#[derive(Clone, Copy)]
pub(crate) struct Q8Rows {
    values: Shared<i8>,
    scales: Shared<f32>,
    sums: Shared<i32>,
    width: usize,
}

/// Below this a whole group is taken for zero: its scale's reciprocal would overflow.
const TINY: f32 = 1e-36;

impl Rows for Q8Rows {
    type Row = Q8Row;

    #[inline(always)]
    unsafe fn row(self, index: usize) -> Q8Row {
        let group = index * (self.width / GROUP);
        // SAFETY: the row exists.
        unsafe {
            Q8Row {
                values: self.values.at(index * self.width),
                scales: self.scales.at(group),
                sums: self.sums.at(group),
            }
        }
    }

    #[inline(always)]
    unsafe fn put_group(self, index: usize, group: usize, values: &[f32; GROUP]) {
        let at = index * (self.width / GROUP) + group;
        // SAFETY: the row exists and the group is ours.
        let (out, scale, sum) =
            unsafe { (self.values.slice(at * GROUP, GROUP), self.scales.slice(at, 1), self.sums.slice(at, 1)) };
        // As integers magnitudes have the same order, and what is no number comes after infinity instead of getting lost.
        let magnitude = |value: f32| value.to_bits() & 0x7fff_ffff;
        let mut largest = [0_u32; 16];
        for l in 0..16 {
            largest[l] = magnitude(values[l]).max(magnitude(values[l + 16]));
        }
        let mut amax = 0;
        for m in largest {
            amax = amax.max(m);
        }
        let amax = f32::from_bits(amax);
        if !amax.is_finite() {
            // The group, and every product with it, is no number.
            out.fill(0);
            (scale[0], sum[0]) = (f32::NAN, 0);
            return;
        }
        let inverse = if amax < TINY { 0.0 } else { 127.0 / amax };
        scale[0] = amax / 127.0;
        let mut integers = [0_i32; GROUP];
        for i in 0..GROUP {
            integers[i] = round(values[i] * inverse);
        }
        let mut total = 0;
        for i in 0..GROUP {
            out[i] = integers[i] as i8;
            total += integers[i];
        }
        sum[0] = total;
    }
}

/// Rows of int8 twice over: each row's values, and what rounding them left, quantised alike. Together they hold fifteen bits,
/// for where eight are too coarse.
#[derive(Clone, Copy)]
pub(crate) struct SplitRows(Q8Rows);

impl Rows for SplitRows {
    /// Values and remainders.
    type Row = [Q8Row; 2];

    #[inline(always)]
    unsafe fn row(self, index: usize) -> [Q8Row; 2] {
        // SAFETY: the row exists, so both of its halves do.
        unsafe { [self.0.row(2 * index), self.0.row(2 * index + 1)] }
    }

    #[inline(always)]
    unsafe fn put_group(self, index: usize, group: usize, values: &[f32; GROUP]) {
        // SAFETY: the row exists and the group is ours, in both halves.
        unsafe {
            self.0.put_group(2 * index, group, values);
            let Q8Row { values: rounded, scales, .. } = self.0.row(2 * index);
            let scale = *scales.add(group);
            let mut left = [0.0; GROUP];
            for i in 0..GROUP {
                left[i] = values[i] - scale * f32::from(*rounded.add(group * GROUP + i));
            }
            self.0.put_group(2 * index + 1, group, &left);
        }
    }
}

/// Nearest integer, ties to even, for magnitudes up to 2^22.
#[inline(always)]
pub(crate) fn round(x: f32) -> i32 {
    const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23
    ((x + ROUND).to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32)
}

/// Room for quantised rows that grows to the largest step met.
#[derive(Default)]
pub(crate) struct Q8Scratch {
    values: Option<Pages<i8>>,
    scales: Option<Pages<f32>>,
    sums: Option<Pages<i32>>,
}

impl Q8Scratch {
    /// Room for `rows` rows of `width` values.
    pub(crate) fn rows(&mut self, rows: usize, width: usize) -> Result<Q8Rows, BackendError> {
        Ok(Q8Rows {
            values: grown(&mut self.values, rows * width)?,
            scales: grown(&mut self.scales, rows * width / GROUP)?,
            sums: grown(&mut self.sums, rows * width / GROUP)?,
            width,
        })
    }
}

/// Room for split rows that grows to the largest step met.
#[derive(Default)]
pub(crate) struct SplitScratch(Q8Scratch);

impl SplitScratch {
    /// Room for `rows` rows of `width` values.
    pub(crate) fn rows(&mut self, rows: usize, width: usize) -> Result<SplitRows, BackendError> {
        Ok(SplitRows(self.0.rows(2 * rows, width)?))
    }
}

/// Room for f32 values that grows to the largest step met.
#[derive(Default)]
pub(crate) struct F32Scratch(Option<Pages<f32>>);

impl F32Scratch {
    /// Room for `len` values.
    pub(crate) fn values(&mut self, len: usize) -> Result<Shared<f32>, BackendError> {
        grown(&mut self.0, len)
    }
}

fn grown<T: super::pages::Plain>(pages: &mut Option<Pages<T>>, len: usize) -> Result<Shared<T>, BackendError> {
    if pages.as_ref().is_none_or(|p| p.len() < len) {
        *pages = None;
        *pages = Some(Pages::zeroed(len, "activations between operations")?);
    }
    Ok(pages.as_mut().map_or(Shared::new(&mut []), |p| Shared::new(p)))
}
