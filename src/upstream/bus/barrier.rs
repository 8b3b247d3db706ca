//! R14: after a failover no component of this host publishes to a broker that doesn't yet
//! know its neighbours' subscriptions.
//!
//! A trunk joins when it dials a link to replay on, and leaves when its replay is fenced,
//! or when it is refused or has to wait. *Stragglers* are trunks that are still attached to
//! a broker that others have left for dead: they will have to replay too. The barrier is
//! open while there is neither, and at the latest `replay_barrier` after the first replay
//! was fenced.

use std::time::Duration;

use crate::clock::Instant;

/// Counts the trunks of a bus that are replaying.
#[derive(Debug, Default)]
pub struct Barrier {
    replaying: usize,
    opens_at: Option<Instant>,
}

impl Barrier {
    /// Trunks that replay.
    pub fn replaying(&self) -> usize {
        self.replaying
    }

    /// A trunk begins to replay.
    pub fn join(&mut self) {
        self.replaying += 1;
    }

    /// A trunk is done, or can't replay now.
    pub fn leave(&mut self) {
        debug_assert!(self.replaying > 0);
        self.replaying = self.replaying.saturating_sub(1);
    }

    /// Whether nobody is waited for. Then the next round has its full time again.
    pub fn is_open(&mut self, stragglers: usize) -> bool {
        let open = self.replaying == 0 && stragglers == 0;
        if open {
            self.opens_at = None;
        }
        open
    }

    /// A trunk whose replay is fenced may publish from this time on; `None`: now. `limit`
    /// is `replay_barrier`.
    pub fn opens_at(
        &mut self,
        stragglers: usize,
        now: Instant,
        limit: Duration,
    ) -> Option<Instant> {
        if self.is_open(stragglers) {
            return None;
        }
        let opens_at = *self.opens_at.get_or_insert(now + limit);
        (opens_at > now).then_some(opens_at)
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
        barrier.leave();
        assert_eq!(barrier.opens_at(0, now, LIMIT), Some(now + LIMIT));
        barrier.leave();
        assert_eq!(barrier.opens_at(0, now, LIMIT), None);
    }

    #[test]
    fn those_who_have_yet_to_notice_are_waited_for() {
        let now = Instant::now();
        let mut barrier = Barrier::default();
        assert_eq!(barrier.opens_at(1, now, LIMIT), Some(now + LIMIT));
        assert_eq!(barrier.opens_at(0, now, LIMIT), None);
    }

    #[test]
    fn a_trunk_that_hangs_holds_it_up_for_the_limit_only() {
        let now = Instant::now();
        let mut barrier = Barrier::default();
        barrier.join();
        assert_eq!(barrier.opens_at(0, now, LIMIT), Some(now + LIMIT));
        let later = now + LIMIT / 2;
        assert_eq!(barrier.opens_at(0, later, LIMIT), Some(now + LIMIT));
        assert_eq!(barrier.opens_at(0, now + LIMIT, LIMIT), None);
    }
}
