use std::io;

/// Bytes of a tensor, row by row, wherever they come from: a file, a generator, a slice.
///
/// All leading dimensions are flattened into rows; the last one is the row. Backends call `read` from several threads on
/// disjoint rows, straight into where the bytes are needed or into a small staging buffer.
pub trait RowSource: Sync {
    /// Number of rows.
    fn rows(&self) -> usize;
    /// Bytes of one row.
    fn row_bytes(&self) -> usize;
    /// Reads whole rows from `first` on; `out` is a multiple of `row_bytes` long.
    fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()>;
}

/// Sizes of one layer's experts, of which a shard may hold some, or of each a part of its units.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ExpertsShape {
    /// Experts held.
    pub experts: usize,
    /// The first of them, as the router counts.
    pub first: usize,
    /// All that the router chooses from. What it chooses of those that are not held adds nothing to the output.
    pub total: usize,
    /// Width of the residual stream, a multiple of 32.
    pub hidden: usize,
    /// Units between the two matrices, a multiple of 32.
    pub intermediate: usize,
    /// Clamp of the gate and up values.
    pub limit: f32,
    /// Factor inside the sigmoid, 1.702 for gpt-oss.
    pub alpha: f32,
}

/// Where one layer's experts are read from: MXFP4 blocks and scales as in the checkpoint, BF16 biases.
///
/// Gate and up rows interleave: row `2j` of an expert is the gate of unit `j`, row `2j + 1` its up.
#[derive(Clone, Copy)]
pub struct ExpertsSource<'a> {
    /// `experts * 2 * intermediate` rows of `hidden / 2` bytes.
    pub gate_up_blocks: &'a dyn RowSource,
    /// As many rows of `hidden / 32` bytes (E8M0).
    pub gate_up_scales: &'a dyn RowSource,
    /// `experts` rows of `2 * intermediate` BF16 values.
    pub gate_up_bias: &'a dyn RowSource,
    /// `experts * hidden` rows of `intermediate / 2` bytes.
    pub down_blocks: &'a dyn RowSource,
    /// As many rows of `intermediate / 32` bytes.
    pub down_scales: &'a dyn RowSource,
    /// `experts` rows of `hidden` BF16 values.
    pub down_bias: &'a dyn RowSource,
}
