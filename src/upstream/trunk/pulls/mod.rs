//! Pull requests of JetStream consumers that brokers have not served yet (R44).
//!
//! A pull dies with the interest in its reply, or is used up by messages that go to a dead broker,
//! and nobody tells its component. So natsmux keeps what was asked for and counts what comes, and
//! asks for the rest behind a failover.

mod resume;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use smallvec::SmallVec;

use super::link::LinkId;
use crate::clock::Instant;
use crate::ledger::{SessionId, UpstreamSid};
use crate::proto::client::Publish;
use crate::proto::pull::{PullRequest, PullStatus, is_pull};
use crate::upstream::bus::{Bus, Charge, QuestionPlace};

/// The longest subject, reply and header block of a request that is kept, in bytes.
const TEXT_MOST: usize = 256;
/// Subscriptions of one session with open requests.
const PULLS_MOST: usize = 1024;
/// What the record of one costs the budget besides its texts, in bytes.
const PULL_BYTES: usize = 320;
/// Requests of one subscription that may lie unwritten at a link's end and are told from others.
const UNWRITTEN_MOST: usize = 8;

/// What expires sooner isn't asked for again.
const LEAST_TIME: Duration = Duration::from_millis(1);
/// A status that comes so soon behind natsmux's own request is about that one.
const SOON: Duration = Duration::from_secs(1);
/// What was published so shortly before a consumer's new leader says that requests are gone went to
/// that one.
const FRESH_FOR: Duration = Duration::from_millis(100);
/// Where a request may live on, it is published again after so long without a message.
const QUIET_FOR: Duration = Duration::from_secs(1);
/// While a consumer has no leader, brokers are asked again so often, and so many times.
const ASK_EVERY: Duration = Duration::from_millis(250);
const ASK_MOST: u32 = 40;

/// What is known of a request's fate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// A broker has it.
    Served,
    /// The link is gone that its messages came on.
    Lost,
    /// Its SUB isn't sent on the next link before the brokers have looked for interest in it.
    Withheld,
    /// It may live on, and nothing comes: then the brokers are asked, or it is published again.
    Quiet(Instant),
    /// The brokers are asked about its consumer then: nobody could tell.
    Leaderless(Instant),
}

/// Where a request's bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Among the publishes that wait for a link.
    Held,
    /// In front of this offset of a link's output.
    On(LinkId, u64),
}

/// A request on its way to a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Published {
    place: Place,
    batch: u64,
    at: Instant,
}

impl Published {
    /// Whether a broker may still be about to take it: it isn't proven on its link up to the offset
    /// `proven`, or was published since then.
    fn is_fresh(&self, since: Instant, (link, proven): (LinkId, u64)) -> bool {
        match self.place {
            Place::Held => true,
            Place::On(on, end) => self.at > since || (on == link && end > proven),
        }
    }
}

/// The open requests whose messages come to one subscription.
#[derive(Debug)]
struct Pull {
    session: SessionId,
    /// Of the newest request.
    subject: Box<[u8]>,
    reply: Box<[u8]>,
    headers: Box<[u8]>,
    body: Box<[u8]>,
    newest: u64,
    /// What is still to come, over all of them.
    messages: u64,
    bytes: Option<u64>,
    /// When the last of them expires.
    expires_at: Option<Instant>,
    /// Those that were published last.
    published: SmallVec<[Published; 1]>,
    stage: Stage,
    /// The broker that had its SUB was silent when its link was left, and may still get messages.
    lingers: bool,
    /// natsmux may ask about its consumer.
    may_ask: bool,
    /// When its link was lost.
    lost_at: Option<Instant>,
    /// When natsmux published it again.
    resumed_at: Option<Instant>,
    /// Times that its consumer was asked for in vain.
    asked: u32,
    _charge: Charge,
}

/// The fate of a message to the reply of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heed {
    /// It goes to the component.
    Deliver,
    /// It is about what natsmux did: the component hears nothing of it.
    Swallow,
    /// The same, and the request is published again.
    Resume,
}

/// What natsmux asks the brokers about one consumer.
#[derive(Debug)]
struct Question {
    number: u32,
    link: LinkId,
    subject: Vec<u8>,
    inbox: Vec<u8>,
    pulls: Vec<UpstreamSid>,
    until: Instant,
    /// Whether the SUBs of its pulls wait for the answer.
    withholds: bool,
    _place: QuestionPlace,
}

/// The open requests of a trunk's sessions.
#[derive(Debug, Default)]
pub(super) struct Pulls {
    open: BTreeMap<UpstreamSid, Pull>,
    /// The subscription that the last one was for.
    last: Option<UpstreamSid>,
    questions: Vec<Question>,
    /// Never used twice on one link.
    next_question: u32,
}

impl Pull {
    /// What is left but for requests that go on by themselves, if anything is.
    fn rest(&self, goes_on: impl Fn(&Published) -> bool, now: Instant) -> Option<PullRequest> {
        let goes_on = self.published.iter().filter(|one| goes_on(one));
        let goes_on: u64 = goes_on.map(|one| one.batch).sum();
        let batch = self.messages.saturating_sub(goes_on);
        let is_over = batch == 0 || self.bytes == Some(0) || self.has_expired(now);
        let expires = self.expires_at.map(|at| at.saturating_duration_since(now));
        (!is_over).then_some(PullRequest {
            batch,
            max_bytes: self.bytes,
            expires,
        })
    }

    /// What is left but for requests that wait for a link.
    fn left(&self, now: Instant) -> Option<PullRequest> {
        self.rest(|one| one.place == Place::Held, now)
    }

    fn has_expired(&self, now: Instant) -> bool {
        let soon = now + LEAST_TIME;
        self.expires_at.is_some_and(|at| at < soon)
    }

    fn subtract(&mut self, messages: u64, bytes: u64) {
        self.messages = self.messages.saturating_sub(messages);
        if let Some(left) = &mut self.bytes {
            *left = left.saturating_sub(bytes);
        }
    }

    fn is_over(&self) -> bool {
        self.messages == 0 || self.bytes == Some(0)
    }

    fn is_just_resumed(&self, now: Instant) -> bool {
        let soon = |at: Instant| now.saturating_duration_since(at) < SOON;
        self.resumed_at.is_some_and(soon)
    }

    fn be_served(&mut self) {
        (self.stage, self.lingers, self.asked) = (Stage::Served, false, 0);
    }

    fn be_quiet(&mut self, now: Instant) {
        self.stage = Stage::Quiet(now + QUIET_FOR);
    }

    /// It may wait there, and its consumer has nothing: that is looked at again, not for ever.
    fn be_quiet_again(&mut self, now: Instant) {
        self.asked += 1;
        if self.asked > ASK_MOST {
            self.be_served();
        } else {
            self.be_quiet(now);
        }
    }

    /// Has the brokers asked again about the consumer; not for ever.
    fn wait_for_leader(&mut self, now: Instant) {
        self.asked += 1;
        self.stage = if self.asked > ASK_MOST {
            Stage::Served
        } else {
            Stage::Leaderless(now + ASK_EVERY)
        };
    }

    fn heed(&mut self, status: PullStatus, size: usize, now: Instant) -> Heed {
        match status {
            // Of several requests, others may be used up.
            PullStatus::Message if self.lingers => self.be_quiet(now),
            PullStatus::Message | PullStatus::Heartbeat | PullStatus::Ended { .. } => {
                self.be_served();
            }
            _ => {}
        }
        match status {
            PullStatus::Message => self.subtract(1, size as u64),
            PullStatus::Ended { messages, bytes } => self.subtract(messages, bytes),
            PullStatus::Heartbeat => {}
            PullStatus::Gone => self.messages = 0,
            PullStatus::NoResponders | PullStatus::Refused if self.is_just_resumed(now) => {
                let own = self.resumed_at;
                self.published.retain(|one| Some(one.at) != own);
                self.wait_for_leader(now);
                return Heed::Swallow;
            }
            PullStatus::NoResponders | PullStatus::Refused | PullStatus::NoMessages => {
                self.subtract(self.newest, 0);
            }
            PullStatus::LeaderChanged if self.left(now).is_none() => {}
            // One for each request that there was: this one asks for what is left of all.
            PullStatus::LeaderChanged if self.is_just_resumed(now) => {
                self.wait_for_leader(now);
                return Heed::Swallow;
            }
            PullStatus::LeaderChanged => return Heed::Resume,
        }
        Heed::Deliver
    }

    /// Its link is gone, of which `written` bytes may have reached the broker: what is behind them
    /// waits for the next link.
    fn lose(&mut self, link: LinkId, written: u64, lingers: bool, now: Instant) {
        self.published.retain(|one| match one.place {
            Place::On(on, end) => on == link && end > written,
            Place::Held => true,
        });
        for one in &mut self.published {
            one.place = Place::Held;
        }
        self.asked = 0;
        let waits: u64 = self.published.iter().map(|one| one.batch).sum();
        if self.messages > waits {
            self.lost_at.get_or_insert(now);
            (self.stage, self.lingers) = (Stage::Lost, lingers);
        } else {
            // No broker knows of it, and it goes on with what else waits.
            self.stage = Stage::Served;
        }
    }
}

impl Pulls {
    /// Whether a publish is one that is kept, if its reply belongs to a subscription.
    fn request_of(publish: &Publish<'_>) -> Option<PullRequest> {
        let (headers, body) = parts(publish);
        let is_short = [publish.subject, publish.reply?, headers]
            .iter()
            .all(|text| text.len() <= TEXT_MOST);
        PullRequest::parse(body).filter(|_| is_short)
    }

    /// Enters a request that was just published. Returns whether it is kept.
    fn note(
        &mut self,
        (session, upstream): (SessionId, UpstreamSid),
        publish: &Publish<'_>,
        place: Place,
        bus: &Bus,
        now: Instant,
    ) -> bool {
        let Some(request) = Self::request_of(publish) else {
            return false;
        };
        self.last = Some(upstream);
        let (headers, body) = parts(publish);
        let reply = publish.reply.unwrap_or_default();
        if !self.open.contains_key(&upstream) {
            let of_session = || self.open.values().filter(|pull| pull.session == session);
            let budget = &bus.budgets().pulls;
            let is_full = self.open.len() >= PULLS_MOST && of_session().count() >= PULLS_MOST;
            if is_full || budget.is_spent() {
                return false;
            }
            let bytes = PULL_BYTES + publish.subject.len() + reply.len() + publish.size;
            let pull = Pull {
                session,
                subject: Box::default(),
                reply: Box::default(),
                headers: Box::default(),
                body: Box::default(),
                newest: 0,
                messages: 0,
                bytes: request.max_bytes.map(|_| 0),
                expires_at: Some(now),
                published: SmallVec::new(),
                stage: Stage::Served,
                lingers: false,
                may_ask: true,
                lost_at: None,
                resumed_at: None,
                asked: 0,
                _charge: Charge::new(Rc::clone(budget), bytes),
            };
            self.open.insert(upstream, pull);
        }
        let Some(pull) = self.open.get_mut(&upstream) else {
            return false;
        };
        pull.newest = request.batch;
        pull.messages = pull.messages.saturating_add(request.batch);
        let both = pull.bytes.zip(request.max_bytes);
        pull.bytes = both.map(|(before, more)| before.saturating_add(more));
        let until = request.expires.map(|expires| now + expires);
        pull.expires_at = pull
            .expires_at
            .zip(until)
            .map(|(before, at)| before.max(at));
        if pull.published.len() >= UNWRITTEN_MOST {
            pull.published.remove(0);
        }
        pull.published.push(Published {
            place,
            batch: request.batch,
            at: now,
        });
        replace(&mut pull.subject, publish.subject);
        replace(&mut pull.reply, reply);
        replace(&mut pull.headers, headers);
        replace(&mut pull.body, body);
        // A status is about what the component has just asked for.
        pull.resumed_at = None;
        true
    }

    /// How many subscriptions have open requests.
    pub(super) fn len(&self) -> usize {
        self.open.len()
    }

    /// What waited was written to this link, up to this offset.
    pub(super) fn note_sent(
        &mut self,
        session: Option<SessionId>,
        (link, end): (LinkId, u64),
        now: Instant,
    ) {
        let owned = self
            .open
            .values_mut()
            .filter(|pull| Some(pull.session) == session);
        for one in owned.flat_map(|pull| &mut pull.published) {
            if one.place == Place::Held {
                (one.place, one.at) = (Place::On(link, end), now);
            }
        }
    }

    /// A session is here no more, and its number may soon be another's.
    pub(super) fn forget_session(&mut self, session: SessionId) {
        self.open.retain(|_, pull| pull.session != session);
    }

    /// Whether a subscription's SUB waits for an answer.
    pub(super) fn withholds(&self, upstream: UpstreamSid) -> bool {
        let pull = self.open.get(&upstream);
        pull.is_some_and(|pull| pull.stage == Stage::Withheld)
    }

    /// Whether publishes wait for an answer.
    pub(super) fn is_asking(&self) -> bool {
        self.questions.iter().any(|question| question.withholds)
    }

    /// When something is due.
    pub(super) fn due(&self) -> Option<Instant> {
        let of_pull = |pull: &Pull| match pull.stage {
            Stage::Quiet(at) | Stage::Leaderless(at) => Some(at),
            Stage::Served | Stage::Lost | Stage::Withheld => None,
        };
        let pulls = self.open.values().filter_map(of_pull);
        let questions = self.questions.iter().map(|question| question.until);
        pulls.chain(questions).min()
    }
}

/// Whether a publish may be a request that is kept: most are none.
#[inline]
pub fn may_be_pull(publish: &Publish<'_>) -> bool {
    publish.reply.is_some() && is_pull(publish.subject)
}

/// The header block and the body of a publish.
fn parts<'p>(publish: &Publish<'p>) -> (&'p [u8], &'p [u8]) {
    let payload = publish.payload();
    payload.split_at(publish.header_len.unwrap_or(0).min(payload.len()))
}

/// Most requests are like the one before.
fn replace(text: &mut Box<[u8]>, new: &[u8]) {
    if **text != *new {
        *text = new.into();
    }
}
