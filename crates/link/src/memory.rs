use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::ptr;

use crate::error::LinkError;

/// Zeroed memory that other processes or devices may write to while we look: never borrowed as a slice here.
#[derive(Debug)]
pub(crate) struct Memory {
    start: *mut u8,
    bytes: usize,
}

// SAFETY: the mapping belongs to no thread; who may touch which part when is the protocol's business.
unsafe impl Send for Memory {}
// SAFETY: as above; all that is done through a shared `Memory` is atomic or ordered by the protocol.
unsafe impl Sync for Memory {}

impl Memory {
    /// Memory of this process, and of a device it is registered with: not to be copied when the process forks.
    pub(crate) fn anonymous(bytes: usize) -> Result<Self, LinkError> {
        Self::map(bytes, libc::MAP_SHARED | libc::MAP_ANONYMOUS, -1)
    }

    /// All of a file. Whoever else maps it sees the same bytes.
    pub(crate) fn shared(file: &File, bytes: usize) -> Result<Self, LinkError> {
        Self::map(bytes, libc::MAP_SHARED, file.as_raw_fd())
    }

    fn map(bytes: usize, flags: libc::c_int, fd: libc::c_int) -> Result<Self, LinkError> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping, wherever the kernel likes.
        let start = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, fd, 0) };
        if start == libc::MAP_FAILED {
            return Err(LinkError::last_os(format!("mapping {bytes} bytes for the link")));
        }
        Ok(Self { start: start.cast(), bytes })
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The address of the byte at `offset`. Panics beyond the end: offsets come from the layout, not from a peer.
    pub(crate) fn at(&self, offset: usize) -> *mut u8 {
        assert!(offset < self.bytes, "offset {offset} of {} bytes", self.bytes);
        // SAFETY: inside the mapping.
        unsafe { self.start.add(offset) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: what `map` got, and nobody has a pointer any more: they are lent for the life of the region only.
        unsafe { libc::munmap(self.start.cast(), self.bytes) };
    }
}

/// A file in memory without a name, which cannot shrink under those who mapped it.
pub(crate) fn nameless_file(bytes: usize) -> Result<File, LinkError> {
    // SAFETY: the name is a C string; the descriptor is ours alone.
    let fd = unsafe { libc::memfd_create(c"tandem-link".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    if fd < 0 {
        return Err(LinkError::last_os("making a memory file for the link"));
    }
    // SAFETY: just opened, owned by nothing else.
    let file = unsafe { File::from_raw_fd(fd) };
    let sized = file.set_len(bytes as u64).and_then(|()| seal(&file));
    sized.map_err(|source| LinkError::system(format!("sizing a memory file of {bytes} bytes"), source))?;
    Ok(file)
}

/// A peer that cut the file short would kill us by SIGBUS.
fn seal(file: &File) -> io::Result<()> {
    let seals = libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_SEAL;
    // SAFETY: no pointers involved.
    match unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Whether the file is one that [`nameless_file`] made: it cannot shrink.
pub(crate) fn is_sealed(file: &File) -> bool {
    // SAFETY: no pointers involved.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    seals >= 0 && seals & libc::F_SEAL_SHRINK != 0
}
