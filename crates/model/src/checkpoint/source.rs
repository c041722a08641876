use std::fs::File;
use std::io;
#[cfg(target_os = "linux")]
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use tandem_backend::RowSource;

use super::error::one_line;
use super::{CheckpointError, Header, Place};
use crate::layout::TensorId;
use crate::sources::rows_asked;

/// An open safetensors file with its checked header.
#[derive(Debug)]
pub(super) struct Shard {
    pub path: PathBuf,
    pub header: Header,
    file: File,
}

impl Shard {
    pub fn open(path: &Path) -> Result<Self, CheckpointError> {
        let file = File::open(path).map_err(CheckpointError::io(path, "opening"))?;
        let metadata = file.metadata().map_err(CheckpointError::io(path, "asking for its size"))?;
        if !metadata.is_file() {
            return Err(CheckpointError::file(path, "a file", "something else"));
        }
        let header = Header::read(path, metadata.len(), |out, offset| file.read_exact_at(out, offset))?;
        Ok(Self { path: path.to_owned(), header, file })
    }

    pub fn file_name(&self) -> String {
        self.path.file_name().map(|name| one_line(&name.to_string_lossy())).unwrap_or_default()
    }
}

/// Loading goes through a tensor from front to back, on several threads that stay near each other. In steps of this many
/// bytes of the file, what comes next is asked for and what lies two steps behind is let go.
const STRIPE_BYTES: u64 = 8 << 20;

/// The rows of one tensor, read with `pread`. What was read is dropped from the page cache, which on machines whose
/// accelerator shares the memory would otherwise hold the weights a second time.
///
/// All of it is advice to the kernel: readers in any other order get the same bytes, only slower.
pub(super) struct TensorSource<'a> {
    shard: &'a Shard,
    id: TensorId,
    place: Place,
}

impl<'a> TensorSource<'a> {
    pub fn new(shard: &'a Shard, id: TensorId, place: Place) -> Self {
        let source = Self { shard, id, place };
        source.advise(place.offset, STRIPE_BYTES, Advice::WillNeed);
        source
    }

    /// Advises about the part of the tensor that lies in `offset .. offset + bytes` of the file.
    fn advise(&self, offset: u64, bytes: u64, advice: Advice) {
        let tensor_end = self.place.offset + self.place.rows as u64 * self.place.row_bytes as u64;
        let (start, end) = (offset.max(self.place.offset), offset.saturating_add(bytes).min(tensor_end));
        if start < end {
            advise(&self.shard.file, start, end - start, advice);
        }
    }

    /// Moves the window of cached pages along when a read enters a new stripe of the file.
    fn follow(&self, offset: u64, bytes: u64) {
        let (before, stripe) = (offset / STRIPE_BYTES, (offset + bytes) / STRIPE_BYTES);
        if before != stripe {
            self.advise((stripe + 1) * STRIPE_BYTES, STRIPE_BYTES, Advice::WillNeed);
            let behind = before.saturating_sub(1) * STRIPE_BYTES;
            self.advise(behind, stripe * STRIPE_BYTES - STRIPE_BYTES - behind, Advice::DontNeed);
        }
    }

    fn error(&self, error: io::Error, what: &str) -> io::Error {
        let text = format!("{}: tensor {}: {what}: {error}", self.shard.path.display(), self.id.hub_name());
        io::Error::new(error.kind(), text)
    }

    /// E8M0 has one byte that is no number.
    fn check_scales(&self, first: usize, scales: &[u8]) -> io::Result<()> {
        if !scales.contains(&255) {
            return Ok(());
        }
        let at = scales.iter().position(|&scale| scale == 255).unwrap_or_default();
        let (row, group) = (first + at / self.place.row_bytes, at % self.place.row_bytes);
        let text = format!(
            "{}: tensor {}: expected scales of 0 to 254, found 255 (NaN) in row {row}, group {group}",
            self.shard.path.display(),
            self.id.hub_name()
        );
        Err(io::Error::new(io::ErrorKind::InvalidData, text))
    }
}

impl RowSource for TensorSource<'_> {
    fn rows(&self) -> usize {
        self.place.rows
    }

    fn row_bytes(&self) -> usize {
        self.place.row_bytes
    }

    fn read(&self, first: usize, out: &mut [u8]) -> io::Result<()> {
        rows_asked(self, first, out)?;
        let offset = self.place.offset + (first * self.place.row_bytes) as u64;
        self.shard.file.read_exact_at(out, offset).map_err(|error| self.error(error, "reading"))?;
        self.follow(offset, out.len() as u64);
        match self.id {
            TensorId::Layer(_, tensor) if tensor.is_scales() => self.check_scales(first, out),
            _ => Ok(()),
        }
    }
}

impl Drop for TensorSource<'_> {
    fn drop(&mut self) {
        self.advise(0, u64::MAX, Advice::DontNeed);
    }
}

#[derive(Clone, Copy)]
enum Advice {
    WillNeed,
    DontNeed,
}

/// Tells the kernel how a range of a file will be used. It may decline, and nothing is lost.
#[cfg(target_os = "linux")]
fn advise(file: &File, offset: u64, bytes: u64, advice: Advice) {
    let advice = match advice {
        Advice::WillNeed => libc::POSIX_FADV_WILLNEED,
        Advice::DontNeed => libc::POSIX_FADV_DONTNEED,
    };
    // SAFETY: takes numbers only, and the descriptor is open as long as `file` lives.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), offset as libc::off_t, bytes as libc::off_t, advice) };
}

#[cfg(not(target_os = "linux"))]
fn advise(_file: &File, _offset: u64, _bytes: u64, _advice: Advice) {}
