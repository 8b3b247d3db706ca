//! Input of brokers: messages to sessions, PONGs that prove, errors to whom they concern.

use super::Trunk;
use super::link::{LinkId, OkOwner, Phase};
use super::no_responders::Status;
use super::presence::PRESENCE_SID;
use super::sessions::Message;
use super::slot::Finishing;
use crate::ledger::{Ping, Seen, SessionId, Spent, UpstreamSid};
use crate::net::SHARED_LEAST;
use crate::proto::encode;
use crate::proto::info::ServerInfo;
use crate::proto::server::{self, Msg, ServerLimits, ServerOp, ServerScan};
use crate::upstream::brokers::roster::{Departure, Failure};
use crate::upstream::bus::{Bus, Turn};

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
            let is_early = match link.phase {
                Phase::Securing => !is_before_handshake(&scanned),
                phase => phase < Phase::Authenticating && is_early(&scanned),
            };
            if is_early {
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
                if link.phase >= Phase::Authenticating && !is_full {
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
        if self.route.is_independent() && cx.bus.presence().is_subject(msg.subject) {
            // Never a component's (R29).
            if msg.sid == PRESENCE_SID {
                self.hear(id, msg.payload, cx);
            }
            return;
        }
        let Some(upstream) = UpstreamSid::parse(msg.sid) else {
            if !self.hear_about_pull(id, msg, cx) {
                cx.bus.counters_mut().unknown_sid_msgs += 1;
            }
            return;
        };
        let status = if msg.header_len == msg.size && msg.headers {
            self.judge_status(id, msg)
        } else {
            Status::Application
        };
        let counts = status == Status::Application;
        match status {
            Status::Answers(session) => {
                if self.pulls.is_none() || self.heed_pull(id, upstream, msg, cx) {
                    self.deliver_status(session, msg, cx.bus);
                }
                return;
            }
            Status::Own if self.is_shared() => return,
            Status::Own | Status::Application => {}
        }
        // No number that a broker writes sizes memory before the ledger knows it (R34).
        if self.route.is_independent() && counts && self.subscriptions.knows(upstream) {
            let independent = self.links[id].independent.get_or_insert_default();
            independent.received.note(upstream);
        }
        if self.overlap.is_some() || self.pulls.is_some() {
            return self.deliver_with_care(id, upstream, msg, counts, cx);
        }
        let seen = self.links[id].seen();
        self.deliver_message(id, upstream, msg, (counts, seen), cx);
    }

    /// The same where a message may be a copy, or may be of a consumer's request.
    #[inline(never)]
    fn deliver_with_care(
        &mut self,
        id: LinkId,
        upstream: UpstreamSid,
        msg: &Msg<'_>,
        counts: bool,
        cx: &mut Turn<'_>,
    ) {
        let is_in_move = counts && self.overlap.is_some();
        if is_in_move && !self.goes_out_now(id, upstream, msg, cx) {
            return;
        }
        if self.pulls.is_none() || self.heed_pull(id, upstream, msg, cx) {
            let seen = self.links[id].seen();
            self.deliver_message(id, upstream, msg, (counts, seen), cx);
        }
    }

    /// Gives a message that came on a link to whom it is for: whether it counts towards a max, and
    /// how far the link was then.
    #[inline(always)]
    pub(super) fn deliver_message(
        &mut self,
        id: LinkId,
        upstream: UpstreamSid,
        msg: &Msg<'_>,
        (counts, seen): (bool, Seen),
        cx: &mut Turn<'_>,
    ) {
        if (self.route.is_independent() || self.overlap.is_some())
            && self.is_ended_here(upstream)
            && self.subscriptions.is_over(upstream)
        {
            cx.bus.counters_mut().over_max_msgs += 1;
            return;
        }
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
        cx.bus.counters_mut().out_msgs += copies;
        cx.bus.counters_mut().out_bytes += copies * msg.size as u64;
        match spent {
            None => cx.bus.counters_mut().unknown_sid_msgs += 1,
            Some(Spent::Nothing) => {}
            Some(Spent::One(upstream)) if !self.is_ended_here(upstream) => {
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
        let written = link.out.written();
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
            Phase::Standby => {
                self.release_late(cx.bus);
                self.go_on_overlapping(cx);
            }
            Phase::Live => {
                self.links.note_answered(ping.seq);
                self.answer(ping, cx.bus);
                self.release_late(cx.bus);
                // Input behind a second CONNECT isn't this link's.
                if was_suspect && self.open(cx.bus) == Some(id) {
                    self.resume(id, cx);
                }
                self.go_on_moving(cx);
                self.go_on_overlapping(cx);
                if let Some(several) = self.route.several_mut() {
                    several.handle_answer(self.links.answered(), cx);
                }
                self.check_done(cx);
            }
            Phase::Leaving(seq) => {
                let proven = ping.seq;
                if !self.is_leaving_standby(id) {
                    self.links.note_answered(proven);
                    self.answer(ping, cx.bus);
                }
                if proven >= seq {
                    self.left(id, cx);
                }
            }
            Phase::Connecting
            | Phase::AwaitingInfo
            | Phase::Securing
            | Phase::Greeted
            | Phase::Authenticated
            | Phase::Fenced
            | Phase::Overlapping => {}
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
            .observed_mut()
            .fences
            .observe(cx.now.saturating_duration_since(ping.at));
        let (confirmed, refused) = link.account.prove(ping.publishes);
        cx.bus.counters_mut().confirmed += confirmed;
        cx.bus.counters_mut().refused += refused;
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
            Phase::Connecting | Phase::AwaitingInfo => self.handle_first_info(id, info, cx),
            Phase::Securing => self.fail(id, Failure::TlsNotFirst, cx),
            _ => {
                // An INFO behind CONNECT may hold for this account alone.
                let before = std::mem::replace(&mut self.links[id].max_payload, info.max_payload);
                if before != info.max_payload && self.links[id].is_attached() {
                    // Components hear of it now, before they send what is too large.
                    self.sessions.release_all();
                }
                // It may come late, from a process that another has replaced.
                let known = cx.bus.roster().broker(broker).info();
                let is_same = known.is_none_or(|known| known.server_id == info.server_id);
                if info.ldm && is_same {
                    cx.bus.roster_mut().handle_lame_duck(broker, cx.now);
                    self.start_move(Departure::LameDuck, cx);
                }
            }
        }
    }

    /// Of independent brokers, whether this one's verdict on operations concerns nobody (R28).
    pub(super) fn is_bystander(&self, id: LinkId) -> bool {
        match self.links[id].phase {
            Phase::Standby | Phase::Replaying | Phase::Fenced | Phase::Overlapping => {
                self.operation_owner() != Some(id)
            }
            Phase::Leaving(_) => self.is_leaving_standby(id),
            _ => false,
        }
    }
}

/// Whether a broker may say this in plain text where TLS is to begin.
fn is_before_handshake(scanned: &ServerScan<'_>) -> bool {
    match scanned {
        ServerScan::Op { op, .. } => matches!(op, ServerOp::Info { .. } | ServerOp::Err { .. }),
        ServerScan::Incomplete { need } => need.is_none(),
        ServerScan::Fault(_) => true,
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
