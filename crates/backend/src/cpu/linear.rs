use super::{
    dot::Dot,
    isa::Isa,
    pages::Shared,
    pool::{Claims, Pool},
    rows::Rows,
    simd::{Kernel, LANES, Simd},
};

/// Activation rows a kernel works on at once.
pub(crate) const ROW_BLOCK: usize = 8;
/// Rows whose activations should stay in the L2 cache while a few tiles pass over them.
const CACHED_ROWS: usize = 128;
/// Weight bytes times rows below which handing work to other threads costs more than it gains.
const WORTH_SHARING: usize = 128 * 1024;

/// Products of one tile with up to [`ROW_BLOCK`] rows.
pub(crate) type TileBlock = [[f32; LANES]; ROW_BLOCK];

/// Multiplies a tile with rows, and stores sixteen values per row.
///
/// # Safety
/// As [`Dot::tile`]; at most [`ROW_BLOCK`] rows.
#[inline(always)]
pub(crate) unsafe fn tile_times_rows<S: Simd, D: Dot>(
    tile: *const u8,
    cols: usize,
    rows: &[D::Row],
    out: &mut TileBlock,
) {
    // SAFETY: the caller's; each step takes as many rows as are left.
    unsafe {
        let mut done = 0;
        while D::BLOCK >= 8 && S::ROW_BLOCK >= 8 && rows.len() - done >= 8 {
            done = some_rows::<S, D, 8>(tile, cols, rows, done, out);
        }
        while D::BLOCK >= 4 && S::ROW_BLOCK >= 4 && rows.len() - done >= 4 {
            done = some_rows::<S, D, 4>(tile, cols, rows, done, out);
        }
        while rows.len() - done >= 2 {
            done = some_rows::<S, D, 2>(tile, cols, rows, done, out);
        }
        if rows.len() > done {
            some_rows::<S, D, 1>(tile, cols, rows, done, out);
        }
    }
}

#[inline(always)]
unsafe fn some_rows<S: Simd, D: Dot, const M: usize>(
    tile: *const u8,
    cols: usize,
    rows: &[D::Row],
    done: usize,
    out: &mut TileBlock,
) -> usize {
    // SAFETY: the caller has M rows left.
    unsafe {
        let sums = D::tile::<S, M>(tile, cols, &*rows.as_ptr().add(done).cast::<[D::Row; M]>());
        for m in 0..M {
            S::store(out[done + m].as_mut_ptr(), sums[m]);
        }
    }
    done + M
}

/// `out = x · weightᵀ + bias`.
pub(crate) struct Linear<'a, D: Dot> {
    /// Tiles of sixteen output features.
    pub(crate) tiles: &'a [u8],
    /// Bytes of a tile.
    pub(crate) tile_bytes: usize,
    /// Input features.
    pub(crate) cols: usize,
    /// Output features.
    pub(crate) features: usize,
    /// Activation rows.
    pub(crate) x: D::Rows,
    /// How many.
    pub(crate) n: usize,
    /// One value per output feature.
    pub(crate) bias: Option<&'a [f32]>,
    /// `[n, width]`.
    pub(crate) out: Shared<f32>,
    /// Width of an output row.
    pub(crate) width: usize,
}

impl<D: Dot> Linear<'_, D> {
    /// Runs it on the pool.
    pub(crate) fn run(&self, pool: &Pool, isa: Isa) {
        let tiles = self.features.div_ceil(LANES);
        if tiles * self.tile_bytes * self.n < WORTH_SHARING {
            // SAFETY: the instruction set was checked when the backend was made; shapes by the caller.
            return unsafe { isa.run(LinearTiles { op: self, first: 0, count: tiles }) };
        }
        // With many rows short runs, so that the activations of a few rows pass over tiles still in cache.
        let most = if self.n > ROW_BLOCK { 4 } else { tiles };
        let claims = Claims::default();
        pool.run(&|_| {
            while let Some(run) = claims.next_run(tiles, pool.threads(), most) {
                // SAFETY: as above; every tile is claimed once.
                unsafe { isa.run(LinearTiles { op: self, first: run.start, count: run.len() }) };
            }
        });
    }
}

struct LinearTiles<'a, D: Dot> {
    op: &'a Linear<'a, D>,
    first: usize,
    count: usize,
}

impl<D: Dot> Kernel for LinearTiles<'_, D> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let op = self.op;
        let mut cached = 0;
        while cached < op.n {
            let end = op.n.min(cached + CACHED_ROWS);
            for tile in self.first..self.first + self.count {
                let mut first = cached;
                while first < end {
                    let count = ROW_BLOCK.min(end - first);
                    // SAFETY: tile and rows exist; the outputs of the tile are this thread's.
                    unsafe { one_block::<S, D>(op, tile, first, count) };
                    first += count;
                }
            }
            cached = end;
        }
    }
}

#[inline(always)]
unsafe fn one_block<S: Simd, D: Dot>(op: &Linear<'_, D>, tile: usize, first: usize, count: usize) {
    let mut block = [[0.0; LANES]; ROW_BLOCK];
    // SAFETY: the caller's.
    unsafe {
        let mut rows = [op.x.row(first); ROW_BLOCK];
        for m in 1..count {
            rows[m] = op.x.row(first + m);
        }
        let weights = op.tiles.as_ptr().add(tile * op.tile_bytes);
        tile_times_rows::<S, D>(weights, op.cols, &rows[..count], &mut block);
        let lanes = LANES.min(op.features - tile * LANES);
        for m in 0..count {
            let out = op.out.slice((first + m) * op.width + tile * LANES, lanes);
            match op.bias {
                Some(bias) => {
                    let bias = &bias[tile * LANES..][..lanes];
                    for l in 0..lanes {
                        out[l] = block[m][l] + bias[l];
                    }
                }
                None => out.copy_from_slice(&block[m][..lanes]),
            }
        }
    }
}
