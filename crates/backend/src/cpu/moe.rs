use std::ops::Range;

use super::{
    dot::{Dot, mxfp4_tile_bytes},
    experts::CpuExperts,
    isa::Isa,
    linear::{ROW_BLOCK, TileBlock, tile_times_rows},
    math::swiglu,
    pages::Shared,
    pool::{Claims, Pool},
    route::CpuRouting,
    rows::Rows,
    simd::{Kernel, LANES, Simd},
};

/// Rows of a step sorted by expert, so that every expert's weights are read once.
///
/// A slot is one (row, rank) of the routing whose expert is held; slots of an expert follow each other.
pub(crate) struct ExpertPlan {
    /// Experts somebody chose, by their place among those held, and their slots.
    active: Vec<(usize, Range<usize>)>,
    /// The row of each slot.
    rows: Vec<usize>,
    /// The slot of each (row, rank), or [`NOWHERE`].
    slots: Vec<usize>,
}

/// Stands for the slot of an expert that is not held.
const NOWHERE: usize = usize::MAX;

impl ExpertPlan {
    /// Sorts the first `n` rows of a routing, as far as they go to the experts held. Rows keep their order within an
    /// expert.
    pub(crate) fn new(routing: &CpuRouting, n: usize, held: Range<usize>) -> Self {
        let chosen = &routing.experts[..n * routing.top_k];
        let place = |e: u32| held.contains(&(e as usize)).then(|| e as usize - held.start);
        let mut ends = vec![0; held.len()];
        for e in chosen.iter().filter_map(|e| place(*e)) {
            ends[e] += 1;
        }
        let (mut active, mut next) = (Vec::new(), 0);
        for (e, end) in ends.iter_mut().enumerate() {
            let count = std::mem::replace(end, next);
            if count > 0 {
                active.push((e, next..next + count));
            }
            next += count;
        }
        let (mut rows, mut slots) = (vec![0; next], vec![NOWHERE; chosen.len()]);
        for (i, e) in chosen.iter().enumerate() {
            let Some(e) = place(*e) else { continue };
            let slot = &mut ends[e];
            slots[i] = *slot;
            rows[*slot] = i / routing.top_k;
            *slot += 1;
        }
        Self { active, rows, slots }
    }

    /// Experts that somebody chose.
    pub(crate) fn distinct(&self) -> usize {
        self.active.len()
    }

    /// Slots in all.
    pub(crate) fn slots(&self) -> usize {
        self.rows.len()
    }
}

/// The mixture of experts of one layer for one step.
pub(crate) struct Moe<'a, D: Dot> {
    pub(crate) plan: &'a ExpertPlan,
    pub(crate) routing: &'a CpuRouting,
    pub(crate) experts: &'a CpuExperts,
    pub(crate) n: usize,
    /// Activations going in, one row per row of the step.
    pub(crate) x: D::Rows,
    /// Activations between the matrices, one row per slot.
    pub(crate) z: D::Rows,
    /// `[n, hidden]`.
    pub(crate) out: Shared<f32>,
    /// Width of an output row.
    pub(crate) width: usize,
}

/// Units a thread takes at once in the first half: two pairs of gate and up tiles, one group of `z`.
const UNITS: usize = 2 * LANES;

impl<D: Dot> Moe<'_, D> {
    /// Runs it on the pool: gate, up and SwiGLU; a barrier; down and the weighted sum.
    pub(crate) fn run(&self, pool: &Pool, isa: Isa) {
        let shape = &self.experts.shape;
        let units = shape.intermediate / UNITS;
        let tiles = shape.hidden / LANES;
        let items = self.plan.active.len() * units;
        // With many rows short runs: they balance the experts' different numbers of rows, and bound the space for `y`.
        let most = if self.n > ROW_BLOCK { 4 } else { items.max(tiles) };
        let (first_half, second_half) = (Claims::default(), Claims::default());
        pool.run(&|worker| {
            while let Some(run) = first_half.next_run(items, pool.threads(), most) {
                for item in run {
                    // SAFETY: the instruction set was checked when the backend was made; every item is claimed once.
                    unsafe { isa.run(GateUp { op: self, active: item / units, unit: item % units }) };
                }
            }
            worker.barrier();
            let mut y = Vec::new();
            while let Some(tiles) = second_half.next_run(tiles, pool.threads(), most) {
                y.resize((self.plan.slots() * tiles.len()).max(y.len()), [0.0; LANES]);
                // SAFETY: as above, and `z` is complete.
                unsafe { isa.run(Down { op: self, tiles, y: &mut y }) };
            }
        });
    }
}

/// One expert's 32 units for all its slots.
struct GateUp<'a, D: Dot> {
    op: &'a Moe<'a, D>,
    active: usize,
    unit: usize,
}

impl<D: Dot> Kernel for GateUp<'_, D> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let op = self.op;
        let shape = &op.experts.shape;
        let (expert, ref slots) = op.plan.active[self.active];
        let tile_bytes = mxfp4_tile_bytes(shape.hidden);
        let first_tile = (expert * shape.intermediate + self.unit * UNITS) / LANES * 2;
        let weights = &op.experts.gate_up[first_tile * tile_bytes..][..4 * tile_bytes];
        let bias = expert * shape.intermediate + self.unit * UNITS;
        let (gate_bias, up_bias) = (&op.experts.gate_bias[bias..][..UNITS], &op.experts.up_bias[bias..][..UNITS]);
        let mut block: [TileBlock; 4] = [[[0.0; LANES]; ROW_BLOCK]; 4];
        let mut slot = slots.start;
        while slot < slots.end {
            let count = ROW_BLOCK.min(slots.end - slot);
            // SAFETY: rows and tiles exist; the group of `z` is this thread's.
            unsafe {
                let mut rows = [op.x.row(op.plan.rows[slot]); ROW_BLOCK];
                for m in 1..count {
                    rows[m] = op.x.row(op.plan.rows[slot + m]);
                }
                for t in 0..4 {
                    let tile = weights.as_ptr().add(t * tile_bytes);
                    tile_times_rows::<S, D>(tile, shape.hidden, &rows[..count], &mut block[t]);
                }
                for m in 0..count {
                    let mut z = [0.0; UNITS];
                    for half in 0..2 {
                        let (gate, up) = (&block[half * 2][m], &block[half * 2 + 1][m]);
                        for l in 0..LANES {
                            let unit = half * LANES + l;
                            let (gate, up) = (gate[l] + gate_bias[unit], up[l] + up_bias[unit]);
                            z[unit] = swiglu(gate, up, shape.limit, shape.alpha);
                        }
                    }
                    op.z.put_group(slot + m, self.unit, &z);
                }
            }
            slot += count;
        }
    }
}

/// A run of output tiles for all rows.
struct Down<'a, D: Dot> {
    op: &'a Moe<'a, D>,
    tiles: Range<usize>,
    /// `[tiles][slots]`: every slot's sixteen outputs before they are weighted.
    y: &'a mut [[f32; LANES]],
}

impl<D: Dot> Kernel for Down<'_, D> {
    type Out = ();

    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let slots = self.op.plan.slots();
        for active in 0..self.op.plan.active.len() {
            for tile in self.tiles.clone() {
                let y = &mut self.y[(tile - self.tiles.start) * slots..][..slots];
                // SAFETY: the expert and the tile exist.
                unsafe { down_tile::<S, D>(self.op, active, tile, y) };
            }
        }
        for tile in self.tiles.clone() {
            weighted_sum(self.op, tile, &self.y[(tile - self.tiles.start) * slots..][..slots]);
        }
    }
}

/// One expert's tile times all its slots, plus the bias.
#[inline(always)]
unsafe fn down_tile<S: Simd, D: Dot>(op: &Moe<'_, D>, active: usize, tile: usize, y: &mut [[f32; LANES]]) {
    let shape = &op.experts.shape;
    let tile_bytes = mxfp4_tile_bytes(shape.intermediate);
    let (expert, ref slots) = op.plan.active[active];
    let weights = &op.experts.down[(expert * shape.hidden / LANES + tile) * tile_bytes..][..tile_bytes];
    let bias = &op.experts.down_bias[expert * shape.hidden + tile * LANES..][..LANES];
    let mut block: TileBlock = [[0.0; LANES]; ROW_BLOCK];
    let mut slot = slots.start;
    while slot < slots.end {
        let count = ROW_BLOCK.min(slots.end - slot);
        // SAFETY: rows and tiles exist.
        unsafe {
            let mut rows = [op.z.row(slot); ROW_BLOCK];
            for m in 1..count {
                rows[m] = op.z.row(slot + m);
            }
            tile_times_rows::<S, D>(weights.as_ptr(), shape.intermediate, &rows[..count], &mut block);
        }
        for m in 0..count {
            for l in 0..LANES {
                y[slot + m][l] = block[m][l] + bias[l];
            }
        }
        slot += count;
    }
}

/// Adds up each row's experts, in the order of their ranks.
#[inline(always)]
fn weighted_sum<D: Dot>(op: &Moe<'_, D>, tile: usize, y: &[[f32; LANES]]) {
    let top_k = op.routing.top_k;
    for row in 0..op.n {
        let mut sum = [0.0; LANES];
        for rank in row * top_k..(row + 1) * top_k {
            let slot = op.plan.slots[rank];
            if slot == NOWHERE {
                continue;
            }
            let (y, weight) = (&y[slot], op.routing.weights[rank]);
            for l in 0..LANES {
                sum[l] += weight * y[l];
            }
        }
        // SAFETY: the tile's outputs are this thread's.
        unsafe { op.out.slice(row * op.width + tile * LANES, LANES) }.copy_from_slice(&sum);
    }
}
