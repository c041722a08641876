use std::time::Instant;

use super::{
    isa::Isa,
    pages::Pages,
    pool::Pool,
    simd::{Kernel, LANES, Simd},
};
use crate::BackendError;

/// Passes over the buffer; the best counts.
const PASSES: usize = 6;

/// Measures how fast `threads` threads together read memory, in bytes per second: the best of several passes over a
/// buffer of `bytes`, which should be much larger than the caches (1 GiB or more).
pub fn read_bandwidth(threads: usize, bytes: usize) -> Result<f64, BackendError> {
    let threads = threads.max(1);
    let isa = Isa::detect();
    let pool = Pool::new(threads).map_err(|e| BackendError::Unsupported(format!("could not start threads: {e}")))?;
    let part = (bytes / threads / 4096 * 4096).max(4096);
    let mut values = Pages::<u8>::zeroed(part * threads, "the bandwidth probe")?;
    // Untouched pages are all the same page of zeroes.
    values.chunks_mut(4096).for_each(|page| page[0] = 1);
    let mut best = 0.0_f64;
    for _ in 0..PASSES {
        let begun = Instant::now();
        pool.run(&|worker| {
            let part = &values[worker.index * part..][..part];
            // SAFETY: the instruction set was detected.
            std::hint::black_box(unsafe { isa.run(Read(part)) });
        });
        best = best.max(values.len() as f64 / begun.elapsed().as_secs_f64());
    }
    Ok(best)
}

/// Reads every byte: four independent maxima over wide loads.
struct Read<'a>(&'a [u8]);

impl Kernel for Read<'_> {
    type Out = f32;

    #[inline(always)]
    unsafe fn run<S: Simd>(self) -> f32 {
        let mut out = [0.0; LANES];
        // SAFETY: chunks of 256 bytes are four vectors of 16 f32.
        unsafe {
            let mut max = [S::splat(0.0); 4];
            for chunk in self.0.chunks_exact(256) {
                S::prefetch(chunk.as_ptr().wrapping_add(4096));
                S::prefetch(chunk.as_ptr().wrapping_add(4096 + 64));
                S::prefetch(chunk.as_ptr().wrapping_add(4096 + 128));
                S::prefetch(chunk.as_ptr().wrapping_add(4096 + 192));
                for (i, max) in max.iter_mut().enumerate() {
                    *max = S::max(*max, S::load(chunk.as_ptr().cast::<f32>().add(i * LANES)));
                }
            }
            S::store(out.as_mut_ptr(), S::max(S::max(max[0], max[1]), S::max(max[2], max[3])));
        }
        out[0]
    }
}
