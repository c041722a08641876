/// How activations and cached keys and values are computed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Precision {
    /// f32 activations, one fixed summation order: the same bits whatever else is computed beside it.
    Exact,
    /// The fastest path within the stated tolerance; activations may be rounded on the way into a product.
    Fast,
}

/// Number format of attention and lm_head weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseFormat {
    /// As shipped, 2 bytes per weight.
    Bf16,
    /// int8 in groups of 32 along the input dimension with one scale each.
    Q8,
    /// E2M1 in groups of 32 along the input dimension with one E8M0 scale each: of the power of two with which the largest
    /// magnitude lies in [4, 8) and the next one, the one that leaves the smaller squared error.
    Mxfp4,
}

impl DenseFormat {
    /// All of them.
    pub const ALL: [DenseFormat; 3] = [DenseFormat::Bf16, DenseFormat::Q8, DenseFormat::Mxfp4];
}

/// Number format of cached keys and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// 4 bytes: exact mode.
    F32,
    /// 2 bytes.
    Bf16,
    /// 1 byte: E4M3 as it is, without a scale. Beyond 448 it saturates.
    Fp8,
}

impl KvFormat {
    /// All of them.
    pub const ALL: [KvFormat; 3] = [KvFormat::F32, KvFormat::Bf16, KvFormat::Fp8];

    /// Bytes per value.
    pub fn bytes(self) -> usize {
        match self {
            KvFormat::F32 => 4,
            KvFormat::Bf16 => 2,
            KvFormat::Fp8 => 1,
        }
    }
}
