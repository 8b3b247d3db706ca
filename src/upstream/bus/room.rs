//! Room in `max_pending_total` for large messages that arrive (R33): trunks wait for it in turn.

use std::collections::BTreeSet;
use std::rc::Rc;
use std::time::Duration;

use super::budget::{Budget, Charge};
use crate::clock::Instant;
use crate::upstream::brokers::liveness::TrunkId;

/// How long a large message waits for room in half of `max_pending_total`.
const HALF_WITHIN: Duration = Duration::from_millis(250);
/// How long it waits for room in all of it.
const WITHIN: Duration = Duration::from_secs(4);
/// How often a trunk that waits looks by itself.
pub(crate) const LOOK_EVERY: Duration = Duration::from_millis(100);

/// How fast a trunk's component took what had its link wait: slow ones wait for others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Pace {
    /// At once, or there was none yet.
    #[default]
    Fast,
    /// Not so.
    Slow,
}

/// A trunk's place among those that wait for room: how fast it is, and since when it waits.
pub(crate) type RoomPlace = (Pace, Instant, TrunkId);

/// Trunks that wait for room, the fast ones first.
#[derive(Debug, Default)]
pub(super) struct RoomQueue(BTreeSet<RoomPlace>);

impl RoomQueue {
    /// Takes `bytes` from `budget` for a message that a trunk has waited for since `place` says;
    /// `None` while there is no room. Nobody waits until the broker takes it for a slow consumer:
    /// those that hold the room are closed first (R25).
    pub(super) fn take(
        &mut self,
        place: RoomPlace,
        bytes: usize,
        budget: &Rc<Budget>,
        now: Instant,
    ) -> Option<Charge> {
        let (_, since, _) = place;
        let waited = now.saturating_duration_since(since);
        let most = if waited < HALF_WITHIN {
            budget.total() / 2
        } else {
            budget.total()
        };
        if waited < WITHIN && !budget.has_room(bytes, most) {
            self.0.insert(place);
            return None;
        }
        let charge = Charge::new(Rc::clone(budget), bytes);
        self.leave(place);
        Some(charge)
    }

    /// Ends the wait of a trunk.
    pub(super) fn leave(&mut self, place: RoomPlace) {
        self.0.remove(&place);
    }

    /// Takes the next trunk, for which there may be room now.
    pub(super) fn next(&mut self) -> Option<TrunkId> {
        self.0.pop_first().map(|(_, _, trunk)| trunk)
    }
}
