//! Panics, caught: they take along as little as can be told.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Returns what `work` returns; `None` where it panics. What it was changing then is no longer to
/// be relied on: the caller ends that session, or that trunk.
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}
