//! R21: what a component sent ahead of its CONNECT.
//!
//! A component of 2012 that reconnects queues its publishes and subscriptions ahead of
//! CONNECT; a broker answers that with `Authorization Violation`. natsmux keeps them until
//! the CONNECT comes, within bounds, and sends them to no broker before that.

use std::rc::Rc;

use crate::upstream::Budget;

/// Whole frames that wait for a CONNECT. Gives its bytes back to the budget when dropped.
#[derive(Debug)]
pub struct Early {
    frames: Vec<u8>,
    limit: usize,
    budget: Rc<Budget>,
}

impl Early {
    /// Nothing waits. `limit` bounds this session, `budget` the daemon, in bytes.
    pub fn new(limit: usize, budget: Rc<Budget>) -> Self {
        Self {
            frames: Vec::new(),
            limit,
            budget,
        }
    }

    /// Keeps a whole frame. Returns false where a bound is reached: the session must close.
    pub fn keep(&mut self, frame: &[u8]) -> bool {
        if self.frames.len() + frame.len() > self.limit || self.budget.is_spent() {
            return false;
        }
        self.push(frame);
        true
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

impl Drop for Early {
    fn drop(&mut self) {
        self.budget.give(self.frames.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_kept_within_both_bounds() {
        let budget = Rc::new(Budget::new(20));
        let mut early = Early::new(16, Rc::clone(&budget));
        assert!(early.keep(b"PUB a 0\r\n\r\n"));
        assert!(!early.keep(b"PUB a 0\r\n\r\n"), "over the session's bound");
        let mut other = Early::new(16, Rc::clone(&budget));
        assert!(other.keep(b"SUB a 1\r\n"));
        assert_eq!(budget.used(), 20);
        let mut third = Early::new(16, Rc::clone(&budget));
        assert!(!third.keep(b"PING\r\n"), "over the daemon's bound");
        assert_eq!(early.take(), b"PUB a 0\r\n\r\n");
        drop(other);
        assert_eq!(budget.used(), 0);
    }
}
