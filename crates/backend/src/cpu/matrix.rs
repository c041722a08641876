use std::sync::{Mutex, PoisonError};

use super::{
    dot::{GROUP, bf16_tile_bytes, mxfp4_tile_bytes, q8_scale_bytes, q8_tile_bytes},
    math::{from_bf16, to_bf16},
    mxfp4::quantise_row,
    pages::{Pages, Shared},
    pool::Pool,
    rows::round,
    simd::LANES,
};
use crate::{BackendError, DenseFormat, RowSource};

/// A dense weight matrix in tiles of sixteen rows; the last tile is padded with zeroes.
pub struct CpuMatrix {
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) format: DenseFormat,
    pub(crate) tiles: Pages<u8>,
}

impl CpuMatrix {
    /// Reads a BF16 matrix, sixteen rows at a time, on all threads.
    pub(crate) fn load(pool: &Pool, source: &dyn RowSource, format: DenseFormat) -> Result<Self, BackendError> {
        let (rows, cols) = (source.rows(), source.row_bytes() / 2);
        if cols == 0 || !cols.is_multiple_of(GROUP) || !source.row_bytes().is_multiple_of(2) {
            return Err(BackendError::Shape(format!(
                "a row of {} bytes is no multiple of 32 values",
                source.row_bytes()
            )));
        }
        let mut matrix = Self { rows, cols, format, tiles: Pages::zeroed(0, "")? };
        matrix.tiles = Pages::zeroed(matrix.tile_count() * matrix.tile_bytes(), "a weight matrix")?;
        let (tile_bytes, out) = (matrix.tile_bytes(), Shared::new(&mut matrix.tiles));
        let failure = Failure::default();
        pool.for_each(matrix.tile_count(), &|tile| {
            let first = tile * LANES;
            let mut raw = vec![0_u8; LANES.min(rows - first) * cols * 2];
            if let Err(source) = source.read(first, &mut raw) {
                return failure.set(BackendError::Read { what: format!("weight rows from {first}"), source });
            }
            // SAFETY: every tile is written by the one thread that claimed it.
            let out = unsafe { out.slice(tile * tile_bytes, tile_bytes) };
            match format {
                DenseFormat::Bf16 => pack_bf16(&raw, cols, out),
                DenseFormat::Q8 => pack_q8(&raw, cols, out),
                DenseFormat::Mxfp4 => pack_mxfp4(&raw, cols, out),
            }
        });
        failure.into_result().map(|()| matrix)
    }

    /// Tiles, the padded last one included.
    pub(crate) fn tile_count(&self) -> usize {
        self.rows.div_ceil(LANES)
    }

    /// Bytes of a tile.
    pub(crate) fn tile_bytes(&self) -> usize {
        match self.format {
            DenseFormat::Bf16 => bf16_tile_bytes(self.cols),
            DenseFormat::Q8 => q8_tile_bytes(self.cols),
            DenseFormat::Mxfp4 => mxfp4_tile_bytes(self.cols),
        }
    }

    /// Copies row `row` of a BF16 matrix to `out`.
    pub(crate) fn unpack_bf16_row(&self, row: usize, out: &mut [f32]) {
        let tile = &self.tiles[row / LANES * self.tile_bytes()..][..self.tile_bytes()];
        let lane = row % LANES;
        for (pair, out) in out[..self.cols].chunks_exact_mut(2).enumerate() {
            let at = pair * 64 + lane * 4;
            out[0] = from_bf16(u16::from_le_bytes([tile[at], tile[at + 1]]));
            out[1] = from_bf16(u16::from_le_bytes([tile[at + 2], tile[at + 3]]));
        }
    }
}

/// The first error of several threads.
#[derive(Default)]
pub(crate) struct Failure(Mutex<Option<BackendError>>);

impl Failure {
    pub(crate) fn set(&self, error: BackendError) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    pub(crate) fn into_result(self) -> Result<(), BackendError> {
        self.0.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

fn pack_bf16(raw: &[u8], cols: usize, out: &mut [u8]) {
    for (lane, row) in raw.chunks_exact(cols * 2).enumerate() {
        for (pair, bytes) in row.chunks_exact(4).enumerate() {
            out[pair * 64 + lane * 4..][..4].copy_from_slice(bytes);
        }
    }
}

fn pack_q8(raw: &[u8], cols: usize, out: &mut [u8]) {
    let (scales, data) = out.split_at_mut(q8_scale_bytes(cols));
    // Rows of padding are never stored, but their bytes take part in the sums: 128 stands for zero.
    data.fill(128);
    for (lane, row) in raw.chunks_exact(cols * 2).enumerate() {
        for (group, bytes) in row.chunks_exact(GROUP * 2).enumerate() {
            let (scale, quantised) = quantise_group(&widened(bytes));
            scales[group * 32 + lane * 2..][..2].copy_from_slice(&scale.to_le_bytes());
            for (four, q) in quantised.chunks_exact(4).enumerate() {
                data[(group * 8 + four) * 64 + lane * 4..][..4].copy_from_slice(q);
            }
        }
    }
}

fn pack_mxfp4(raw: &[u8], cols: usize, out: &mut [u8]) {
    for (lane, row) in raw.chunks_exact(cols * 2).enumerate() {
        quantise_row(row, lane, cols, out);
    }
}

/// A group of BF16 values.
pub(crate) fn widened(bytes: &[u8]) -> [f32; GROUP] {
    let mut values = [0.0; GROUP];
    for (v, b) in values.iter_mut().zip(bytes.chunks_exact(2)) {
        *v = from_bf16(u16::from_le_bytes([b[0], b[1]]));
    }
    values
}

/// A group's BF16 scale and its values plus 128. The scale is rounded up, so that no magnitude passes 127.
fn quantise_group(values: &[f32; GROUP]) -> (u16, [u8; GROUP]) {
    let mut amax = 0.0_f32;
    for v in values {
        amax = if v.abs() > amax { v.abs() } else { amax };
    }
    let ideal = amax / 127.0;
    let mut scale = to_bf16(ideal);
    if from_bf16(scale) < ideal {
        scale += 1;
    }
    let inverse = if amax < 1e-35 { 0.0 } else { 1.0 / from_bf16(scale) };
    let mut out = [0; GROUP];
    for (o, v) in out.iter_mut().zip(values) {
        *o = (round(v * inverse).clamp(-127, 127) + 128) as u8;
    }
    (scale, out)
}
