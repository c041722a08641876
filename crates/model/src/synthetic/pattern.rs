/// How random words become the bytes of a tensor, which are a function of the tensor's key and their place in it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Pattern {
    /// One of these BF16 values, by a random byte.
    Bf16(Box<[[u8; 2]; 256]>),
    /// MXFP4 codes, all equally likely.
    Codes,
    /// E8M0 scales, one of three from `low` on, by a random byte.
    Scales { low: u8 },
}

/// Random bytes made at a time.
const BLOCK: usize = 256;

impl Pattern {
    /// BF16 values of this standard deviation around `mean`: 256 of them, equally spaced and equally likely.
    pub fn bf16(deviation: f64, mean: f64) -> Self {
        let (step, mean) = ((deviation * 12f64.sqrt() / 256.0) as f32, mean as f32);
        let value = |i: usize| (i as f32 - 127.5) * step + mean;
        Self::Bf16(Box::new(std::array::from_fn(|i| round_to_bf16(value(i)).to_le_bytes())))
    }

    /// Scales of `middle` and its two neighbours.
    pub fn scales(middle: u8) -> Self {
        Self::Scales { low: middle - 1 }
    }

    /// Makes the bytes from `start` on of the tensor whose stream is `key`; `start` is on the border of an element.
    pub fn fill(&self, key: u64, start: u64, out: &mut [u8]) {
        match self {
            Pattern::Codes => raw(key, start, out.len(), |at, bytes| out[at..][..bytes.len()].copy_from_slice(bytes)),
            Pattern::Scales { low } => raw(key, start, out.len(), |at, bytes| {
                let scale = |byte: u8| low + ((u16::from(byte) * 3) >> 8) as u8;
                out[at..].iter_mut().zip(bytes).for_each(|(out, &byte)| *out = scale(byte));
            }),
            Pattern::Bf16(values) => raw(key, start / 2, out.len() / 2, |at, bytes| {
                let out = out[2 * at..].as_chunks_mut::<2>().0;
                out.iter_mut().zip(bytes).for_each(|(out, &byte)| *out = values[usize::from(byte)]);
            }),
        }
    }
}

/// Random bytes `start .. start + n` of a stream, handed over in pieces together with how many came before.
fn raw(key: u64, start: u64, n: usize, mut piece: impl FnMut(usize, &[u8])) {
    let mut done = 0;
    while done < n {
        let at = start + done as u64;
        let skip = (at % BLOCK as u64) as usize;
        let bytes = block(key, at / BLOCK as u64);
        let taken = (BLOCK - skip).min(n - done);
        piece(done, &bytes[skip..skip + taken]);
        done += taken;
    }
}

fn block(key: u64, block: u64) -> [u8; BLOCK] {
    let mut raw = [0; BLOCK];
    let first = block * (BLOCK / 8) as u64;
    for (i, bytes) in raw.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *bytes = word(key, first + i as u64).to_le_bytes();
    }
    raw
}

/// Word `index` of a stream: wyrand (Wang Yi, wyhash, public domain), whose state is a counter, so that any word can be
/// had without those before it, for one multiplication.
fn word(key: u64, index: u64) -> u64 {
    let state = key.wrapping_add(index.wrapping_add(1).wrapping_mul(0xA076_1D64_78BD_642F));
    let product = u128::from(state) * u128::from(state ^ 0xE703_7ED1_A0B4_28DB);
    (product >> 64) as u64 ^ product as u64
}

/// Nearest, ties to even; `x` is finite.
fn round_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}
