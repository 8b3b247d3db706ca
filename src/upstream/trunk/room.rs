//! Room in `max_pending_total` for a large message that arrives (R33).

use crate::clock::Instant;
use crate::upstream::bus::room::RoomPlace;
use crate::upstream::bus::{Bus, Charge};

/// Room in `max_pending_total` for a link's unfinished message.
#[derive(Debug, Default)]
pub(super) enum Room {
    /// It needs none.
    #[default]
    Unasked,
    /// There was none; it is looked for `again`.
    Awaited { place: RoomPlace, again: Instant },
    /// It has it.
    Taken(Charge),
}

impl Room {
    /// It is needed no more.
    pub(super) fn give(self, bus: &mut Bus) {
        match self {
            Self::Unasked => {}
            Self::Awaited { place, .. } => bus.leave_room_queue(place),
            Self::Taken(charge) => {
                drop(charge);
                bus.wake_awaiting_room();
            }
        }
    }

    /// When room is looked for again.
    pub(super) fn look_at(&self) -> Option<Instant> {
        match self {
            Self::Awaited { again, .. } => Some(*again),
            _ => None,
        }
    }
}
