/// How random words become the bytes of a tensor. Word `i` gives bytes `8 * i .. 8 * i + 8`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Pattern {
    /// BF16 values `x * step + offset`, `x` uniform over all 16-bit integers.
    Bf16 { step: f32, offset: f32 },
    /// MXFP4 codes, all equally likely.
    Codes,
    /// E8M0 scales, one of three from `low` on.
    Scales { low: u8 },
}

/// Bytes made at a time.
const BLOCK: usize = 256;

impl Pattern {
    /// Uniform BF16 values of this standard deviation around `mean`.
    pub fn bf16(deviation: f64, mean: f64) -> Self {
        Self::Bf16 { step: (deviation * 3f64.sqrt() / 32768.0) as f32, offset: mean as f32 }
    }

    /// Scales of `middle` and its two neighbours.
    pub fn scales(middle: u8) -> Self {
        Self::Scales { low: middle - 1 }
    }

    /// Makes the bytes from `start` on of the tensor whose stream is `key`.
    pub fn fill(&self, key: u64, start: u64, out: &mut [u8]) {
        let mut at = start;
        let mut rest = out;
        while !rest.is_empty() {
            let (block, skip) = (at / BLOCK as u64, (at % BLOCK as u64) as usize);
            let bytes = self.block(key, block);
            let (head, tail) = rest.split_at_mut(rest.len().min(BLOCK - skip));
            head.copy_from_slice(&bytes[skip..skip + head.len()]);
            at += head.len() as u64;
            rest = tail;
        }
    }

    fn block(&self, key: u64, block: u64) -> [u8; BLOCK] {
        let raw = raw_block(key, block);
        match *self {
            Pattern::Codes => raw,
            Pattern::Scales { low } => raw.map(|byte| low + ((u16::from(byte) * 3) >> 8) as u8),
            Pattern::Bf16 { step, offset } => bf16_block(&raw, step, offset),
        }
    }
}

fn raw_block(key: u64, block: u64) -> [u8; BLOCK] {
    let mut raw = [0; BLOCK];
    let first = block * (BLOCK / 8) as u64;
    for (i, bytes) in raw.chunks_exact_mut(8).enumerate() {
        bytes.copy_from_slice(&word(key, first + i as u64).to_le_bytes());
    }
    raw
}

fn bf16_block(raw: &[u8; BLOCK], step: f32, offset: f32) -> [u8; BLOCK] {
    let mut values = [0; BLOCK];
    for (value, raw) in values.chunks_exact_mut(2).zip(raw.chunks_exact(2)) {
        let x = f32::from(i16::from_le_bytes([raw[0], raw[1]])) * step + offset;
        value.copy_from_slice(&round_to_bf16(x).to_le_bytes());
    }
    values
}

/// Nearest, ties to even; `x` is finite.
fn round_to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16) as u16
}

/// Word `index` of a stream: SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014),
/// which is a bijection of a counter and so needs no state.
fn word(key: u64, index: u64) -> u64 {
    let mut z = key.wrapping_add(index.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
