//! Workers that are processes of this program.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tracing::{debug, error, info, warn};

/// Longest line of a log that is passed on whole.
const LINE_BYTES_MAX: u64 = 16 << 10;
/// Last lines kept, to say why a worker ended.
const LAST_LINES: usize = 4;
/// How long a killed process may take to be gone.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(10);

/// Makes the command that starts worker `index`.
pub type ChildCommand = Box<dyn Fn(usize) -> Command + Send>;

/// Child processes, one for each local rank. They are killed when this is dropped.
///
/// To be kept by the thread that starts them: a worker asks the kernel to be killed when that thread ends.
pub struct Children {
    command: ChildCommand,
    count: usize,
    running: Vec<Running>,
}

/// A process of its own accord gone, or never there.
#[derive(Debug, thiserror::Error)]
pub enum ChildrenError {
    /// It could not be started.
    #[error("starting worker {index}: {source}")]
    Start {
        /// Which.
        index: usize,
        /// Why.
        source: std::io::Error,
    },
    /// It ended.
    #[error("worker {index} ended by itself ({status}){last}")]
    Ended {
        /// Which.
        index: usize,
        /// How.
        status: ExitStatus,
        /// What it said last.
        last: String,
    },
}

struct Running {
    child: Child,
    log: Option<JoinHandle<()>>,
    last: Arc<Mutex<VecDeque<String>>>,
}

impl Children {
    /// None yet.
    pub fn new(count: usize, command: ChildCommand) -> Self {
        Self { command, count, running: Vec::new() }
    }

    /// Starts all of them afresh.
    pub fn start(&mut self) -> Result<(), ChildrenError> {
        self.kill();
        for index in 0..self.count {
            let child = Running::start((self.command)(index), index);
            self.running.push(child.map_err(|source| ChildrenError::Start { index, source })?);
        }
        Ok(())
    }

    /// Which of them a process is.
    pub fn index_of(&self, pid: u32) -> Option<usize> {
        self.running.iter().position(|running| running.child.id() == pid)
    }

    /// An error if one has ended.
    pub fn check(&mut self) -> Result<(), ChildrenError> {
        for (index, running) in self.running.iter_mut().enumerate() {
            // What cannot be asked after is noticed by its connection.
            if let Ok(Some(status)) = running.child.try_wait() {
                running.end_log();
                return Err(ChildrenError::Ended { index, status, last: running.last_words() });
            }
        }
        Ok(())
    }

    /// Gives all of them time to end by themselves, then kills them.
    pub fn end(&mut self, patience: Duration) {
        let deadline = Instant::now() + patience;
        while self.running.iter_mut().any(Running::is_running) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        self.kill();
    }

    /// Kills all of them and waits until they are gone, so that their memory is free.
    pub fn kill(&mut self) {
        // All first, so that none waits for another's end.
        for running in &mut self.running {
            // It fails only where the process has ended already.
            let _ = running.child.kill();
        }
        let deadline = Instant::now() + KILL_PATIENCE;
        for mut running in self.running.drain(..) {
            while running.is_running() && Instant::now() < deadline {
                std::thread::sleep(POLL);
            }
            if running.is_running() {
                warn!("process {} was killed and is still there", running.child.id());
            } else {
                running.end_log();
            }
        }
    }
}

impl Drop for Children {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Running {
    fn start(mut command: Command, index: usize) -> std::io::Result<Self> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        info!("worker {index} is process {}", child.id());
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let log = child.stderr.take().map(|stderr| {
            let last = last.clone();
            std::thread::Builder::new().name(format!("log {index}")).spawn(move || forward(stderr, index, &last))
        });
        Ok(Self { child, log: log.transpose()?, last })
    }

    fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The log ends with the process, unless a process of its own holds it open: then it is left alone.
    fn end_log(&mut self) {
        let deadline = Instant::now() + Duration::from_millis(500);
        while self.log.as_ref().is_some_and(|log| !log.is_finished()) && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        self.log = None;
    }

    fn last_words(&self) -> String {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.is_empty() {
            String::new()
        } else {
            format!(": {}", last.iter().cloned().collect::<Vec<_>>().join(" / "))
        }
    }
}

/// Passes a worker's log on, line by line.
fn forward(stderr: ChildStderr, index: usize, last: &Mutex<VecDeque<String>>) {
    let mut reader = BufReader::new(stderr);
    let mut line = Vec::new();
    while let Ok(1..) = reader.by_ref().take(LINE_BYTES_MAX).read_until(b'\n', &mut line) {
        let text = String::from_utf8_lossy(&line).trim_end().to_owned();
        line.clear();
        let (level, message) = text.trim_start().split_once(' ').unwrap_or(("", &text));
        match level {
            "ERROR" => error!("worker {index}: {message}"),
            "WARN" => warn!("worker {index}: {message}"),
            "INFO" => info!("worker {index}: {message}"),
            "DEBUG" | "TRACE" => debug!("worker {index}: {message}"),
            // Lines that are not of the log: a panic, a library's complaint, the reason of the end.
            _ => warn!("worker {index}: {text}"),
        }
        if !matches!(level, "INFO" | "DEBUG" | "TRACE") {
            let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
            last.push_back(text);
            if last.len() > LAST_LINES {
                last.pop_front();
            }
        }
    }
}
