use tandem_backend::{Backend, BackendError};

use crate::Config;

/// Residual streams, allocated once. Few rows have one of their own: a pass of many may be half through meanwhile.
pub(super) struct Residuals<B: Backend> {
    few: B::Buffer,
    rows_of_few: usize,
    many: B::Buffer,
    /// Which of the two was computed last.
    last: Residual,
}

/// One of the residual streams.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Residual {
    Few,
    Many,
}

impl<B: Backend> Residuals<B> {
    /// For steps of at most `rows` rows, of which `few` are few.
    pub(super) fn new(backend: &B, config: &Config, few: usize, rows: usize) -> Result<Self, BackendError> {
        Ok(Self {
            few: backend.buffer(few, config.hidden)?,
            rows_of_few: few,
            many: backend.buffer(rows, config.hidden)?,
            last: Residual::Few,
        })
    }

    /// The one for a pass of so many rows that nothing comes between.
    pub(super) fn place(&self, rows: usize) -> Residual {
        if rows <= self.rows_of_few { Residual::Few } else { Residual::Many }
    }

    /// The one to compute.
    pub(super) fn take(&mut self, which: Residual) -> &mut B::Buffer {
        self.last = which;
        match which {
            Residual::Few => &mut self.few,
            Residual::Many => &mut self.many,
        }
    }

    /// The one that was computed last.
    pub(super) fn last(&self) -> &B::Buffer {
        match self.last {
            Residual::Few => &self.few,
            Residual::Many => &self.many,
        }
    }
}
