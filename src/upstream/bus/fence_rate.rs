//! The rate of fences of a bus (R7): components' own PINGs don't count.

use std::time::Duration;

use crate::clock::Instant;

/// The rate is kept in windows of this length.
const WINDOW: Duration = Duration::from_millis(100);
const WINDOWS_PER_SECOND: u32 = 10;

/// Fences that were sent in the present window.
#[derive(Debug)]
pub(super) struct FenceRate {
    since: Instant,
    sent: u32,
}

impl FenceRate {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            sent: 0,
        }
    }

    /// Counts a fence, and returns whether it may be sent now, of `per_second` at most.
    pub(super) fn take(&mut self, per_second: u32, now: Instant) -> bool {
        if now.saturating_duration_since(self.since) >= WINDOW {
            *self = Self::new(now);
        }
        let may = self.free_at(per_second) <= now;
        self.sent += u32::from(may);
        may
    }

    /// Since when, or from when on, there is room for another fence.
    pub(super) fn free_at(&self, per_second: u32) -> Instant {
        if self.sent < per_second / WINDOWS_PER_SECOND {
            self.since
        } else {
            self.since + WINDOW
        }
    }
}
