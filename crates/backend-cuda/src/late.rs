//! Kernels that are compiled and loaded while weights are read.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use tandem_backend::BackendError;
use tracing::info;

use crate::activations::{ExpertInputs, PrefillActivations};
use crate::compile::Compiler;
use crate::device::Device;
use crate::kernels::{FILES, Kernels, Packing};

/// The kernels of steps, which a thread of their own compiles and loads. Whoever wants one waits for all: everything is
/// loaded before the first kernel that waits for another rank, as loading may wait for those that run.
pub(crate) struct LateKernels {
    thread: Mutex<Option<JoinHandle<Result<Loaded, BackendError>>>>,
    loaded: OnceLock<Result<Loaded, String>>,
    progress: Arc<KernelProgress>,
}

/// What the thread leaves.
pub(crate) struct Loaded {
    pub(crate) kernels: Kernels,
    /// Which of them take the experts' products of prompts: where block-scaled ones have to prove themselves first, they did.
    pub(crate) expert_inputs: ExpertInputs,
}

/// How far kernels are that are compiled beside loading weights.
#[derive(Debug, Default)]
pub struct KernelProgress {
    files: AtomicUsize,
    cached: AtomicUsize,
    took_us: AtomicU64,
    waited_us: AtomicU64,
}

impl LateKernels {
    /// Starts the thread; a probe needs what packs weights.
    pub(crate) fn start(
        device: &Arc<Device>,
        compiler: Compiler,
        packing: Packing,
        asked: PrefillActivations,
    ) -> Result<Self, BackendError> {
        let progress = Arc::<KernelProgress>::default();
        let (device, theirs) = (Arc::clone(device), Arc::clone(&progress));
        let thread = Builder::new().name("kernels".into()).spawn(move || {
            let begun = Instant::now();
            let kernels = Kernels::load(&device, &compiler, &theirs);
            theirs.took_us.store(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
            theirs.announce(device.arch());
            let kernels = kernels?;
            let expert_inputs = ExpertInputs::choose(asked, &device, &kernels, &packing)?;
            Ok(Loaded { kernels, expert_inputs })
        });
        let thread = thread.map_err(|error| BackendError::Unsupported(format!("a thread for kernels: {error}")))?;
        Ok(Self { thread: Mutex::new(Some(thread)), loaded: OnceLock::new(), progress })
    }

    /// The kernels, which are waited for.
    pub(crate) fn get(&self) -> Result<&Loaded, BackendError> {
        let loaded = self.loaded.get_or_init(|| {
            let begun = Instant::now();
            let joined = self.join();
            self.progress.waited_us.store(begun.elapsed().as_micros() as u64, Ordering::Relaxed);
            joined
        });
        loaded.as_ref().map_err(|reason| BackendError::Unsupported(reason.clone()))
    }

    /// Why there will be none, if that is known already: nobody should read weights for nothing.
    pub(crate) fn check(&self) -> Result<(), BackendError> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        let is_through = thread.as_ref().is_none_or(JoinHandle::is_finished);
        drop(thread);
        if is_through { self.get().map(drop) } else { Ok(()) }
    }

    /// The kernels, without waiting: none before somebody has waited for them.
    pub(crate) fn known(&self) -> Option<&Loaded> {
        self.loaded.get()?.as_ref().ok()
    }

    /// For whoever shows it.
    pub(crate) fn progress(&self) -> &Arc<KernelProgress> {
        &self.progress
    }

    fn join(&self) -> Result<Loaded, String> {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        match thread.map(JoinHandle::join) {
            Some(Ok(loaded)) => loaded.map_err(|error| error.to_string()),
            Some(Err(_)) | None => Err("the thread that compiles kernels panicked".into()),
        }
    }
}

impl Drop for LateKernels {
    /// Driver and compiler must not be in use when the process ends.
    fn drop(&mut self) {
        // Nobody is left who could use them.
        let _ = self.get();
    }
}

impl KernelProgress {
    /// Files that are through, and all of them.
    pub fn files(&self) -> (usize, usize) {
        (self.files.load(Ordering::Relaxed), FILES)
    }

    /// How long compiling and loading took; 0 before its end.
    pub fn took(&self) -> Duration {
        Duration::from_micros(self.took_us.load(Ordering::Relaxed))
    }

    /// How much of that nothing else was done.
    pub fn waited(&self) -> Duration {
        Duration::from_micros(self.waited_us.load(Ordering::Relaxed))
    }

    /// One more file is through.
    pub(crate) fn note(&self, cached: bool) {
        self.files.fetch_add(1, Ordering::Relaxed);
        self.cached.fetch_add(usize::from(cached), Ordering::Relaxed);
    }

    fn announce(&self, arch: &str) {
        let ((files, _), cached) = (self.files(), self.cached.load(Ordering::Relaxed));
        let seconds = self.took().as_secs_f64();
        info!("kernels for {arch}: {} files compiled, {cached} from the cache, in {seconds:.1} s", files - cached);
    }
}
