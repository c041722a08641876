//! Scheduler, block allocator, prefix cache and request ledger.
