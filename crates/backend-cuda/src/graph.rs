use std::collections::HashMap;
use std::sync::Arc;

use cudarc::driver::result;
use cudarc::driver::sys::{CUgraph, CUgraphExec, CUgraphInstantiate_flags, CUstreamCaptureMode};
use tandem_backend::BackendError;

use crate::device::{Device, failed};

/// Steps of at most so many rows are recorded; for larger ones launches cost the host less than the device needs.
pub(crate) const RECORDED_ROWS_MAX: usize = 64;

/// Recorded steps: a step of the same number of rows launches the same kernels with the same arguments, so after it was run
/// once it is recorded and from then on launched as a whole. 250 launches cost the host 0.5 ms, one graph 10 µs.
pub(crate) struct Graphs {
    device: Arc<Device>,
    recorded: HashMap<usize, Recording>,
}

enum Recording {
    /// Run once without recording: whatever is set up on first use has been.
    Warm,
    Ready(CUgraphExec),
}

// SAFETY: handles of the driver, used with the device's context current.
unsafe impl Send for Graphs {}

impl Graphs {
    pub(crate) fn new(device: &Arc<Device>) -> Self {
        Self { device: Arc::clone(device), recorded: HashMap::new() }
    }

    /// Runs the step `key` by whatever is best: `run` enqueues its kernels, and nothing else.
    pub(crate) fn run<E: From<BackendError>>(
        &mut self,
        key: usize,
        run: &mut dyn FnMut() -> Result<(), E>,
    ) -> Result<(), E> {
        match self.recorded.get(&key) {
            None => {
                run()?;
                self.recorded.insert(key, Recording::Warm);
                Ok(())
            }
            Some(Recording::Warm) => {
                let graph = self.record(run)?;
                self.recorded.insert(key, Recording::Ready(graph));
                Ok(self.launch(graph)?)
            }
            Some(Recording::Ready(graph)) => Ok(self.launch(*graph)?),
        }
    }

    /// Forgets everything, as when buffers have moved.
    pub(crate) fn clear(&mut self) {
        for (_, recording) in self.recorded.drain() {
            if let Recording::Ready(graph) = recording
                && self.device.bind().is_ok()
            {
                // SAFETY: instantiated by `record`, destroyed once. An error here has no one to go to.
                let _ = unsafe { result::graph::exec_destroy(graph) };
            }
        }
    }

    fn record<E: From<BackendError>>(&self, run: &mut dyn FnMut() -> Result<(), E>) -> Result<CUgraphExec, E> {
        self.device.bind()?;
        let stream = self.device.stream();
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        // SAFETY: the stream is ours.
        unsafe { result::stream::begin_capture(stream, mode) }
            .map_err(|error| failed("beginning to record a step", error))?;
        let ran = run();
        // SAFETY: begun above. Also after an error, or the stream would stay unusable.
        let graph: Result<CUgraph, _> = unsafe { result::stream::end_capture(stream) };
        ran?;
        let graph = graph.map_err(|error| failed("recording a step", error))?;
        // SAFETY: `graph` is what was just recorded; the executable graph does not need it any more.
        let made = unsafe {
            let made = result::graph::instantiate(graph, CUgraphInstantiate_flags(0));
            result::graph::destroy(graph).map(|()| made).unwrap_or_else(Err)
        };
        Ok(made.map_err(|error| failed("preparing a recorded step", error))?)
    }

    fn launch(&self, graph: CUgraphExec) -> Result<(), BackendError> {
        self.device.bind()?;
        self.device.set_busy();
        // SAFETY: instantiated by `record` and not destroyed; all memory it names is alive.
        unsafe { result::graph::launch(graph, self.device.stream()) }
            .map_err(|error| failed("launching a recorded step", error))
    }
}

impl Drop for Graphs {
    fn drop(&mut self) {
        self.clear();
    }
}
