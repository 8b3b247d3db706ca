//! What brokers send: messages to sessions, PONGs that prove, errors to whom they concern.

use std::borrow::Cow;

use super::action::{Action, Report};
use super::attribution::{Wanted, publishes};
use super::link::{Link, LinkId, OkOwner, Phase};
use super::presence::PRESENCE_SID;
use super::sessions::Message;
use super::sharing::Status;
use super::slot::Finishing;
use super::{CloseReason, Trunk, Verdict};
use crate::ledger::operations::OWN;
use crate::ledger::{Ping, Rejected, SessionId, Spent, TooMany, UpstreamSid, line_of};
use crate::net::SHARED_LEAST;
use crate::proto::encode;
use crate::proto::error_text::{BrokerError, classify, first_quoted, unquote};
use crate::proto::info::ServerInfo;
use crate::proto::server::{self, Msg, ServerLimits, ServerOp, ServerScan};
use crate::upstream::brokers::roster::Failure;
use crate::upstream::bus::{Bus, Turn};

/// Errors that close the link, and that on a trunk with one session are the session's own
/// doing: the broker's bound is lower than the one natsmux could know.
const OWN_FAULTS: [&[u8]; 2] = [
    b"Maximum Payload Violation",
    b"maximum control line exceeded",
];

/// No broker is configured to take shorter lines than this, in bytes.
const SHORTEST_LIMIT: usize = 256;

impl Trunk {
    /// Handles bytes that a broker sent.
    pub fn handle_link_bytes(&mut self, id: LinkId, input: &[u8], cx: &mut Turn<'_>) {
        let Some(link) = self.links.get_mut(id) else {
            return;
        };
        link.last_read_at = cx.now;
        let mut rest = input;
        while !rest.is_empty() {
            let Some(link) = self.links.get_mut(id) else {
                return;
            };
            let partial = &mut link.partial;
            if partial.is_empty() {
                let (used, need) = self.consume(id, rest, cx);
                rest = &rest[used..];
                if let Some(link) = self.links.get_mut(id)
                    && !rest.is_empty()
                {
                    link.partial.keep(rest, need);
                }
                return;
            }
            rest = &rest[partial.fill(rest)..];
            if partial.is_filled() {
                let frame = partial.take();
                self.give_room(id, cx.bus);
                let (used, need) = self.consume(id, &frame, cx);
                if let Some(link) = self.links.get_mut(id)
                    && used < frame.len()
                {
                    link.partial.restore(frame, need);
                }
            }
        }
    }

    /// Handles the whole frames at the start of `bytes`; returns how many bytes they were,
    /// and how long the frame behind them will be, if known.
    fn consume(&mut self, id: LinkId, bytes: &[u8], cx: &mut Turn<'_>) -> (usize, Option<usize>) {
        let limits = |trunk: &Self| {
            let link = trunk.links.get(id);
            link.map(|link| ServerLimits::of_broker(link.max_payload))
        };
        let mut used = 0;
        let mut within = limits(self).unwrap_or_default();
        while let Some(link) = self.links.get(id) {
            let scanned = server::scan(&bytes[used..], &within);
            if link.phase < Phase::Authenticating && is_early(&scanned) {
                self.fail(id, Failure::Garbage, cx);
                continue;
            }
            match scanned {
                ServerScan::Op { op, len } => {
                    used += len;
                    let is_info = matches!(op, ServerOp::Info { .. });
                    self.handle_op(id, op, cx);
                    if is_info {
                        within = limits(self).unwrap_or_default();
                    }
                }
                ServerScan::Incomplete { need } => return (used, need),
                ServerScan::Fault(_) => {
                    self.fail(id, Failure::Garbage, cx);
                }
            }
        }
        (bytes.len(), None)
    }

    fn handle_op(&mut self, id: LinkId, op: ServerOp<'_>, cx: &mut Turn<'_>) {
        match op {
            ServerOp::Msg(msg) => self.handle_msg(id, &msg, cx),
            ServerOp::Pong => self.handle_pong(id, cx),
            ServerOp::Ping => {
                let link = &mut self.links[id];
                // A broker that asks and doesn't read is answered once it has taken the rest.
                let is_full = link.out.pending_bytes() >= super::pressure::LINK_FULL_BYTES;
                if link.phase != Phase::AwaitingInfo && !is_full {
                    link.out.push(encode::PONG);
                    // With at-least-once, what lies before it stays in memory until a fence.
                    link.note_unfenced(encode::PONG.len(), 0, cx.now);
                }
            }
            ServerOp::Ok => self.handle_ok(id, cx.bus),
            ServerOp::Info { json } => self.handle_info(id, json, cx),
            ServerOp::Err { text, .. } => self.handle_error(id, text, cx),
        }
    }

    fn handle_msg(&mut self, id: LinkId, msg: &Msg<'_>, cx: &mut Turn<'_>) {
        if self.route.is_independent() && cx.bus.presence.is_subject(msg.subject) {
            // Never a component's (R29).
            if msg.sid == PRESENCE_SID {
                self.hear(id, msg.payload, cx);
            }
            return;
        }
        let Some(upstream) = UpstreamSid::parse(msg.sid) else {
            cx.bus.counters.unknown_sid_msgs += 1;
            return;
        };
        let status = match msg.header_len == msg.size && msg.headers {
            true => self.judge_status(id, msg),
            false => Status::Application,
        };
        let counts = status == Status::Application;
        match status {
            Status::Answers(session) => return self.deliver_status(session, msg, cx.bus),
            Status::Own if self.shared => return,
            Status::Own | Status::Application => {}
        }
        let independent = self.route.is_independent();
        if independent && self.subscriptions.is_over(upstream) {
            cx.bus.counters.over_max_msgs += 1;
            return;
        }
        // No number that a broker writes sizes memory before the ledger knows it (R34).
        if independent && counts && self.subscriptions.knows(upstream) {
            let independent = self.links[id].independent.get_or_insert_default();
            independent.received.note(upstream);
        }
        let seen = self.links[id].seen();
        let is_large = msg.after_sid.len() >= SHARED_LEAST;
        let is_once = is_large && self.subscriptions.is_shared(upstream);
        let message = Message {
            before_sid: msg.before_sid,
            after_sid: if is_once { &[] } else { msg.after_sid },
            shared: is_once.then(|| msg.after_sid.into()),
            size: msg.size,
        };
        let mut copies = 0;
        let deliver = |session: SessionId, sid: &[u8]| {
            let is_taken = self
                .sessions
                .deliver_message(session, &message, sid, cx.bus);
            copies += u64::from(is_taken);
        };
        let spent = self.subscriptions.deliver(upstream, counts, seen, deliver);
        cx.bus.counters.out_msgs += copies;
        cx.bus.counters.out_bytes += copies * msg.size as u64;
        match spent {
            None => cx.bus.counters.unknown_sid_msgs += 1,
            Some(Spent::Nothing) => {}
            Some(Spent::One(upstream)) if !independent => {
                // Freed once a fence behind its UNSUB, which was sent before, is answered.
                let covered_by = self.links.next_ping();
                let link = &mut self.links[id];
                link.operations.unsubscribe(upstream, covered_by);
                link.retired.push_back((covered_by, upstream));
                link.note_unfenced(0, 0, cx.now);
            }
            // No broker knows that this was the last one: of several, others have delivered some.
            Some(Spent::One(upstream) | Spent::Group(upstream)) => {
                self.unsubscribe_but(None, upstream, cx.now);
            }
        }
    }

    fn handle_pong(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let link = &mut self.links[id];
        let written = link.out.end() - link.out.pending_bytes() as u64;
        if link
            .pings
            .oldest()
            .is_some_and(|ping| ping.offset > written)
        {
            // To a PING that was never written: nothing that it says can be true.
            return self.fail(id, Failure::Garbage, cx);
        }
        let Some(ping) = link.pings.answer() else {
            return;
        };
        let was_suspect = self.links.is_suspect(id, cx.bus);
        self.prove(id, &ping, cx);
        match self.links[id].phase {
            Phase::Authenticating => self.authenticated(id, cx),
            // A fence within the replay shows that it gets on.
            Phase::Replaying if ping.seq < self.links[id].replayed_by => {}
            Phase::Replaying => {
                if !self.links.any_attached() {
                    self.links.note_answered(ping.seq);
                }
                self.replayed(id, cx);
            }
            Phase::Standby => self.release_late(cx.bus),
            Phase::Live => {
                self.links.note_answered(ping.seq);
                self.answer(ping, cx.bus);
                self.release_late(cx.bus);
                // What came behind a second CONNECT isn't this link's.
                if was_suspect && self.open(cx.bus) == Some(id) {
                    self.resume(id, cx);
                }
                self.go_on_moving(cx);
                if let Some(several) = self.route.several_mut() {
                    several.handle_answer(self.links.answered(), cx);
                }
                self.check_done(cx);
            }
            Phase::Leaving(seq) => {
                self.links.note_answered(ping.seq);
                self.answer(ping, cx.bus);
                if ping.seq >= seq {
                    self.left(id, cx);
                }
            }
            Phase::Connecting | Phase::AwaitingInfo | Phase::Authenticated | Phase::Fenced => {}
        }
        // Also behind a move, whose last PONG comes on the old link or before the new is live.
        self.open_gates();
        self.close_finished();
    }

    /// Lets sessions go on whose next operation waited for this PONG.
    pub(super) fn open_gates(&mut self) {
        let answered = self.links.answered();
        for session in self.sessions.awaiting_pong() {
            let Some(slot) = self.sessions.get_mut(session) else {
                continue;
            };
            if slot.gate.pass(answered) {
                self.sessions.release(session);
            }
        }
    }

    /// The old link has answered what came before a second CONNECT.
    fn go_on_moving(&mut self, cx: &mut Turn<'_>) {
        let answered = self.links.answered();
        if let Some(planned) = &mut self.route.moving
            && planned.after.take_if(|seq| *seq <= answered).is_some()
        {
            self.next_attempt(cx);
        }
    }

    /// Books what a fence proves (R4).
    fn prove(&mut self, id: LinkId, ping: &Ping, cx: &mut Turn<'_>) {
        let link = &mut self.links[id];
        link.note_proven(ping, cx.now);
        if link.is_attached() {
            cx.bus.fence_answered(self.id, link.broker, ping.at, cx.now);
        }
        cx.bus
            .observed
            .fences
            .observe(cx.now.saturating_duration_since(ping.at));
        let (confirmed, refused) = link.account.prove(ping.publishes);
        cx.bus.counters.confirmed += confirmed;
        cx.bus.counters.refused += refused;
        link.out.confirm(ping.offset);
        if !self.is_bystander(id) {
            self.subscriptions.prove(ping.seq);
        }
        let too_many = self.links[id].operations.prove(ping.seq);
        if too_many.count() > 0 {
            self.handle_too_many(id, &too_many, cx);
        }
        self.note_granted(id, ping.seq);
        let link = &mut self.links[id];
        while let Some(&(covered_by, upstream)) = link.retired.front()
            && covered_by <= ping.seq
        {
            link.retired.pop_front();
            self.subscriptions.forget(upstream);
        }
    }

    fn answer(&mut self, ping: Ping, bus: &Bus) {
        if let Some(session) = ping.asker
            && self.sessions.get(session).is_some()
        {
            let is_awaited = !self.all_answered(ping.seq, bus);
            if self.sessions[session].debts.answer(ping.seq, is_awaited) {
                self.sessions.deliver_pong(session, bus);
            } else {
                self.sessions.await_pong(session);
            }
        }
    }

    pub(super) fn close_finished(&mut self) {
        let answered = self.links.answered();
        self.sessions.forget_answered();
        for session in self.sessions.awaiting_pong() {
            let slot = &mut self.sessions[session];
            let owed = slot.debts.has_pongs() || slot.debts.is_asked();
            let late = slot.debts.is_late();
            let is_over = |end: &Finishing| match end.after {
                _ if late => false,
                Some(seq) => seq <= answered,
                None => !owed,
            };
            if let Some(reason) = slot.take_finished(is_over) {
                self.sessions.close(session, reason);
            }
        }
    }

    fn handle_ok(&mut self, id: LinkId, bus: &Bus) {
        // The server of 2012 says +OK to a CONNECT that asked for none: nobody's.
        let owner = self.links[id].oks.pop();
        if owner.is_some_and(|owner| owner != OkOwner::Nobody) {
            if self.links[id].phase == Phase::Authenticating {
                self.connect_ok_owed = false;
                if self.would_refuse(self.header_support(id, bus)) {
                    return;
                }
            }
            self.deliver_to_own(encode::OK, bus);
        }
    }

    fn handle_info(&mut self, id: LinkId, json: &[u8], cx: &mut Turn<'_>) {
        let Ok(info) = ServerInfo::parse(json) else {
            return self.fail(id, Failure::Garbage, cx);
        };
        let broker = self.links[id].broker;
        match self.links[id].phase {
            Phase::Connecting | Phase::AwaitingInfo => self.introduce(id, info, cx),
            _ => {
                // What comes after CONNECT may hold for this account alone.
                let before = std::mem::replace(&mut self.links[id].max_payload, info.max_payload);
                if before != info.max_payload && self.links[id].is_attached() {
                    // Components hear of it now, before they send what is too large.
                    self.sessions.release_all();
                }
                // It may come late, from a process that another has replaced.
                let known = cx.bus.roster.broker(broker).info();
                let is_same = known.is_none_or(|known| known.server_id == info.server_id);
                if info.ldm && is_same {
                    cx.bus.roster.handle_lame_duck(broker, cx.now);
                    self.start_move(Failure::LameDuck, cx);
                }
            }
        }
    }

    fn handle_error(&mut self, id: LinkId, text: &[u8], cx: &mut Turn<'_>) {
        if self.route.is_independent() && self.is_about_presence(id, text, cx) {
            return;
        }
        let error = classify(text);
        if self.answer_asked(id, &error, text, cx.bus) {
            return;
        }
        match error {
            BrokerError::Refused => return self.handle_refusal(id, text, cx),
            BrokerError::Expired => return self.handle_expiry(id, text, cx),
            BrokerError::Full { account } => {
                return self.handle_full(id, text, account, cx);
            }
            BrokerError::NoVerdict if !self.links[id].is_attached() => {
                return self.fail(id, Failure::NoVerdict, cx);
            }
            _ => {}
        }
        if self.is_bystander(id) && !matches!(error, BrokerError::LinkOnly) {
            // R28: the live link's broker judges, until this one is in its place.
            self.links[id].oks.pop();
            return self.note_lacking(id, &error, cx.now);
        }
        let line = [b"-ERR '", text, b"'\r\n"].concat();
        match error {
            BrokerError::Refused | BrokerError::Expired | BrokerError::Full { .. } => {}
            BrokerError::PublishViolation { subject } => {
                self.links[id].account.refused += 1;
                let subject = unquote(subject);
                self.deliver_to_publisher(id, Wanted::Subject(&subject), &line, cx);
            }
            BrokerError::ReplyViolation => {
                self.links[id].account.refused += 1;
                let reply = first_quoted(text).map(unquote).unwrap_or_default();
                self.deliver_to_publisher(id, Wanted::Reply(&reply), &line, cx);
            }
            BrokerError::SubscriptionViolation { sid: Some(sid), .. } => {
                self.handle_revoked(id, text, sid, cx)
            }
            BrokerError::SubscriptionViolation {
                subject,
                queue_group,
                ..
            } => {
                let (subject, group) = (unquote(subject), queue_group.map(unquote));
                let rejected = self.subscriptions.reject(&subject, group.as_deref());
                self.end_rejected(id, rejected, &line, cx);
            }
            BrokerError::MaxSubscriptions => {
                // The next PONG tells which was too many; who is alone hears of it now.
                let is_alone = !self.shared || self.sessions.len() == 1;
                let operations = &mut self.links[id].operations;
                let tell = is_alone && !operations.has_own();
                operations.note_too_many(tell);
                if tell || self.links[id].verbose {
                    self.deliver_answer(id, &line, cx.bus);
                }
            }
            BrokerError::InvalidSubject | BrokerError::BadSid if self.shared => {}
            // The server of 2012 says so of a publish as well, and then +OK.
            BrokerError::InvalidSubject if self.links[id].oks.first() == Some(OkOwner::Publish) => {
                self.deliver_to_own(&line, cx.bus);
            }
            BrokerError::InvalidSubject | BrokerError::BadSid => {
                self.deliver_answer(id, &line, cx.bus);
            }
            BrokerError::InvalidPublishSubject => self.deliver_to_own(&line, cx.bus),
            BrokerError::LinkOnly | BrokerError::NoVerdict => self.handle_link_error(id, text, cx),
        }
    }

    /// Where sessions share the link, an error about a SUB that the ledger doesn't have goes to
    /// who sent it. Returns whether it is one.
    fn answer_asked(
        &mut self,
        id: LinkId,
        error: &BrokerError<'_>,
        text: &[u8],
        bus: &Bus,
    ) -> bool {
        let Some(owners) = &mut self.links[id].owners else {
            return false;
        };
        let asker = match error {
            BrokerError::SubscriptionViolation {
                subject,
                queue_group,
                sid: None,
            } => owners.take_asked(&unquote(subject), queue_group.map(unquote).as_deref()),
            BrokerError::InvalidSubject => owners.take_invalid(),
            BrokerError::BadSid => owners.take_taken(),
            _ => None,
        };
        if let Some(session) = asker {
            self.sessions
                .deliver(session, &[b"-ERR '", text, b"'\r\n"], bus);
        }
        asker.is_some()
    }

    /// Of independent brokers, whether this one's verdict on operations concerns nobody (R28).
    fn is_bystander(&self, id: LinkId) -> bool {
        match self.links[id].phase {
            Phase::Standby | Phase::Replaying | Phase::Fenced => self.operation_owner() != Some(id),
            _ => false,
        }
    }

    /// A broker took no more subscriptions; a PONG has told which these were.
    fn handle_too_many(&mut self, id: LinkId, too_many: &TooMany, cx: &mut Turn<'_>) {
        let mut refused = Cow::Borrowed(&too_many.refused[..]);
        if refused.contains(&OWN) {
            self.lose_presence(id, cx);
        }
        if !too_many.for_own.is_empty() {
            // A verbose session has heard of each in place of a +OK.
            let is_told = self.links[id].verbose && !self.is_bystander(id);
            let asked_again = match is_told {
                true => &[],
                false => &too_many.for_own[..],
            };
            refused.to_mut().retain(|sid| !asked_again.contains(sid));
            self.give_way(id, asked_again, cx);
        }
        if self.is_bystander(id) {
            return self.add_lacks(id, &refused, cx.now);
        }
        if self.shared && self.sessions.len() > 1 {
            if !refused.is_empty() {
                self.crowd_out(id, &refused, cx);
            }
            return;
        }
        let mut errors = too_many.again;
        for sid in refused.iter().filter(|sid| **sid != OWN) {
            if self.subscriptions.reject_sid(*sid).is_some() {
                self.unsubscribe_but(Some(id), *sid, cx.now);
            }
            errors += 1;
        }
        // A verbose session has heard of it in place of a +OK.
        let told = match self.links[id].verbose {
            true => errors,
            false => too_many.told,
        };
        for _ in told..errors {
            self.deliver_to_own(b"-ERR 'maximum subscriptions exceeded'\r\n", cx.bus);
        }
    }

    /// The live link's broker refused a subscription: the others must not have it either.
    fn end_rejected(&mut self, id: LinkId, rejected: Option<Rejected>, line: &[u8], cx: &Turn<'_>) {
        if let Some(rejected) = &rejected {
            self.links[id].operations.refuse(rejected.upstream);
            self.unsubscribe_but(Some(id), rejected.upstream, cx.now);
        }
        let link = &self.links[id];
        let is_late = link.answered < link.live_from && !link.verbose;
        if self.route.is_independent() && rejected.is_none() && is_late {
            // It answers what another has answered, in whose place it is.
            return;
        }
        if !self.shared {
            return self.deliver_answer(id, line, cx.bus);
        }
        for (session, _) in rejected.map(|rejected| rejected.owners).unwrap_or_default() {
            self.sessions.deliver(session, &[line], cx.bus);
        }
    }

    /// A publish was refused: who published it hears of it.
    fn deliver_to_publisher(&mut self, id: LinkId, wanted: Wanted<'_>, line: &[u8], cx: &Turn<'_>) {
        if !self.shared {
            return self.deliver_answer(id, line, cx.bus);
        }
        if let Some(Some(session)) = self.owner_of(id, wanted, cx.now) {
            self.sessions.deliver(session, &[line], cx.bus);
        }
    }

    /// A reload took a permission away: the text names the sid, which must be the session's.
    fn handle_revoked(&mut self, id: LinkId, text: &[u8], sid: &[u8], cx: &Turn<'_>) {
        let rejected =
            UpstreamSid::parse(sid).and_then(|upstream| self.subscriptions.reject_sid(upstream));
        if let Some(rejected) = &rejected {
            // A queue member that stayed at another broker would take its share there for nobody.
            self.links[id].operations.refuse(rejected.upstream);
            self.unsubscribe_but(Some(id), rejected.upstream, cx.now);
        }
        for (session, own_sid) in rejected.map(|rejected| rejected.owners).unwrap_or_default() {
            let cut = text.len() - b"\")".len() - sid.len();
            let line = [&b"-ERR '"[..], &text[..cut], &own_sid[..], b"\")'\r\n"];
            self.sessions.deliver(session, &line, cx.bus);
        }
    }

    fn handle_link_error(&mut self, id: LinkId, text: &[u8], cx: &mut Turn<'_>) {
        let attached = self.links[id].is_attached();
        self.actions.push_back(Action::Report(Report::BrokerError {
            broker: self.links[id].broker,
            text: text.into(),
        }));
        let headers = self.header_support(id, cx.bus);
        if !attached && !self.ready && self.connect.refusal(headers).is_some() {
            self.refuse_own_options(headers);
            return self.fail(id, Failure::Refused, cx);
        }
        let own_fault = OWN_FAULTS.iter().any(|own| text.eq_ignore_ascii_case(own));
        self.links[id].too_large = text.eq_ignore_ascii_case(OWN_FAULTS[0]);
        if text.eq_ignore_ascii_case(OWN_FAULTS[1]) {
            self.end_longest(id, text, cx);
        }
        if own_fault && attached && !self.shared && self.sessions.len() == 1 {
            self.links[id].is_at_fault = true;
            for session in self.sessions.ids() {
                self.sessions
                    .close(session, CloseReason::Refused(text.into()));
            }
            return;
        }
        self.fail(id, Failure::LinkError, cx);
    }

    /// A broker takes shorter lines than it could be known to. The longest that it has been sent
    /// ends its session, or the next replay would be the end of the next link, for all.
    fn end_longest(&mut self, id: LinkId, text: &[u8], cx: &mut Turn<'_>) {
        let (subscription, mut owners) = self.subscriptions.longest_unproven();
        let (publish, publisher) = self.longest_publish(id);
        if publish > subscription {
            owners = publisher.into_iter().collect();
        }
        let longest = publish.max(subscription);
        if longest <= SHORTEST_LIMIT {
            return;
        }
        let link = &mut self.links[id];
        link.longest_line = Some(longest - 1);
        cx.bus.roster.learn_line(link.broker, longest - 1, cx.now);
        if self.shared {
            for session in owners {
                self.sessions
                    .close(session, CloseReason::Refused(text.into()));
            }
        }
    }

    /// The longest control line of the publishes that are in memory and not proven, and whose it is.
    fn longest_publish(&self, id: LinkId) -> (usize, Option<SessionId>) {
        let link = &self.links[id];
        let mut longest = (0, 0);
        for (start, frame, _) in publishes(&link.out, link.proven_offset) {
            let line = line_of(frame);
            if line > longest.0 {
                longest = (line, start + frame.len() as u64);
            }
        }
        let owners = link.owners.as_ref();
        (longest.0, owners.and_then(|owners| owners.of(longest.1)))
    }

    /// A broker, or the identity's account there, takes no more connections.
    fn handle_full(&mut self, id: LinkId, text: &[u8], account: bool, cx: &mut Turn<'_>) {
        let link = &self.links[id];
        let broker = link.broker;
        self.actions.push_back(Action::Report(Report::BrokerError {
            broker,
            text: text.into(),
        }));
        if link.is_attached() || link.is_check {
            return self.fail(id, Failure::LinkError, cx);
        }
        let identity = account.then(|| self.identity(cx.bus));
        cx.bus
            .roster
            .turn_away(broker, identity, Failure::Full, text, cx.now);
        self.fail(id, Failure::Full, cx);
    }

    /// R36: credentials that were good ran out, or were taken back. That is final for them, and
    /// concerns nobody else: sessions hear the broker's own words, once.
    fn handle_expiry(&mut self, id: LinkId, text: &[u8], cx: &mut Turn<'_>) {
        if !self.links[id].is_attached() {
            return self.handle_refusal(id, text, cx);
        }
        let broker = self.links[id].broker;
        self.actions.push_back(Action::Report(Report::BrokerError {
            broker,
            text: text.into(),
        }));
        cx.bus.admission.forget(&self.connect);
        let id = self.links[id].id;
        let others = |link: &Link| link.is_attached() && link.id != id;
        if self.links.any(others) {
            // Of independent brokers one has taken it back, and another serves (R28).
            return self.fail(id, Failure::Refused, cx);
        }
        self.route.attempts.refuse(broker, text, cx.now);
        while let Some(id) = self.links.first() {
            let link = self.drop_link(id, false, cx.bus);
            if !link.is_attached() {
                continue;
            }
            cx.bus.detached(self.id, link.broker, cx.now);
            let (settled, _) = self.settle(link, cx.bus);
            self.requeue(settled, cx.bus);
        }
        self.refuse_sessions(cx);
    }

    /// R15.
    fn handle_refusal(&mut self, id: LinkId, text: &[u8], cx: &mut Turn<'_>) {
        let broker = self.links[id].broker;
        let identity = self.identity(cx.bus);
        let took = cx.now.saturating_duration_since(self.links[id].opened_at);
        cx.bus
            .roster
            .note_verdict(broker, identity, false, took, cx.now);
        cx.bus.admission.forget(&self.connect);
        self.actions.push_back(Action::Report(Report::BrokerError {
            broker,
            text: text.into(),
        }));
        if self.links[id].is_check {
            return self.disbelieve(id, text, cx.bus);
        }
        if self.links[id].is_attached() {
            // Expired or revoked while live: the next handshake decides.
            return self.fail(id, Failure::Refused, cx);
        }
        let first = self.verdict != Verdict::Accepted && !self.route.is_independent();
        self.route.attempts.refuse(broker, text, cx.now);
        if !self.route.is_independent() && self.links.any_attached() {
            // A move of a trunk that lives goes on somewhere else, or later.
            self.route.attempts.avoid(broker);
        }
        if first {
            return self.refuse_sessions(cx);
        }
        self.fail(id, Failure::Refused, cx);
    }

    /// An error in place of a `+OK`. A verbose session has heard, or will hear, otherwise of
    /// what is replayed or repeated (R20).
    fn deliver_answer(&mut self, id: LinkId, line: &[u8], bus: &Bus) {
        if self.links[id].oks.pop() != Some(OkOwner::Nobody) {
            self.deliver_to_own(line, bus);
        }
    }

    /// Only a trunk of its own is verbose or pedantic, and gets violations without a sid.
    fn deliver_to_own(&mut self, line: &[u8], bus: &Bus) {
        for session in self.sessions.ids() {
            self.sessions.deliver(session, &[line], bus);
        }
    }
}

/// Whether a broker says what it can't before its INFO: it speaks first, and of itself.
fn is_early(scanned: &ServerScan<'_>) -> bool {
    match scanned {
        ServerScan::Op { op, .. } => {
            matches!(op, ServerOp::Msg(_) | ServerOp::Pong | ServerOp::Ok)
        }
        ServerScan::Incomplete { need } => need.is_some(),
        ServerScan::Fault(_) => false,
    }
}
