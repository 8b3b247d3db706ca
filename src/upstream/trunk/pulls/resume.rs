//! What a trunk does about open requests: counts them, and behind the end of a link has them served
//! again.
//!
//! Brokers drop a request once they look for interest in its reply and find none, and they look
//! when they are asked about its consumer. So the SUBs of such replies are left out of the replay,
//! the brokers are asked, and SUB and request follow their answer: the old request is gone by then
//! and the new one is the only one.

use std::time::Duration;

use smallvec::SmallVec;

use super::{Heed, Place, Published, Pull, Pulls, Question, Stage, may_be_pull};
use crate::clock::Instant;
use crate::ledger::{SessionId, UpstreamSid};
use crate::proto::client::Publish;
use crate::proto::encode;
use crate::proto::pull::{ConsumerInfo, PullStatus, info_subject};
use crate::proto::server::Msg;
use crate::upstream::bus::Turn;
use crate::upstream::trunk::Trunk;
use crate::upstream::trunk::link::{Link, LinkId, OkOwner};

/// How long publishes wait for the brokers' answers.
const ANSWERED_WITHIN: Duration = Duration::from_millis(250);
/// Consumers that a trunk asks about at once.
const ASKED_AT_ONCE: usize = 64;
/// The sids of answers; no [`UpstreamSid`] is written so.
const ANSWER_SID: &[u8] = b"-q";
/// The last token of the subject of an answer, behind the reply of a request: permissions that end
/// in `>` cover it.
const ANSWER_TOKEN: &[u8] = b".natsmux";
/// The slot of natsmux's own subscriptions among a link's operations.
const ANSWER_SLOT: u32 = u32::MAX - 1;
/// While publishes wait for something else, a request that is due waits too.
const AGAIN_SOON: Duration = Duration::from_millis(20);

/// The outcome of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Answer {
    Info(ConsumerInfo),
    /// natsmux may not ask.
    Forbidden,
    /// Nobody has answered in time: most likely the consumer has no leader.
    Late,
}

impl Question {
    fn sid(&self) -> Vec<u8> {
        [ANSWER_SID, self.number.to_string().as_bytes()].concat()
    }

    /// Its subscription as a broker counts it.
    fn upstream(&self) -> UpstreamSid {
        UpstreamSid {
            slot: ANSWER_SLOT,
            generation: self.number,
        }
    }
}

impl Trunk {
    /// A component has published: a request is kept as long as it is open.
    pub fn note_pull(&mut self, session: SessionId, publish: &Publish<'_>, cx: &Turn<'_>) {
        let Some(reply) = publish.reply.filter(|_| may_be_pull(publish)) else {
            return;
        };
        if self.route.is_independent() || self.is_relay() || !cx.bus.settings().resume_pulls {
            return;
        }
        let pulls = self.pulls.get_or_insert_default();
        let hint = pulls.last;
        let Some(upstream) = self.subscriptions.find_reply(session, reply, hint) else {
            return;
        };
        let is_held = |slot: &super::super::slot::Slot| !slot.held.is_empty();
        let place = match self.links.live() {
            Some(id) if !self.sessions.get(session).is_some_and(is_held) => {
                Place::On(id, self.links[id].out.end())
            }
            _ => Place::Held,
        };
        pulls.prune(|upstream| self.subscriptions.interest_of(upstream).is_some());
        if let Place::On(id, _) = place {
            pulls.note_proven(upstream, (id, self.links[id].proven_offset), cx.now);
        }
        let is_kept = pulls.note((session, upstream), publish, place, cx.bus, cx.now);
        if let Place::On(id, _) = place
            && is_kept
        {
            self.links[id].note_request();
        }
    }

    /// A message came to a subscription of which requests may be open. Returns whether it is the
    /// component's.
    #[cold]
    #[inline(never)]
    pub(in crate::upstream::trunk) fn heed_pull(
        &mut self,
        id: LinkId,
        upstream: UpstreamSid,
        msg: &Msg<'_>,
        cx: &mut Turn<'_>,
    ) -> bool {
        let Some(pulls) = &mut self.pulls else {
            return true;
        };
        let Some(pull) = pulls.open.get_mut(&upstream) else {
            return true;
        };
        let size = msg.subject.len() + msg.reply.map_or(0, <[u8]>::len) + msg.size;
        let heed = pull.heed(PullStatus::of(msg), size, cx.now);
        if pull.is_over() {
            pulls.open.remove(&upstream);
        }
        if heed == Heed::Resume {
            pull_lost_leader(self.pulls.as_deref_mut(), upstream, cx.now);
            self.publish_pull(upstream, id, cx.now - super::FRESH_FOR, cx);
        }
        heed == Heed::Deliver
    }

    /// A live link is gone, and was `silent` before: what it brought of open requests ends.
    pub(in crate::upstream::trunk) fn lose_pulls(
        &mut self,
        link: &Link,
        silent: bool,
        cx: &Turn<'_>,
    ) {
        let written = written(link);
        if let Some(pulls) = &mut self.pulls {
            pulls.questions.clear();
            for pull in pulls.open.values_mut() {
                pull.lose(link.id, written, silent, cx.now);
            }
        }
    }

    /// Before everything is replayed on the only link: names the SUBs that are to wait.
    pub(in crate::upstream::trunk) fn withhold_pulls(&mut self, now: Instant) {
        let Some(pulls) = &mut self.pulls else {
            return;
        };
        pulls.open.retain(|upstream, pull| {
            if !matches!(pull.stage, Stage::Lost | Stage::Withheld) {
                return true;
            }
            let Some(interest) = self.subscriptions.interest_of(*upstream) else {
                return false;
            };
            // The answer would come to the component too.
            pull.may_ask = !interest.subject.ends_with(b">");
            pull.stage = match pull.left(now) {
                _ if pull.has_expired(now) => Stage::Served,
                _ if pull.may_ask => Stage::Withheld,
                Some(_) => Stage::Quiet(now + super::QUIET_FOR),
                None => Stage::Served,
            };
            true
        });
    }

    /// Everything else is replayed: asks the brokers about the consumers of open requests.
    pub(in crate::upstream::trunk) fn ask_about_pulls(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let Some(pulls) = &mut self.pulls else {
            return;
        };
        let withheld: Vec<_> = pulls.open.keys().copied().collect();
        let withheld = withheld.into_iter().filter(|sid| pulls.withholds(*sid));
        for upstream in withheld.collect::<Vec<_>>() {
            if !self.ask_about(upstream, id, true, cx) {
                self.subscribe_withheld(upstream, id, cx.now);
                self.set_stage_of(upstream, Stage::Quiet(cx.now + super::QUIET_FOR));
            }
        }
    }

    /// Asks about the consumer of a request. Returns whether that can be done now.
    fn ask_about(
        &mut self,
        upstream: UpstreamSid,
        id: LinkId,
        withholds: bool,
        cx: &mut Turn<'_>,
    ) -> bool {
        let Some(pulls) = &mut self.pulls else {
            return false;
        };
        let Some(pull) = pulls.open.get(&upstream) else {
            return false;
        };
        let Some(subject) = info_subject(&pull.subject) else {
            return false;
        };
        let is_same = |question: &&mut Question| {
            question.link == id && question.subject == subject && question.withholds == withholds
        };
        if let Some(question) = pulls.questions.iter_mut().find(is_same) {
            question.pulls.push(upstream);
            return true;
        }
        let Some(place) = cx.bus.take_question_place() else {
            return false;
        };
        if pulls.questions.len() >= ASKED_AT_ONCE {
            return false;
        }
        let question = Question {
            number: pulls.next_question,
            link: id,
            inbox: [&pull.reply, ANSWER_TOKEN].concat(),
            subject,
            pulls: vec![upstream],
            until: cx.now + ANSWERED_WITHIN,
            withholds,
            _place: place,
        };
        pulls.next_question += 1;
        let mut frame = std::mem::take(&mut self.scratch);
        encode::sub(&mut frame, &question.inbox, None, &question.sid());
        encode::request(&mut frame, &question.subject, &question.inbox, b"");
        let covered_by = self.links.next_ping();
        let link = &mut self.links[id];
        link.push_operation(&frame, OkOwner::Nobody, covered_by, cx.now);
        if link.verbose {
            link.oks.push(OkOwner::Nobody, 1);
        }
        link.operations.subscribe(question.upstream(), covered_by);
        link.note_question();
        link.requested_by = covered_by;
        frame.clear();
        self.scratch = frame;
        pulls.questions.push(question);
        true
    }

    /// A message to natsmux itself. Returns whether it is an answer about a consumer.
    pub(in crate::upstream::trunk) fn hear_about_pull(
        &mut self,
        id: LinkId,
        msg: &Msg<'_>,
        cx: &mut Turn<'_>,
    ) -> bool {
        let Some(pulls) = &self.pulls else {
            return false;
        };
        if !msg.sid.starts_with(ANSWER_SID) {
            return false;
        }
        let mut questions = pulls.questions.iter();
        let is_it = |question: &Question| question.link == id && question.sid() == msg.sid;
        if let Some(at) = questions.position(is_it) {
            let answer = match PullStatus::of(msg) {
                PullStatus::Message => ConsumerInfo::of(msg),
                _ => ConsumerInfo::Unavailable,
            };
            self.take_answer(at, Answer::Info(answer), cx);
        }
        true
    }

    /// Whether an error is about what natsmux asked: a component hears nothing of it.
    pub(in crate::upstream::trunk) fn is_about_question(
        &mut self,
        id: LinkId,
        text: &[u8],
        cx: &mut Turn<'_>,
    ) -> bool {
        let Some(pulls) = &self.pulls else {
            return false;
        };
        let names = |subject: &[u8]| {
            let quoted = [b"\"", subject, b"\""].concat();
            memchr::memmem::find(text, &quoted).is_some()
        };
        let mut questions = pulls.questions.iter();
        let is_it = |question: &Question| {
            question.link == id && (names(&question.subject) || names(&question.inbox))
        };
        let Some(at) = questions.position(is_it) else {
            return false;
        };
        self.links[id].oks.pop();
        self.take_answer(at, Answer::Forbidden, cx);
        true
    }

    /// The brokers have answered a question, or don't: what it was asked for goes on.
    fn take_answer(&mut self, at: usize, answer: Answer, cx: &mut Turn<'_>) {
        let Some(pulls) = &mut self.pulls else {
            return;
        };
        let was_asking = pulls.is_asking();
        let question = pulls.questions.remove(at);
        let (id, asked_at) = (question.link, question.until - ANSWERED_WITHIN);
        // It gives its place to those that waited for it.
        self.unsubscribe_answer(&question, cx.now);
        for upstream in &question.pulls {
            self.go_on_with(*upstream, (id, asked_at), answer, cx);
        }
        let is_asking = self.pulls.as_ref().is_some_and(|pulls| pulls.is_asking());
        if was_asking && !is_asking && self.open(cx.bus) == Some(id) {
            self.resume(id, cx);
        }
    }

    fn unsubscribe_answer(&mut self, question: &Question, now: Instant) {
        let covered_by = self.links.next_ping();
        let Some(link) = self.links.get_mut(question.link) else {
            return;
        };
        let mut frame = Vec::new();
        encode::unsub(&mut frame, &question.sid(), None);
        link.push_operation(&frame, OkOwner::Nobody, covered_by, now);
        link.operations.unsubscribe(question.upstream(), covered_by);
    }

    fn go_on_with(
        &mut self,
        upstream: UpstreamSid,
        (id, asked_at): (LinkId, Instant),
        answer: Answer,
        cx: &mut Turn<'_>,
    ) {
        let pulls = self.pulls.as_ref();
        let Some(pull) = pulls.and_then(|pulls| pulls.open.get(&upstream)) else {
            return;
        };
        let (has_rest, lingers) = (pull.left(cx.now).is_some(), pull.lingers);
        let was_withheld = pull.stage == Stage::Withheld;
        match pull.stage {
            Stage::Withheld => self.subscribe_withheld(upstream, id, cx.now),
            Stage::Leaderless(_) => {}
            // Something has come meanwhile.
            Stage::Served | Stage::Lost | Stage::Quiet(_) => return,
        }
        let Some(pull) = self.pull_mut(upstream) else {
            return;
        };
        match answer {
            _ if !has_rest => pull.be_served(),
            Answer::Late | Answer::Info(ConsumerInfo::Unavailable) => pull.wait_for_leader(cx.now),
            Answer::Info(ConsumerInfo::Missing) => pull.messages = 0,
            Answer::Forbidden => {
                pull.may_ask = false;
                pull.be_quiet(cx.now);
            }
            // The brokers have looked for interest while there was none.
            Answer::Info(ConsumerInfo::Waiting { .. }) if was_withheld && !lingers => {
                self.publish_pull(upstream, id, asked_at, cx);
            }
            Answer::Info(ConsumerInfo::Waiting { requests: 0, .. }) => {
                self.publish_pull(upstream, id, asked_at, cx);
            }
            // Those that wait are of others: messages do as well, and none came here.
            Answer::Info(ConsumerInfo::Waiting { messages, .. })
                if messages > 0 && !was_withheld =>
            {
                cx.bus.counters_mut().pulls_repeated += 1;
                self.publish_pull(upstream, id, asked_at, cx);
            }
            Answer::Info(ConsumerInfo::Waiting { .. }) => pull.be_quiet_again(cx.now),
        }
        if let Some(pulls) = &mut self.pulls
            && pulls.open.get(&upstream).is_some_and(Pull::is_over)
        {
            pulls.open.remove(&upstream);
        }
    }

    fn pull_mut(&mut self, upstream: UpstreamSid) -> Option<&mut Pull> {
        self.pulls.as_mut()?.open.get_mut(&upstream)
    }

    /// Has those of a session that wait for an answer subscribed at once: it ends some.
    pub(in crate::upstream::trunk) fn subscribe_all_withheld(
        &mut self,
        session: SessionId,
        now: Instant,
    ) {
        let Some(pulls) = &self.pulls else {
            return;
        };
        let is_its = |sid: &UpstreamSid| pulls.open[sid].session == session;
        let mut withheld: SmallVec<[(UpstreamSid, LinkId); 4]> = SmallVec::new();
        for question in pulls.questions.iter().filter(|question| question.withholds) {
            let its = question
                .pulls
                .iter()
                .filter(|sid| pulls.withholds(**sid) && is_its(sid));
            withheld.extend(its.map(|sid| (*sid, question.link)));
        }
        for (upstream, id) in withheld {
            self.subscribe_withheld(upstream, id, now);
            self.set_stage_of(upstream, Stage::Quiet(now + super::QUIET_FOR));
        }
    }

    /// Sends the SUB that was left out of the replay.
    fn subscribe_withheld(&mut self, upstream: UpstreamSid, id: LinkId, now: Instant) {
        let covered_by = self.links.next_ping();
        let Some(interest) = self.subscriptions.interest_of(upstream) else {
            return;
        };
        let mut frame = std::mem::take(&mut self.scratch);
        let sid = upstream.text();
        encode::sub(
            &mut frame,
            interest.subject,
            interest.queue_group,
            sid.as_bytes(),
        );
        let mut operations = 1;
        if let Some(max) = interest.left {
            encode::unsub(&mut frame, sid.as_bytes(), Some(max));
            operations += 1;
        }
        let sessions = self.subscriptions.sessions_of(upstream);
        self.subscriptions.expect(upstream, covered_by);
        let link = &mut self.links[id];
        link.push_operation(&frame, OkOwner::Nobody, covered_by, now);
        if link.verbose {
            link.oks.push(OkOwner::Nobody, operations - 1);
        }
        link.operations.subscribe(upstream, covered_by);
        self.subscribed_at = Some(now);
        for session in sessions {
            if let Some(slot) = self.sessions.get_mut(session) {
                slot.subs_covered_by = covered_by;
            }
        }
        frame.clear();
        self.scratch = frame;
    }

    /// Publishes what is left of requests from before `since`, as their session would.
    fn publish_pull(
        &mut self,
        upstream: UpstreamSid,
        id: LinkId,
        since: Instant,
        cx: &mut Turn<'_>,
    ) {
        let is_here = self.subscriptions.interest_of(upstream).is_some();
        let covered_by = self.links.next_ping();
        let Some(pulls) = &mut self.pulls else {
            return;
        };
        let Some(pull) = pulls.open.get_mut(&upstream).filter(|_| is_here) else {
            pulls.open.remove(&upstream);
            return;
        };
        pull.be_served();
        let proven = (id, self.links[id].proven_offset);
        let Some(left) = pull.rest(|one| one.is_fresh(since, proven), cx.now) else {
            return;
        };
        pull.published.retain(|one| one.is_fresh(since, proven));
        let mut frame = std::mem::take(&mut self.scratch);
        let body = left.encode(&pull.body);
        encode::request_with(&mut frame, &pull.subject, &pull.reply, &pull.headers, &body);
        let session = pull.session;
        cx.bus.counters_mut().published += 1;
        cx.bus.counters_mut().pulls_resumed += 1;
        let link = &mut self.links[id];
        let bytes = link.push_publishes(&frame, 1, cx.bus.counters_mut());
        link.note_owner(Some(session));
        if link.verbose {
            link.oks.push(OkOwner::Nobody, 1);
        }
        link.requested_by = covered_by;
        link.note_request();
        pull.note_resumed(left.batch, id, link.out.end(), cx.now);
        if let Some(lost_at) = pull.lost_at.take() {
            let took = cx.now.saturating_duration_since(lost_at);
            cx.bus.observed_mut().pulls.observe(took);
        }
        frame.clear();
        self.scratch = frame;
        if let Some(slot) = self.sessions.get_mut(session) {
            slot.publishes_covered_by = covered_by;
        }
        self.note_bytes(session, id, bytes, cx.now);
        self.appended_publishes(id, bytes, 1, cx);
    }

    fn set_stage_of(&mut self, upstream: UpstreamSid, stage: Stage) {
        if let Some(pull) = self.pull_mut(upstream) {
            pull.stage = stage;
        }
    }

    /// When something is due for an open request.
    pub(in crate::upstream::trunk) fn pulls_due(&self) -> Option<Instant> {
        self.pulls.as_ref()?.due()
    }

    /// Does what is due for open requests.
    pub(in crate::upstream::trunk) fn handle_pull_timeouts(&mut self, cx: &mut Turn<'_>) {
        let is_due = |pulls: &&mut Box<Pulls>| pulls.due().is_some_and(|due| due <= cx.now);
        if self.pulls.as_mut().filter(is_due).is_none() {
            return;
        }
        let now = cx.now;
        let late = |pulls: &Pulls| {
            let mut questions = pulls.questions.iter();
            questions.position(|question| question.until <= now)
        };
        while let Some(at) = self.pulls.as_deref().and_then(late) {
            self.take_answer(at, Answer::Late, cx);
        }
        let open = self.open(cx.bus);
        for upstream in self.due_pulls(cx.now) {
            let Some(id) = open else {
                self.put_off(upstream, cx.now + AGAIN_SOON);
                continue;
            };
            if self.pull_mut(upstream).is_some_and(|pull| !pull.may_ask) {
                // The old one may live: this is the one more that can't be ruled out.
                cx.bus.counters_mut().pulls_repeated += 1;
                self.publish_pull(upstream, id, cx.now - super::QUIET_FOR, cx);
            } else if self.ask_about(upstream, id, false, cx) {
                self.set_stage_of(upstream, Stage::Leaderless(cx.now + super::SOON));
            } else if let Some(pull) = self.pull_mut(upstream) {
                pull.wait_for_leader(cx.now);
            }
        }
    }

    fn put_off(&mut self, upstream: UpstreamSid, until: Instant) {
        if let Some(pull) = self.pull_mut(upstream) {
            pull.stage = match pull.stage {
                Stage::Quiet(_) => Stage::Quiet(until),
                _ => Stage::Leaderless(until),
            };
        }
    }

    fn due_pulls(&self, now: Instant) -> Vec<UpstreamSid> {
        let pulls = self.pulls.iter().flat_map(|pulls| &pulls.open);
        let is_due = |stage: Stage| match stage {
            Stage::Quiet(at) | Stage::Leaderless(at) => at <= now,
            Stage::Served | Stage::Lost | Stage::Withheld => false,
        };
        let due = pulls.filter(|(_, pull)| is_due(pull.stage));
        due.map(|(upstream, _)| *upstream).collect()
    }
}

/// Up to this offset, a link's output was written. What is behind it waits for the next link when
/// this one ends.
fn written(link: &Link) -> u64 {
    link.out.end() - link.out.pending_bytes() as u64
}

/// The leader of a request's consumer has gone.
fn pull_lost_leader(pulls: Option<&mut Pulls>, upstream: UpstreamSid, now: Instant) {
    if let Some(pull) = pulls.and_then(|pulls| pulls.open.get_mut(&upstream)) {
        pull.lost_at.get_or_insert(now);
    }
}

impl Pull {
    /// natsmux has published one request for all that is left.
    fn note_resumed(&mut self, batch: u64, link: LinkId, end: u64, now: Instant) {
        self.published.push(Published {
            place: Place::On(link, end),
            batch,
            at: now,
        });
        self.newest = batch;
        self.resumed_at = Some(now);
    }
}

impl Pulls {
    /// Forgets requests whose subscriptions have ended, from time to time.
    fn prune(&mut self, lives: impl Fn(UpstreamSid) -> bool) {
        const EVERY: usize = 64;
        if self.open.len() >= EVERY && self.open.len().is_multiple_of(EVERY) {
            self.open.retain(|upstream, _| lives(*upstream));
        }
    }

    /// A link has proven its output up to this offset: forgets what is as old.
    fn note_proven(&mut self, upstream: UpstreamSid, proven: (LinkId, u64), now: Instant) {
        if let Some(pull) = self.open.get_mut(&upstream) {
            let since = now - super::QUIET_FOR;
            pull.published.retain(|one| one.is_fresh(since, proven));
        }
    }
}
