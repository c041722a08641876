//! Weight tiles and the dot products over them.
//!
//! A tile is sixteen rows of a weight matrix, laid out so that one vector register holds the same few columns of all
//! sixteen rows; a kernel walks a tile from its first byte to its last. Groups are 32 columns.
//!
//! | format | tile | bytes per weight |
//! |---|---|---|
//! | BF16 | per column pair: 16 × (column 2i, column 2i + 1) | 2 |
//! | q8 | per group 16 BF16 scales; then per group and 4 columns: 16 × 4 bytes, each weight plus 128 | 1.0625 |
//! | MXFP4 | per group 16 E8M0 scales; then per group and 8 columns: 16 × 4 bytes, columns 0..4 in the low nibbles and 4..8 in the high ones | 0.53125 |
//!
//! Integer dot instructions take one unsigned operand: q8 weights are stored plus 128, FP4 codes are looked up plus 12, and
//! the surplus, `128 · Σx`, is subtracted by starting each group's sum there (ik_llama.cpp's trick).
//!
//! Exact mode's summation order for one weight row and one activation row, on every instruction set: within a group, four
//! sums over the columns congruent 0, 1, 2, 3 modulo 4, each in ascending order, added as `(s0 + s1) + (s2 + s3)`, times the
//! group's scale; then the groups in ascending order. No fused multiply-add, so that plain Rust gives the same bits.

use super::{
    rows::{F32Rows, Rows, SplitRows},
    simd::Simd,
};

/// Columns that share a scale.
pub(crate) const GROUP: usize = 32;

/// An f32 activation row.
#[derive(Clone, Copy)]
pub(crate) struct F32Row(pub(crate) *const f32);

/// A quantised activation row: values, and per group a scale and the sum of the values.
#[derive(Clone, Copy)]
pub(crate) struct Q8Row {
    pub(crate) values: *const i8,
    pub(crate) scales: *const f32,
    pub(crate) sums: *const i32,
}

/// A pairing of a weight format with an activation format.
pub(crate) trait Dot: Copy {
    /// The activation row.
    type Row: Copy;
    /// Where rows come from.
    type Rows: Rows<Row = Self::Row>;
    /// Rows worth taking at once: as many as registers hold sums for.
    const BLOCK: usize;
    /// Products of one tile's 16 rows with `M` activation rows.
    ///
    /// # Safety
    /// `tile` is a tile of `cols` columns, the rows have `cols` values, and the machine has what `S` needs.
    unsafe fn tile<S: Simd, const M: usize>(tile: *const u8, cols: usize, rows: &[Self::Row; M]) -> [S::F; M];
}

/// Bytes of one BF16 tile.
pub(crate) const fn bf16_tile_bytes(cols: usize) -> usize {
    cols * 32
}

/// Bytes of the scales at the head of a q8 tile.
pub(crate) const fn q8_scale_bytes(cols: usize) -> usize {
    (cols / GROUP * 32).next_multiple_of(64)
}

/// Bytes of one q8 tile.
pub(crate) const fn q8_tile_bytes(cols: usize) -> usize {
    q8_scale_bytes(cols) + cols * 16
}

/// Bytes of the scales at the head of an MXFP4 tile.
pub(crate) const fn mxfp4_scale_bytes(cols: usize) -> usize {
    (cols / GROUP * 16).next_multiple_of(64)
}

/// Bytes of one MXFP4 tile.
pub(crate) const fn mxfp4_tile_bytes(cols: usize) -> usize {
    mxfp4_scale_bytes(cols) + cols * 8
}

/// How far ahead of the loads cache lines are asked for.
const PREFETCH: usize = 8192;

/// `a * b + c`, rounded twice in exact mode.
#[inline(always)]
unsafe fn multiply_add<S: Simd, const EXACT: bool>(a: S::F, b: S::F, c: S::F) -> S::F {
    // SAFETY: the caller's.
    unsafe { if EXACT { S::add(c, S::mul(a, b)) } else { S::mul_add(a, b, c) } }
}

/// BF16 weights with f32 activations.
#[derive(Clone, Copy)]
pub(crate) struct Bf16<const EXACT: bool>;

impl<const EXACT: bool> Dot for Bf16<EXACT> {
    type Row = F32Row;
    type Rows = F32Rows;
    const BLOCK: usize = 2;

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(tile: *const u8, cols: usize, rows: &[F32Row; M]) -> [S::F; M] {
        // SAFETY: `cols` columns in the tile and the rows, by contract.
        unsafe {
            let mut total = [S::splat(0.0); M];
            for group in 0..cols / GROUP {
                let mut sums = [[S::splat(0.0); 4]; M];
                for four in 0..8 {
                    let column = group * GROUP + four * 4;
                    let p = tile.add(column * 32);
                    S::prefetch(p.wrapping_add(PREFETCH));
                    S::prefetch(p.wrapping_add(PREFETCH + 64));
                    let (w0, w1) = S::load_bf16_pairs(p.cast());
                    let (w2, w3) = S::load_bf16_pairs(p.add(64).cast());
                    let w = [w0, w1, w2, w3];
                    for m in 0..M {
                        for j in 0..4 {
                            let x = S::splat(*rows[m].0.add(column + j));
                            sums[m][j] = multiply_add::<S, EXACT>(w[j], x, sums[m][j]);
                        }
                    }
                }
                for m in 0..M {
                    let [s0, s1, s2, s3] = sums[m];
                    total[m] = S::add(total[m], S::add(S::add(s0, s1), S::add(s2, s3)));
                }
            }
            total
        }
    }
}

/// q8 weights with f32 activations, the exact path.
#[derive(Clone, Copy)]
pub(crate) struct Q8F32;

impl Dot for Q8F32 {
    type Row = F32Row;
    type Rows = F32Rows;
    const BLOCK: usize = 2;

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(tile: *const u8, cols: usize, rows: &[F32Row; M]) -> [S::F; M] {
        // SAFETY: `cols` columns in the tile and the rows, by contract.
        unsafe {
            let data = tile.add(q8_scale_bytes(cols));
            let offset = S::splat(-128.0);
            let mut total = [S::splat(0.0); M];
            for group in 0..cols / GROUP {
                let mut sums = [[S::splat(0.0); 4]; M];
                for four in 0..8 {
                    let column = group * GROUP + four * 4;
                    let bytes = S::load_bytes(data.add(column * 16));
                    let w =
                        [S::column::<0>(bytes), S::column::<1>(bytes), S::column::<2>(bytes), S::column::<3>(bytes)];
                    for j in 0..4 {
                        let w = S::add(w[j], offset);
                        for m in 0..M {
                            let x = S::splat(*rows[m].0.add(column + j));
                            sums[m][j] = S::add(sums[m][j], S::mul(w, x));
                        }
                    }
                }
                let scale = S::load_bf16(tile.add(group * 32).cast());
                for m in 0..M {
                    let [s0, s1, s2, s3] = sums[m];
                    let sum = S::add(S::add(s0, s1), S::add(s2, s3));
                    total[m] = S::add(total[m], S::mul(sum, scale));
                }
            }
            total
        }
    }
}

/// MXFP4 weights with f32 activations, the exact path.
#[derive(Clone, Copy)]
pub(crate) struct Mxfp4F32;

impl Dot for Mxfp4F32 {
    type Row = F32Row;
    type Rows = F32Rows;
    const BLOCK: usize = 2;

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(tile: *const u8, cols: usize, rows: &[F32Row; M]) -> [S::F; M] {
        // SAFETY: `cols` columns in the tile and the rows, by contract.
        unsafe {
            let data = tile.add(mxfp4_scale_bytes(cols));
            let half = S::splat(0.5);
            let mut total = [S::splat(0.0); M];
            for group in 0..cols / GROUP {
                let mut sums = [[S::splat(0.0); 4]; M];
                for eight in 0..4 {
                    let column = group * GROUP + eight * 8;
                    let (low, high) = S::load_fp4(data.add(column * 8));
                    for (side, bytes) in [low, high].into_iter().enumerate() {
                        let w = [
                            S::column_fp4::<0>(bytes),
                            S::column_fp4::<1>(bytes),
                            S::column_fp4::<2>(bytes),
                            S::column_fp4::<3>(bytes),
                        ];
                        for j in 0..4 {
                            let w = S::mul(w[j], half);
                            for m in 0..M {
                                let x = S::splat(*rows[m].0.add(column + side * 4 + j));
                                sums[m][j] = S::add(sums[m][j], S::mul(w, x));
                            }
                        }
                    }
                }
                let scale = S::load_e8m0(tile.add(group * 16));
                for m in 0..M {
                    let [s0, s1, s2, s3] = sums[m];
                    let sum = S::add(S::add(s0, s1), S::add(s2, s3));
                    total[m] = S::add(total[m], S::mul(sum, scale));
                }
            }
            total
        }
    }
}

/// q8 weights with activations quantised twice. Attention and lm_head take these: with eight bits alone their rounding is
/// most of what separates fast mode from exact mode, and a second product of weights already loaded costs no bandwidth.
#[derive(Clone, Copy)]
pub(crate) struct Q8Split;

impl Dot for Q8Split {
    type Row = [Q8Row; 2];
    type Rows = SplitRows;
    const BLOCK: usize = 4;

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(tile: *const u8, cols: usize, rows: &[[Q8Row; 2]; M]) -> [S::F; M] {
        // SAFETY: `cols` columns in the tile and the rows, by contract.
        unsafe {
            let data = tile.add(q8_scale_bytes(cols));
            let mut total = [S::splat(0.0); M];
            for group in 0..cols / GROUP {
                let mut sums = [[S::splat_int(0); 2]; M];
                for m in 0..M {
                    for half in 0..2 {
                        sums[m][half] = S::splat_int(-S::Q8_BIAS * *rows[m][half].sums.add(group));
                    }
                }
                for four in 0..8 {
                    let column = group * GROUP + four * 4;
                    let p = data.add(column * 16);
                    S::prefetch(p.wrapping_add(PREFETCH));
                    let w = S::load_bytes(p);
                    for m in 0..M {
                        for half in 0..2 {
                            sums[m][half] = S::dot_q8(sums[m][half], w, rows[m][half].values.add(column));
                        }
                    }
                }
                let scale = S::load_bf16(tile.add(group * 32).cast());
                for m in 0..M {
                    for half in 0..2 {
                        let scale = S::mul(scale, S::splat(*rows[m][half].scales.add(group)));
                        total[m] = S::mul_add(S::to_f32(sums[m][half]), scale, total[m]);
                    }
                }
            }
            total
        }
    }
}

/// MXFP4 weights with activations quantised twice, for the same reason: experts are where one rounding more moves the most.
#[derive(Clone, Copy)]
pub(crate) struct Mxfp4Split;

impl Dot for Mxfp4Split {
    type Row = [Q8Row; 2];
    type Rows = SplitRows;
    const BLOCK: usize = 4;

    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize>(tile: *const u8, cols: usize, rows: &[[Q8Row; 2]; M]) -> [S::F; M] {
        // SAFETY: `cols` columns in the tile and the rows, by contract.
        unsafe {
            let data = tile.add(mxfp4_scale_bytes(cols));
            let mut total = [S::splat(0.0); M];
            for group in 0..cols / GROUP {
                let mut sums = [[S::splat_int(0); 2]; M];
                for m in 0..M {
                    for half in 0..2 {
                        sums[m][half] = S::splat_int(-S::FP4_BIAS * *rows[m][half].sums.add(group));
                    }
                }
                for eight in 0..4 {
                    let column = group * GROUP + eight * 8;
                    let p = data.add(column * 8);
                    S::prefetch(p.wrapping_add(PREFETCH));
                    let w = S::load_fp4(p);
                    for m in 0..M {
                        for half in 0..2 {
                            sums[m][half] = S::dot_fp4(sums[m][half], w, rows[m][half].values.add(column));
                        }
                    }
                }
                let scale = S::load_e8m0(tile.add(group * 16));
                for m in 0..M {
                    for half in 0..2 {
                        let scale = S::mul(scale, S::splat(*rows[m][half].scales.add(group)));
                        total[m] = S::mul_add(S::to_f32(sums[m][half]), scale, total[m]);
                    }
                }
            }
            // The table holds doubled values.
            for m in 0..M {
                total[m] = S::mul(total[m], S::splat(0.5));
            }
            total
        }
    }
}
