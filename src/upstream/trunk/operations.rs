//! SUBs and UNSUBs of sessions, on their way to every link that has the ledger.

use super::link::{Link, LinkId, OkOwner};
use super::{CloseReason, Trunk};
use crate::clock::Instant;
use crate::ledger::{SessionId, Subscribed, Unsubscribed, UpstreamSid};
use crate::proto::client::ClientFault;
use crate::proto::{encode, subject};
use crate::upstream::bus::Turn;

/// The bytes of a SUB's line that a broker's bound isn't for: the verb, a blank, CR and LF.
const LINE_BESIDES: usize = 6;

/// The answer of the server of 2012 to a SUB whose sid it has.
const SID_TAKEN: &[u8] = b"-ERR 'Invalid Subject Identifier (sid), already taken'\r\n";

/// The longest line that brokers take, in bytes, unless they are configured otherwise.
const LINE_OF_BROKERS: usize = 4096;

/// A sid that natsmux never uses for a subscription of the ledger: for operations that only
/// a broker can answer.
pub(super) const NO_SID: &[u8] = b"-";

impl Trunk {
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
            || (subject::is_valid_subscription(subject) && !cx.bus.roster().are_of_2012());
        let upstream = if is_valid {
            match self
                .subscriptions
                .subscribe(session, subject, queue_group, sid, covered_by)
            {
                Subscribed::Duplicate { limited: true, .. } if cx.bus.roster().are_of_2012() => {
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
        let longest = cx
            .bus
            .settings()
            .limits
            .max_control_line
            .max(LINE_OF_BROKERS);
        let longest = longest.min(cx.bus.roster().max_control_line());
        if self.is_shared() && frame.len() - LINE_BESIDES > longest {
            // natsmux's own sid is longer than the component's: the broker would close the link
            // for all.
            frame.clear();
            self.scratch = frame;
            if let Some(new) = new {
                self.subscriptions.reject_sid(new);
            }
            cx.bus.counters_mut().protocol_errors += 1;
            let reason = CloseReason::Fault(ClientFault::MaxControlLine);
            return self.finish(session, reason, cx);
        }
        let sent = match upstream {
            Some(_) => {
                let sent = self.send_operation(session, &frame, cx.now);
                if let Some(upstream) = new {
                    self.subscribed_at = Some(cx.now);
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
            if is_sent {
                self.retire_on_links(left, covered_by);
            } else {
                self.subscriptions.forget(left);
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
        self.subscribe_ending(session, Some(sid), cx.now);
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
                if self.is_counted_alone(upstream) {
                    self.scratch = frame;
                    return self.limit_beside_move(session, upstream, max, cx.now);
                }
                encode::unsub(&mut frame, upstream.text().as_bytes(), Some(max));
                self.send_operation(session, &frame, cx.now);
            }
            // The server of 2012 has no answer to it, but to the pedantic.
            Unsubscribed::Unknown if cx.bus.roster().are_of_2012() && !self.connect.pedantic => {}
            Unsubscribed::Unknown if self.connect.verbose || self.connect.pedantic => {
                encode::unsub(&mut frame, NO_SID, None);
                self.send_operation(session, &frame, cx.now);
            }
            Unsubscribed::Unknown => {}
        }
        frame.clear();
        self.scratch = frame;
    }

    /// Sends a SUB or UNSUB wherever the ledger is in place. Returns false where a replay will
    /// carry it, or nothing has to.
    fn send_operation(&mut self, session: SessionId, frame: &[u8], now: Instant) -> bool {
        let Some(owner) = self.note_operation(session) else {
            return false;
        };
        self.note_operation_bytes(session, owner, frame.len(), now);
        let covered_by = self.links.next_ping();
        for link in self.links.subscribed_mut() {
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
        let live = self.links.live();
        live.or_else(|| self.links.find(subscribed))
    }

    /// With independent brokers, how many deliveries are left of a subscription that has a max.
    fn several_left(&self, upstream: UpstreamSid) -> Option<u64> {
        self.route
            .is_independent()
            .then(|| self.subscriptions.left(upstream))?
    }

    /// A SUB went to every link that takes them.
    fn note_subscribed(&mut self, upstream: UpstreamSid, covered_by: u64) {
        for link in self.links.subscribed_mut() {
            link.operations.subscribe(upstream, covered_by);
        }
    }

    /// An UNSUB did.
    pub(super) fn note_unsubscribed(&mut self, upstream: UpstreamSid, covered_by: u64) {
        for link in self.links.subscribed_mut() {
            link.operations.unsubscribe(upstream, covered_by);
        }
    }

    /// Every link that takes UNSUBs may still deliver what ended.
    pub(super) fn retire_on_links(&mut self, upstream: UpstreamSid, covered_by: u64) {
        self.note_ended(upstream);
        let mut holders = 0;
        for link in self.links.subscribed_mut() {
            link.retired.push_back((covered_by, upstream));
            holders += 1;
        }
        self.subscriptions.hold(upstream, holders);
    }

    pub(super) fn retire_subscriptions(&mut self, session: SessionId, now: Instant) {
        self.subscribe_ending(session, None, now);
        let covered_by = self.links.next_ping();
        let ended = self.subscriptions.retire_session(session, covered_by);
        let all = ended.unsubscribe.iter().chain(&ended.left);
        let takes = |link: &Link| link.takes_subscriptions();
        if !self.links.any(takes) {
            // Messages of the old link of a move are still delivered.
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
}
