use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tandem_backend::{BackendError, Batch, Rope, StepLimits};

use crate::activations::{ExpertInputs, PrefillActivations};
use crate::compile::Compiler;
use crate::count::Tally;
use crate::device::{Device, DeviceError};
use crate::exchange::Joined;
use crate::graph::Graphs;
use crate::kernels::{Kernels, Packing};
use crate::late::{KernelProgress, LateKernels};
use crate::masks::Masks;
use crate::memory::{DeviceMemory, PinnedMemory};
use crate::rows::{StepRows, StepShape, shape_of};
use crate::staging::Staging;
use crate::work::{self, Sizes};

/// How the backend is set up.
#[derive(Clone, Debug, Default)]
pub struct CudaOptions {
    /// Number of the GPU.
    pub ordinal: usize,
    /// Folder in which compiled kernels are kept; none: compile anew.
    pub cache: Option<PathBuf>,
    /// Launch kernels one by one instead of as recorded graphs.
    pub eager: bool,
    /// What activations of prompts are rounded to before the experts.
    pub prefill_activations: PrefillActivations,
    /// On a Hopper: a GB10's kernels, tiles and shared memory, to try them where they can be run. For tests.
    pub as_gb10: bool,
}

/// gpt-oss on one GPU.
pub struct CudaBackend {
    // Dropped in this order: what uses the device before the device.
    pub(crate) state: Mutex<State>,
    pub(crate) packing: Packing,
    pub(crate) late: LateKernels,
    pub(crate) device: Arc<Device>,
    pub(crate) eager: bool,
}

/// What lives from operation to operation.
pub(crate) struct State {
    pub(crate) graphs: Graphs,
    pub(crate) staging: Option<Staging>,
    rows: Option<StepRows>,
    pub(crate) scratch: Scratch,
    rope: Option<(Vec<f32>, DeviceMemory)>,
    /// Where the device writes the tokens it chose.
    pub(crate) chosen: Option<PinnedMemory>,
    /// What it may choose from.
    pub(crate) masks: Masks,
    /// What it shares with other ranks.
    pub(crate) exchange: Option<Joined>,
    pub(crate) tally: Tally,
}

/// Working memory by purpose. Reserved for a model's steps (`work::Sizes` knows each part); without that, as in tests of single
/// operations, it grows on first use.
#[derive(Default)]
pub(crate) struct Scratch {
    /// Activations between gate-up and down, F16 `[rows * top_k, intermediate]`.
    pub(crate) inner: Option<DeviceMemory>,
    /// Activations as decode kernels stage them, and their factors.
    pub(crate) staged: Option<DeviceMemory>,
    /// Sums of blocks that share an output, f32.
    pub(crate) partial: Option<DeviceMemory>,
    /// Router logits by part, f32.
    pub(crate) logits: Option<DeviceMemory>,
    /// Softmax states and sums of attention's splits, f32.
    pub(crate) splits: Option<DeviceMemory>,
    /// Activations as products of many rows read them, 16 bits, `[rows, width]`.
    pub(crate) narrow: Option<DeviceMemory>,
    /// What rounding those left.
    pub(crate) rest: Option<DeviceMemory>,
    /// Experts' results, f32 `[rows * top_k, hidden]`.
    pub(crate) results: Option<DeviceMemory>,
    /// Rows by expert, and tiles of them.
    pub(crate) groups: Option<DeviceMemory>,
    /// Maxima and sums of chunks of logits.
    pub(crate) chunks: Option<DeviceMemory>,
    /// Counters of blocks that have arrived, all zero between kernels.
    pub(crate) arrived: Option<DeviceMemory>,
    /// Whether any of these has moved since steps were recorded: their addresses are in the recordings.
    pub(crate) moved: bool,
    /// Whether all of it was reserved: then nothing grows any more.
    reserved: bool,
}

impl CudaBackend {
    /// Opens the GPU and compiles what packs weights; a thread goes on with all other kernels.
    pub fn new(options: CudaOptions) -> Result<Self, BackendError> {
        let CudaOptions { ordinal, cache, eager, prefill_activations, as_gb10 } = options;
        let mut device =
            Device::open(ordinal).map_err(|error: DeviceError| BackendError::Unsupported(error.to_string()))?;
        if as_gb10 {
            device.limit_as_gb10();
        }
        let device = Arc::new(device);
        let compiler = Compiler::new(device.arch(), cache).as_gb10(as_gb10);
        let packing = Packing::load(&device, &compiler)?;
        let late = LateKernels::start(&device, compiler, packing, prefill_activations)?;
        let state = State {
            graphs: Graphs::new(&device),
            staging: None,
            rows: None,
            scratch: Scratch::default(),
            rope: None,
            chosen: None,
            masks: Masks::default(),
            exchange: None,
            tally: Tally::new(&device)?,
        };
        Ok(Self { state: Mutex::new(state), packing, late, device, eager })
    }

    /// The GPU.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// How far its kernels are.
    pub fn kernel_progress(&self) -> &Arc<KernelProgress> {
        self.late.progress()
    }

    /// The kernels of steps; waits until they are there.
    pub(crate) fn kernels(&self) -> Result<&Kernels, BackendError> {
        Ok(&self.late.get()?.kernels)
    }

    /// What the experts of prompts read; waits likewise, as a probe of the kernels may decide it.
    pub(crate) fn expert_inputs(&self) -> Result<ExpertInputs, BackendError> {
        Ok(self.late.get()?.expert_inputs)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The staging buffers, made when weights are first read.
    pub(crate) fn staging(&mut self, device: &Arc<Device>) -> Result<&mut Staging, BackendError> {
        if self.staging.is_none() {
            self.staging = Some(Staging::new(device)?);
        }
        self.staging.as_mut().ok_or_else(|| BackendError::Unsupported("no staging buffer".into()))
    }

    /// Makes room for steps of this shape.
    pub(crate) fn reserve(&mut self, device: &Arc<Device>, shape: StepShape) -> Result<(), BackendError> {
        self.graphs.clear();
        self.rows = None;
        self.rows = Some(StepRows::new(device, shape)?);
        Ok(())
    }

    /// Makes all working memory of steps within these limits; none is made later.
    pub(crate) fn reserve_all(&mut self, device: &Arc<Device>, limits: &StepLimits) -> Result<(), BackendError> {
        let StepLimits { rows, sequences, blocks, widths } = *limits;
        self.scratch.reserve(device, &Sizes::new(limits))?;
        self.reserve(device, StepShape { rows, sequences, blocks })?;
        self.masks.room(device, work::mask_words(widths.vocab))?;
        self.chosen = Some(PinnedMemory::new(device, work::chosen())?);
        let bytes = work::rope(&widths);
        self.rope = Some((Vec::new(), DeviceMemory::zeroed(device, bytes, "rope frequencies")?));
        Ok(())
    }

    /// Brings a step's rows to the device, making room for them where nothing was reserved.
    pub(crate) fn begin(
        &mut self,
        device: &Arc<Device>,
        kernels: &Kernels,
        batch: &Batch<'_>,
    ) -> Result<(), BackendError> {
        if !self.rows.as_ref().is_some_and(|rows| rows.holds(batch)) {
            if self.scratch.reserved {
                let (rows, sequences) = (batch.tokens.len(), batch.sequences.len());
                return Err(BackendError::Shape(format!(
                    "{rows} rows of {sequences} sequences: more than was reserved"
                )));
            }
            self.reserve(device, shape_of(batch))?;
        }
        self.rows.as_mut().ok_or_else(not_begun)?.set(kernels, batch)
    }

    /// The rows of the step under way.
    pub(crate) fn rows(&self) -> Result<&StepRows, BackendError> {
        self.rows.as_ref().ok_or_else(not_begun)
    }

    /// Address of the rope frequencies, brought to the device when they are first seen.
    pub(crate) fn rope(&mut self, device: &Arc<Device>, rope: &Rope) -> Result<u64, BackendError> {
        if let Some((known, memory)) = &self.rope
            && *known == rope.inv_freq
        {
            return Ok(memory.at(0));
        }
        let bytes = rope.inv_freq.len() * size_of::<f32>();
        let memory = match self.rope.take() {
            Some((_, memory)) if memory.bytes() >= bytes => memory,
            _ => {
                self.scratch.moved = true;
                DeviceMemory::zeroed(device, bytes, "rope frequencies")?
            }
        };
        device.upload(memory.at(0), &rope.inv_freq)?;
        let address = memory.at(0);
        self.rope = Some((rope.inv_freq.clone(), memory));
        Ok(address)
    }
}

impl Scratch {
    fn reserve(&mut self, device: &Arc<Device>, sizes: &Sizes) -> Result<(), BackendError> {
        let Sizes { inner, partial, staged, logits, splits, narrow, rest, results, groups, chunks, arrived } = *sizes;
        *self = Self::default();
        self.ensure(device, |s| &mut s.inner, inner, "experts' inner activations")?;
        self.ensure(device, |s| &mut s.partial, partial, "partial sums")?;
        self.ensure(device, |s| &mut s.staged, staged, "staged activations")?;
        self.ensure(device, |s| &mut s.logits, logits, "router logits")?;
        self.ensure(device, |s| &mut s.splits, splits, "attention's splits")?;
        self.ensure(device, |s| &mut s.narrow, narrow, "narrow activations")?;
        self.ensure(device, |s| &mut s.rest, rest, "the rest of narrow activations")?;
        self.ensure(device, |s| &mut s.results, results, "experts' results")?;
        self.ensure(device, |s| &mut s.groups, groups, "rows by expert")?;
        self.ensure(device, |s| &mut s.chunks, chunks, "chunks of logits")?;
        self.ensure(device, |s| &mut s.arrived, arrived, "counters")?;
        self.reserved = true;
        Ok(())
    }

    /// The address of at least `bytes` of the memory that `place` picks.
    pub(crate) fn ensure(
        &mut self,
        device: &Arc<Device>,
        place: fn(&mut Scratch) -> &mut Option<DeviceMemory>,
        bytes: usize,
        what: &str,
    ) -> Result<u64, BackendError> {
        if let Some(memory) = place(self).as_ref().filter(|memory| memory.bytes() >= bytes) {
            return Ok(memory.at(0));
        }
        if self.reserved {
            return Err(BackendError::Shape(format!("{bytes} bytes of {what}: more than was reserved")));
        }
        self.moved = true;
        // The old one first: both together may not fit. Freeing waits for the kernels that use it.
        *place(self) = None;
        let memory = place(self).insert(DeviceMemory::zeroed(device, bytes, what)?);
        Ok(memory.at(0))
    }
}

fn not_begun() -> BackendError {
    BackendError::Shape("no step was begun".into())
}
