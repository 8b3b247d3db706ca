//! The sessions of a trunk: which there are, what goes to their components, and which of them
//! wait for something.

use std::collections::BTreeSet;
use std::ops::{Index, IndexMut};
use std::rc::Rc;

use slab::Slab;
use smallvec::SmallVec;

use super::slot::{CloseReason, End, Slot};
use crate::clock::Instant;
use crate::ledger::SessionId;
use crate::proto::encode;
use crate::upstream::bus::Bus;
use crate::upstream::bus::lags::Lag;

/// A message on its way to components, but for the sid of each.
#[derive(Debug)]
pub(super) struct Message<'a> {
    pub(super) before_sid: &'a [u8],
    pub(super) after_sid: &'a [u8],
    /// The part behind that, where many get it and it is large: in memory once (R25).
    pub(super) shared: Option<Rc<[u8]>>,
    /// Bytes of the payload, headers included.
    pub(super) size: usize,
}

/// The sessions of a trunk.
#[derive(Debug)]
pub(super) struct Sessions {
    slots: Slab<Slot>,
    /// Whether several may be here, so that one that lags slows down publishers (R33).
    are_shared: bool,
    /// Those that the driver has to look at.
    touched: SmallVec<[SessionId; 2]>,
    /// Those for which something happens once a PING is answered, and perhaps others.
    awaiting_pong: BTreeSet<SessionId>,
    /// Earliest timer of any; may be too early, never too late.
    due: Option<Instant>,
    /// Whether any may be parked.
    any_parked: bool,
    /// Bytes that a planned move has held and that wait for the next flush.
    released: usize,
}

impl Sessions {
    /// No session yet, and one that may come.
    pub(super) fn of_one() -> Self {
        Self::new(false)
    }

    /// No sessions yet, and many that may come.
    pub(super) fn of_many() -> Self {
        Self::new(true)
    }

    fn new(are_shared: bool) -> Self {
        Self {
            slots: Slab::with_capacity(1),
            are_shared,
            touched: SmallVec::new(),
            awaiting_pong: BTreeSet::new(),
            due: None,
            any_parked: false,
            released: 0,
        }
    }

    /// Enters a session.
    pub(super) fn insert(&mut self, slot: Slot) -> SessionId {
        if let Some(at) = slot.timeout() {
            self.note_timeout(at);
        }
        let awaits = slot.awaits_pong();
        let session = SessionId(self.slots.insert(slot) as u32);
        if awaits {
            self.awaiting_pong.insert(session);
        }
        session
    }

    /// Takes a session out. Its number may soon be another's.
    pub(super) fn remove(&mut self, session: SessionId, bus: &Bus) -> Option<Slot> {
        let mut slot = self.slots.try_remove(session.0 as usize)?;
        self.awaiting_pong.remove(&session);
        bus.lags().change(slot.lag, Lag::None);
        slot.lag = Lag::None;
        Some(slot)
    }

    /// Takes all sessions out.
    pub(super) fn remove_all(&mut self, bus: &Bus) -> Vec<Slot> {
        let ids = self.ids();
        let slots = ids.into_iter().filter_map(|id| self.remove(id, bus));
        slots.collect()
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.slots.is_empty()
    }

    pub(super) fn get(&self, session: SessionId) -> Option<&Slot> {
        self.slots.get(session.0 as usize)
    }

    pub(super) fn get_mut(&mut self, session: SessionId) -> Option<&mut Slot> {
        self.slots.get_mut(session.0 as usize)
    }

    /// The sessions that are here now, for a loop that may change them.
    pub(super) fn ids(&self) -> Vec<SessionId> {
        self.iter().map(|(session, _)| session).collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (SessionId, &Slot)> {
        let slots = self.slots.iter();
        slots.map(|(index, slot)| (SessionId(index as u32), slot))
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Slot> {
        self.slots.iter_mut().map(|(_, slot)| slot)
    }

    /// Has the driver look at a session: it flushes its outbox, and wakes its task where that is
    /// parked or must close.
    pub(super) fn touch(&mut self, session: SessionId) {
        if let Some(slot) = self.get_mut(session)
            && !slot.touched
        {
            slot.touched = true;
            self.touched.push(session);
        }
    }

    /// The next session that was touched since the last call.
    pub(super) fn poll_touched(&mut self) -> Option<SessionId> {
        let session = self.touched.pop()?;
        if let Some(slot) = self.get_mut(session) {
            slot.touched = false;
        }
        Some(session)
    }

    /// Gives `parts` to a session's component.
    pub(super) fn deliver(&mut self, session: SessionId, parts: &[&[u8]], bus: &Bus) {
        if let Some(slot) = self.open_mut(session) {
            slot.out.push_parts(parts);
            self.bound(session, bus);
        }
    }

    /// Gives a message to a session's component, under the component's own `sid`. Returns whether
    /// it takes any.
    pub(super) fn deliver_message(
        &mut self,
        session: SessionId,
        message: &Message<'_>,
        sid: &[u8],
        bus: &Bus,
    ) -> bool {
        let Some(slot) = self.open_mut(session) else {
            return false;
        };
        slot.traffic.count_out(message.size);
        let parts = [message.before_sid, sid, message.after_sid];
        slot.out.push_parts(&parts);
        if let Some(rest) = &message.shared {
            slot.out.push_shared(Rc::clone(rest));
        }
        // `bound` allows for a planned move.
        let is_slow = slot.out.pending_bytes() > bus.settings().limits.max_pending;
        if is_slow || !slot.touched {
            self.bound(session, bus);
        }
        true
    }

    /// A session whose component is given something: not one that closes.
    fn open_mut(&mut self, session: SessionId) -> Option<&mut Slot> {
        let slot = self.get_mut(session);
        slot.filter(|slot| !slot.is_closing())
    }

    /// Touches a session, or closes it where more waits for its component than may (R25).
    fn bound(&mut self, session: SessionId, bus: &Bus) {
        let most = bus.settings().limits.max_pending + self.released;
        let is_slow = |slot: &Slot| slot.out.pending_bytes() > most;
        if self.get(session).is_some_and(is_slow) {
            self.close_slow(session, bus);
        } else {
            self.touch(session);
        }
    }

    /// Answers a session's PING.
    pub(super) fn deliver_pong(&mut self, session: SessionId, bus: &Bus) {
        if let Some(slot) = self.get_mut(session) {
            slot.had_pong = true;
        }
        self.deliver(session, &[encode::PONG], bus);
    }

    /// So many bytes come at once that a planned move has held (R41): until the next flush they are
    /// no sign of a component that reads too slowly.
    pub(super) fn note_released(&mut self, bytes: usize) {
        self.released = bytes;
    }

    /// Tells the daemon's budget how much a component has not taken, after a flush (R25), and the
    /// bus how far it lags.
    pub(super) fn account(&mut self, session: SessionId, bus: &Bus) {
        self.released = 0;
        self.weigh(session, bus);
    }

    fn weigh(&mut self, session: SessionId, bus: &Bus) {
        let are_shared = self.are_shared;
        let Some(slot) = self.get_mut(session) else {
            return;
        };
        let pending = slot.out.waiting_memory();
        bus.budgets().pending.take(pending);
        bus.budgets().pending.give(slot.accounted);
        slot.accounted = pending;
        if !are_shared {
            return;
        }
        let lag = if slot.is_closing() {
            Lag::None
        } else {
            Lag::of(slot.out.pending_bytes(), bus.settings().limits.max_pending)
        };
        bus.lags().change(slot.lag, lag);
        slot.lag = lag;
    }

    /// Ends a session; its component hears the reason's text.
    pub(super) fn close(&mut self, session: SessionId, reason: CloseReason) {
        let Some(slot) = self.get_mut(session) else {
            return;
        };
        if !slot.is_closing() {
            if let Some(text) = reason.error_text() {
                slot.out.push_parts(&[b"-ERR '", text, b"'\r\n"]);
            }
            slot.end = End::Closing(Box::new(reason));
        }
        self.touch(session);
    }

    /// Ends all sessions; their components hear the reason's text.
    pub(super) fn close_all(&mut self, reason: &CloseReason) {
        for session in self.ids() {
            self.close(session, reason.clone());
        }
    }

    /// Closes a session that waits for answers which no link was asked for.
    pub(super) fn close_unasked(&mut self, session: SessionId) {
        let slot = self.get_mut(session);
        let ended = slot.and_then(|slot| slot.take_finished(|end| end.after.is_none()));
        if let Some(reason) = ended {
            self.close(session, reason);
        }
    }

    /// Closes a session whose component reads too slowly; what it has not taken is dropped.
    pub(super) fn close_slow(&mut self, session: SessionId, bus: &Bus) {
        if let Some(slot) = self.get_mut(session) {
            slot.out.clear();
        }
        self.weigh(session, bus);
        self.close(session, CloseReason::SlowConsumer);
    }

    /// Notes whether a session's component is read.
    pub(super) fn park(&mut self, session: SessionId, is_parked: bool) {
        if let Some(slot) = self.get_mut(session) {
            slot.parked = is_parked;
        }
        self.any_parked |= is_parked;
    }

    /// Whether any session may be parked, since the last call.
    pub(super) fn take_any_parked(&mut self) -> bool {
        std::mem::take(&mut self.any_parked)
    }

    /// Has a session's component read again.
    pub(super) fn release(&mut self, session: SessionId) {
        if let Some(slot) = self.get_mut(session) {
            slot.parked = false;
            slot.released = true;
        }
        self.touch(session);
    }

    /// Has all components read again.
    pub(super) fn release_all(&mut self) {
        for session in self.ids() {
            self.release(session);
        }
    }

    /// Notes that something happens to a session once a PING is answered.
    pub(super) fn await_pong(&mut self, session: SessionId) {
        self.awaiting_pong.insert(session);
    }

    /// Those for which something may happen once a PING is answered.
    pub(super) fn awaiting_pong(&self) -> BTreeSet<SessionId> {
        self.awaiting_pong.clone()
    }

    /// Forgets those that wait for no PONG any more.
    pub(super) fn forget_answered(&mut self) {
        let slots = &self.slots;
        let awaits = |session: &SessionId| {
            let slot = slots.get(session.0 as usize);
            slot.is_some_and(Slot::awaits_pong)
        };
        self.awaiting_pong.retain(awaits);
    }

    /// Notes that something is due for a session then.
    pub(super) fn note_timeout(&mut self, at: Instant) {
        self.due = Some(self.due.map_or(at, |known| known.min(at)));
    }

    /// When something is due for any session.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Forgets when something is due: all are looked at.
    pub(super) fn clear_due(&mut self) {
        self.due = None;
    }
}

impl Index<SessionId> for Sessions {
    type Output = Slot;

    /// A session that is here.
    fn index(&self, session: SessionId) -> &Slot {
        &self.slots[session.0 as usize]
    }
}

impl IndexMut<SessionId> for Sessions {
    fn index_mut(&mut self, session: SessionId) -> &mut Slot {
        &mut self.slots[session.0 as usize]
    }
}
