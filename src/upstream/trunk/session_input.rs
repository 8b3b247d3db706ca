//! What sessions do: attach, publish, subscribe, ping, and go.

use std::rc::Rc;

use super::link::{Link, LinkId, OkOwner, Phase};
use super::route::{Attempts, Move};
use super::slot::{End, Finishing, Gate, Leaving, Slot};
use super::{CloseReason, Trunk, Verdict};
use crate::clock::Instant;
use crate::config::PongHold;
use crate::ledger::{SessionId, Subscribed, Unsubscribed, UpstreamSid};
use crate::net::Outbox;
use crate::proto::client::ClientFault;
use crate::proto::connect::ConnectInfo;
use crate::proto::{encode, subject};
use crate::upstream::brokers::roster::Failure;
use crate::upstream::bus::{Bus, Turn};

/// What a SUB's line has besides what a broker's bound is for: the verb, a blank, CR and LF.
const LINE_BESIDES: usize = 6;
/// What the server of 2012 says to a SUB whose sid it has.
const SID_TAKEN: &[u8] = b"-ERR 'Invalid Subject Identifier (sid), already taken'\r\n";

/// The longest line that brokers take, in bytes, unless they are configured otherwise.
const LINE_OF_BROKERS: usize = 4096;

/// A sid that natsmux never uses for a subscription of the ledger: for operations that only
/// a broker can answer.
pub(super) const NO_SID: &[u8] = b"-";

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
        self.route.configure(cx.bus.settings.is_independent());
        self.connect_ok_owed = sent_connect && self.connect.verbose;
        if self.links.is_empty() {
            self.next_attempt(cx);
        }
        session
    }

    /// R16: with no live broker, a component that is known may go on without a verdict.
    pub(super) fn try_to_admit(&mut self, cx: &Turn<'_>) {
        let no_auth = cx.bus.roster.no_auth_anywhere();
        if self.verdict != Verdict::Pending
            || cx.bus.roster.takes_newcomers()
            || !cx
                .bus
                .admission
                .admits(&self.connect, cx.bus.settings.admit, no_auth, cx.now)
        {
            return;
        }
        self.verdict = Verdict::Admitted;
        self.make_ready();
        let headers = cx.bus.roster.offer().headers;
        if std::mem::take(&mut self.connect_ok_owed) && self.connect.refusal(headers).is_none() {
            for session in self.sessions.ids() {
                self.sessions.deliver(session, &[encode::OK], cx.bus);
            }
        }
        self.refuse_own_options(headers);
    }

    /// Publishes `messages` whole PUB or HPUB frames.
    pub fn publish(&mut self, session: SessionId, frames: &[u8], messages: u64, cx: &mut Turn<'_>) {
        cx.bus.counters.published += messages;
        self.mark_places(cx);
        let open = self.open(cx.bus);
        let covered_by = self.links.next_ping();
        let Some(slot) = self.sessions.get_mut(session) else {
            cx.bus.counters.dropped += messages;
            return;
        };
        if cx.bus.lags.is_any() {
            let flow = slot.throttle.flow_mut(cx.now);
            flow.count(frames.len(), &cx.bus.lags, cx.now);
        }
        match open {
            Some(id) if slot.held.is_empty() => {
                slot.publishes_covered_by = covered_by;
                let link = &mut self.links[id];
                let bytes = link.push_publishes(frames, messages, &mut cx.bus.counters);
                link.note_owner(Some(session));
                if link.verbose {
                    link.oks.push(OkOwner::Publish, messages);
                }
                self.note_bytes(session, id, bytes, cx.now);
                self.appended_publishes(id, bytes, messages, cx);
            }
            _ if slot.dropping && !Self::may_hold(slot, cx.bus) => {
                cx.bus.counters.dropped += messages;
                if self.connect.verbose {
                    self.owe_oks(session, messages);
                }
            }
            _ => {
                slot.held.push(frames, messages);
                cx.bus.budgets.held.take(frames.len());
            }
        }
    }

    /// Refuses a publish as a broker that doesn't permit it: what is below the prefix of presence
    /// is natsmux's own (R29).
    pub fn refuse_publish(&mut self, session: SessionId, subject: &[u8], bus: &mut Bus) {
        bus.counters.published += 1;
        bus.counters.refused += 1;
        let text = [
            &b"-ERR 'Permissions Violation for Publish to \""[..],
            subject,
            b"\"'\r\n",
        ];
        self.sessions.deliver(session, &text, bus);
    }

    /// Counts what a session adds to a link that it shares.
    fn note_bytes(&mut self, session: SessionId, id: LinkId, bytes: usize, now: Instant) {
        let Some(owners) = &mut self.links[id].owners else {
            return;
        };
        owners.note_turn(session, now);
        if let Some(slot) = self.sessions.get_mut(session) {
            slot.unproven
                .add(bytes, self.links.next_ping(), self.links.answered());
        }
    }

    /// Counts a SUB or UNSUB of this length, and its share of the broker's time.
    fn note_operation_bytes(&mut self, session: SessionId, id: LinkId, len: usize, now: Instant) {
        self.note_bytes(session, id, len.max(super::link::OPERATION_BYTES), now);
        if self.links[id].is_contended(now)
            && let Some(slot) = self.sessions.get_mut(session)
            && let Some(until) = slot.throttle.note_operation_beside_others(now)
        {
            self.sessions.note_timeout(until);
        }
    }

    /// Counts publishes of a session, and the bytes of their payloads.
    pub fn note_sent(&mut self, session: SessionId, messages: u64, bytes: u64, bus: &mut Bus) {
        bus.counters.in_msgs += messages;
        bus.counters.in_bytes += bytes;
        if let Some(slot) = self.sessions.get_mut(session) {
            slot.traffic.count_in(messages, bytes);
        }
    }

    /// Enters a subscription. An invalid subject, and a sid in use, are for the broker to
    /// answer: it judges permissions first.
    pub fn subscribe(
        &mut self,
        session: SessionId,
        subject: &[u8],
        queue_group: Option<&[u8]>,
        sid: &[u8],
        cx: &mut Turn<'_>,
    ) {
        let covered_by = self.links.next_ping();
        let (mut is_known, mut again, mut new) = (true, false, None);
        // All brokers take what the one of 2012 takes: few SUBs have natsmux ask which one it is.
        let is_valid = subject::is_valid_subscription_of_2012(subject)
            || (subject::is_valid_subscription(subject) && !cx.bus.roster.are_of_2012());
        let upstream = if is_valid {
            match self
                .subscriptions
                .subscribe(session, subject, queue_group, sid, covered_by)
            {
                Subscribed::Duplicate { limited: true, .. } if cx.bus.roster.are_of_2012() => {
                    return self.sessions.deliver(session, &[SID_TAKEN], cx.bus);
                }
                Subscribed::Duplicate { limited: true, .. } => {
                    return self.ignore_duplicate(session, cx.now);
                }
                Subscribed::Joined => return self.note_place(session, None, cx.now),
                Subscribed::New(upstream) => {
                    new = Some(upstream);
                    Some(upstream.text())
                }
                Subscribed::Duplicate { upstream, .. } => {
                    is_known = false;
                    again = true;
                    Some(upstream.text())
                }
            }
        } else {
            is_known = false;
            None
        };
        let mut frame = std::mem::take(&mut self.scratch);
        let sid = upstream.as_ref().map_or(NO_SID, |text| text.as_bytes());
        encode::sub(&mut frame, subject, queue_group, sid);
        let longest = cx.bus.settings.limits.max_control_line.max(LINE_OF_BROKERS);
        let longest = longest.min(cx.bus.roster.max_control_line());
        if self.shared && frame.len() - LINE_BESIDES > longest {
            // natsmux's own sid is longer than the component's: the broker would close the link
            // for all.
            frame.clear();
            self.scratch = frame;
            if let Some(new) = new {
                self.subscriptions.reject_sid(new);
            }
            cx.bus.counters.protocol_errors += 1;
            let reason = CloseReason::Fault(ClientFault::MaxControlLine);
            return self.finish(session, reason, cx);
        }
        let sent = match upstream {
            Some(_) => {
                let sent = self.send_operation(session, &frame, cx.now);
                if let Some(upstream) = new {
                    self.note_subscribed(upstream, covered_by);
                }
                if again && let Some(id) = self.operation_owner() {
                    self.links[id].operations.subscribe_again(covered_by);
                }
                sent
            }
            // Of a verbose link, what others answer is swallowed.
            None if self.connect.verbose => self.send_operation(session, &frame, cx.now),
            None => self.ask_owner(session, &frame, cx.now),
        };
        if !is_known
            && let Some(id) = self.operation_owner()
            && let Some(owners) = &mut self.links[id].owners
        {
            owners.note_asked(session, subject, queue_group, is_valid, covered_by);
        }
        // A verbose session is owed an answer by now, and one is enough (R20).
        if !sent && upstream.is_none() && !self.connect.verbose {
            self.sessions
                .deliver(session, &[b"-ERR 'Invalid Subject'\r\n"], cx.bus);
        }
        frame.clear();
        self.scratch = frame;
    }

    /// A subscription that others have comes or, as `left`, goes: a PING will mark the place
    /// among the link's operations (R23).
    fn note_place(&mut self, session: SessionId, left: Option<UpstreamSid>, now: Instant) {
        let covered_by = self.links.next_ping();
        let owner = self.note_operation(session);
        let is_sent = owner.is_some();
        if let Some(id) = owner {
            self.note_operation_bytes(session, id, 0, now);
        }
        if let Some(left) = left {
            match is_sent {
                true => self.retire_on_links(left, covered_by),
                false => self.subscriptions.forget(left),
            }
        }
        self.unmarked.get_or_insert(now);
    }

    /// One PING marks the place for all that came and went since the last publish, and before the
    /// next: in between, nothing tells one place from another.
    pub(super) fn mark_places(&mut self, cx: &mut Turn<'_>) {
        if self.unmarked.is_some() {
            self.ping_everywhere(cx);
        }
    }

    /// A SUB of a sid that is live, and whose max a message on its way may reach before the
    /// SUB does: the broker would make a subscription of it that nobody here knows of. So it
    /// gets to see, at most, something that it answers with the same `+OK`.
    fn ignore_duplicate(&mut self, session: SessionId, now: Instant) {
        if self.connect.verbose {
            let mut frame = std::mem::take(&mut self.scratch);
            encode::unsub(&mut frame, NO_SID, None);
            self.send_operation(session, &frame, now);
            frame.clear();
            self.scratch = frame;
        }
    }

    /// Ends a subscription, at once or after `max` deliveries counted from its SUB.
    pub fn unsubscribe(
        &mut self,
        session: SessionId,
        sid: &[u8],
        max: Option<u64>,
        cx: &mut Turn<'_>,
    ) {
        let covered_by = self.links.next_ping();
        let ended = self
            .subscriptions
            .unsubscribe(session, sid, max, covered_by);
        let mut frame = std::mem::take(&mut self.scratch);
        match ended {
            Unsubscribed::Left(upstream) => {
                self.note_place(session, Some(upstream), cx.now);
            }
            Unsubscribed::Counted => self.any_limited = true,
            Unsubscribed::Retired(upstream) => {
                encode::unsub(&mut frame, upstream.text().as_bytes(), None);
                if self.send_operation(session, &frame, cx.now) {
                    self.note_unsubscribed(upstream, covered_by);
                    self.retire_on_links(upstream, covered_by);
                } else {
                    self.subscriptions.forget(upstream);
                }
            }
            Unsubscribed::Limited(upstream, max) => {
                self.any_limited = true;
                if let Some(left) = self.several_left(upstream) {
                    self.scratch = frame;
                    return self.send_limit(session, upstream, left, cx);
                }
                encode::unsub(&mut frame, upstream.text().as_bytes(), Some(max));
                self.send_operation(session, &frame, cx.now);
            }
            // The server of 2012 has no answer to it, but to the pedantic.
            Unsubscribed::Unknown if cx.bus.roster.are_of_2012() && !self.connect.pedantic => {}
            Unsubscribed::Unknown if self.connect.verbose || self.connect.pedantic => {
                encode::unsub(&mut frame, NO_SID, None);
                self.send_operation(session, &frame, cx.now);
            }
            Unsubscribed::Unknown => {}
        }
        frame.clear();
        self.scratch = frame;
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
        let was_verbose = std::mem::replace(&mut self.connect, connect).verbose;
        self.settle_held_oks(was_verbose);
        self.connect_ok_owed = self.connect.verbose;
        self.verdict = Verdict::Pending;
        self.ready = false;
        self.route.attempts = Attempts::default();
        self.abandon_joining(cx.bus);
        let live = self.links.find(|link| link.phase == Phase::Live);
        if live.is_none() && cx.bus.settings.is_independent() {
            self.renew_links(cx);
        }
        if let Some(id) = live {
            let slot = self.sessions.get(session);
            let unanswered = slot.is_some_and(|slot| {
                slot.debts.is_asked() || slot.is_unproven(self.links.answered())
            });
            // What came before is answered before anything else happens.
            let after = unanswered.then(|| self.links.fence(id, cx));
            self.route.moving = Some(Move {
                reason: Failure::NewConnect,
                after,
            });
        }
        self.next_attempt(cx);
    }

    /// What waits was published under the former options: it is answered, or not, as these
    /// said. The same goes for a CONNECT that no broker has judged.
    fn settle_held_oks(&mut self, was_verbose: bool) {
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
    pub fn must_settle(&mut self, session: SessionId, sid: &[u8], cx: &mut Turn<'_>) -> bool {
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
        cx.bus.budgets.pending.give(slot.accounted);
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
            self.note_idle(self.shared.then_some(cx.now), cx.bus);
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

    /// Sends a SUB or UNSUB wherever the ledger is in place. Returns false where a replay will
    /// carry it, or nothing has to.
    fn send_operation(&mut self, session: SessionId, frame: &[u8], now: Instant) -> bool {
        let Some(owner) = self.note_operation(session) else {
            return false;
        };
        self.note_operation_bytes(session, owner, frame.len(), now);
        let covered_by = self.links.next_ping();
        for link in self.links.iter_mut() {
            if !link.takes_subscriptions() {
                continue;
            }
            let told = OkOwner::of_operation(link.id == owner);
            link.push_operation(frame, told, covered_by, now);
        }
        true
    }

    /// Sends what changes nothing to the broker that answers, and to no other: the answer of
    /// another may come once that one answers in its place.
    fn ask_owner(&mut self, session: SessionId, frame: &[u8], now: Instant) -> bool {
        let Some(owner) = self.note_operation(session) else {
            return false;
        };
        self.note_operation_bytes(session, owner, frame.len(), now);
        let covered_by = self.links.next_ping();
        self.links[owner].push_operation(frame, OkOwner::Operation, covered_by, now);
        true
    }

    /// An operation of this session goes out: returns the link whose broker answers it, and
    /// which PING covers it is noted. Where no link takes it, the component is owed the answer.
    pub(super) fn note_operation(&mut self, session: SessionId) -> Option<LinkId> {
        let owner = self.operation_owner();
        let covered_by = owner.map_or(u64::MAX, |_| self.links.next_ping());
        if let Some(slot) = self.sessions.get_mut(session) {
            slot.subs_covered_by = covered_by;
        }
        if owner.is_none() && self.connect.verbose {
            self.owe_oks(session, 1);
        }
        owner
    }

    /// The link whose broker answers SUBs and UNSUBs: the live one, or where the ledger is in
    /// place or on its way.
    pub(super) fn operation_owner(&self) -> Option<LinkId> {
        if self.route.must_move() {
            return None;
        }
        let subscribed = |link: &Link| link.takes_subscriptions();
        self.live().or_else(|| self.links.find(subscribed))
    }

    /// With independent brokers, how many deliveries are left of a subscription that has a max.
    fn several_left(&self, upstream: UpstreamSid) -> Option<u64> {
        self.route
            .is_independent()
            .then(|| self.subscriptions.left(upstream))?
    }

    /// A SUB went to every link that takes them.
    fn note_subscribed(&mut self, upstream: UpstreamSid, covered_by: u64) {
        let takes = |link: &&mut Link| link.takes_subscriptions();
        for link in self.links.iter_mut().filter(takes) {
            link.operations.subscribe(upstream, covered_by);
        }
    }

    /// An UNSUB did.
    pub(super) fn note_unsubscribed(&mut self, upstream: UpstreamSid, covered_by: u64) {
        let takes = |link: &&mut Link| link.takes_subscriptions();
        for link in self.links.iter_mut().filter(takes) {
            link.operations.unsubscribe(upstream, covered_by);
        }
    }

    /// Every link that takes UNSUBs may still deliver what ended.
    pub(super) fn retire_on_links(&mut self, upstream: UpstreamSid, covered_by: u64) {
        let mut holders = 0;
        for link in self.links.subscribed_mut() {
            link.retired.push_back((covered_by, upstream));
            holders += 1;
        }
        self.subscriptions.hold(upstream, holders);
    }

    fn retire_subscriptions(&mut self, session: SessionId, now: Instant) {
        let covered_by = self.links.next_ping();
        let ended = self.subscriptions.retire_session(session, covered_by);
        let all = ended.unsubscribe.iter().chain(&ended.left);
        let takes = |link: &Link| link.takes_subscriptions();
        if !self.links.any(takes) {
            // What the old link of a move still sends is delivered.
            if !self.links.any_attached() {
                for upstream in all {
                    self.subscriptions.forget(*upstream);
                }
            }
            return;
        }
        self.send_unsubs(&ended.unsubscribe, now);
        for upstream in all {
            self.retire_on_links(*upstream, covered_by);
        }
        if !ended.left.is_empty() {
            self.unmarked.get_or_insert(now);
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
        let limits = &cx.bus.settings.limits;
        let due = std::mem::take(&mut link.fences_next)
            || soon
            || link.unfenced_bytes >= limits.fence_bytes
            || link.unfenced_messages >= limits.fence_messages as u64;
        if due && cx.bus.may_fence(cx.now) {
            self.links.fence(id, cx);
        }
    }

    pub(super) fn arm_pong_hold(&mut self, session: SessionId, cx: &Turn<'_>) {
        let PongHold::After(hold) = cx.bus.settings.timings.pong_hold else {
            return;
        };
        let until = cx.now + hold;
        if let Some(slot) = self.sessions.get_mut(session)
            && slot.debts.hold_until(until)
        {
            self.sessions.note_timeout(until);
        }
    }

    fn owe_oks(&mut self, session: SessionId, count: u64) {
        if let Some(slot) = self.sessions.get_mut(session) {
            slot.debts.oks += count;
        }
    }
}
