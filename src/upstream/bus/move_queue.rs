//! Planned moves at once (R42): each has two links for a while, which take descriptors here and
//! connections at the brokers.

use std::collections::BTreeSet;
use std::rc::Rc;

use super::Bus;
use crate::upstream::brokers::liveness::TrunkId;

/// Trunks that move, and those that are to move once others have.
#[derive(Debug, Default)]
pub(super) struct MoveQueue {
    /// Each that moves has a clone.
    places: Rc<()>,
    waiting: BTreeSet<TrunkId>,
}

/// A place among the trunks that move, given back when it is dropped.
#[derive(Debug)]
pub(in crate::upstream) struct MovePlace {
    _place: Rc<()>,
}

impl MoveQueue {
    fn running(&self) -> usize {
        Rc::strong_count(&self.places) - 1
    }
}

impl Bus {
    /// Takes a place for a planned move of this trunk; `None`: it is woken once there is one.
    pub(in crate::upstream) fn take_move_place(&mut self, trunk: TrunkId) -> Option<MovePlace> {
        let most = self.settings.moves_at_once;
        let moves = &mut self.trunks.moves;
        if moves.running() >= most {
            moves.waiting.insert(trunk);
            return None;
        }
        moves.waiting.remove(&trunk);
        Some(MovePlace {
            _place: Rc::clone(&moves.places),
        })
    }

    /// Whether a trunk waits for a place that is free.
    pub(super) fn has_free_moves(&self) -> bool {
        let moves = &self.trunks.moves;
        !moves.waiting.is_empty() && moves.running() < self.settings.moves_at_once
    }

    /// Wakes as many as may begin to move.
    pub(super) fn wake_movers(&mut self) {
        let moves = &mut self.trunks.moves;
        let free = self.settings.moves_at_once.saturating_sub(moves.running());
        for _ in 0..free.min(moves.waiting.len()) {
            self.trunks.woken.extend(moves.waiting.pop_first());
        }
    }

    /// Trunks that move by plan now, and that wait for their turn to.
    pub fn movers(&self) -> usize {
        self.trunks.moves.running() + self.trunks.moves.waiting.len()
    }
}
