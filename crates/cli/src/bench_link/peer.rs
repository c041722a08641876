//! Another rank's process, and the lines that it and this one tell each other.

use std::env;
use std::io::{self, BufRead, BufReader, Read, Write, stdout};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

/// This program as another rank. It ends with this process.
pub(super) struct Peer {
    child: Child,
    input: ChildStdin,
    lines: Lines,
}

impl Peer {
    pub(super) fn start(arguments: &[String]) -> Result<Self> {
        let program = env::current_exe().context("finding this program")?;
        let mut command = Command::new(program);
        command.arg("link-peer").args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("starting another rank")?;
        let (input, output) = child.stdin.take().zip(child.stdout.take()).context("another rank has no pipes")?;
        Ok(Self { child, input, lines: Lines::of(output) })
    }

    /// Its next line.
    pub(super) fn hear(&self, patience: Duration) -> Result<String> {
        self.lines.next(patience).context("hearing from another rank")
    }

    pub(super) fn tell(&mut self, line: &str) -> Result<()> {
        writeln!(self.input, "{line}").context("telling another rank")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // It has ended, or something went wrong.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tells the process that started this one.
pub(super) fn say(line: &str) -> Result<()> {
    let mut output = stdout();
    writeln!(output, "{line}").and_then(|()| output.flush()).context("telling whoever started this")
}

/// Lines that come from somewhere, each waited for no longer than is good.
pub(super) struct Lines(Receiver<io::Result<String>>);

impl Lines {
    /// They are read on a thread that ends with what it reads from, or when a line that came is not wanted.
    pub(super) fn of(from: impl Read + Send + 'static) -> Self {
        let (send, lines) = channel();
        thread::spawn(move || {
            let mut from = BufReader::new(from);
            while let Some(line) = whole_line(&mut from).transpose() {
                if send.send(line).is_err() {
                    return;
                }
            }
        });
        Self(lines)
    }

    /// The next one, without its end.
    pub(super) fn next(&self, patience: Duration) -> Result<String> {
        match self.0.recv_timeout(patience) {
            Ok(line) => Ok(line?),
            Err(RecvTimeoutError::Timeout) => bail!("nothing came within {patience:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("its process ended"),
        }
    }
}

/// A line up to its end; half of one is none.
fn whole_line(from: &mut impl BufRead) -> io::Result<Option<String>> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    Ok(line.strip_suffix('\n').map(str::to_owned))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_in_time_or_not_at_all() {
        const PATIENCE: Duration = Duration::from_secs(10);
        let lines = Lines::of(&b"an offer\nand more\nhalf an off"[..]);
        let next = || lines.next(PATIENCE).map_err(|error| error.to_string());
        assert_eq!(next(), Ok("an offer".into()));
        assert_eq!(next(), Ok("and more".into()));
        assert_eq!(next(), Err("its process ended".into()));
        // A pipe whose other end stays open and silent.
        let (silent, _open) = std::io::pipe().expect("a pipe");
        let late = Lines::of(silent).next(Duration::from_millis(20)).expect_err("nothing was said");
        assert!(late.to_string().contains("within 20ms"), "{late}");
    }
}
