//! Trunks that wait for their turn to dial (R12): as many dials as a broker may have in flight
//! are on their way. Identities take turns, so that one whose passwords are wrong, or whose
//! verdicts take long, doesn't keep the others from starting.

use std::collections::{BTreeMap, BTreeSet};

use crate::upstream::brokers::liveness::TrunkId;
use crate::upstream::brokers::trouble::IdentityDigest;

/// The trunks in the order in which they came, each once, and those whose turn has come.
#[derive(Debug, Default)]
pub(super) struct DialQueue {
    /// By identity, in the order in which they came.
    waiting: BTreeMap<IdentityDigest, BTreeMap<u64, TrunkId>>,
    /// The identities that wait, by when their turn came last.
    turns: BTreeMap<u64, IdentityDigest>,
    places: BTreeMap<TrunkId, (IdentityDigest, u64)>,
    last_number: u64,
    /// Their turn was announced, and they have neither dialled nor passed it on.
    called: BTreeSet<TrunkId>,
}

impl DialQueue {
    /// Puts a trunk at the end of its identity, unless it waits already. A turn that it had is
    /// used up.
    pub(super) fn enter(&mut self, trunk: TrunkId, identity: IdentityDigest) {
        self.called.remove(&trunk);
        if self.places.contains_key(&trunk) {
            return;
        }
        self.last_number += 1;
        let number = self.last_number;
        let queue = self.waiting.entry(identity).or_default();
        if queue.is_empty() {
            self.turns.insert(number, identity);
        }
        queue.insert(number, trunk);
        self.places.insert(trunk, (identity, number));
    }

    /// Takes a trunk out: it dials, or is gone.
    pub(super) fn leave(&mut self, trunk: TrunkId) {
        self.called.remove(&trunk);
        let Some((identity, number)) = self.places.remove(&trunk) else {
            return;
        };
        if let Some(queue) = self.waiting.get_mut(&identity) {
            queue.remove(&number);
            if queue.is_empty() {
                self.waiting.remove(&identity);
                self.turns.retain(|_, waiting| *waiting != identity);
            }
        }
    }

    /// Calls the first of the identity whose turn it is. It must dial or
    /// [`pass`](DialQueue::pass).
    pub(super) fn call_next(&mut self) -> Option<TrunkId> {
        let (_, identity) = self.turns.pop_first()?;
        let queue = self.waiting.get_mut(&identity)?;
        let (_, trunk) = queue.pop_first()?;
        if queue.is_empty() {
            self.waiting.remove(&identity);
        } else {
            self.last_number += 1;
            self.turns.insert(self.last_number, identity);
        }
        self.places.remove(&trunk);
        self.called.insert(trunk);
        Some(trunk)
    }

    /// Where a trunk was called and hasn't dialled, calls the next instead.
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
            queue.enter(trunk, 1);
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
        queue.enter(a, 1);
        queue.enter(b, 1);
        queue.leave(a);
        assert_eq!(queue.call_next(), Some(b));
        queue.enter(b, 1);
        assert_eq!(
            queue.pass(b),
            None,
            "its turn was used up, and it waits again"
        );
        assert_eq!(queue.call_next(), Some(b));
    }

    #[test]
    fn identities_take_turns() {
        let mut queue = DialQueue::default();
        for number in 0..10 {
            queue.enter(TrunkId(number), 1);
        }
        queue.enter(TrunkId(10), 2);
        queue.enter(TrunkId(11), 2);
        let order: Vec<u64> = std::iter::from_fn(|| queue.call_next())
            .map(|trunk| trunk.0)
            .collect();
        assert_eq!(order, [0, 10, 1, 11, 2, 3, 4, 5, 6, 7, 8, 9]);
        assert!(queue.waiting.is_empty() && queue.turns.is_empty() && queue.places.is_empty());
    }
}
