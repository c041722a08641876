//! What a rank says of its part of the logits, when ranks draw tokens together.

use std::ffi::c_void;
use std::ops::Range;

use tandem_backend::{BackendError, Candidate, Draw, LogitsPart};

use crate::backend::{CudaBackend, State};
use crate::buffer::CudaBuffer;
use crate::few::{DRAW_CHUNKS, DRAWS_MAX, THREADS};
use crate::kernels::Kernel;
use crate::launch::{Argument, Launch};
use crate::memory::PinnedMemory;
use crate::work::{self, COUNTER_BYTES};

/// Threads of a draw's block in `part_find`.
const FINDERS: usize = 1024;
/// A draw's target is not in this part; it has no token here.
const NOWHERE: u64 = u64::MAX;
const ELSEWHERE: u32 = u32::MAX;

/// `PartDraws` of `draw_part.cu`.
#[repr(C)]
struct PartDraws {
    target: [u64; DRAWS_MAX],
    largest: [f32; DRAWS_MAX],
    inverse_temperature: [f32; DRAWS_MAX],
    mask: [i32; DRAWS_MAX],
    row: [i32; DRAWS_MAX],
}

/// Some draws from a part, at most as many as one launch takes.
struct DrawBatch<'a> {
    logits: &'a CudaBuffer,
    first: usize,
    /// Which of all the draws.
    range: Range<usize>,
    draws: &'a [(usize, Draw)],
}

impl CudaBackend {
    pub(crate) fn part_likeliest(
        &self,
        part: &LogitsPart<'_, CudaBuffer>,
        draws: &[(usize, Draw)],
        best: &mut [Candidate],
    ) -> Result<(), BackendError> {
        for some in launches(part, draws, best.len())? {
            let found = self.ask(&some, self.kernels()?.part_largest, Asked::Largest, PartDraws::of(some.draws))?;
            for (best, [logit, token]) in best[some.range].iter_mut().zip(found) {
                *best = Candidate { logit: f32::from_bits(logit), token };
            }
        }
        Ok(())
    }

    pub(crate) fn part_weigh(
        &self,
        part: &LogitsPart<'_, CudaBuffer>,
        draws: &[(usize, Draw)],
        largest: &[f32],
        sums: &mut [u64],
    ) -> Result<(), BackendError> {
        for some in launches(part, draws, sums.len().min(largest.len()))? {
            let mut list = PartDraws::of(some.draws);
            list.largest[..some.draws.len()].copy_from_slice(&largest[some.range.clone()]);
            let found = self.ask(&some, self.kernels()?.part_weight, Asked::Weight, list)?;
            for (sum, [low, high]) in sums[some.range].iter_mut().zip(found) {
                *sum = u64::from(high) << 32 | u64::from(low);
            }
        }
        Ok(())
    }

    pub(crate) fn part_find(
        &self,
        part: &LogitsPart<'_, CudaBuffer>,
        draws: &[(usize, Draw)],
        largest: &[f32],
        targets: &[Option<u64>],
        tokens: &mut [Option<u32>],
    ) -> Result<(), BackendError> {
        for some in launches(part, draws, tokens.len().min(targets.len()).min(largest.len()))? {
            let mut list = PartDraws::of(some.draws);
            list.largest[..some.draws.len()].copy_from_slice(&largest[some.range.clone()]);
            for (to, target) in list.target.iter_mut().zip(&targets[some.range.clone()]) {
                *to = target.unwrap_or(NOWHERE);
            }
            let found = self.ask(&some, self.kernels()?.part_find, Asked::Token, list)?;
            for (token, [found, _]) in tokens[some.range].iter_mut().zip(found) {
                *token = (found != ELSEWHERE).then_some(found);
            }
        }
        Ok(())
    }

    /// Launches a kernel for some draws and waits: what it says of each, as two words.
    fn ask(
        &self,
        some: &DrawBatch<'_>,
        kernel: Kernel,
        asked: Asked,
        mut list: PartDraws,
    ) -> Result<Vec<[u32; 2]>, BackendError> {
        let DrawBatch { logits, first, draws, .. } = *some;
        let (count, shift) = (logits.width, first % 32);
        let words = work::mask_words(count);
        let mut state = self.state();
        let State { scratch, chosen, masks, .. } = &mut *state;
        let masked =
            draws.iter().zip(&mut list.mask).filter_map(|((_, draw), place)| Some((draw.mask.as_ref()?, place)));
        let mut sent = 0;
        for (mask, place) in masked {
            masks.room(&self.device, words)?.put(sent, mask.get(first / 32..).unwrap_or_default());
            *place = sent as i32;
            sent += 1;
        }
        let masks = masks.send(&self.device, sent)?;
        let chunks = scratch.ensure(&self.device, |s| &mut s.chunks, work::chunks(), "chunks of logits")?;
        let arrived = scratch.ensure(&self.device, |s| &mut s.arrived, COUNTER_BYTES, "counters")?;
        let said = match chosen {
            Some(chosen) => chosen,
            None => chosen.insert(PinnedMemory::new(&self.device, work::chosen())?),
        };
        let [chunks, arrived, result, masks] = [chunks, arrived, said.on_device(), masks].map(Argument::Pointer);
        let mut arguments = vec![logits.row(0).into(), count.into(), masks, words.into(), shift.into()];
        let (grid, threads) = match asked {
            Asked::Largest => {
                arguments.extend([first.into(), chunks, arrived, result]);
                ((DRAW_CHUNKS, draws.len(), 1), THREADS)
            }
            Asked::Weight => {
                arguments.extend([chunks, arrived, result]);
                ((DRAW_CHUNKS, draws.len(), 1), THREADS)
            }
            Asked::Token => {
                arguments.extend([first.into(), result]);
                ((draws.len(), 1, 1), FINDERS)
            }
        };
        let mut values: Vec<*mut c_void> = arguments.iter_mut().map(Argument::address).collect();
        values.insert(2, std::ptr::from_mut(&mut list).cast());
        self.device.launch_raw(kernel, Launch { grid, threads, shared: 0 }, &mut values, true)?;
        self.device.synchronize()?;
        let words: Vec<u32> = said.as_slice().as_chunks().0.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let each = if matches!(asked, Asked::Token) { 1 } else { 2 };
        Ok(words.chunks_exact(each).take(draws.len()).map(|said| [said[0], said[each - 1]]).collect())
    }
}

/// What a kernel of `draw_part.cu` is asked.
#[derive(Clone, Copy)]
enum Asked {
    Largest,
    Weight,
    Token,
}

/// The draws of each launch.
fn launches<'a>(
    part: &LogitsPart<'a, CudaBuffer>,
    draws: &'a [(usize, Draw)],
    answers: usize,
) -> Result<Vec<DrawBatch<'a>>, BackendError> {
    let LogitsPart { logits, first } = *part;
    let rows = draws.iter().map(|(row, _)| row + 1).max().unwrap_or(0);
    logits.check("logits of a part", rows, logits.width)?;
    if answers != draws.len() {
        return Err(BackendError::Shape(format!("{} draws with room for {answers} answers", draws.len())));
    }
    let batch = |(index, draws): (usize, &'a [(usize, Draw)])| {
        let start = index * DRAWS_MAX;
        DrawBatch { logits, first, range: start..start + draws.len(), draws }
    };
    Ok(draws.chunks(DRAWS_MAX).enumerate().map(batch).collect())
}

impl PartDraws {
    fn of(draws: &[(usize, Draw)]) -> Self {
        const ALL: i32 = -1;
        let mut list = Self {
            target: [NOWHERE; DRAWS_MAX],
            largest: [0.0; DRAWS_MAX],
            inverse_temperature: [0.0; DRAWS_MAX],
            mask: [ALL; DRAWS_MAX],
            row: [0; DRAWS_MAX],
        };
        for (i, (row, draw)) in draws.iter().enumerate() {
            list.row[i] = *row as i32;
            if draw.temperature > 0.0 {
                list.inverse_temperature[i] = draw.temperature.recip();
            }
        }
        list
    }
}
