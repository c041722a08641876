//! Proof, on the device at hand, that its block-scaled product is what is written of it: which lanes and bytes scales come
//! from, and where E2M1 stands in its container. Nobody who wrote the kernels had a device with that instruction.

use std::fmt;
use std::sync::Arc;

use cudarc::driver::result;
use tandem_backend::BackendError;

use crate::device::{Device, failed};
use crate::kernels::{Kernel, Packing};
use crate::launch::{Launch, arguments};
use crate::matrix::{SCALE_BYTES, TILE_BYTES};
use crate::memory::DeviceMemory;

/// Rows of weights in a case, columns, and rows of activations: the instruction's M, four of its K, and its N.
const ROWS: usize = 16;
const COLS: usize = 128;
const TOKENS: usize = 8;
/// Columns of one instruction, which have one scale.
const GROUP: usize = 32;
const GROUPS: usize = COLS / GROUP;
/// Tiles of a case's weights.
const TILES: usize = 2;
/// Products of a case, each of one group of columns.
const PRODUCTS: usize = GROUPS * ROWS * TOKENS;

/// 1.0 as an E2M1 code, as an E4M3 byte and as an E8M0 byte.
const ONE_E2M1: u8 = 2;
const ONE_E4M3: u8 = 0x38;
const ONE_E8M0: u8 = 127;
/// The largest scale; 255 is not a number.
const SCALE_MAX: u8 = 254;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Fault {
    sweep: &'static str,
    group: usize,
    row: usize,
    token: usize,
    got: f32,
    want: f32,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sweep, group, row, token, got, want } = self;
        let columns = group * GROUP..(group + 1) * GROUP;
        write!(
            f,
            "{sweep}: row {row} by activation row {token} over columns {columns:?} gives {got:e} instead of {want:e}"
        )
    }
}

/// Runs all cases, each in one warp; the first fault, if there is one.
pub(crate) fn prove(device: &Arc<Device>, packing: &Packing, probe: Kernel) -> Result<Option<Fault>, BackendError> {
    let cases = cases();
    let memory = |bytes: usize| DeviceMemory::zeroed(device, cases.len() * bytes, "the block-scale probe");
    let bring = |bytes: Vec<u8>| -> Result<DeviceMemory, BackendError> {
        let memory = DeviceMemory::zeroed(device, bytes.len(), "the block-scale probe")?;
        device.upload(memory.at(0), &bytes)?;
        Ok(memory)
    };
    let all = |bytes: fn(&Case) -> Vec<u8>| bring(cases.iter().flat_map(bytes).collect());
    let (blocks, raw_scales, x, x_scales) =
        (all(Case::blocks)?, all(Case::scales)?, all(Case::activations)?, all(Case::activation_scales)?);
    let (tiles, scales, refused) =
        (memory(TILES * TILE_BYTES)?, memory(TILES * SCALE_BYTES)?, memory(size_of::<u32>())?);
    let out = memory(PRODUCTS * size_of::<f32>())?;
    // Packed by what packs a model's weights: the probe reads what the products read.
    let shape = Launch { grid: (TILES, 1, cases.len()), threads: 32, shared: 0 };
    let pack = arguments![blocks.at(0), ROWS, COLS, false, tiles.at(0)];
    device.launch_after(packing.pack_mxfp4_tiles, shape, pack)?;
    let pack = arguments![raw_scales.at(0), ROWS, COLS, false, scales.at(0), refused.at(0)];
    device.launch_after(packing.pack_mxfp4_scales, shape, pack)?;
    let shape = Launch { grid: (cases.len(), 1, 1), threads: 32, shared: 0 };
    let operands = arguments![tiles.at(0), scales.at(0), x.at(0), x_scales.at(0), out.at(0)];
    device.launch_after(probe, shape, operands)?;
    device.synchronize()?;
    let mut got = vec![0.0_f32; cases.len() * PRODUCTS];
    // SAFETY: the memory has that many values.
    unsafe { result::memcpy_dtoh_sync(&mut got, out.at(0)) }
        .map_err(|error| failed("reading what the block-scale probe gave", error))?;
    Ok(fault(&cases, &got))
}

/// The first value that is not to the bit what it should be. Every product and sum of the cases fits eleven bits.
fn fault(cases: &[Case], got: &[f32]) -> Option<Fault> {
    let mut faults = cases.iter().zip(got.chunks(PRODUCTS)).flat_map(|(case, got)| {
        got.iter().enumerate().map(move |(i, got)| {
            let (group, row, token) = (i / (ROWS * TOKENS), i / TOKENS % ROWS, i % TOKENS);
            Fault { sweep: case.sweep, group, row, token, got: *got, want: case.product(group, row, token) }
        })
    });
    faults.find(|fault| fault.got != fault.want)
}

/// Weights and activations of one warp.
#[derive(Clone)]
struct Case {
    sweep: &'static str,
    /// E2M1.
    codes: [[u8; COLS]; ROWS],
    /// E8M0.
    scales: [[u8; GROUPS]; ROWS],
    /// E4M3.
    x: [[u8; COLS]; TOKENS],
    /// E8M0.
    x_scales: [[u8; GROUPS]; TOKENS],
}

/// Shifts of a one-hot element over a group of columns, one group of a case each; as many for scales.
const SWEEP_CASES: usize = GROUP / GROUPS;
/// Cases of everything at once.
const DENSE_CASES: usize = 4;

fn cases() -> Vec<Case> {
    let sweep = |each: fn(usize) -> Case| (0..SWEEP_CASES).map(each);
    let dense = (0..DENSE_CASES).map(|i| dense(i as u32));
    sweep(one_hot_weights).chain(sweep(one_hot_activations)).chain(sweep(every_scale)).chain(dense).collect()
}

/// One weight of 1 in a row of each group, at every place over the sweep; nearly every E4M3 value.
fn one_hot_weights(index: usize) -> Case {
    let mut case = Case::zero("one-hot weights");
    for column in 0..COLS {
        let (group, k) = (column / GROUP, column % GROUP);
        for (token, x) in case.x.iter_mut().enumerate() {
            x[column] = finite_e4m3(k * TOKENS + token);
        }
        for (row, codes) in case.codes.iter_mut().enumerate() {
            codes[column] = if (row + index * GROUPS + group) % GROUP == k { ONE_E2M1 } else { 0 };
        }
    }
    case
}

/// One activation of 1 in a row and group, at every place; every E2M1 code.
fn one_hot_activations(index: usize) -> Case {
    let mut case = Case::zero("one-hot activations");
    for column in 0..COLS {
        let (group, k) = (column / GROUP, column % GROUP);
        for (row, codes) in case.codes.iter_mut().enumerate() {
            codes[column] = ((3 * row + 5 * k + group) % 16) as u8;
        }
        for (token, x) in case.x.iter_mut().enumerate() {
            x[column] = if (4 * token + index * GROUPS + group) % GROUP == k { ONE_E4M3 } else { 0 };
        }
    }
    case
}

/// Every scale byte of weights, against scales of activations that bring the product back to about 1: every byte too.
fn every_scale(index: usize) -> Case {
    let mut case = Case::zero("every scale");
    case.x = [[ONE_E4M3; COLS]; TOKENS];
    for group in 0..GROUPS {
        let base = (TOKENS * (index * GROUPS + group)).min(usize::from(SCALE_MAX) + 1 - TOKENS);
        for row in 0..ROWS {
            case.codes[row][group * GROUP + 2 * row] = ONE_E2M1;
            case.scales[row][group] = (base + row).min(usize::from(SCALE_MAX)) as u8;
        }
        for token in 0..TOKENS {
            case.x_scales[token][group] = SCALE_MAX - (base + 3 * token % TOKENS) as u8;
        }
    }
    case
}

/// All elements at once: what is summed, and that scales of groups, rows and columns keep apart.
fn dense(seed: u32) -> Case {
    const X: [u8; 8] = [0x30, 0x38, 0x3c, 0x40, 0xb0, 0xb8, 0xbc, 0xc0]; // 0.5, 1, 1.5, 2 and less than 0
    let mut state = seed;
    let mut below = |end: u32| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        ((state >> 16) % end) as u8
    };
    let mut case = Case::zero("all elements");
    case.codes.iter_mut().flatten().for_each(|code| *code = below(16));
    case.x.iter_mut().flatten().for_each(|x| *x = X[usize::from(below(8))]);
    case.scales.iter_mut().flatten().for_each(|scale| *scale = 120 + below(15));
    case.x_scales.iter_mut().flatten().for_each(|scale| *scale = 120 + below(15));
    case
}

/// Number `index` of the 252 finite E4M3 bytes that are not zero, around and around.
fn finite_e4m3(index: usize) -> u8 {
    let (sign, magnitude) = (index / 126 % 2, index % 126 + 1);
    (sign << 7 | magnitude) as u8
}

impl Case {
    fn zero(sweep: &'static str) -> Self {
        let (scales, x_scales) = ([[ONE_E8M0; GROUPS]; ROWS], [[ONE_E8M0; GROUPS]; TOKENS]);
        Self { sweep, codes: [[0; COLS]; ROWS], scales, x: [[0; COLS]; TOKENS], x_scales }
    }

    /// What the probe gives: twice the sum over a group.
    fn product(&self, group: usize, row: usize, token: usize) -> f32 {
        let columns = group * GROUP..(group + 1) * GROUP;
        let sum: f64 = columns.map(|k| e2m1(self.codes[row][k]) * e4m3(self.x[token][k])).sum();
        (2.0 * sum * e8m0(self.scales[row][group]) * e8m0(self.x_scales[token][group])) as f32
    }

    /// Codes as a checkpoint has them, two to a byte, low one first.
    fn blocks(&self) -> Vec<u8> {
        self.codes.iter().flatten().copied().collect::<Vec<u8>>().chunks(2).map(|two| two[0] | two[1] << 4).collect()
    }

    fn scales(&self) -> Vec<u8> {
        self.scales.concat()
    }

    /// In the order in which products read them (`pack_e4m3` in `kernels/include/fp8.cuh`).
    fn activations(&self) -> Vec<u8> {
        let words = self.x.iter().flat_map(|row| row.chunks(4));
        words.flat_map(|word| [word[2], word[0], word[3], word[1]]).collect()
    }

    fn activation_scales(&self) -> Vec<u8> {
        self.x_scales.concat()
    }
}

fn e2m1(code: u8) -> f64 {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

fn e4m3(byte: u8) -> f64 {
    let (exponent, mantissa) = (i32::from(byte >> 3 & 15), f64::from(byte & 7));
    let magnitude = match exponent {
        0 => mantissa * 2.0_f64.powi(-9),
        _ => (8.0 + mantissa) * 2.0_f64.powi(exponent - 10),
    };
    if byte & 0x80 == 0 { magnitude } else { -magnitude }
}

fn e8m0(byte: u8) -> f64 {
    2.0_f64.powi(i32::from(byte) - 127)
}

#[cfg(test)]
mod tests;
