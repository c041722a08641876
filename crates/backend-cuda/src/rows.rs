use std::sync::Arc;

use cudarc::driver::result;
use tandem_backend::{AttentionKind, BackendError, Batch};

use crate::device::{Device, failed};
use crate::kernels::Kernels;
use crate::launch::{Launch, arguments};
use crate::memory::{DeviceMemory, PinnedMemory};

/// What kernels know of a step's rows, on the device: tokens, positions, which sequence each row belongs to, and the
/// sequences' block tables. Lies at fixed addresses, so that a recorded graph can be replayed for another step. Only words
/// that differ from the step before travel: a table of a long context has thousands, of which one changes in 16 steps.
pub(crate) struct StepRows {
    device: Arc<Device>,
    shape: StepShape,
    memory: DeviceMemory,
    /// What the device has.
    mirror: Vec<u32>,
    /// Changes on their way: pairs of word and value.
    pinned: PinnedMemory,
    changes: DeviceMemory,
    /// Whether every sequence has one row.
    single: bool,
    /// Sequences of the step under way.
    count: usize,
}

/// How much fits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct StepShape {
    pub(crate) rows: usize,
    pub(crate) sequences: usize,
    /// Entries of a block table.
    pub(crate) blocks: usize,
}

impl StepShape {
    fn holds(&self, other: &StepShape) -> bool {
        self.rows >= other.rows && self.sequences >= other.sequences && self.blocks >= other.blocks
    }

    /// Tokens, positions and sequences; the two tables; the sequences' first rows, with the end, and first positions.
    fn words(&self) -> usize {
        3 * self.rows + 2 * self.sequences * self.blocks + 2 * self.sequences + 1
    }

    /// What all that takes.
    pub(crate) fn bytes(&self) -> RowBytes {
        RowBytes { device: (4 + CHANGE_BYTES) * self.words(), pinned: CHANGE_BYTES * self.words() }
    }

    /// Where the sequences' first rows begin.
    fn first_rows(&self) -> usize {
        3 * self.rows + 2 * self.sequences * self.blocks
    }
}

/// Bytes of a step's rows.
pub(crate) struct RowBytes {
    pub(crate) device: usize,
    pub(crate) pinned: usize,
}

/// Bytes of a change.
const CHANGE_BYTES: usize = 8;

impl StepRows {
    pub(crate) fn new(device: &Arc<Device>, shape: StepShape) -> Result<Self, BackendError> {
        let words = shape.words();
        Ok(Self {
            device: Arc::clone(device),
            shape,
            memory: DeviceMemory::zeroed(device, 4 * words, "a step's rows")?,
            mirror: vec![0; words],
            pinned: PinnedMemory::new(device, CHANGE_BYTES * words)?,
            changes: DeviceMemory::zeroed(device, CHANGE_BYTES * words, "a step's changes")?,
            single: false,
            count: 0,
        })
    }

    /// Whether a batch fits.
    pub(crate) fn holds(&self, batch: &Batch<'_>) -> bool {
        self.shape.holds(&shape_of(batch))
    }

    /// Brings a batch to the device. Waits for the step before, if nobody has: changes on their way lie in one place.
    pub(crate) fn set(&mut self, kernels: &Kernels, batch: &Batch<'_>) -> Result<(), BackendError> {
        check(batch)?;
        self.device.wait_if_busy()?;
        self.single = batch.sequences.iter().all(|sequence| sequence.rows.len() == 1);
        self.count = batch.sequences.len();
        let StepShape { rows, sequences, blocks } = self.shape;
        let first_rows = self.shape.first_rows();
        let (mirror, changes) = (&mut self.mirror, self.pinned.as_mut_slice());
        let mut changed = 0;
        let mut put = |word: usize, value: u32| {
            if std::mem::replace(&mut mirror[word], value) != value {
                let pair = &mut changes[changed * CHANGE_BYTES..][..CHANGE_BYTES];
                pair[..4].copy_from_slice(&(word as u32).to_le_bytes());
                pair[4..].copy_from_slice(&value.to_le_bytes());
                changed += 1;
            }
        };
        for (row, token) in batch.tokens.iter().enumerate() {
            put(row, *token);
        }
        for (index, sequence) in batch.sequences.iter().enumerate() {
            for (i, row) in sequence.rows.clone().enumerate() {
                put(rows + row, sequence.position + i as u32);
                put(2 * rows + row, index as u32);
            }
            let tables = [sequence.full_blocks, sequence.sliding_blocks];
            for (which, table) in tables.into_iter().enumerate() {
                let at = 3 * rows + (which * sequences + index) * blocks;
                table.iter().enumerate().for_each(|(i, block)| put(at + i, *block));
            }
            put(first_rows + index, sequence.rows.start as u32);
            put(first_rows + index + 1, sequence.rows.end as u32);
            put(first_rows + sequences + 1 + index, sequence.position);
        }
        if changed == 0 { Ok(()) } else { self.send(kernels, changed) }
    }

    fn send(&self, kernels: &Kernels, changed: usize) -> Result<(), BackendError> {
        self.device.bind()?;
        let pairs = &self.pinned.as_slice()[..changed * CHANGE_BYTES];
        // SAFETY: both hold a change for every word; the host does not write again before the stream has been waited for.
        unsafe { result::memcpy_htod_async(self.changes.at(0), pairs, self.device.stream()) }
            .map_err(|error| failed("bringing a step's rows to the device", error))?;
        let shape = Launch { grid: (changed.div_ceil(256), 1, 1), threads: 256, shared: 0 };
        let arguments = arguments![self.memory.at(0), self.changes.at(0), changed];
        self.device.launch_after(kernels.set_words, shape, arguments)
    }

    /// Whether every sequence has one row: rows do not depend on each other.
    pub(crate) fn single(&self) -> bool {
        self.single
    }

    /// Whether `n` rows are those of a step that decodes: each of a sequence of its own.
    pub(crate) fn decode(&self, n: usize) -> bool {
        self.single && self.count == n
    }

    /// Sequences of the step under way, where their first rows are (and the end of the last), and their first positions.
    pub(crate) fn runs(&self) -> (usize, u64, u64) {
        let first = self.shape.first_rows();
        (self.count, self.memory.at(4 * first), self.memory.at(4 * (first + self.shape.sequences + 1)))
    }

    pub(crate) fn tokens(&self) -> u64 {
        self.memory.at(0)
    }

    pub(crate) fn positions(&self) -> u64 {
        self.memory.at(4 * self.shape.rows)
    }

    pub(crate) fn sequences(&self) -> u64 {
        self.memory.at(8 * self.shape.rows)
    }

    /// Block tables of one kind of layers, and entries from one to the next.
    pub(crate) fn tables(&self, kind: AttentionKind) -> (u64, usize) {
        let StepShape { rows, sequences, blocks } = self.shape;
        let which = usize::from(matches!(kind, AttentionKind::Sliding { .. }));
        (self.memory.at(4 * (3 * rows + which * sequences * blocks)), blocks)
    }
}

/// What a batch takes.
pub(crate) fn shape_of(batch: &Batch<'_>) -> StepShape {
    let longest =
        |sequence: &tandem_backend::Sequence<'_>| sequence.full_blocks.len().max(sequence.sliding_blocks.len());
    StepShape {
        rows: batch.tokens.len(),
        sequences: batch.sequences.len(),
        blocks: batch.sequences.iter().map(longest).max().unwrap_or(0),
    }
}

/// The sequences' rows must cover the batch.
fn check(batch: &Batch<'_>) -> Result<(), BackendError> {
    let mut next = 0;
    for sequence in batch.sequences {
        if sequence.rows.start != next || sequence.rows.is_empty() {
            return Err(BackendError::Shape(format!("sequence rows {:?} after row {next}", sequence.rows)));
        }
        next = sequence.rows.end;
    }
    if next != batch.tokens.len() {
        return Err(BackendError::Shape(format!("sequences of {next} rows, {} tokens", batch.tokens.len())));
    }
    Ok(())
}
