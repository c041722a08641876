use std::{
    ops::{Deref, DerefMut},
    ptr::NonNull,
};

use crate::BackendError;

/// A zeroed array of plain numbers in its own pages, huge ones where the system has them.
///
/// Weights are streamed once per token; with 4 KB pages the walks of the page table cost several per cent of it.
pub(crate) struct Pages<T: Plain> {
    start: NonNull<T>,
    len: usize,
}

/// Numbers for which all-zero bytes are a value and which need no drop.
pub(crate) trait Plain: Copy + Send + Sync + 'static {}
impl Plain for u8 {}
impl Plain for i8 {}
impl Plain for u16 {}
impl Plain for u32 {}
impl Plain for i32 {}
impl Plain for f32 {}

// SAFETY: owns its memory, like a Vec.
unsafe impl<T: Plain> Send for Pages<T> {}
// SAFETY: shared references only read.
unsafe impl<T: Plain> Sync for Pages<T> {}

impl<T: Plain> Pages<T> {
    /// `len` zeroes; `what` names them in the error.
    pub(crate) fn zeroed(len: usize, what: &str) -> Result<Self, BackendError> {
        let bytes = len.checked_mul(size_of::<T>()).filter(|b| *b <= isize::MAX as usize);
        let fail = || BackendError::OutOfMemory { what: what.to_owned(), bytes: bytes.unwrap_or(usize::MAX) };
        let bytes = bytes.ok_or_else(fail)?;
        if bytes == 0 {
            return Ok(Self { start: NonNull::dangling(), len });
        }
        // SAFETY: a fresh private mapping of our own choice of size; nothing else refers to it.
        let start = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(fail());
        }
        #[cfg(target_os = "linux")]
        // SAFETY: the range was just mapped. Advice may be refused; then the pages are small.
        unsafe {
            libc::madvise(start, bytes, libc::MADV_HUGEPAGE);
        }
        let start = NonNull::new(start.cast()).ok_or_else(fail)?;
        Ok(Self { start, len })
    }
}

impl<T: Plain> Drop for Pages<T> {
    fn drop(&mut self) {
        let bytes = self.len * size_of::<T>();
        if bytes > 0 {
            // SAFETY: exactly the mapping made in `zeroed`.
            unsafe { libc::munmap(self.start.as_ptr().cast(), bytes) };
        }
    }
}

impl<T: Plain> Deref for Pages<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: `len` zeroed or written values, mapped as long as `self` lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl<T: Plain> DerefMut for Pages<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as above, and `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

/// A pointer threads write disjoint parts through.
#[derive(Clone, Copy)]
pub(crate) struct Shared<T>(*mut T);

// SAFETY: those who dereference it promise disjointness.
unsafe impl<T: Send> Send for Shared<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Shared<T> {}

impl<T> Shared<T> {
    /// Of a slice borrowed as long as the threads run.
    pub(crate) fn new(values: &mut [T]) -> Self {
        Self(values.as_mut_ptr())
    }

    /// Of a slice that is only read through the result.
    pub(crate) fn reading(values: &[T]) -> Self {
        Self(values.as_ptr().cast_mut())
    }

    /// The same, `index` values on.
    ///
    /// # Safety
    /// In bounds of the slice given to `new`.
    pub(crate) unsafe fn offset(self, index: usize) -> Self {
        // SAFETY: the caller's.
        Self(unsafe { self.0.add(index) })
    }

    /// The pointer `index` values on.
    ///
    /// # Safety
    /// In bounds of the slice given to `new`.
    #[inline(always)]
    pub(crate) unsafe fn at(self, index: usize) -> *mut T {
        // SAFETY: the caller's.
        unsafe { self.0.add(index) }
    }

    /// `len` values from `index` on.
    ///
    /// # Safety
    /// In bounds, and no other thread touches them meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn slice<'a>(self, index: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's.
        unsafe { std::slice::from_raw_parts_mut(self.0.add(index), len) }
    }
}
