//! The fences between a payload and its flag.

use std::sync::atomic::{Ordering, fence};

/// Between writing a payload and raising its flag, where a peer's CPU or device reads both.
#[inline]
pub(crate) fn before_flag() {
    fence(Ordering::Release);
}

/// Between seeing a flag and reading its payload.
///
/// What another core wrote needs an acquire fence. What a network card wrote needs the outer-shareable kind on aarch64 (the
/// kernel's `dma_rmb`), since the inner-shareable domain of `Ordering::Acquire` need not hold devices. x86 keeps the order of
/// loads by itself.
#[inline]
pub(crate) fn after_flag() {
    fence(Ordering::Acquire);
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a barrier touches neither memory nor registers.
    unsafe {
        std::arch::asm!("dmb oshld", options(nostack, preserves_flags));
    }
}
