//! A forward pass that several steps share, some layers in each.

use tandem_backend::{Backend, Batch};
use tandem_step::{Row, RowResult, Slice};

use super::{Runner, bad, sequences};
use crate::ModelError;

/// A pass that is under way. Its residual stream is the model's, its block tables are those of its slots: they have no
/// other rows meanwhile.
pub(super) struct Pass {
    rows: Vec<Row>,
    /// All rows' tokens, one after another.
    tokens: Vec<u32>,
    /// It is through so many layers.
    layers: usize,
}

impl Pass {
    fn has(&self, slot: u32) -> bool {
        self.rows.iter().any(|row| row.slot == slot)
    }
}

impl<B: Backend> Runner<B> {
    /// Runs some layers of the pass that is under way, or that begins. Answers its rows where these are the last.
    pub(super) fn run_slice(&mut self, slice: &Slice) -> Result<Vec<RowResult>, ModelError> {
        if !slice.rows.is_empty() {
            self.begin_pass(&slice.rows)?;
        }
        let Some(mut pass) = self.pass.take() else { return bad("a slice of no pass".into()) };
        let (first, all) = (pass.layers, self.model.config().layers());
        pass.layers += slice.layers as usize;
        if slice.layers == 0 || pass.layers > all {
            return bad(format!("{} layers after {first} of {all}", slice.layers));
        }
        let sequences = sequences(&self.slots, &pass.rows)?;
        let batch = Batch { tokens: &pass.tokens, sequences: &sequences };
        self.model.forward_slice(&batch, first..pass.layers)?;
        // The rows that follow would wait for it as well, and the engine wants to know how long it took.
        self.model.wait()?;
        if pass.layers == all {
            return self.choose(&pass.rows, pass.tokens.len());
        }
        self.pass = Some(pass);
        Ok(Vec::new())
    }

    fn begin_pass(&mut self, rows: &[Row]) -> Result<(), ModelError> {
        if self.pass.is_some() {
            return bad("a pass begins while another is under way".into());
        }
        let tokens = self.admit_rows(rows)?;
        self.pass = Some(Pass { rows: rows.to_vec(), tokens, layers: 0 });
        Ok(())
    }

    /// A pass is over when all its slots end. While others stay, none may.
    pub(super) fn end_pass(&mut self, ends: &[u32]) -> Result<(), ModelError> {
        let Some(pass) = &self.pass else { return Ok(()) };
        let ending = pass.rows.iter().filter(|row| ends.contains(&row.slot)).count();
        if ending == pass.rows.len() {
            self.pass = None;
        } else if ending > 0 {
            return bad(format!("{ending} of {} slots end in the middle of their pass", pass.rows.len()));
        }
        Ok(())
    }

    /// Refuses rows that do not go beside the pass that is under way.
    pub(super) fn keep_apart(&self, rows: &[Row]) -> Result<(), ModelError> {
        let Some(pass) = &self.pass else { return Ok(()) };
        let tokens: usize = rows.iter().map(|row| row.input.len()).sum();
        if tokens > self.capacity().max_streams as usize {
            return bad(format!("{tokens} tokens beside a pass that is under way"));
        }
        match rows.iter().find(|row| pass.has(row.slot)) {
            Some(row) => bad(format!("slot {} has another row while its pass is under way", row.slot)),
            None => Ok(()),
        }
    }
}
