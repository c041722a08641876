//! Sleeping until a word of shared memory changes.

use std::ptr;
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::time::Duration;

/// Sleeps until woken, for `at_most` at most, and not at all if the word's low half is not that of `seen` any more.
pub(crate) fn wait(word: &AtomicU64, seen: u64, at_most: Duration) {
    let timeout = libc::timespec { tv_sec: at_most.as_secs() as _, tv_nsec: at_most.subsec_nanos() as _ };
    // SAFETY: the word lives as long as the borrow; the kernel only reads it. Any return means: look again.
    unsafe { libc::syscall(libc::SYS_futex, low_half(word), libc::FUTEX_WAIT, seen as u32, &raw const timeout) };
}

/// Wakes whoever sleeps on the word, in any process.
pub(crate) fn wake(word: &AtomicU64) {
    let nothing = ptr::null::<libc::timespec>();
    // SAFETY: the kernel uses the address as a name only.
    unsafe { libc::syscall(libc::SYS_futex, low_half(word), libc::FUTEX_WAKE, i32::MAX, nothing) };
}

/// Futexes have 32 bits; these are the ones that a next message always changes, as its number differs and with it bits 24 on.
fn low_half(word: &AtomicU64) -> *mut u32 {
    word.as_ptr().cast::<AtomicU32>().cast()
}
