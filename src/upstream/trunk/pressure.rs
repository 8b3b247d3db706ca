//! Back pressure (R33): natsmux takes from a broker no more than its components take.
//!
//! A link that serves one session isn't read while much waits for its component: TCP and the
//! broker's own stall reach the publisher, wherever it is. A shared link must be read for all,
//! so there the publishers behind this natsmux are slowed down while a component lags, as
//! nats-server stalls its producers; only a component that lags all the same is closed.

use std::cell::Cell;
use std::time::Duration;

use super::Trunk;
use super::link::{Link, LinkId};
use super::slot::Slot;
use crate::clock::Instant;
use crate::ledger::SessionId;
use crate::upstream::bus::{Bus, Charge, Pace, ROOM_LOOK, RoomPlace};

/// Bytes waiting for a component beyond which its own link isn't read.
const STALL_ABOVE: usize = 256 * 1024;
/// The same bound while components hold more than half of `max_pending_total`.
const STALL_ABOVE_SCARCE: usize = 16 * 1024;
/// A message of more bytes than this, unfinished, needs room in `max_pending_total`.
const LARGE: usize = 64 * 1024;
/// A component is fast that takes within this what had its link wait.
const FAST: Duration = Duration::from_millis(250);
/// Bytes that are read at once while components hold more than half of `max_pending_total`.
const READ_SCARCE: usize = 16 * 1024;
/// Bytes that a publisher may send within one pause while a component lags.
const FLOOD_BYTES: usize = 64 * 1024;
/// Pause of a publisher that floods, while a component lags and while one lags far.
const PAUSE: Duration = Duration::from_millis(10);
const LONG_PAUSE: Duration = Duration::from_secs(1);

/// How far a component on a shared link lags.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lag {
    /// It keeps up.
    #[default]
    None,
    /// More than an eighth of `max_pending` waits for it.
    Behind,
    /// More than half of `max_pending` waits for it.
    Far,
}

impl Lag {
    fn of(pending: usize, max_pending: usize) -> Self {
        match pending {
            _ if pending > max_pending / 2 => Self::Far,
            _ if pending > max_pending / 8 => Self::Behind,
            _ => Self::None,
        }
    }

    /// How long a publisher that floods waits.
    fn pause(self) -> Duration {
        match self {
            Self::None => Duration::ZERO,
            Self::Behind => PAUSE,
            Self::Far => LONG_PAUSE,
        }
    }
}

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

/// Counts the components of a bus that lag.
#[derive(Debug, Default)]
pub struct Lags {
    behind: Cell<usize>,
    far: Cell<usize>,
}

impl Lags {
    /// Whether any component lags.
    pub(super) fn is_any(&self) -> bool {
        self.worst() > Lag::None
    }

    fn worst(&self) -> Lag {
        match (self.behind.get(), self.far.get()) {
            (_, 1..) => Lag::Far,
            (1.., _) => Lag::Behind,
            _ => Lag::None,
        }
    }

    fn count(&self, lag: Lag) -> Option<&Cell<usize>> {
        match lag {
            Lag::None => None,
            Lag::Behind => Some(&self.behind),
            Lag::Far => Some(&self.far),
        }
    }

    /// A component's lag changes.
    pub(super) fn change(&self, from: Lag, to: Lag) {
        if from == to {
            return;
        }
        if let Some(count) = self.count(from) {
            count.set(count.get().saturating_sub(1));
        }
        if let Some(count) = self.count(to) {
            count.set(count.get() + 1);
        }
    }
}

/// What a session has published of late, counted while a component of the bus lags.
#[derive(Debug)]
pub(super) struct Flow {
    since: Instant,
    bytes: usize,
    /// When a session that is slowed down is looked at again.
    pub(super) until: Option<Instant>,
}

impl Slot {
    /// Counts published bytes while a component lags.
    pub(super) fn note_flow(&mut self, bytes: usize, lags: &Lags, now: Instant) {
        let flow = self.flow.get_or_insert_with(|| {
            Box::new(Flow {
                since: now,
                bytes: 0,
                until: None,
            })
        });
        let window = match flow.bytes < FLOOD_BYTES {
            true => PAUSE,
            false => lags.worst().pause().max(PAUSE),
        };
        if now.saturating_duration_since(flow.since) >= window {
            (flow.since, flow.bytes) = (now, 0);
        }
        flow.bytes += bytes;
    }

    /// Whether it floods, and must wait for components that lag.
    fn floods(&self, lag: Lag, now: Instant) -> bool {
        let flow = self.flow.as_ref();
        flow.is_some_and(|flow| {
            flow.bytes >= FLOOD_BYTES && now.saturating_duration_since(flow.since) < lag.pause()
        })
    }
}

impl Trunk {
    /// Whether a link may be read now: not while much waits for the only session that it serves.
    /// Asked before each read; no clock of R7-R9 runs while the answer is no.
    pub fn wants_link_read(&mut self, link: LinkId, now: Instant, bus: &mut Bus) -> bool {
        let waits = self.waits_for_room(link, now, bus);
        self.look_at_pressure(now, bus);
        if !self.stalled {
            return true;
        }
        let link = self.links.iter().find(|known| known.id == link);
        match link.is_some_and(|link| link.takes_subscriptions() || link.is_attached()) {
            true => !waits && self.full_since.is_none(),
            false => true,
        }
    }

    /// Whether a link is in the middle of a large message for which there is no room. Many links
    /// may get the same one at once: each would hold its part of it.
    fn waits_for_room(&mut self, link: LinkId, now: Instant, bus: &mut Bus) -> bool {
        let Some(link) = self.links.iter_mut().find(|known| known.id == link) else {
            return false;
        };
        let need = link.partial.need();
        if need <= LARGE || self.shared {
            return false;
        }
        let place = match link.room {
            Room::Taken(_) => return false,
            Room::Unasked => (self.pace, now, self.id),
            Room::Awaited { place, .. } => place,
        };
        let charge = bus.take_room(place, need, now);
        let waits = charge.is_none();
        let again = now + ROOM_LOOK;
        link.room = charge.map_or(Room::Awaited { place, again }, Room::Taken);
        waits
    }

    /// A link's unfinished message is whole, or will never be.
    pub(super) fn give_room(&mut self, at: usize, bus: &mut Bus) {
        std::mem::take(&mut self.links[at].room).give(bus);
    }

    /// How much of what a broker sends may be read at once, in bytes: a component that reads
    /// must not come near `max_pending` by one read.
    pub fn link_read_at_most(&self, bus: &Bus) -> usize {
        let most = match bus.budgets.pending.is_scarce() {
            true => READ_SCARCE,
            false => usize::MAX,
        };
        most.min(bus.settings.limits.max_pending / 2).max(4096)
    }

    fn look_at_pressure(&mut self, now: Instant, bus: &mut Bus) {
        let pending = self.own_pending();
        let waits = |link: &Link| matches!(link.room, Room::Awaited { .. });
        let waits = self.links.iter().any(waits);
        if pending == 0 && !self.stalled && !waits {
            return;
        }
        let most = match bus.budgets.pending.is_scarce() {
            true => STALL_ABOVE_SCARCE,
            false => STALL_ABOVE,
        };
        let most = most.min(bus.settings.limits.max_pending / 4);
        match self.full_since {
            Some(since) if pending <= most / 2 => {
                self.full_since = None;
                self.pace = match now.saturating_duration_since(since) < FAST {
                    true => Pace::Fast,
                    false => Pace::Slow,
                };
            }
            None if pending > most => self.full_since = Some(now),
            _ => {}
        }
        let stalls = self.full_since.is_some() || waits;
        if stalls == self.stalled {
            return;
        }
        self.stalled = stalls;
        if stalls {
            bus.counters.stalls += 1;
            bus.step_aside(self.id, now);
        } else {
            // What natsmux didn't read says nothing of the broker (R9).
            self.clock_floor = Some(now);
            bus.step_back(self.id);
        }
    }

    /// Bytes that wait for the session that has this trunk for itself.
    fn own_pending(&self) -> usize {
        if self.shared || self.slots.len() != 1 {
            return 0;
        }
        let open = self.slots.iter().filter(|(_, slot)| slot.closing.is_none());
        open.map(|(_, slot)| slot.out.pending_bytes()).sum()
    }

    /// Notes how far a component on a shared link lags.
    pub(super) fn note_lag(&mut self, session: SessionId, bus: &Bus) {
        if !self.shared {
            return;
        }
        if let Some(slot) = self.slots.get_mut(session.0 as usize) {
            let lag = match slot.closing {
                Some(_) => Lag::None,
                None => Lag::of(slot.out.pending_bytes(), bus.settings.limits.max_pending),
            };
            bus.lags.change(slot.lag, lag);
            slot.lag = lag;
        }
    }

    /// Whether a session isn't read because it floods while a component lags.
    pub(super) fn is_slowed_down(&self, slot: &Slot, now: Instant, bus: &Bus) -> bool {
        bus.lags.is_any() && slot.floods(bus.lags.worst(), now)
    }

    /// A session that is slowed down is looked at again soon: the others may have caught up.
    pub(super) fn look_again(&mut self, session: SessionId, now: Instant) {
        let until = now + PAUSE;
        if let Some(slot) = self.slots.get_mut(session.0 as usize)
            && let Some(flow) = &mut slot.flow
            && flow.until.is_none()
        {
            flow.until = Some(until);
            self.note_slot_timeout(until);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worst_lag_of_all_counts() {
        let lags = Lags::default();
        lags.change(Lag::None, Lag::Behind);
        lags.change(Lag::None, Lag::Behind);
        assert_eq!(lags.worst(), Lag::Behind);
        lags.change(Lag::Behind, Lag::Far);
        assert_eq!(lags.worst(), Lag::Far);
        lags.change(Lag::Far, Lag::None);
        assert_eq!(lags.worst(), Lag::Behind);
        lags.change(Lag::Behind, Lag::None);
        assert!(!lags.is_any());
    }

    #[test]
    fn a_publisher_that_sends_little_is_never_slowed_down() {
        let lags = Lags::default();
        lags.change(Lag::None, Lag::Behind);
        let mut slot = Slot::default();
        let start = Instant::now();
        for step in 0..100 {
            let now = start + PAUSE * step;
            slot.note_flow(FLOOD_BYTES / 2, &lags, now);
            assert!(!slot.floods(Lag::Far, now));
        }
        let now = start + PAUSE * 100;
        for step in 0..3 {
            let now = now + PAUSE * step;
            slot.note_flow(FLOOD_BYTES, &lags, now);
            assert!(slot.floods(Lag::Behind, now), "each time");
            assert!(!slot.floods(Lag::Behind, now + PAUSE));
            assert!(slot.floods(Lag::Far, now + PAUSE));
        }
    }
}
