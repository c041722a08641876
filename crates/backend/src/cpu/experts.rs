use super::{
    dot::{GROUP, mxfp4_tile_bytes},
    math::from_bf16,
    matrix::Failure,
    mxfp4::pack_row,
    pages::{Pages, Shared},
    pool::Pool,
    simd::LANES,
};
use crate::{BackendError, ExpertsShape, ExpertsSource, RowSource};

/// The experts of one layer in MXFP4 tiles.
///
/// Gate and up rows are taken apart: of every two tiles of an expert the first has sixteen gate rows and the second the up
/// rows of the same units, so that SwiGLU works lane by lane.
pub struct CpuExperts {
    pub(crate) shape: ExpertsShape,
    /// `[experts][intermediate / 16][gate, up]` tiles of `hidden` columns.
    pub(crate) gate_up: Pages<u8>,
    /// `[experts][hidden / 16]` tiles of `intermediate` columns.
    pub(crate) down: Pages<u8>,
    /// `[experts][intermediate]`.
    pub(crate) gate_bias: Vec<f32>,
    /// `[experts][intermediate]`.
    pub(crate) up_bias: Vec<f32>,
    /// `[experts][hidden]`.
    pub(crate) down_bias: Vec<f32>,
}

/// A scale byte that means "not a number".
const E8M0_NAN: u8 = 255;

impl CpuExperts {
    /// Reads and repacks, 32 rows at a time, on all threads.
    pub(crate) fn load(pool: &Pool, shape: ExpertsShape, source: &ExpertsSource<'_>) -> Result<Self, BackendError> {
        check(&shape, source)?;
        let ExpertsShape { experts, hidden, intermediate, .. } = shape;
        let gate_up_rows = experts * 2 * intermediate;
        let down_rows = experts * hidden;
        let mut gate_up = Pages::zeroed(gate_up_rows / LANES * mxfp4_tile_bytes(hidden), "gate and up weights")?;
        let mut down = Pages::zeroed(down_rows / LANES * mxfp4_tile_bytes(intermediate), "down weights")?;
        let (gate_up_tiles, down_tiles) = (Shared::new(&mut gate_up), Shared::new(&mut down));
        let failure = Failure::default();
        pool.for_each((gate_up_rows + down_rows) / (2 * LANES), &|pair| {
            let result = if pair < gate_up_rows / (2 * LANES) {
                let pairs = TilePair { what: "gate and up", cols: hidden, pair, interleaved: true };
                // SAFETY: the pair is ours alone.
                unsafe { pairs.load(source.gate_up_blocks, source.gate_up_scales, gate_up_tiles) }
            } else {
                let pair = pair - gate_up_rows / (2 * LANES);
                let pairs = TilePair { what: "down", cols: intermediate, pair, interleaved: false };
                // SAFETY: the pair is ours alone.
                unsafe { pairs.load(source.down_blocks, source.down_scales, down_tiles) }
            };
            if let Err(error) = result {
                failure.set(error);
            }
        });
        failure.into_result()?;
        let gate_up_bias = read_bf16(source.gate_up_bias, "gate and up biases")?;
        Ok(Self {
            shape,
            gate_up,
            down,
            gate_bias: gate_up_bias.iter().step_by(2).copied().collect(),
            up_bias: gate_up_bias.iter().skip(1).step_by(2).copied().collect(),
            down_bias: read_bf16(source.down_bias, "down biases")?,
        })
    }
}

/// All values of a BF16 tensor.
pub(crate) fn read_bf16(source: &dyn RowSource, what: &str) -> Result<Vec<f32>, BackendError> {
    let mut raw = vec![0; source.rows() * source.row_bytes()];
    source.read(0, &mut raw).map_err(|source| BackendError::Read { what: what.to_owned(), source })?;
    Ok(raw.chunks_exact(2).map(|b| from_bf16(u16::from_le_bytes([b[0], b[1]]))).collect())
}

fn check(shape: &ExpertsShape, source: &ExpertsSource<'_>) -> Result<(), BackendError> {
    let ExpertsShape { experts, hidden, intermediate, .. } = *shape;
    if !hidden.is_multiple_of(GROUP) || !intermediate.is_multiple_of(GROUP) || hidden * intermediate == 0 {
        return Err(BackendError::Shape(format!("experts {hidden} x {intermediate} are no multiples of {GROUP}")));
    }
    let expect = |what: &str, source: &dyn RowSource, rows: usize, bytes: usize| {
        if (source.rows(), source.row_bytes()) == (rows, bytes) {
            return Ok(());
        }
        let found = format!("{} rows of {} bytes", source.rows(), source.row_bytes());
        Err(BackendError::Shape(format!("{what}: expected {rows} rows of {bytes} bytes, found {found}")))
    };
    expect("gate_up blocks", source.gate_up_blocks, experts * 2 * intermediate, hidden / 2)?;
    expect("gate_up scales", source.gate_up_scales, experts * 2 * intermediate, hidden / GROUP)?;
    expect("gate_up bias", source.gate_up_bias, experts, 4 * intermediate)?;
    expect("down blocks", source.down_blocks, experts * hidden, intermediate / 2)?;
    expect("down scales", source.down_scales, experts * hidden, intermediate / GROUP)?;
    expect("down bias", source.down_bias, experts, 2 * hidden)
}

/// Two neighbouring tiles: 32 rows of the source.
struct TilePair {
    what: &'static str,
    cols: usize,
    pair: usize,
    /// Even rows to the first tile, odd ones to the second; otherwise the first sixteen to the first.
    interleaved: bool,
}

impl TilePair {
    /// # Safety
    /// No other thread touches the pair.
    unsafe fn load(&self, blocks: &dyn RowSource, scales: &dyn RowSource, out: Shared<u8>) -> Result<(), BackendError> {
        let first = self.pair * 2 * LANES;
        let fail = |source| BackendError::Read { what: format!("{} rows from {first}", self.what), source };
        let mut nibbles = vec![0_u8; 2 * LANES * self.cols / 2];
        let mut exponents = vec![0_u8; 2 * LANES * self.cols / GROUP];
        blocks.read(first, &mut nibbles).map_err(fail)?;
        scales.read(first, &mut exponents).map_err(fail)?;
        if let Some(at) = exponents.iter().position(|e| *e == E8M0_NAN) {
            let row = first + at / (self.cols / GROUP);
            let what = format!("{} row {row}", self.what);
            let source = std::io::Error::new(std::io::ErrorKind::InvalidData, "MXFP4 scale byte 255 is not a number");
            return Err(BackendError::Read { what, source });
        }
        let bytes = mxfp4_tile_bytes(self.cols);
        for tile in 0..2 {
            // SAFETY: within the pair.
            let out = unsafe { out.slice((self.pair * 2 + tile) * bytes, bytes) };
            for lane in 0..LANES {
                let row = if self.interleaved { 2 * lane + tile } else { tile * LANES + lane };
                let (nibbles, exponents) = (&nibbles[row * self.cols / 2..], &exponents[row * self.cols / GROUP..]);
                pack_row(nibbles, exponents, lane, self.cols, out);
            }
        }
        Ok(())
    }
}
