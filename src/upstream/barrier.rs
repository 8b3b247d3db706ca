//! R14: after a failover no component of this host publishes to a broker that doesn't yet
//! know its neighbours' subscriptions.
//!
//! A trunk joins when it dials a link to replay on, and leaves when its replay is fenced,
//! or when it is refused or has to wait. The barrier is open while nobody has joined, and
//! at the latest `replay_barrier` after the first replay was fenced.

use std::time::{Duration, Instant};

/// Counts the trunks of a bus that are replaying.
#[derive(Debug, Default)]
pub struct Barrier {
    replaying: u32,
    opens_at: Option<Instant>,
}

impl Barrier {
    /// A trunk begins to replay.
    pub fn join(&mut self) {
        self.replaying += 1;
    }

    /// A trunk is done, or can't replay now. Returns whether the barrier is open by that.
    pub fn leave(&mut self) -> bool {
        debug_assert!(self.replaying > 0);
        self.replaying = self.replaying.saturating_sub(1);
        if self.replaying == 0 {
            self.opens_at = None;
        }
        self.replaying == 0
    }

    /// A trunk whose replay is fenced may publish from this time on; `None`: now. `limit`
    /// is `replay_barrier`.
    pub fn opens_at(&mut self, now: Instant, limit: Duration) -> Option<Instant> {
        if self.replaying == 0 {
            return None;
        }
        let opens_at = *self.opens_at.get_or_insert(now + limit);
        (opens_at > now).then_some(opens_at)
    }

    /// Number of trunks that are replaying.
    pub fn replaying(&self) -> u32 {
        self.replaying
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(250);

    #[test]
    fn the_last_to_be_fenced_opens_it() {
        let now = Instant::now();
        let mut barrier = Barrier::default();
        barrier.join();
        barrier.join();
        assert!(!barrier.leave());
        assert_eq!(barrier.opens_at(now, LIMIT), Some(now + LIMIT));
        assert!(barrier.leave());
        assert_eq!(barrier.opens_at(now, LIMIT), None);
    }

    #[test]
    fn a_trunk_that_hangs_holds_it_up_for_the_limit_only() {
        let now = Instant::now();
        let mut barrier = Barrier::default();
        barrier.join();
        assert_eq!(barrier.opens_at(now, LIMIT), Some(now + LIMIT));
        let later = now + LIMIT / 2;
        assert_eq!(barrier.opens_at(later, LIMIT), Some(now + LIMIT));
        assert_eq!(barrier.opens_at(now + LIMIT, LIMIT), None);
    }
}
