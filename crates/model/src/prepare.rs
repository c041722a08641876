use tandem_backend::{Backend, Batch, Draw, Sequence};

use crate::{LOGIT_ROWS, Model, ModelError};

impl<B: Backend> Model<B> {
    /// Runs, before there are any requests, the steps that the device wants to record, and whatever else is set up on first
    /// use. `progress` is told how many steps there are and how many are through. Overwrites the first block of either pool.
    pub fn prepare(&mut self, mut progress: impl FnMut(usize, usize)) -> Result<(), ModelError> {
        let capacity = self.capacity();
        let most = capacity.max_streams.min(capacity.max_step_tokens) as usize;
        let sizes: Vec<usize> = self.backend().worth_recording().into_iter().filter(|rows| *rows <= most).collect();
        for (done, rows) in sizes.iter().enumerate() {
            progress(done, sizes.len());
            self.rehearse(*rows)?;
        }
        progress(sizes.len(), sizes.len());
        Ok(())
    }

    /// Twice the first step of so many sequences; they share a block, and write the same into it.
    fn rehearse(&mut self, rows: usize) -> Result<(), ModelError> {
        let sequence = |row| Sequence { rows: row..row + 1, position: 0, full_blocks: &[0], sliding_blocks: &[0] };
        let sequences: Vec<Sequence<'_>> = (0..rows).map(sequence).collect();
        let batch = Batch { tokens: &vec![0; rows], sequences: &sequences };
        for _ in 0..2 {
            self.forward(&batch)?;
            let some = (0..rows.min(LOGIT_ROWS)).map(|row| (row, Draw { temperature: 0.0, uniform: 0.0, mask: None }));
            if self.draws() {
                self.draw(&some.collect::<Vec<_>>())?;
            }
        }
        Ok(())
    }
}
