//! Errors that brokers send: whom they concern, and what they end.

use std::borrow::Cow;

use super::action::{Action, Report};
use super::attribution::{Wanted, publishes};
use super::link::{Link, LinkId, OkOwner, Phase};
use super::{CloseReason, Trunk, Verdict};
use crate::config::TlsMode;
use crate::ledger::operations::{ANSWER_SLOT, OWN};
use crate::ledger::{Rejected, SessionId, TooMany, UpstreamSid, line_of};
use crate::proto::encode;
use crate::proto::error_text::{BrokerError, classify, first_quoted, unquote};
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
    pub(super) fn handle_error(&mut self, id: LinkId, text: &[u8], cx: &mut Turn<'_>) {
        if self.route.is_independent() && self.is_about_presence(id, text, cx) {
            return;
        }
        if self.pulls.is_some() && self.is_about_question(id, text, cx) {
            return;
        }
        let error = classify(text);
        if self.is_in_plain_text(id, cx.bus) && !matches!(error, BrokerError::Full { .. }) {
            return self.handle_plain_error(id, &error, text, cx);
        }
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
            let owner = self.links[id].oks.pop();
            if owner.is_some_and(|owner| owner != OkOwner::Nobody) {
                // It was asked while no link was live: a verbose session has its one answer (R20).
                self.deliver_to_own(encode::OK, cx.bus);
            }
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
                let is_alone = !self.is_shared() || self.sessions.len() == 1;
                let asks_beside = self.asks_beside(id);
                let operations = &mut self.links[id].operations;
                let tell = is_alone && !operations.has_own() && !asks_beside;
                if tell {
                    operations.count_too_many_told();
                } else {
                    operations.count_too_many();
                }
                if tell || self.links[id].verbose {
                    self.deliver_answer(id, &line, cx.bus);
                }
            }
            BrokerError::InvalidSubject | BrokerError::BadSid if self.is_shared() => {}
            // The server of 2012 says so of a publish as well, and then +OK.
            BrokerError::InvalidSubject if self.links[id].oks.first() == Some(OkOwner::Publish) => {
                self.deliver_to_own(&line, cx.bus);
            }
            BrokerError::InvalidSubject | BrokerError::BadSid => {
                self.deliver_answer(id, &line, cx.bus);
            }
            BrokerError::InvalidPublishSubject => self.deliver_to_own(&line, cx.bus),
            BrokerError::LinkOnly | BrokerError::NoVerdict | BrokerError::Throttled => {
                self.handle_link_error(id, text, cx)
            }
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

    /// A broker took no more subscriptions; a PONG has told which these were.
    pub(super) fn handle_too_many(&mut self, id: LinkId, too_many: &TooMany, cx: &mut Turn<'_>) {
        let mut refused = Cow::Borrowed(&too_many.refused[..]);
        if refused.contains(&OWN) {
            self.lose_presence(id, cx);
        }
        if refused.iter().any(|sid| sid.slot == ANSWER_SLOT) {
            refused.to_mut().retain(|sid| sid.slot != ANSWER_SLOT);
        }
        if !too_many.for_own.is_empty() {
            // A verbose session has heard of each in place of a +OK.
            let is_told = self.links[id].verbose && !self.is_bystander(id);
            let asked_again = if is_told { &[] } else { &too_many.for_own[..] };
            refused.to_mut().retain(|sid| !asked_again.contains(sid));
            self.give_way(id, asked_again, cx);
        }
        if self.is_bystander(id) {
            return self.add_lacks(id, &refused, cx.now);
        }
        if self.is_shared() && self.sessions.len() > 1 {
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
        let told = if self.links[id].verbose {
            errors
        } else {
            too_many.told
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
        if !self.is_shared() {
            return self.deliver_answer(id, line, cx.bus);
        }
        for (session, _) in rejected.map(|rejected| rejected.owners).unwrap_or_default() {
            self.sessions.deliver(session, &[line], cx.bus);
        }
    }

    /// A publish was refused: who published it hears of it.
    fn deliver_to_publisher(&mut self, id: LinkId, wanted: Wanted<'_>, line: &[u8], cx: &Turn<'_>) {
        if !self.is_shared() {
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

    /// Whether a link isn't secured yet that is to be: anybody may speak there.
    fn is_in_plain_text(&self, id: LinkId, bus: &Bus) -> bool {
        let link = &self.links[id];
        let is_to_be = bus.roster().tls_mode(link.broker) != TlsMode::Off;
        is_to_be && !link.is_secured && link.phase < Phase::Authenticating
    }

    /// An error in plain text, where TLS is to begin.
    fn handle_plain_error(
        &mut self,
        id: LinkId,
        error: &BrokerError<'_>,
        text: &[u8],
        cx: &mut Turn<'_>,
    ) {
        let broker = self.links[id].broker;
        let text = text.into();
        self.actions
            .push_back(Action::Report(Report::BrokerError { broker, text }));
        self.fail(id, Failure::before_handshake(error), cx);
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
        if own_fault && attached && !self.is_shared() && self.sessions.len() == 1 {
            self.links[id].is_at_fault = true;
            let reason = CloseReason::Refused(text.into());
            return self.sessions.close_all(&reason);
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
        cx.bus
            .roster_mut()
            .learn_line(link.broker, longest - 1, cx.now);
        if self.is_shared() {
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
            .roster_mut()
            .turn_away(broker, identity, Failure::Full, text, cx.now);
        self.fail(id, Failure::Full, cx);
    }

    /// R36: credentials that were good ran out, or were taken back. That is final for them, and
    /// concerns nobody else: sessions hear the broker's own words, once.
    fn handle_expiry(&mut self, id: LinkId, text: &[u8], cx: &mut Turn<'_>) {
        // Once a broker has accepted them, it is they that have run out, and no other broker's word.
        if self.links[id].phase < Phase::Authenticated {
            return self.handle_refusal(id, text, cx);
        }
        let broker = self.links[id].broker;
        self.actions.push_back(Action::Report(Report::BrokerError {
            broker,
            text: text.into(),
        }));
        if self.has_newer(&self.links[id], cx.bus) {
            return self.fail(id, Failure::Refused, cx);
        }
        cx.bus.admission_mut().forget(&self.connect);
        let id = self.links[id].id;
        let others = |link: &Link| link.is_attached() && link.id != id;
        if self.links.any(others) {
            // Of independent brokers one has taken it back, and another serves (R28).
            return self.fail(id, Failure::Refused, cx);
        }
        self.route.attempts.refuse(broker, text, cx.now);
        while let Some(id) = self.links.first() {
            let link = self.drop_link(id, cx.bus);
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
        cx.bus.roster_mut().note_refusal(broker, cx.now);
        cx.bus.admission_mut().forget(&self.connect);
        self.actions.push_back(Action::Report(Report::BrokerError {
            broker,
            text: text.into(),
        }));
        if self.links[id].is_check {
            if self.keep_old_credentials(id, cx) {
                return;
            }
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
    pub(super) fn deliver_to_own(&mut self, line: &[u8], bus: &Bus) {
        for session in self.sessions.ids() {
            self.sessions.deliver(session, &[line], bus);
        }
    }
}
