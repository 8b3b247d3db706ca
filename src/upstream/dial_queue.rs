//! Trunks that wait for their turn to dial (R12): as many dials as a broker may have in flight
//! are on their way.

use std::collections::{BTreeMap, BTreeSet};

use super::watch::TrunkId;

/// The trunks in the order in which they came, each once, and those whose turn has come.
#[derive(Debug, Default)]
pub(super) struct DialQueue {
    by_number: BTreeMap<u64, TrunkId>,
    numbers: BTreeMap<TrunkId, u64>,
    last_number: u64,
    /// Their turn was announced, and they have neither dialled nor passed it on.
    called: BTreeSet<TrunkId>,
}

impl DialQueue {
    /// Puts a trunk at the end, unless it waits already. A turn that it had is used up.
    pub(super) fn enter(&mut self, trunk: TrunkId) {
        self.called.remove(&trunk);
        if !self.numbers.contains_key(&trunk) {
            self.last_number += 1;
            self.numbers.insert(trunk, self.last_number);
            self.by_number.insert(self.last_number, trunk);
        }
    }

    /// Takes a trunk out: it dials, or is gone.
    pub(super) fn leave(&mut self, trunk: TrunkId) {
        self.called.remove(&trunk);
        if let Some(number) = self.numbers.remove(&trunk) {
            self.by_number.remove(&number);
        }
    }

    /// Calls the first. It must dial or [`pass`](DialQueue::pass).
    pub(super) fn call_next(&mut self) -> Option<TrunkId> {
        let (_, trunk) = self.by_number.pop_first()?;
        self.numbers.remove(&trunk);
        self.called.insert(trunk);
        Some(trunk)
    }

    /// Where a trunk was called and hasn't dialled, calls the first instead.
    pub(super) fn pass(&mut self, trunk: TrunkId) -> Option<TrunkId> {
        self.called.remove(&trunk).then(|| self.call_next())?
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_twice_and_no_turn_is_lost() {
        let mut queue = DialQueue::default();
        let [a, b, c] = [1, 2, 3].map(TrunkId);
        for trunk in [a, b, a, c, b] {
            queue.enter(trunk);
        }
        assert_eq!(queue.call_next(), Some(a));
        queue.leave(a);
        assert_eq!(queue.pass(a), None, "it dialled");
        assert_eq!(queue.call_next(), Some(b));
        assert_eq!(queue.pass(b), Some(c), "it had no use for its turn");
        assert_eq!(queue.pass(b), None, "once");
        queue.leave(c);
        assert_eq!(queue.call_next(), None);
    }

    #[test]
    fn one_that_is_gone_is_not_called() {
        let mut queue = DialQueue::default();
        let [a, b] = [1, 2].map(TrunkId);
        queue.enter(a);
        queue.enter(b);
        queue.leave(a);
        assert_eq!(queue.call_next(), Some(b));
        queue.enter(b);
        assert_eq!(
            queue.pass(b),
            None,
            "its turn was used up, and it waits again"
        );
        assert_eq!(queue.call_next(), Some(b));
    }
}
