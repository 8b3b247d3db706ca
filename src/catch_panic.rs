//! What a panic may take along: as little as can be told.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// What `work` says; `None` where it panics. What it was changing then is no longer to be relied
/// on: whoever asks ends that session, or that trunk.
pub fn catch_panic<T>(work: impl FnOnce() -> T) -> Option<T> {
    catch_unwind(AssertUnwindSafe(work)).ok()
}
