use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tandem_backend::Backend;

use crate::{Model, ModelError};

/// How many different experts a layer reads in steps of single rows, counted while somebody wants to know. Shared between
/// whoever measures and the [`crate::Runner`].
#[derive(Debug, Default)]
pub struct ExpertTally {
    wanted: AtomicBool,
    layers: AtomicU64,
    distinct: AtomicU64,
}

impl ExpertTally {
    /// Counts from the next step on, from nothing.
    pub fn start(&self) {
        self.layers.store(0, Ordering::Relaxed);
        self.distinct.store(0, Ordering::Relaxed);
        self.wanted.store(true, Ordering::Release);
    }

    /// No longer, from the next step on.
    pub fn stop(&self) {
        self.wanted.store(false, Ordering::Release);
    }

    /// Different experts that a layer of a step read, on the average; `None` if nothing was counted.
    pub fn mean(&self) -> Option<f64> {
        let (layers, distinct) = (self.layers.load(Ordering::Acquire), self.distinct.load(Ordering::Acquire));
        (layers > 0).then(|| distinct as f64 / layers as f64)
    }
}

/// The runner's end of a tally.
pub(crate) struct Counting {
    tally: Arc<ExpertTally>,
    /// What the device was told last.
    on: bool,
}

impl Counting {
    pub(crate) fn new(tally: Arc<ExpertTally>) -> Self {
        Self { tally, on: false }
    }

    /// Before a step: tells the device whether to count.
    pub(crate) fn before<B: Backend>(&mut self, model: &Model<B>) -> Result<(), ModelError> {
        let wanted = self.tally.wanted.load(Ordering::Acquire);
        if std::mem::replace(&mut self.on, wanted) != wanted {
            model.count_experts(wanted)?;
        }
        Ok(())
    }

    /// After a step: takes note of what was counted.
    pub(crate) fn after<B: Backend>(&self, model: &Model<B>) -> Result<(), ModelError> {
        if self.on {
            let counted = model.experts_counted()?;
            self.tally.layers.fetch_add(counted.layers, Ordering::AcqRel);
            self.tally.distinct.fetch_add(counted.distinct, Ordering::AcqRel);
        }
        Ok(())
    }
}
