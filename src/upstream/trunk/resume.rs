//! Resumption once a link is live, or its broker is proven: publishes that waited, PONGs that are
//! owed.

use super::Trunk;
use super::link::{Link, LinkId, OkOwner, Phase};
use crate::ledger::SessionId;
use crate::proto::encode;
use crate::upstream::bus::Turn;

impl Trunk {
    /// Lets the sessions go on that waited for this: not while a link has options that their
    /// component doesn't want any more.
    pub(super) fn make_ready(&mut self) {
        if self.links.any(Link::is_outdated) {
            return;
        }
        if !std::mem::replace(&mut self.ready, true) {
            self.sessions.release_all();
        }
    }

    /// Of independent brokers, the last link gave way that had old options (R20).
    pub(super) fn go_on_under_new_options(&mut self, cx: &mut Turn<'_>) {
        if !self.ready
            && let Some(live) = self.live()
        {
            self.make_ready();
            self.resume(live, cx);
        }
    }

    /// A link is live: so may those be who could not join without one (R16).
    pub(super) fn verify_all(&mut self) {
        for session in self.sessions.ids() {
            let slot = &mut self.sessions[session];
            if std::mem::take(&mut slot.unverified) {
                self.sessions.release(session);
            }
        }
    }

    /// Suspicion began or ended (R8): fence at once, or go on.
    pub(super) fn meet_suspicion(&mut self, cx: &mut Turn<'_>) {
        for id in self.links.ids() {
            if self.links[id].phase == Phase::Standby {
                self.ask_for_proof(id, cx);
            }
        }
        self.release_late(cx.bus);
        let Some(id) = self.live() else {
            return;
        };
        let link = &self.links[id];
        match cx.bus.watch(link.broker).suspect_since() {
            Some(since) if self.links.is_suspect(id, cx.bus) => {
                if link.last_ping_at < since {
                    self.links.fence(id, cx);
                }
            }
            _ => {
                if cx
                    .bus
                    .watch(link.broker)
                    .wants_witness(self.id, link.last_ping_at)
                {
                    self.links.fence(id, cx);
                }
                self.resume(id, cx);
            }
        }
    }

    /// Suspicion of a link that stands by began or ended.
    fn ask_for_proof(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let link = &self.links[id];
        let (broker, last) = (link.broker, link.last_ping_at);
        let suspect = cx.bus.watch(broker).suspect_since();
        let asked = suspect.is_some_and(|since| last < since);
        if asked || cx.bus.watch(broker).wants_witness(self.id, last) {
            self.links.fence(id, cx);
        }
    }

    /// Sends what waited for this link, and then what is owed. Returns the number of
    /// publishes.
    pub(super) fn resume(&mut self, id: LinkId, cx: &mut Turn<'_>) -> u64 {
        let is_unproven = || self.links.is_suspect(id, cx.bus);
        let waits = self.route.is_switching() || self.holds_publishes(cx.bus);
        if waits || (self.route.is_independent() && is_unproven()) {
            // Publishes wait for the next link (R30, R41), or until this one is proven (R8).
            return 0;
        }
        self.release_late(cx.bus);
        let held = self.send_held(id, cx);
        self.ask_for_owed(id, cx);
        self.unpark(cx);
        held
    }

    /// Sends what waited, in order, each chunk followed by a fence.
    pub(super) fn send_held(&mut self, id: LinkId, cx: &mut Turn<'_>) -> u64 {
        let mut sent = 0;
        self.mark_places(cx);
        let mut queues = vec![(None, std::mem::take(&mut self.orphans), 0)];
        self.give_back_charge(cx.bus);
        for session in self.sessions.ids() {
            let slot = &mut self.sessions[session];
            slot.dropping = false;
            slot.blocked_until = None;
            // Verbose answers that no broker will give any more come before those that this
            // one will (R20).
            let oks = std::mem::take(&mut slot.debts.oks);
            for _ in 0..oks {
                self.sessions.deliver(session, &[encode::OK], cx.bus);
            }
            let slot = &mut self.sessions[session];
            let unasked = std::mem::take(&mut slot.debts.unasked);
            queues.push((Some(session), std::mem::take(&mut slot.held), unasked));
        }
        for (session, mut held, mut unasked) in queues {
            while let Some((chunk, messages)) = held.pop() {
                if let Some(session) = session {
                    // No PONG before these are proven, as for publishes that never waited.
                    self.sessions[session].publishes_covered_by = self.links.next_ping();
                }
                cx.bus.budgets().held.give(chunk.len());
                sent += messages;
                if let Some(session) = session {
                    self.place_held_pulls(session, id, &chunk, cx);
                }
                let link = &mut self.links[id];
                let bytes = link.push_held(chunk, messages, cx.bus.counters_mut());
                link.note_owner(session);
                if link.verbose {
                    let quiet = unasked.min(messages);
                    unasked -= quiet;
                    link.oks.push(OkOwner::Nobody, quiet);
                    link.oks.push(OkOwner::Publish, messages - quiet);
                }
                self.links[id].requested_by = self.links.next_ping();
                self.appended_publishes(id, bytes, messages, cx);
                if self.links[id].unfenced_since.is_some() {
                    self.links.fence(id, cx);
                }
            }
        }
        sent
    }

    /// Re-asks what was owed, behind replay and waiting publishes (R1).
    fn ask_for_owed(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let independent = self.route.is_independent();
        for session in self.sessions.ids() {
            let next_ping = self.links.next_ping();
            if self.sessions[session].debts.has_pongs() {
                self.ping_standbys(cx);
            }
            let slot = &mut self.sessions[session];
            let pongs = slot.debts.ask_again();
            if slot.subs_covered_by == u64::MAX {
                // A replay has proven it; a link that stood by has not yet.
                slot.subs_covered_by = if independent { next_ping } else { 0 };
            }
            for _ in 0..pongs {
                self.links.push_ping(id, Some(session), cx);
            }
            let finishing = self.sessions[session].finishing();
            if finishing.is_some_and(|end| end.after.is_none()) {
                let last = self.links.fence(id, cx);
                if let Some(end) = self.sessions[session].finishing_mut() {
                    end.after = Some(last);
                }
            }
        }
    }

    pub(super) fn ask_for(&mut self, session: SessionId) {
        if let Some(slot) = self.sessions.get_mut(session) {
            slot.debts.reopen();
        }
    }
}
