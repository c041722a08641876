//! The CUDA backend on a real GPU. Where there is none, each test says so and what it would have done.

mod conformance;
mod exchange;
mod formats;
mod golden;
mod memory;
mod ranks;
mod slices;
mod transformers;

use tandem_backend_cuda::{CudaBackend, CudaOptions, device_count};

/// A backend on the first GPU; without one, says that `what` was skipped and why.
///
/// `TANDEM_TEST_GPU=1` makes a missing GPU a failure: on a machine that has one nothing may be skipped.
/// `TANDEM_TEST_AS_GB10=1` runs everything with a GB10's kernels, tiles and shared memory, as far as a Hopper can.
fn backend(what: &str, eager: bool) -> Option<CudaBackend> {
    backend_on(what, 0, eager)
}

fn backend_on(what: &str, ordinal: usize, eager: bool) -> Option<CudaBackend> {
    backend_with(what, CudaOptions { ordinal, eager, ..CudaOptions::default() })
}

/// GPUs of this machine.
fn gpus() -> usize {
    device_count().unwrap_or(0)
}

fn backend_with(what: &str, options: CudaOptions) -> Option<CudaBackend> {
    let required = std::env::var_os("TANDEM_TEST_GPU").is_some();
    match device_count() {
        Ok(count) if count > 0 => {
            let cache = Some(std::env::temp_dir().join("tandem-test-kernels"));
            let as_gb10 = options.as_gb10 || std::env::var_os("TANDEM_TEST_AS_GB10").is_some();
            Some(CudaBackend::new(CudaOptions { cache, as_gb10, ..options }).unwrap())
        }
        found => {
            let why = found.map_or_else(|error| error.to_string(), |_| "the driver finds no GPU".into());
            assert!(!required, "{what}: {why}");
            eprintln!("SKIPPED {what}: {why}");
            None
        }
    }
}
