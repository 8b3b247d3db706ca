//! The open requests whose messages come to one subscription: what is left of each, and where it is.

use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;

use crate::clock::Instant;
use crate::ledger::SessionId;
use crate::proto::encode;
use crate::proto::pull::{PullRequest, PullStatus};
use crate::upstream::bus::Charge;
use crate::upstream::trunk::link::LinkId;

/// Requests of one subscription that are kept.
const REQUESTS_MOST: usize = 32;
/// What expires sooner isn't asked for again.
const LEAST_TIME: Duration = Duration::from_millis(1);
/// A broker says that a request has expired within this.
const GRACE: Duration = Duration::from_secs(2);
/// A status that comes so soon behind natsmux's own request is about that one.
const SOON: Duration = Duration::from_secs(1);
/// What was published so shortly before a consumer's new leader says that requests are gone went to
/// that one.
const FRESH_FOR: Duration = Duration::from_millis(100);
/// Where a request may live on, it is looked at again after so long without a message.
pub(super) const QUIET_FOR: Duration = Duration::from_secs(1);
/// While a consumer has no leader, brokers are asked again so often, and so many times.
pub(super) const ASK_EVERY: Duration = Duration::from_millis(250);
const ASK_MOST: u32 = 60;

/// What is known of the fate of requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A broker has them.
    Served,
    /// The link is gone that their messages came on.
    Lost,
    /// Their SUB isn't sent on the next link before the brokers have looked for interest in it.
    Withheld,
    /// The same, and the brokers are asked.
    Asked,
    /// They may live on, and nothing comes: the brokers are asked then.
    Quiet(Instant),
    /// The brokers are asked about their consumer then: nobody could tell.
    Leaderless(Instant),
}

/// Where a request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// Among the publishes that wait for a link.
    Held,
    /// In front of this offset of a link's output.
    On(LinkId, u64),
    /// No broker has it.
    Nowhere,
}

/// One request that isn't served yet.
#[derive(Debug)]
pub(super) struct Request {
    reply: Rc<[u8]>,
    headers: Rc<[u8]>,
    body: Rc<[u8]>,
    left: u64,
    bytes: Option<u64>,
    expires_at: Option<Instant>,
    pub(super) place: Place,
    /// When it was published last.
    at: Instant,
    /// Requests take turns: the one with the lowest number gets the next message.
    turn: u64,
    /// When natsmux published it again.
    resumed_at: Option<Instant>,
}

/// A request as its component published it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Asked<'p> {
    pub(super) reply: &'p [u8],
    pub(super) headers: &'p [u8],
    pub(super) body: &'p [u8],
    pub(super) request: PullRequest,
}

/// The fate of a message to the reply of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Heed {
    /// It goes to the component.
    Deliver,
    /// It is about what natsmux did: the component hears nothing of it.
    Swallow,
    /// The same, and there are requests that no broker has.
    Resume,
}

/// The open requests of one subscription.
#[derive(Debug)]
pub(super) struct Pull {
    pub(super) session: SessionId,
    /// Where they are published.
    pub(super) subject: Box<[u8]>,
    pub(super) requests: SmallVec<[Request; 1]>,
    pub(super) stage: Stage,
    /// The broker that had its SUB was silent when its link was left, and may still get messages.
    pub(super) lingers: bool,
    /// Whether natsmux may ask about its consumer.
    pub(super) may_ask: bool,
    /// When its link was lost.
    pub(super) lost_at: Option<Instant>,
    /// Times that its consumer was asked for in vain.
    asked: u32,
    next_turn: u64,
    _charge: Charge,
}

impl Request {
    fn has_expired(&self, now: Instant) -> bool {
        self.expires_at.is_some_and(|at| at < now + LEAST_TIME)
    }

    fn is_just_resumed(&self, now: Instant) -> bool {
        let soon = |at: Instant| now.saturating_duration_since(at) < SOON;
        self.resumed_at.is_some_and(soon)
    }

    /// Whether a broker may be about to take it: it isn't proven on its link up to the offset
    /// `proven`, or was published since then.
    fn is_fresh(&self, since: Instant, (link, proven): (LinkId, u64)) -> bool {
        match self.place {
            Place::Held => true,
            Place::On(on, end) => self.at > since || (on == link && end > proven),
            Place::Nowhere => false,
        }
    }

    /// Appends a request for what is left of it.
    pub(super) fn encode(&self, frame: &mut Vec<u8>, subject: &[u8], now: Instant) {
        let expires_at = self.expires_at;
        let left = PullRequest {
            batch: self.left,
            max_bytes: self.bytes,
            expires: expires_at.map(|at| at.saturating_duration_since(now)),
        };
        let body = left.encode(&self.body);
        encode::request_with(frame, subject, &self.reply, &self.headers, &body);
    }
}

impl Pull {
    pub(super) fn new(session: SessionId, subject: &[u8], charge: Charge) -> Self {
        Self {
            session,
            subject: subject.into(),
            requests: SmallVec::new(),
            stage: Stage::Served,
            lingers: false,
            may_ask: true,
            lost_at: None,
            asked: 0,
            next_turn: 0,
            _charge: charge,
        }
    }

    /// The reply of the newest request.
    pub(super) fn reply(&self) -> &[u8] {
        self.requests.last().map_or(b"", |request| &request.reply)
    }

    /// Enters a request that was just published.
    pub(super) fn add(&mut self, asked: &Asked<'_>, place: Place, now: Instant) {
        let over = |request: &Request| request.expires_at.is_some_and(|at| at + GRACE < now);
        self.requests.retain(|request| !over(request));
        if self.requests.len() >= REQUESTS_MOST {
            self.requests.remove(0);
        }
        // Most requests are like the one before.
        let last = self.requests.last();
        let shared = |text: &[u8], of: fn(&Request) -> &Rc<[u8]>| {
            let same = last.map(of).filter(|same| ***same == *text);
            same.map_or_else(|| text.into(), Rc::clone)
        };
        let request = Request {
            reply: shared(asked.reply, |request| &request.reply),
            headers: shared(asked.headers, |request| &request.headers),
            body: shared(asked.body, |request| &request.body),
            left: asked.request.batch,
            bytes: asked.request.max_bytes,
            expires_at: asked.request.expires.map(|expires| now + expires),
            place,
            at: now,
            turn: self.next_turn,
            resumed_at: None,
        };
        self.next_turn += 1;
        self.requests.push(request);
    }

    /// A request that waited was written to a link, up to this offset. Returns whether it is kept.
    pub(super) fn note_sent(
        &mut self,
        (reply, body): (&[u8], &[u8]),
        (link, end): (LinkId, u64),
        now: Instant,
    ) -> bool {
        let is_it = |request: &&mut Request| {
            request.place == Place::Held && *request.reply == *reply && *request.body == *body
        };
        let Some(request) = self.requests.iter_mut().find(is_it) else {
            return false;
        };
        (request.place, request.at) = (Place::On(link, end), now);
        request.turn = self.next_turn;
        self.next_turn += 1;
        true
    }

    /// Whether any is left that doesn't go on by itself.
    pub(super) fn has_rest(&self, now: Instant) -> bool {
        let is_left = |request: &Request| request.place != Place::Held && !request.has_expired(now);
        self.requests.iter().any(is_left)
    }

    pub(super) fn is_over(&self) -> bool {
        self.requests.is_empty()
    }

    pub(super) fn be_served(&mut self) {
        (self.stage, self.lingers, self.asked) = (Stage::Served, false, 0);
    }

    pub(super) fn be_quiet(&mut self, now: Instant) {
        self.stage = Stage::Quiet(now + QUIET_FOR);
    }

    /// They may wait there, and their consumer has nothing: that is looked at again, not for ever.
    pub(super) fn be_quiet_again(&mut self, now: Instant) {
        self.asked += 1;
        if self.asked > ASK_MOST {
            self.be_served();
        } else {
            self.be_quiet(now);
        }
    }

    /// Has the brokers asked again about the consumer; not for ever.
    pub(super) fn wait_for_leader(&mut self, now: Instant) {
        self.ask_at(now + ASK_EVERY);
    }

    /// Has the brokers asked about the consumer then; not for ever.
    pub(super) fn ask_at(&mut self, at: Instant) {
        self.asked += 1;
        if self.asked > ASK_MOST {
            self.be_served();
        } else {
            self.stage = Stage::Leaderless(at);
        }
    }

    /// When the brokers are to be asked.
    pub(super) fn due(&self) -> Option<Instant> {
        match self.stage {
            Stage::Quiet(at) | Stage::Leaderless(at) => Some(at),
            Stage::Served | Stage::Lost | Stage::Withheld | Stage::Asked => None,
        }
    }

    /// No broker has those any more that were published before `since` and that the link has proven
    /// up to an offset. Returns whether there are any.
    pub(super) fn drop_old(&mut self, since: Instant, proven: (LinkId, u64)) -> bool {
        let mut are_any = false;
        for request in &mut self.requests {
            if !request.is_fresh(since, proven) && request.place != Place::Nowhere {
                request.place = Place::Nowhere;
                are_any = true;
            }
        }
        are_any
    }

    /// Forgets those that no broker has, where they have expired. Returns how many others there are
    /// that no broker has.
    pub(super) fn take_stock(&mut self, now: Instant) -> usize {
        let is_nowhere = |request: &Request| request.place == Place::Nowhere;
        self.requests
            .retain(|request| !is_nowhere(request) || !request.has_expired(now));
        let requests = self.requests.iter();
        requests.filter(|request| is_nowhere(request)).count()
    }

    /// natsmux has published one again, up to this offset of a link's output.
    pub(super) fn note_resumed(&mut self, at: usize, (link, end): (LinkId, u64), now: Instant) {
        let request = &mut self.requests[at];
        (request.place, request.at) = (Place::On(link, end), now);
        request.resumed_at = Some(now);
        request.turn = self.next_turn;
        self.next_turn += 1;
    }

    /// Their link is gone, of which `written` bytes may have reached the broker: what is behind them
    /// waits for the next link.
    pub(super) fn lose(&mut self, link: LinkId, written: u64, lingers: bool, now: Instant) {
        for request in &mut self.requests {
            match request.place {
                Place::On(on, end) if on == link && end > written => request.place = Place::Held,
                _ => {}
            }
        }
        self.asked = 0;
        if self.has_rest(now) {
            self.lost_at.get_or_insert(now);
            (self.stage, self.lingers) = (Stage::Lost, lingers);
        } else {
            // No broker knows of it, and it goes on with what else waits.
            self.be_served();
        }
    }

    /// A message has come for the request whose turn it is.
    fn serve(&mut self, size: usize, now: Instant) {
        let sent = self.requests.iter().enumerate();
        let sent = sent.filter(|(_, request)| request.place != Place::Held);
        let first = sent.min_by_key(|(_, request)| (request.has_expired(now), request.turn));
        let Some((at, _)) = first else {
            return;
        };
        let request = &mut self.requests[at];
        request.turn = self.next_turn;
        self.next_turn += 1;
        request.left = request.left.saturating_sub(1);
        let bytes = request.bytes.as_mut();
        let bytes = bytes.map(|bytes| {
            *bytes = bytes.saturating_sub(size as u64);
            *bytes
        });
        if request.left == 0 || bytes == Some(0) {
            self.requests.remove(at);
        }
    }

    /// Others have got so many messages that were booked on one that is over.
    fn subtract(&mut self, mut messages: u64) {
        self.requests.retain(|request| {
            let here = messages.min(request.left);
            (request.left, messages) = (request.left - here, messages - here);
            request.left > 0
        });
    }

    /// Takes out the request with this reply that expires first, or is the newest. Returns what was
    /// left of it.
    fn end_one(&mut self, reply: &[u8], is_newest: bool) -> u64 {
        let own = self.requests.iter().enumerate();
        let mut own = own.filter(|(_, request)| *request.reply == *reply);
        let found = if is_newest {
            own.next_back()
        } else {
            // One that never expires comes last.
            own.min_by_key(|(_, request)| (request.expires_at.is_none(), request.expires_at))
        };
        let at = found.map(|(at, _)| at);
        at.map_or(0, |at| self.requests.remove(at).left)
    }

    /// Judges what came on a link to the subscription, as a message to `subject` of so many bytes.
    pub(super) fn heed(
        &mut self,
        (status, subject): (PullStatus, &[u8]),
        size: usize,
        proven: (LinkId, u64),
        now: Instant,
    ) -> Heed {
        if status == PullStatus::Message {
            self.serve(size, now);
            if self.lingers {
                // Of several requests, others may be used up.
                self.be_quiet(now);
            } else {
                self.be_served();
            }
            return Heed::Deliver;
        }
        let is_own = |request: &Request| *request.reply == *subject;
        if !self.requests.iter().any(is_own) {
            return Heed::Deliver;
        }
        match status {
            PullStatus::NoResponders | PullStatus::Full if self.take_back(subject, now) => {
                self.wait_for_leader(now);
                return Heed::Swallow;
            }
            PullStatus::LeaderChanged => return self.lose_leader(subject, proven, now),
            PullStatus::Message => {}
            PullStatus::Heartbeat => self.be_served(),
            PullStatus::Ended { messages } => {
                let left = self.end_one(subject, false);
                self.subtract(messages.saturating_sub(left));
            }
            PullStatus::Gone => self.requests.clear(),
            PullStatus::NoResponders
            | PullStatus::Full
            | PullStatus::Refused
            | PullStatus::NoMessages => {
                self.end_one(subject, true);
            }
        }
        Heed::Deliver
    }

    /// The newest request with this reply that natsmux has just published was refused. Returns
    /// whether there is one.
    fn take_back(&mut self, reply: &[u8], now: Instant) -> bool {
        let mut own = self.requests.iter_mut();
        let is_it =
            |request: &&mut Request| *request.reply == *reply && request.is_just_resumed(now);
        let Some(request) = own.rfind(is_it) else {
            return false;
        };
        (request.place, request.resumed_at) = (Place::Nowhere, None);
        true
    }

    /// A new leader says that requests with this reply are gone: those that it had before it was one.
    fn lose_leader(&mut self, reply: &[u8], proven: (LinkId, u64), now: Instant) -> Heed {
        let since = now - FRESH_FOR;
        let (mut is_lost, mut is_known) = (false, false);
        for request in &mut self.requests {
            if *request.reply != *reply || request.has_expired(now) {
                continue;
            }
            is_known = true;
            if !request.is_just_resumed(now) && !request.is_fresh(since, proven) {
                request.place = Place::Nowhere;
                is_lost = true;
            }
        }
        self.lost_at = self.lost_at.or(is_lost.then_some(now));
        match (is_lost, is_known) {
            (true, _) => Heed::Resume,
            (false, true) => Heed::Swallow,
            (false, false) => Heed::Deliver,
        }
    }
}
