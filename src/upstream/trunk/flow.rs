//! The flow of a session's publishes while a component of the bus lags (R33).

use crate::clock::Instant;
use crate::upstream::bus::lags::{Lag, Lags, PAUSE};

/// Bytes that a publisher may send within one pause while a component lags.
const FLOOD_BYTES: usize = 64 * 1024;

/// Publishes of a session of late, counted while a component of the bus lags.
#[derive(Debug)]
pub(super) struct Flow {
    since: Instant,
    bytes: usize,
    /// When a session that is slowed down is looked at again.
    pub(super) until: Option<Instant>,
}

impl Flow {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            since: now,
            bytes: 0,
            until: None,
        }
    }

    /// Counts published bytes while a component lags.
    pub(super) fn count(&mut self, bytes: usize, lags: &Lags, now: Instant) {
        let window = if self.bytes < FLOOD_BYTES {
            PAUSE
        } else {
            lags.worst().pause().max(PAUSE)
        };
        if now.saturating_duration_since(self.since) >= window {
            (self.since, self.bytes) = (now, 0);
        }
        self.bytes += bytes;
    }

    /// Whether it floods, and must wait for components that lag.
    pub(super) fn floods(&self, lag: Lag, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.since);
        self.bytes >= FLOOD_BYTES && since < lag.pause()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publisher_that_sends_little_is_never_slowed_down() {
        let lags = Lags::default();
        lags.change(Lag::None, Lag::Behind);
        let start = Instant::now();
        let mut flow = Flow::new(start);
        for step in 0..100 {
            let now = start + PAUSE * step;
            flow.count(FLOOD_BYTES / 2, &lags, now);
            assert!(!flow.floods(Lag::Far, now));
        }
        let now = start + PAUSE * 100;
        for step in 0..3 {
            let now = now + PAUSE * step;
            flow.count(FLOOD_BYTES, &lags, now);
            assert!(flow.floods(Lag::Behind, now), "each time");
            assert!(!flow.floods(Lag::Behind, now + PAUSE));
            assert!(flow.floods(Lag::Far, now + PAUSE));
        }
    }
}
