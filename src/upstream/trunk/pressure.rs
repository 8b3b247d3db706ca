//! Back pressure (R33): natsmux takes from a broker no more than its components take.
//!
//! A link that serves one session isn't read while much waits for its component: TCP and the
//! broker's own stall reach the publisher, wherever it is. A shared link must be read for all,
//! so there the publishers behind this natsmux are slowed down while a component lags, as
//! nats-server stalls its producers; only a component that lags all the same is closed.

use std::time::Duration;

use super::Trunk;
use super::flow::Flow;
use super::link::{FAIR_BYTES, Link, LinkId, Phase};
use super::room::Room;
use super::slot::Slot;
use crate::clock::Instant;
use crate::config::Delivery;
use crate::ledger::SessionId;
use crate::upstream::bus::lags::PAUSE;
use crate::upstream::bus::room::LOOK_EVERY;
use crate::upstream::bus::{Bus, Pace, Turn};

/// How much of what a component sends a trunk takes at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadAtMost {
    /// As much as there is.
    Any,
    /// So many bytes: others write on the same link, or lag.
    Fair(usize),
}

/// A link's buffer beyond this stops the reads of the sessions that feed it, in bytes.
pub(super) const LINK_FULL_BYTES: usize = 512 * 1024;

/// Bytes waiting for a component beyond which its own link isn't read.
const STALL_ABOVE: usize = 256 * 1024;
/// The bound while components hold more than half of `max_pending_total`.
const STALL_ABOVE_SCARCE: usize = 16 * 1024;
/// A message of more bytes than this, unfinished, needs room in `max_pending_total`.
const LARGE: usize = 64 * 1024;
/// A component is fast that takes within this what had its link wait.
const FAST: Duration = Duration::from_millis(250);
/// Bytes that are read at once while components hold more than half of `max_pending_total`.
const READ_SCARCE: usize = 16 * 1024;

/// Whether a trunk's links are read (R33).
#[derive(Debug, Default)]
pub(super) struct Intake {
    /// They aren't: the component has much to take, or a large message waits for room.
    pub(super) stalled: bool,
    /// Since when the component has much to take.
    full_since: Option<Instant>,
    /// How fast it took what it had before.
    pace: Pace,
}

impl Trunk {
    /// Whether the driver may read from a session's component. Where not, the session is
    /// *parked*, and touched once that changes.
    pub fn wants_read(&mut self, session: SessionId, cx: &Turn<'_>) -> bool {
        let wants = self.has_room(session, cx);
        let live = self.open(cx.bus).is_some();
        self.sessions.park(session, !wants);
        if !wants && cx.bus.lags().is_any() {
            self.look_again(session, cx.now);
        }
        let Some(slot) = self.sessions.get_mut(session) else {
            return false;
        };
        // Only a full buffer without a link ends by time (R6); a full link by its own fate.
        if wants || live || !self.ready || slot.waits_by_itself() {
            slot.blocked_until = None;
        } else if slot.blocked_until.is_none() && cx.bus.settings().delivery == Delivery::AtMostOnce
        {
            let until = cx.now + cx.bus.settings().timings.block_for;
            slot.blocked_until = Some(until);
            self.sessions.note_timeout(until);
        }
        wants
    }

    /// Whether a session's component isn't read at present.
    pub fn is_parked(&self, session: SessionId) -> bool {
        let slot = self.sessions.get(session);
        slot.is_some_and(|slot| slot.parked)
    }

    /// Unparks the sessions that wait for room, after links were flushed or held publishes
    /// went out.
    pub fn unpark(&mut self, cx: &Turn<'_>) {
        if !self.sessions.take_any_parked() {
            return;
        }
        for session in self.sessions.ids() {
            if !self.sessions[session].parked {
                continue;
            }
            if self.has_room(session, cx) {
                self.sessions.release(session);
            } else {
                self.sessions.park(session, true);
            }
        }
    }

    /// Whether a parked session was released since the last call: its driver may read again.
    pub fn take_released(&mut self, session: SessionId) -> bool {
        let slot = self.sessions.get_mut(session);
        slot.is_some_and(|slot| std::mem::take(&mut slot.released))
    }

    /// How much of what a component sends may be read at once, in bytes: where others publish
    /// on the same link, theirs must not wait behind too much.
    pub fn read_at_most(&self, cx: &Turn<'_>) -> ReadAtMost {
        let contended = |link: &Link| link.phase == Phase::Live && link.is_contended(cx.now);
        if cx.bus.lags().is_any() || self.is_shared() && self.links.any(contended) {
            ReadAtMost::Fair(FAIR_BYTES)
        } else {
            ReadAtMost::Any
        }
    }

    /// Whether a session has subscribed or unsubscribed where others may publish at any time. A
    /// broker takes so long for a window full of that (`Link::is_overrun`) that nobody should begin
    /// behind it.
    fn operates_beside_others(&self, slot: &Slot) -> bool {
        self.is_shared() && self.sessions.len() > 1 && slot.subs_covered_by > self.links.answered()
    }

    /// Whether a session that floods a link isn't read until the next fence is answered: where it
    /// is alone, nobody waits behind it.
    pub(super) fn must_prove_soon(&self, link: &Link, now: Instant) -> bool {
        self.sessions.len() > 1 && link.must_prove_soon(now)
    }

    pub(super) fn has_room(&self, session: SessionId, cx: &Turn<'_>) -> bool {
        let Some(slot) = self.sessions.get(session) else {
            return false;
        };
        if !self.ready || slot.waits_by_itself() || self.is_slowed_down(slot, cx) {
            return false;
        }
        match self.open(cx.bus) {
            Some(id) => {
                let link = &self.links[id];
                let out = &link.out;
                let is_bounded = link.is_contended(cx.now) || self.operates_beside_others(slot);
                // Where nothing more is to come, what was counted is settled, wherever that was.
                if is_bounded
                    && link.awaits_proof()
                    && slot.unproven.bytes(self.links.answered()) > link.fair_bytes()
                {
                    return false;
                }
                // With at-least-once, what was written stays in memory until it is proven.
                out.pending_bytes() < LINK_FULL_BYTES
                    && !link.is_overrun()
                    && out.held_bytes() < cx.bus.settings().limits.publish_buffer
            }
            None if slot.dropping => true,
            None => Self::may_hold(slot, cx.bus),
        }
    }

    /// Whether more of a session's publishes may wait for a link: within its own bound, and its
    /// share of the daemon's (R6, R34).
    pub(super) fn may_hold(slot: &Slot, bus: &Bus) -> bool {
        let most = bus.settings().limits.publish_buffer;
        slot.held.bytes() < most.min(bus.budgets().held.share())
    }

    /// Whether a link may be read now: not while much waits for the only session that it serves.
    /// Asked before each read; no clock of R7-R9 runs while the answer is no.
    pub fn wants_link_read(&mut self, link: LinkId, cx: &mut Turn<'_>) -> bool {
        let waits = self.waits_for_room(link, cx);
        self.look_at_pressure(cx);
        if self.is_held_back(link) {
            return false;
        }
        if !self.intake.stalled {
            return true;
        }
        let link = self.links.iter().find(|known| known.id == link);
        if link.is_some_and(|link| link.takes_subscriptions() || link.is_attached()) {
            !waits && self.intake.full_since.is_none()
        } else {
            true
        }
    }

    /// Whether a link is in the middle of a large message for which there is no room. Many links
    /// may get the same one at once: each would hold its part of it.
    fn waits_for_room(&mut self, link: LinkId, cx: &mut Turn<'_>) -> bool {
        let Some(link) = self.links.iter_mut().find(|known| known.id == link) else {
            return false;
        };
        let need = link.partial.need();
        if need <= LARGE || self.sharing.is_some() {
            return false;
        }
        let place = match link.room {
            Room::Taken(_) => return false,
            Room::Unasked => (self.intake.pace, cx.now, self.id),
            Room::Awaited { place, .. } => place,
        };
        let charge = cx.bus.take_room(place, need, cx.now);
        let waits = charge.is_none();
        let again = cx.now + LOOK_EVERY;
        link.room = charge.map_or(Room::Awaited { place, again }, Room::Taken);
        waits
    }

    /// A link's unfinished message is whole, or will never be.
    pub(super) fn give_room(&mut self, id: LinkId, bus: &mut Bus) {
        std::mem::take(&mut self.links[id].room).give(bus);
    }

    /// How much of what a broker sends may be read at once, in bytes: a component that reads
    /// must not come near `max_pending` by one read.
    pub fn link_read_at_most(&self, bus: &Bus) -> usize {
        let most = if bus.budgets().pending.is_scarce() {
            READ_SCARCE
        } else {
            usize::MAX
        };
        most.min(bus.settings().limits.max_pending / 2).max(4096)
    }

    fn look_at_pressure(&mut self, cx: &mut Turn<'_>) {
        let pending = self.own_pending();
        let waits = |link: &Link| matches!(link.room, Room::Awaited { .. });
        let waits = self.links.any(waits);
        if pending == 0 && !self.intake.stalled && !waits {
            return;
        }
        let most = if cx.bus.budgets().pending.is_scarce() {
            STALL_ABOVE_SCARCE
        } else {
            STALL_ABOVE
        };
        let most = most.min(cx.bus.settings().limits.max_pending / 4);
        match self.intake.full_since {
            Some(since) if pending <= most / 2 => {
                self.intake.full_since = None;
                self.intake.pace = if cx.now.saturating_duration_since(since) < FAST {
                    Pace::Fast
                } else {
                    Pace::Slow
                };
            }
            None if pending > most => self.intake.full_since = Some(cx.now),
            _ => {}
        }
        let stalls = self.intake.full_since.is_some() || waits;
        if stalls == self.intake.stalled {
            return;
        }
        self.intake.stalled = stalls;
        if stalls {
            cx.bus.counters_mut().stalls += 1;
            cx.bus.step_aside(self.id, cx.now);
        } else {
            // Output that natsmux didn't read says nothing of the broker (R9).
            self.clock_floor = Some(cx.now);
            cx.bus.step_back(self.id);
        }
    }

    /// Bytes that wait for the session that has this trunk for itself.
    fn own_pending(&self) -> usize {
        if self.is_shared() || self.sessions.len() != 1 {
            return 0;
        }
        let open = self.sessions.iter().filter(|(_, slot)| !slot.is_closing());
        open.map(|(_, slot)| slot.out.pending_bytes()).sum()
    }

    /// Whether a session isn't read because it floods while a component lags.
    pub(super) fn is_slowed_down(&self, slot: &Slot, cx: &Turn<'_>) -> bool {
        let worst = cx.bus.lags().worst();
        let floods = |flow: &Flow| flow.floods(worst, cx.now);
        cx.bus.lags().is_any() && slot.throttle.flow().is_some_and(floods)
    }

    /// A session that is slowed down is looked at again soon: the others may have caught up.
    pub(super) fn look_again(&mut self, session: SessionId, now: Instant) {
        let until = now + PAUSE;
        if let Some(slot) = self.sessions.get_mut(session)
            && slot.throttle.look_again(until)
        {
            self.sessions.note_timeout(until);
        }
    }
}
