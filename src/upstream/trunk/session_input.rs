//! Input of sessions: attach, publish, subscribe, ping, and go.

use std::rc::Rc;

use super::link::{Link, LinkId, OkOwner};
use super::route::{Attempts, Move};
use super::slot::{End, Finishing, Gate, Leaving, Slot};
use super::{CloseReason, Trunk, Verdict};
use crate::clock::Instant;
use crate::config::PongHold;
use crate::ledger::SessionId;
use crate::net::Outbox;
use crate::proto::connect::ConnectInfo;
use crate::proto::encode;
use crate::upstream::brokers::roster::Departure;
use crate::upstream::bus::{Bus, Turn};

impl Trunk {
    /// Takes a session, whose outbox so far is `out`, and dials if there is no link.
    /// `sent_connect` says whether the component sent the CONNECT itself.
    pub fn attach(&mut self, out: Outbox, sent_connect: bool, cx: &mut Turn<'_>) -> SessionId {
        self.attach_slot(Slot::new(out), sent_connect, cx)
    }

    pub(super) fn attach_slot(
        &mut self,
        slot: Slot,
        sent_connect: bool,
        cx: &mut Turn<'_>,
    ) -> SessionId {
        let session = self.sessions.insert(slot);
        self.route.configure(cx.bus.settings().is_independent());
        self.connect_ok_owed = sent_connect && self.connect.verbose;
        if self.links.is_empty() {
            self.next_attempt(cx);
        }
        session
    }

    /// R16: with no live broker, a component that is known may go on without a verdict.
    pub(super) fn try_to_admit(&mut self, cx: &Turn<'_>) {
        let no_auth = cx.bus.roster().no_auth_anywhere();
        if self.verdict != Verdict::Pending
            // It is served still, under other options.
            || self.links.any(Link::is_outdated)
            || cx.bus.roster().takes_newcomers()
            || !cx
                .bus
                .admission()
                .admits(&self.connect, cx.bus.settings().admit, no_auth, cx.now)
        {
            return;
        }
        self.verdict = Verdict::Admitted;
        self.make_ready();
        let headers = cx.bus.roster().offer().headers;
        if std::mem::take(&mut self.connect_ok_owed) && self.connect.refusal(headers).is_none() {
            for session in self.sessions.ids() {
                self.sessions.deliver(session, &[encode::OK], cx.bus);
            }
        }
        self.refuse_own_options(headers);
    }

    /// Publishes `messages` whole PUB or HPUB frames.
    pub fn publish(&mut self, session: SessionId, frames: &[u8], messages: u64, cx: &mut Turn<'_>) {
        cx.bus.counters_mut().published += messages;
        self.mark_places(cx);
        let open = self.open(cx.bus);
        let covered_by = self.links.next_ping();
        let Some(slot) = self.sessions.get_mut(session) else {
            cx.bus.counters_mut().dropped += messages;
            return;
        };
        if cx.bus.lags().is_any() {
            let flow = slot.throttle.flow_mut(cx.now);
            flow.count(frames.len(), cx.bus.lags(), cx.now);
        }
        match open {
            Some(id) if slot.held.is_empty() => {
                slot.publishes_covered_by = covered_by;
                let link = &mut self.links[id];
                let bytes = link.push_publishes(frames, messages, cx.bus.counters_mut());
                link.note_owner(Some(session));
                if link.verbose {
                    link.oks.push(OkOwner::Publish, messages);
                }
                self.note_bytes(session, id, bytes, cx.now);
                self.appended_publishes(id, bytes, messages, cx);
            }
            _ if slot.dropping && !Self::may_hold(slot, cx.bus) => {
                cx.bus.counters_mut().dropped += messages;
                if self.connect.verbose {
                    self.owe_oks(session, messages);
                }
            }
            _ => {
                slot.held.push(frames, messages);
                cx.bus.budgets().held.take(frames.len());
            }
        }
    }

    /// Refuses a publish as a broker that doesn't permit it: what is below the prefix of presence
    /// is natsmux's own (R29).
    pub fn refuse_publish(&mut self, session: SessionId, subject: &[u8], bus: &mut Bus) {
        bus.counters_mut().published += 1;
        bus.counters_mut().refused += 1;
        let text = [
            &b"-ERR 'Permissions Violation for Publish to \""[..],
            subject,
            b"\"'\r\n",
        ];
        self.sessions.deliver(session, &text, bus);
    }

    /// Counts what a session adds to a link that it shares.
    pub(super) fn note_bytes(
        &mut self,
        session: SessionId,
        id: LinkId,
        bytes: usize,
        now: Instant,
    ) {
        let Some(owners) = &mut self.links[id].owners else {
            return;
        };
        owners.note_turn(session, now);
        if let Some(slot) = self.sessions.get_mut(session) {
            slot.unproven
                .add(bytes, self.links.next_ping(), self.links.answered());
        }
    }

    /// Counts publishes of a session, and the bytes of their payloads.
    pub fn note_sent(&mut self, session: SessionId, messages: u64, bytes: u64, bus: &mut Bus) {
        bus.counters_mut().in_msgs += messages;
        bus.counters_mut().in_bytes += bytes;
        if let Some(slot) = self.sessions.get_mut(session) {
            slot.traffic.count_in(messages, bytes);
        }
    }

    /// Answers a component's PING, now or when it is proven (R1-R3).
    pub fn ping(&mut self, session: SessionId, cx: &mut Turn<'_>) {
        self.catch_up(session, cx);
        let (open, live) = (self.open(cx.bus), self.live());
        let placed = !self.route.is_independent() || self.has_proven_operations(cx.bus);
        let subscribed = self.subscriptions.has_any(session);
        let Some(slot) = self.sessions.get_mut(session) else {
            return;
        };
        let unproven = slot.is_unproven(self.links.answered()) || !placed;
        let in_turn = slot.debts.is_in_turn();
        match open {
            Some(id) if unproven || !in_turn || subscribed => {
                slot.debts.ask();
                self.note_bytes(session, id, encode::PING.len(), cx.now);
                self.ping_standbys(cx);
                self.links.push_ping(id, Some(session), cx);
                self.unmarked = None;
            }
            // A live link that is suspect may still have messages for it (R2).
            None if unproven || !in_turn || (subscribed && live.is_some()) => {
                slot.debts.owe_pong();
                self.arm_pong_hold(session, cx);
            }
            _ => self.sessions.deliver_pong(session, cx.bus),
        }
    }

    /// Suspicion may have ended without this trunk having been told: what waits goes first.
    fn catch_up(&mut self, session: SessionId, cx: &mut Turn<'_>) {
        let slot = self.sessions.get(session);
        let waits = slot.is_some_and(|slot| {
            !slot.held.is_empty() || slot.debts.has_pongs() || slot.debts.oks > 0
        });
        if waits && let Some(id) = self.open(cx.bus) {
            self.resume(id, cx);
        }
    }

    /// A second CONNECT: everything after it happens under the new options. Where `drop`,
    /// the session's subscriptions end (brokers from 2.12.8 on do that).
    pub fn reconnect(
        &mut self,
        session: SessionId,
        connect: Rc<ConnectInfo>,
        drop: bool,
        cx: &mut Turn<'_>,
    ) {
        if drop {
            self.retire_subscriptions(session, cx.now);
        }
        let identity = self.identity(cx.bus);
        let was_verbose = std::mem::replace(&mut self.connect, connect).verbose;
        if self.identity(cx.bus) != identity {
            cx.bus.forget_carrier(self.id);
        }
        self.fix_held_oks(was_verbose);
        self.connect_ok_owed = self.connect.verbose;
        self.verdict = Verdict::Pending;
        self.ready = false;
        self.route.attempts = Attempts::default();
        self.abandon_joining(cx.bus);
        for link in self.links.iter_mut() {
            link.gives_way = Some(Departure::NewConnect);
        }
        let live = self.links.live();
        if live.is_none() && cx.bus.settings().is_independent() {
            self.renew_links(Departure::NewConnect, cx);
        }
        if let Some(id) = live {
            let slot = self.sessions.get(session);
            let unanswered = slot.is_some_and(|slot| {
                slot.debts.is_asked() || slot.is_unproven(self.links.answered())
            });
            // Operations that came before are answered before anything else happens.
            let after = unanswered.then(|| self.links.fence(id, cx));
            self.route.moving = Some(Move {
                reason: Departure::NewConnect,
                after,
                _place: None,
            });
        }
        self.next_attempt(cx);
    }

    /// Settles the `+OK`s of what waits, which was published under the former options: it is
    /// answered, or not, as these said. So is a CONNECT that no broker has judged.
    fn fix_held_oks(&mut self, was_verbose: bool) {
        let connect_ok = u64::from(self.connect_ok_owed);
        for slot in self.sessions.iter_mut() {
            slot.debts.oks += connect_ok;
            if was_verbose == self.connect.verbose {
                continue;
            }
            if was_verbose {
                slot.debts.oks += slot.held.messages() - slot.debts.unasked;
            }
            slot.debts.unasked = slot.held.messages();
        }
    }

    /// The component has closed its side, or natsmux drains it: what it sent so far is
    /// carried out and answered, then the session closes.
    pub fn finish(&mut self, session: SessionId, reason: CloseReason, cx: &mut Turn<'_>) {
        let Some(slot) = self.sessions.get(session) else {
            return;
        };
        if slot.is_ending() {
            return;
        }
        let live = self.live();
        // A PONG that waits for a broker, or that the old link of a move owes, is still wanted,
        // unless natsmux itself ends.
        let (late, asked) = (slot.debts.is_late(), slot.debts.is_asked());
        let owed = slot.debts.has_pongs() || (live.is_none() && (late || asked));
        let unanswered = late || asked || slot.is_unproven(self.links.answered());
        let after = match live {
            _ if owed && (live.is_some() || reason == CloseReason::ComponentClosed) => None,
            Some(id) if unanswered => Some(self.links.fence(id, cx)),
            _ => return self.sessions.close(session, reason),
        };
        let until = cx.now + super::FINISH_WITHIN;
        self.sessions[session].end = End::Finishing(Box::new(Finishing {
            reason,
            after,
            until,
        }));
        self.sessions.await_pong(session);
        self.sessions.note_timeout(until);
        self.retire_subscriptions(session, cx.now);
    }

    /// Ends a session for its own fault; its component hears the reason's text.
    pub fn close_session(&mut self, session: SessionId, reason: CloseReason) {
        self.sessions.close(session, reason);
    }

    /// Whether a component may be told a later INFO (R17): it asked for protocol 1 and has
    /// had its first PONG. Before that it must hear nothing else, nor behind its last words.
    pub fn takes_info(&self, session: SessionId) -> bool {
        let Some(slot) = self.sessions.get(session) else {
            return false;
        };
        let label = slot.label.as_ref();
        let protocol = label.map_or(self.connect.protocol, |label| label.protocol);
        protocol >= 1 && slot.had_pong && !self.is_ending(session)
    }

    /// Gives a later INFO to a component.
    pub fn say_info(&mut self, session: SessionId, info: &[u8], bus: &Bus) {
        self.sessions.deliver(session, &[info], bus);
    }

    /// natsmux's own PING to a component.
    pub fn ping_component(&mut self, session: SessionId, bus: &Bus) {
        self.sessions.deliver(session, &[encode::PING], bus);
    }

    /// Whether the session may do anything: its CONNECT was accepted by a broker and has had
    /// a live link, or it is admitted without one (R16), and no earlier operation has to be
    /// answered first. Until then what the component sends waits, in its order.
    pub fn is_ready(&self, session: SessionId) -> bool {
        let slot = self.sessions.get(session);
        let goes_on = |slot: &Slot| {
            let leaves = matches!(slot.leaving, Some(Leaving::Crowded | Leaving::Greedy));
            !slot.gate.is_shut() && !slot.unverified && !slot.throttle.is_hasty() && !leaves
        };
        self.ready && slot.is_some_and(goes_on)
    }

    /// Whether a SUB must wait for the broker's answer to what came before, since only the
    /// broker knows whether its sid is free. Then it comes again once the session is ready.
    pub fn must_await_answer(&mut self, session: SessionId, sid: &[u8], cx: &mut Turn<'_>) -> bool {
        if self.waits_for_move(session) {
            return true;
        }
        let (answered, open) = (self.links.answered(), self.open(cx.bus));
        let Some(slot) = self.sessions.get_mut(session) else {
            return false;
        };
        let passed = slot.gate.take_passed();
        let uncertain = self.subscriptions.is_uncertain(session, sid, answered);
        match open {
            Some(id) if uncertain && !passed => {
                let seq = self.links.fence(id, cx);
                self.sessions[session].gate = Gate::Shut(seq);
                self.sessions.await_pong(session);
                true
            }
            _ => false,
        }
    }

    /// The session is gone. What it published and no broker has yet is still delivered.
    pub fn detach(&mut self, session: SessionId, cx: &mut Turn<'_>) {
        let Some(slot) = self.sessions.remove(session, cx.bus) else {
            return;
        };
        cx.bus.budgets().pending.give(slot.accounted);
        self.orphans.append(slot.held);
        if slot.leaving.is_some() {
            self.subscriptions.take_session(session);
        }
        self.retire_subscriptions(session, cx.now);
        self.forget_session(session);
        self.note_departure(cx);
    }

    /// A session is here no more.
    pub(super) fn note_departure(&mut self, cx: &mut Turn<'_>) {
        if self.sessions.is_empty() {
            self.note_idle(self.is_shared().then_some(cx.now), cx.bus);
            if let Some(id) = self.open(cx.bus) {
                self.send_held(id, cx);
            } else {
                self.wait_as_orphan(cx.bus);
            }
            if let Some(id) = self.live()
                && self.links[id].account.unsettled() > 0
            {
                self.links.fence(id, cx);
            }
            self.check_done(cx);
        }
    }

    /// Books `messages` publishes that were appended to a link, and fences where due (R7).
    pub(super) fn appended_publishes(
        &mut self,
        id: LinkId,
        bytes: usize,
        messages: u64,
        cx: &mut Turn<'_>,
    ) {
        self.links[id].note_unfenced(bytes, messages, cx.now);
        let soon = self.must_prove_soon(&self.links[id], cx.now);
        let link = &mut self.links[id];
        cx.bus.note_publish(link.broker, cx.now);
        let limits = &cx.bus.settings().limits;
        let due = std::mem::take(&mut link.fences_next)
            || soon
            || link.unfenced_bytes >= limits.fence_bytes
            || link.unfenced_messages >= limits.fence_messages as u64;
        if due && cx.bus.may_fence(cx.now) {
            self.links.fence(id, cx);
        }
    }

    pub(super) fn arm_pong_hold(&mut self, session: SessionId, cx: &Turn<'_>) {
        let PongHold::After(hold) = cx.bus.settings().timings.pong_hold else {
            return;
        };
        let until = cx.now + hold;
        if let Some(slot) = self.sessions.get_mut(session)
            && slot.debts.hold_until(until)
        {
            self.sessions.note_timeout(until);
        }
    }

    pub(super) fn owe_oks(&mut self, session: SessionId, count: u64) {
        if let Some(slot) = self.sessions.get_mut(session) {
            slot.debts.oks += count;
        }
    }
}
