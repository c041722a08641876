//! The experts of more rows than the decode kernels take: rows by expert, two products over tiles of them, and the
//! weighted sum.

use std::ops::Range;

use tandem_backend::{BackendError, ExpertsShape};

use crate::activations::ExpertInputs;
use crate::backend::CudaBackend;
use crate::buffer::{CudaBuffer, CudaRouting};
use crate::experts::{CudaExperts, ExpertMatrices};
use crate::kernels::{FP8_TILES, Fp8Experts, TILES};
use crate::launch::{Argument, Launch, arguments};
use crate::many::Choice;
use crate::work;

/// Rows an expert up to which each narrow tile is the fastest where there are wide products, measured on an H200
/// (`kernels/check/bench_prefill.py`).
const BEST: [usize; 4] = [12, 48, 48, 48];

/// The two products, for so many rows an expert.
struct Products {
    gate_up: Choice,
    down: Choice,
    mxfp8: bool,
}

/// Activations as a product reads them.
#[derive(Clone, Copy)]
struct Operand {
    values: u64,
    /// Of MXFP8.
    scales: Option<u64>,
}

/// Rows by expert, as `moe_group` leaves them.
struct Groups {
    tiles: u64,
    tile_count: u64,
    sorted: u64,
}

impl CudaBackend {
    /// Adds the weighted sum of the chosen experts' results to `out`.
    pub(crate) fn moe_many(
        &self,
        x: &CudaBuffer,
        n: usize,
        routing: &CudaRouting,
        experts: &CudaExperts,
        out: &CudaBuffer,
    ) -> Result<(), BackendError> {
        let ExpertsShape { experts: count, first, total, hidden, intermediate, .. } = experts.shape;
        let pairs = n * routing.top_k;
        // Where only some experts are held, as many rows come to each of them.
        let products = self.products(n, pairs.div_ceil(total))?;
        let x = self.expert_rows(x, n, &products)?;
        let (inner, results) = {
            let scratch = &mut self.state().scratch;
            let (device, bytes) = (&self.device, work::inner(pairs, intermediate));
            let inner = scratch.ensure(device, |s| &mut s.inner, bytes, "experts' inner activations")?;
            let bytes = work::results(pairs, hidden);
            (inner, scratch.ensure(device, |s| &mut s.results, bytes, "experts' results")?)
        };
        let inner = Operand::at(inner, pairs, intermediate, products.mxfp8);
        let groups = self.group_rows(routing, n, first..first + count, products.gate_up.rows)?;
        self.gate_up_many(&products.gate_up, experts, routing.top_k, x, inner, &groups)?;
        self.down_many(&products.down, experts, inner, results, &groups)?;
        let (ids, weights) = routing.row(0);
        let shape = Launch { grid: (n, 1, 1), threads: 128, shared: 0 };
        let combine = arguments![results, ids, weights, out.row(0), hidden, routing.top_k, first, count];
        self.device.launch_after(self.kernels()?.moe_combine, shape, combine)
    }

    /// In MXFP8 only prompts: rows that decode read weights for few tokens, and reading takes longer than arithmetic.
    fn products(&self, n: usize, rows: usize) -> Result<Products, BackendError> {
        let kernels = self.kernels()?;
        let fp8 = match (self.expert_inputs()?, &kernels.block_scaled) {
            (ExpertInputs::Scaled, Some(scaled)) => Some(&scaled.experts),
            (ExpertInputs::Plain, _) => Some(&kernels.fp8_experts),
            _ => None,
        };
        if let Some(Fp8Experts { gate_up, down }) = fp8.filter(|_| !self.decodes(n)) {
            let index = usize::from(rows > FP8_TILES[0]);
            let choice = |of_tile| self.persistent(of_tile, FP8_TILES[index], false);
            return Ok(Products { gate_up: choice(gate_up[index]), down: choice(down[index]), mxfp8: true });
        }
        let best = if kernels.moe_down.wide.is_some() { BEST } else { TILES };
        let choice = |tiled| self.choose(tiled, best, rows);
        Ok(Products { gate_up: choice(&kernels.moe_gate_up), down: choice(&kernels.moe_down), mxfp8: false })
    }

    /// Whether the step under way decodes these rows. Without a step, as where one operation is tested, they are a prompt's.
    fn decodes(&self, n: usize) -> bool {
        self.state().rows().is_ok_and(|rows| rows.decode(n))
    }

    fn expert_rows(&self, x: &CudaBuffer, n: usize, products: &Products) -> Result<Operand, BackendError> {
        if !products.mxfp8 {
            let (values, _) = self.narrow(x, n, false, products.gate_up.wide, false)?;
            return Ok(Operand { values, scales: None });
        }
        let bytes = work::narrow(n, x.width);
        let narrow = self.state().scratch.ensure(&self.device, |s| &mut s.narrow, bytes, "narrow activations")?;
        let to = Operand::at(narrow, n, x.width, true);
        let shape = Launch { grid: (n, 1, 1), threads: 256, shared: 0 };
        let mut arguments = vec![Argument::from(x.row(0))];
        to.pass(&mut arguments);
        arguments.push(Argument::from(x.width));
        self.device.launch_after(self.kernels()?.narrow_rows_fp8, shape, &mut arguments)?;
        Ok(to)
    }

    fn group_rows(
        &self,
        routing: &CudaRouting,
        n: usize,
        held: Range<usize>,
        rows: usize,
    ) -> Result<Groups, BackendError> {
        let count = held.len();
        let pairs = n * routing.top_k;
        let bytes = work::groups(pairs, count, rows);
        let tiles = self.state().scratch.ensure(&self.device, |s| &mut s.groups, bytes, "rows by expert")?;
        let offsets = tiles + 16 * (count + pairs.div_ceil(rows)) as u64;
        let sorted = offsets + 4 * (count + 1) as u64;
        let tile_count = sorted + 4 * pairs as u64;
        let (ids, _) = routing.row(0);
        let shape = Launch { grid: (count, 1, 1), threads: 256, shared: 4 * count };
        let group = arguments![ids, offsets, sorted, tiles, tile_count, pairs, held.start, count, rows];
        self.device.launch_after(self.kernels()?.moe_group, shape, group)?;
        Ok(Groups { tiles, tile_count, sorted })
    }

    fn gate_up_many(
        &self,
        choice: &Choice,
        experts: &CudaExperts,
        top_k: usize,
        x: Operand,
        inner: Operand,
        groups: &Groups,
    ) -> Result<(), BackendError> {
        let ExpertsShape { hidden, intermediate, limit, alpha, .. } = experts.shape;
        let mut arguments = weights(&experts.gate_up, experts.gate_up_bias.memory.at(0));
        x.pass(&mut arguments);
        inner.pass(&mut arguments);
        groups.pass(&mut arguments);
        arguments.extend([2 * intermediate, hidden, top_k].map(Argument::from));
        arguments.extend([limit, alpha].map(Argument::from));
        self.device.launch_after(choice.kernel, choice.shape, &mut arguments)
    }

    fn down_many(
        &self,
        choice: &Choice,
        experts: &CudaExperts,
        inner: Operand,
        results: u64,
        groups: &Groups,
    ) -> Result<(), BackendError> {
        let ExpertsShape { hidden, intermediate, .. } = experts.shape;
        let mut arguments = weights(&experts.down, experts.down_bias.memory.at(0));
        inner.pass(&mut arguments);
        arguments.push(results.into());
        groups.pass(&mut arguments);
        arguments.extend([hidden, intermediate].map(Argument::from));
        self.device.launch_after(choice.kernel, choice.shape, &mut arguments)
    }
}

/// The first arguments of a product.
fn weights(matrices: &ExpertMatrices, bias: u64) -> Vec<Argument> {
    let ExpertMatrices { tiles, scales, row_base } = matrices;
    [tiles.at(0), scales.at(0), row_base.at(0), bias].map(Argument::from).into()
}

impl Operand {
    /// Rows at an address where 16 bits a value fit: MXFP8 with its scales takes about half of that.
    fn at(address: u64, rows: usize, width: usize, mxfp8: bool) -> Self {
        Self { values: address, scales: mxfp8.then_some(address + (rows * width) as u64) }
    }

    fn pass(self, arguments: &mut Vec<Argument>) {
        arguments.push(self.values.into());
        arguments.extend(self.scales.map(Argument::from));
    }
}

impl Groups {
    fn pass(&self, arguments: &mut Vec<Argument>) {
        arguments.extend([self.tiles, self.tile_count, self.sorted].map(Argument::from));
    }
}
