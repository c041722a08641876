use std::io::{IsTerminal, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Result;
use tandem_backend_cuda::KernelProgress;
use tandem_model::{Counted, WeightStore};
use tracing::info;

/// How often loading tells how far it is, on a terminal and in a log.
const TERMINAL_INTERVAL: Duration = Duration::from_millis(200);
const LOG_INTERVAL: Duration = Duration::from_secs(5);

/// Where loading shows how far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// In the log, every few seconds.
    Log,
    /// As one line of the terminal that is written over.
    Terminal,
}

impl Progress {
    /// The terminal where there is one.
    pub fn from_terminal() -> Self {
        if std::io::stderr().is_terminal() { Self::Terminal } else { Self::Log }
    }

    /// Says how far something is; the last time, on a terminal, its line is cleared.
    pub(super) fn show(self, line: &str, last: bool) {
        match self {
            Self::Log => info!("{line}"),
            Self::Terminal if last => eprint!("\r\x1b[K"),
            Self::Terminal => {
                eprint!("\r{line}\x1b[K");
                // A terminal that cannot be written to is no reason to stop loading.
                let _ = std::io::stderr().flush();
            }
        }
    }
}

/// Runs `load` on a store whose reads are counted and shown, with the kernels that are compiled meanwhile.
pub(super) fn with_progress<T>(
    store: &dyn WeightStore,
    progress: Progress,
    kernels: Option<&KernelProgress>,
    load: impl FnOnce(&dyn WeightStore) -> Result<T>,
) -> Result<T> {
    let started = Instant::now();
    let show = |bytes, total| {
        let line = loading_line(bytes, total, started.elapsed(), kernels.map(KernelProgress::files));
        progress.show(&line, false);
    };
    let interval = if progress == Progress::Terminal { TERMINAL_INTERVAL } else { LOG_INTERVAL };
    let loaded = counted(store, interval, &show, load);
    if progress == Progress::Terminal {
        progress.show("", true);
    }
    loaded
}

/// How far loading is, for people.
fn loading_line(bytes: u64, total: u64, elapsed: Duration, kernels: Option<(usize, usize)>) -> String {
    let rate = bytes as f64 / 1e9 / elapsed.as_secs_f64().max(1e-3);
    let kernels = match kernels {
        Some((done, of)) if done < of => format!(", kernels: {done} of {of} files compiled"),
        _ => String::new(),
    };
    format!("loading: {} % of {:.1} GB, {rate:.2} GB/s{kernels}", bytes * 100 / total.max(1), total as f64 / 1e9)
}

/// Runs `load` on a store whose reads are counted; `show(read, total)` is told of them in between, from another thread.
pub fn counted<T>(
    store: &dyn WeightStore,
    interval: Duration,
    show: &(dyn Fn(u64, u64) + Sync),
    load: impl FnOnce(&dyn WeightStore) -> T,
) -> T {
    let read = AtomicU64::new(0);
    let done = AtomicBool::new(false);
    let total = store.total_bytes();
    std::thread::scope(|scope| {
        let shown = scope.spawn(|| {
            loop {
                std::thread::park_timeout(interval);
                if done.load(Ordering::Acquire) {
                    return;
                }
                show(read.load(Ordering::Relaxed), total);
            }
        });
        let loaded = load(&Counted::new(store, &read));
        done.store(true, Ordering::Release);
        shown.thread().unpark();
        loaded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_tells_of_kernels_until_they_are_there() {
        let line = |kernels| loading_line(5_000_000_000, 20_000_000_000, Duration::from_secs(2), kernels);
        assert_eq!(line(None), "loading: 25 % of 20.0 GB, 2.50 GB/s");
        assert_eq!(line(Some((3, 16))), "loading: 25 % of 20.0 GB, 2.50 GB/s, kernels: 3 of 16 files compiled");
        assert_eq!(line(Some((16, 16))), line(None));
    }
}
