const ROUNDS: usize = 10;
const MULTIPLIERS: [u64; 2] = [0xD2E7_470E_E14C_6C93, 0xCA5A_8263_9512_1157];
const WEYL: [u64; 2] = [0x9E37_79B9_7F4A_7C15, 0xBB67_AE85_84CA_A73B];

/// Philox4x64-10, a counter-based generator (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011), in the
/// order in which numpy's `Philox(key=seed)` gives its words: the counter starts at zero and is raised before each block
/// of four.
#[derive(Clone, Debug)]
pub struct Philox {
    key: [u64; 2],
    counter: u64,
    block: [u64; 4],
    used: usize,
}

impl Philox {
    /// The generator whose key is `(seed, 0)`.
    pub fn new(seed: u64) -> Self {
        Self { key: [seed, 0], counter: 0, block: [0; 4], used: 4 }
    }

    /// The next raw word.
    pub fn word(&mut self) -> u64 {
        if self.used == 4 {
            self.counter += 1;
            self.block = rounds([self.counter, 0, 0, 0], self.key);
            self.used = 0;
        }
        self.used += 1;
        self.block[self.used - 1]
    }

    /// The next `n` bytes, little-endian within words; the rest of the last word is dropped.
    pub fn bytes(&mut self, n: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..n.div_ceil(8)).flat_map(|_| self.word().to_le_bytes()).collect();
        bytes.truncate(n);
        bytes
    }

    /// `n` values in [-1, 1), multiples of 2^-15; the rest of the last word is dropped.
    pub fn uniform(&mut self, n: usize) -> Vec<f32> {
        let bytes = self.bytes(2 * n.next_multiple_of(4));
        let halves = bytes.chunks_exact(2).map(|pair| u16::from_le_bytes([pair[0], pair[1]]));
        halves.take(n).map(|raw| f32::from(raw) / 32768.0 - 1.0).collect()
    }
}

fn rounds(mut counter: [u64; 4], mut key: [u64; 2]) -> [u64; 4] {
    for _ in 0..ROUNDS {
        let (high0, low0) = wide_product(MULTIPLIERS[0], counter[0]);
        let (high1, low1) = wide_product(MULTIPLIERS[1], counter[2]);
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0];
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
    }
    counter
}

fn wide_product(a: u64, b: u64) -> (u64, u64) {
    let product = u128::from(a) * u128::from(b);
    ((product >> 64) as u64, product as u64)
}

#[cfg(test)]
mod tests {
    use super::Philox;

    /// First words of numpy 2.4's `Philox(key=1).random_raw(5)`.
    #[test]
    fn gives_the_words_of_numpy() {
        let mut philox = Philox::new(1);
        let words: Vec<u64> = (0..5).map(|_| philox.word()).collect();
        let numpy = [
            0x4db6_a27b_7562_82df,
            0xd944_fa03_babe_0e2f,
            0x27f8_72e5_7706_0d32,
            0x07f6_9769_6a04_82a2,
            0xe677_fe4b_bd04_52ec,
        ];
        assert_eq!(words, numpy);
    }
}
