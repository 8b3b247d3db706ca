//! Back pressure (R33): natsmux takes from a broker no more than its components take.
//!
//! A link that serves one session isn't read while much waits for its component: TCP and the
//! broker's own stall reach the publisher, wherever it is. A shared link must be read for all,
//! so there the publishers behind this natsmux are slowed down while a component lags, as
//! nats-server stalls its producers; only a component that lags all the same is closed.

use std::time::Duration;

use super::Trunk;
use super::flow::Flow;
use super::link::{Link, LinkId};
use super::room::Room;
use super::slot::Slot;
use crate::clock::Instant;
use crate::ledger::SessionId;
use crate::upstream::bus::lags::PAUSE;
use crate::upstream::bus::room::LOOK_EVERY;
use crate::upstream::bus::{Bus, Pace, Turn};

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

impl Trunk {
    /// Whether a link may be read now: not while much waits for the only session that it serves.
    /// Asked before each read; no clock of R7-R9 runs while the answer is no.
    pub fn wants_link_read(&mut self, link: LinkId, cx: &mut Turn<'_>) -> bool {
        let waits = self.waits_for_room(link, cx);
        self.look_at_pressure(cx);
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
    fn waits_for_room(&mut self, link: LinkId, cx: &mut Turn<'_>) -> bool {
        let Some(link) = self.links.iter_mut().find(|known| known.id == link) else {
            return false;
        };
        let need = link.partial.need();
        if need <= LARGE || self.shared {
            return false;
        }
        let place = match link.room {
            Room::Taken(_) => return false,
            Room::Unasked => (self.pace, cx.now, self.id),
            Room::Awaited { place, .. } => place,
        };
        let charge = cx.bus.take_room(place, need, cx.now);
        let waits = charge.is_none();
        let again = cx.now + LOOK_EVERY;
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

    fn look_at_pressure(&mut self, cx: &mut Turn<'_>) {
        let pending = self.own_pending();
        let waits = |link: &Link| matches!(link.room, Room::Awaited { .. });
        let waits = self.links.iter().any(waits);
        if pending == 0 && !self.stalled && !waits {
            return;
        }
        let most = match cx.bus.budgets.pending.is_scarce() {
            true => STALL_ABOVE_SCARCE,
            false => STALL_ABOVE,
        };
        let most = most.min(cx.bus.settings.limits.max_pending / 4);
        match self.full_since {
            Some(since) if pending <= most / 2 => {
                self.full_since = None;
                self.pace = match cx.now.saturating_duration_since(since) < FAST {
                    true => Pace::Fast,
                    false => Pace::Slow,
                };
            }
            None if pending > most => self.full_since = Some(cx.now),
            _ => {}
        }
        let stalls = self.full_since.is_some() || waits;
        if stalls == self.stalled {
            return;
        }
        self.stalled = stalls;
        if stalls {
            cx.bus.counters.stalls += 1;
            cx.bus.step_aside(self.id, cx.now);
        } else {
            // What natsmux didn't read says nothing of the broker (R9).
            self.clock_floor = Some(cx.now);
            cx.bus.step_back(self.id);
        }
    }

    /// Bytes that wait for the session that has this trunk for itself.
    fn own_pending(&self) -> usize {
        if self.shared || self.sessions.len() != 1 {
            return 0;
        }
        let open = self
            .sessions
            .iter()
            .filter(|(_, slot)| slot.closing.is_none());
        open.map(|(_, slot)| slot.out.pending_bytes()).sum()
    }

    /// Whether a session isn't read because it floods while a component lags.
    pub(super) fn is_slowed_down(&self, slot: &Slot, cx: &Turn<'_>) -> bool {
        let worst = cx.bus.lags.worst();
        let floods = |flow: &Flow| flow.floods(worst, cx.now);
        cx.bus.lags.is_any() && slot.flow.as_deref().is_some_and(floods)
    }

    /// A session that is slowed down is looked at again soon: the others may have caught up.
    pub(super) fn look_again(&mut self, session: SessionId, now: Instant) {
        let until = now + PAUSE;
        if let Some(slot) = self.sessions.get_mut(session)
            && let Some(flow) = &mut slot.flow
            && flow.until.is_none()
        {
            flow.until = Some(until);
            self.sessions.note_timeout(until);
        }
    }
}
