use super::pages::Pages;
use crate::BackendError;

/// Activations `[rows, width]`, row-major.
pub struct CpuBuffer {
    pub(crate) rows: usize,
    pub(crate) width: usize,
    pub(crate) values: Pages<f32>,
}

impl CpuBuffer {
    /// A zeroed buffer.
    pub(crate) fn new(rows: usize, width: usize) -> Result<Self, BackendError> {
        Ok(Self { rows, width, values: Pages::zeroed(rows * width, "activations")? })
    }

    /// Fails unless there are `n` rows of `width` values.
    pub(crate) fn check(&self, what: &str, n: usize, width: usize) -> Result<(), BackendError> {
        if n <= self.rows && width == self.width {
            return Ok(());
        }
        let (rows, has) = (self.rows, self.width);
        Err(BackendError::Shape(format!("{what}: expected {n} rows of {width} values, found {rows} of {has}")))
    }

    /// Row `index`.
    pub(crate) fn row(&self, index: usize) -> &[f32] {
        &self.values[index * self.width..][..self.width]
    }

    /// Row `index`.
    pub(crate) fn row_mut(&mut self, index: usize) -> &mut [f32] {
        &mut self.values[index * self.width..][..self.width]
    }
}
