//! R21: what a component sent ahead of its CONNECT.
//!
//! A component of 2012 that reconnects queues its publishes and subscriptions ahead of
//! CONNECT; a broker answers that with `Authorization Violation`. natsmux keeps them until
//! the CONNECT comes, within bounds, and sends them to no broker before that.

use std::rc::Rc;

use crate::upstream::Budget;

/// A session that keeps no more than this, in bytes, is never the one that pays.
const LITTLE_BYTES: usize = 4096;

/// Whole frames that wait for a CONNECT. Gives its bytes back to the budget when dropped.
#[derive(Debug)]
pub struct PendingInput {
    frames: Vec<u8>,
    /// Bytes of an unfinished frame behind them, which are counted too.
    unfinished: usize,
    limit: usize,
    budget: Rc<Budget>,
}

impl PendingInput {
    /// Nothing waits. `limit` bounds this session, `budget` the daemon, in bytes.
    pub fn new(limit: usize, budget: Rc<Budget>) -> Self {
        Self {
            frames: Vec::new(),
            unfinished: 0,
            limit,
            budget,
        }
    }

    /// Keeps a whole frame. Returns false where a bound is reached: the session must close.
    pub fn keep(&mut self, frame: &[u8]) -> bool {
        if self.frames.len() + frame.len() > self.limit || !self.has_share() {
            return false;
        }
        self.push(frame);
        true
    }

    /// Counts the unfinished frame behind what is kept. Returns false where a bound is reached: the
    /// session must close.
    pub fn count_unfinished(&mut self, bytes: usize) -> bool {
        self.budget.take(bytes);
        self.budget
            .give(std::mem::replace(&mut self.unfinished, bytes));
        self.frames.len() + bytes <= self.limit && self.has_share()
    }

    /// Whether this session has no more than its share of what the daemon may keep (R34).
    fn has_share(&self) -> bool {
        self.frames.len() + self.unfinished <= self.budget.share().max(LITTLE_BYTES)
    }

    /// Keeps bytes that were read already, whatever the bounds: the driver stops reading
    /// where one is reached.
    pub fn push(&mut self, bytes: &[u8]) {
        self.budget.take(bytes.len());
        self.frames.extend_from_slice(bytes);
    }

    /// Number of bytes that are kept.
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// Whether nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// Takes what was kept.
    pub fn take(&mut self) -> Vec<u8> {
        self.budget.give(self.frames.len());
        std::mem::take(&mut self.frames)
    }
}

impl Drop for PendingInput {
    fn drop(&mut self) {
        self.budget.give(self.frames.len() + self.unfinished);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_kept_within_both_bounds() {
        let budget = Rc::new(Budget::new(100_000));
        let frame = [b'x'; 10_000];
        let mut early = PendingInput::new(25_000, Rc::clone(&budget));
        assert!(early.keep(&frame) && early.keep(&frame));
        assert!(!early.keep(&frame), "over the session's bound");
        assert!(early.count_unfinished(5_000) && !early.count_unfinished(5_001));
        assert_eq!(budget.used(), 25_001);
        let mut hog = PendingInput::new(1 << 20, Rc::clone(&budget));
        while hog.keep(&frame) {}
        assert!(budget.used() <= 100_000, "the daemon's bound");
        let mut little = PendingInput::new(25_000, Rc::clone(&budget));
        assert!(little.keep(b"PING\r\n"), "who has little doesn't pay");
        drop((early, hog));
        assert_eq!(little.take(), b"PING\r\n");
        assert_eq!(budget.used(), 0);
    }
}
