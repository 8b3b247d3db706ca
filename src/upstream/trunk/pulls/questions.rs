//! What natsmux asks brokers about the consumers of open requests.
//!
//! Brokers drop a request once they look for interest in its reply and find none, and they look
//! when they are asked about its consumer. So the SUBs of such replies are left out of the replay,
//! the brokers are asked, and SUB and request follow their answer: the old request is gone by then
//! and the new one is the only one.

use std::time::Duration;

use super::Stage;
use super::pull::QUIET_FOR;
use crate::clock::Instant;
use crate::ledger::UpstreamSid;
use crate::ledger::operations::ANSWER_SLOT;
use crate::proto::encode;
use crate::proto::pull::{ConsumerInfo, PullStatus, info_subject};
use crate::proto::server::Msg;
use crate::upstream::bus::{QuestionPlace, Turn};
use crate::upstream::trunk::Trunk;
use crate::upstream::trunk::link::{LinkId, OkOwner};

/// How long an answer is waited for, and publishes with it.
const ANSWERED_WITHIN: Duration = Duration::from_millis(250);
/// Consumers that a trunk asks about at once.
const ASKED_AT_ONCE: usize = 64;
/// Questions that are over, and of which errors may still come.
const OVER_MOST: usize = 256;
/// The sids of answers; no [`UpstreamSid`] is written so.
const ANSWER_SID: &[u8] = b"-q";
/// The last token of the subject of an answer, behind the reply of a request: permissions that end
/// in `>` cover it.
const ANSWER_TOKEN: &[u8] = b".natsmux";

/// What natsmux asks the brokers about one consumer.
#[derive(Debug)]
pub(super) struct Question {
    number: u32,
    pub(super) link: LinkId,
    subject: Vec<u8>,
    inbox: Vec<u8>,
    /// The PING that covers it.
    covered_by: u64,
    /// Those that it is about. None where it is over.
    pulls: Vec<UpstreamSid>,
    pub(super) until: Instant,
    /// Whether SUBs wait for the answer.
    withholds: bool,
    /// `None` once it is over.
    place: Option<QuestionPlace>,
}

/// The outcome of a question.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Answer {
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

    fn is_over(&self) -> bool {
        self.place.is_none()
    }
}

impl Trunk {
    /// Before everything is replayed on the only link: names the SUBs that are to wait.
    pub(in crate::upstream::trunk) fn withhold_pulls(&mut self, now: Instant) {
        let Some(pulls) = &mut self.pulls else {
            return;
        };
        let subscriptions = &self.subscriptions;
        pulls.open.retain(|upstream, pull| {
            if !matches!(pull.stage, Stage::Lost | Stage::Withheld) {
                return true;
            }
            if subscriptions.interest_of(*upstream).is_none() {
                return false;
            }
            let inbox = [pull.reply(), ANSWER_TOKEN].concat();
            // The answer would come to the component too.
            let (heard, _) =
                subscriptions.find_reply(pull.session, &inbox, None, super::LOOKS_MOST);
            pull.may_ask = heard.is_none();
            pull.stage = match pull.has_rest(now) {
                true if pull.may_ask => Stage::Withheld,
                true => Stage::Quiet(now + QUIET_FOR),
                false => Stage::Served,
            };
            true
        });
        let due = pulls.open.values().filter_map(super::Pull::due).min();
        pulls.note_due(due);
        let is_withheld = |pull: &super::Pull| pull.stage == Stage::Withheld;
        pulls.withholds_any = pulls.open.values().any(is_withheld);
    }

    /// Everything else is replayed: asks the brokers about the consumers of open requests.
    pub(in crate::upstream::trunk) fn ask_about_pulls(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let Some(pulls) = &mut self.pulls else {
            return;
        };
        // Their sessions may have gone meanwhile.
        let is_withheld = |pull: &super::Pull| pull.stage == Stage::Withheld;
        if pulls.open.values().any(is_withheld) {
            let until = cx.now + ANSWERED_WITHIN;
            pulls.asking = Some((id, until));
            pulls.note_due(Some(until));
            self.ask_about_more(id, cx);
        }
    }

    /// Asks about those that wait for it, as many as may be asked about at once.
    fn ask_about_more(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let Some(pulls) = &self.pulls else {
            return;
        };
        let waiting = pulls.open.iter();
        let waiting = waiting.filter(|(_, pull)| pull.stage == Stage::Withheld);
        let waiting: Vec<_> = waiting.map(|(upstream, _)| *upstream).collect();
        for upstream in waiting {
            if !self.ask_about(upstream, id, true, cx) {
                break;
            }
            if let Some(pull) = self.pull_mut(upstream) {
                pull.stage = Stage::Asked;
            }
        }
    }

    /// Asks about the consumer of requests. Returns whether that can be done now.
    pub(super) fn ask_about(
        &mut self,
        upstream: UpstreamSid,
        id: LinkId,
        withholds: bool,
        cx: &mut Turn<'_>,
    ) -> bool {
        let covered_by = self.links.next_ping();
        let answered = self.links[id].answered;
        let Some(pulls) = &mut self.pulls else {
            return false;
        };
        let subject = pulls
            .open
            .get(&upstream)
            .and_then(|pull| info_subject(&pull.subject));
        let Some((subject, pull)) = subject.zip(pulls.open.get(&upstream)) else {
            return false;
        };
        let is_same = |question: &&mut Question| {
            let is_open = !question.is_over() && question.link == id;
            is_open && question.subject == subject && question.withholds == withholds
        };
        if let Some(question) = pulls.questions.iter_mut().find(is_same) {
            question.pulls.push(upstream);
            return true;
        }
        pulls
            .questions
            .retain(|question| !question.is_over() || question.covered_by > answered);
        let open = pulls
            .questions
            .iter()
            .filter(|question| !question.is_over());
        if open.count() >= ASKED_AT_ONCE || pulls.questions.len() >= OVER_MOST {
            return false;
        }
        let Some(place) = cx.bus.take_question_place() else {
            return false;
        };
        let question = Question {
            number: pulls.next_question,
            link: id,
            inbox: [pull.reply(), ANSWER_TOKEN].concat(),
            subject,
            covered_by,
            pulls: vec![upstream],
            until: cx.now + ANSWERED_WITHIN,
            withholds,
            place: Some(place),
        };
        pulls.next_question += 1;
        pulls.note_due(Some(question.until));
        let mut frame = std::mem::take(&mut self.scratch);
        encode::sub(&mut frame, &question.inbox, None, &question.sid());
        encode::request(&mut frame, &question.subject, &question.inbox, b"");
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
        let is_it = |question: &Question| {
            question.link == id && !question.is_over() && question.sid() == msg.sid
        };
        if let Some(at) = pulls.questions.iter().position(is_it) {
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
        let answered = self.links[id].answered;
        let Some(pulls) = &self.pulls else {
            return false;
        };
        let names = |subject: &[u8]| {
            let quoted = [b"\"", subject, b"\""].concat();
            memchr::memmem::find(text, &quoted).is_some()
        };
        let is_it = |question: &Question| {
            let is_unproven = question.link == id && question.covered_by > answered;
            is_unproven && (names(&question.subject) || names(&question.inbox))
        };
        let Some(at) = pulls.questions.iter().position(is_it) else {
            return false;
        };
        self.links[id].oks.pop();
        if !pulls.questions[at].is_over() {
            self.take_answer(at, Answer::Forbidden, cx);
        }
        true
    }

    /// Whether a link's broker has been asked for one subscription more than its component has.
    pub(in crate::upstream::trunk) fn asks_beside(&self, id: LinkId) -> bool {
        let questions = self.pulls.iter().flat_map(|pulls| &pulls.questions);
        let answered = self.links[id].answered;
        let is_beside = |question: &Question| {
            question.link == id && !question.withholds && question.covered_by > answered
        };
        questions.into_iter().any(is_beside)
    }

    /// The brokers have answered a question, or don't: what it was asked for goes on.
    fn take_answer(&mut self, at: usize, answer: Answer, cx: &mut Turn<'_>) {
        let Some(pulls) = &mut self.pulls else {
            return;
        };
        let question = &mut pulls.questions[at];
        question.place = None;
        let asked = std::mem::take(&mut question.pulls);
        let (id, asked_at) = (question.link, question.until - ANSWERED_WITHIN);
        // It gives its place to those that waited for it.
        self.unsubscribe_answer(at, cx.now);
        for upstream in asked {
            self.go_on_with(upstream, (id, asked_at), answer, cx);
        }
        self.ask_about_more(id, cx);
        self.end_asking(cx);
    }

    /// Publishes go on once no SUB waits for an answer, or for too long.
    fn end_asking(&mut self, cx: &mut Turn<'_>) {
        let Some(pulls) = &mut self.pulls else {
            return;
        };
        let Some((id, until)) = pulls.asking else {
            return;
        };
        if until <= cx.now {
            let waiting: Vec<_> = pulls.open.keys().copied().collect();
            let waiting = waiting.into_iter().filter(|sid| pulls.withholds(*sid));
            for upstream in waiting.collect::<Vec<_>>() {
                self.subscribe_withheld(upstream, id, cx.now);
                if let Some(pull) = self.pull_mut(upstream) {
                    pull.ask_at(cx.now);
                }
                self.note_pull_due(upstream);
            }
        }
        let Some(pulls) = &mut self.pulls else {
            return;
        };
        let waits = |sid: &UpstreamSid| pulls.withholds(*sid);
        if !pulls.open.keys().any(waits) {
            (pulls.asking, pulls.withholds_any) = (None, false);
            if self.open(cx.bus) == Some(id) {
                self.resume(id, cx);
            }
        }
    }

    fn unsubscribe_answer(&mut self, at: usize, now: Instant) {
        let covered_by = self.links.next_ping();
        let Some(question) = self.pulls.as_ref().map(|pulls| &pulls.questions[at]) else {
            return;
        };
        let Some(link) = self.links.get_mut(question.link) else {
            return;
        };
        let mut frame = Vec::new();
        encode::unsub(&mut frame, &question.sid(), None);
        link.push_operation(&frame, OkOwner::Nobody, covered_by, now);
        link.operations.unsubscribe(question.upstream(), covered_by);
    }

    /// A link is taken out: nothing is answered there any more.
    pub(in crate::upstream::trunk) fn forget_questions(&mut self, id: LinkId) {
        let Some(pulls) = &mut self.pulls else {
            return;
        };
        pulls.questions.retain(|question| question.link != id);
        let Some((_, until)) = pulls.asking.take_if(|(link, _)| *link == id) else {
            return;
        };
        // Of a planned move, the next link has been told all SUBs.
        for pull in pulls.open.values_mut() {
            if matches!(pull.stage, Stage::Withheld | Stage::Asked) {
                pull.stage = Stage::Leaderless(until);
            }
        }
        pulls.withholds_any = false;
        pulls.note_due(Some(until));
    }

    /// Does what is due for questions: their answers are late.
    pub(super) fn end_late_questions(&mut self, cx: &mut Turn<'_>) {
        let now = cx.now;
        let late = |pulls: &super::Pulls| {
            let is_late = |question: &Question| !question.is_over() && question.until <= now;
            pulls.questions.iter().position(is_late)
        };
        while let Some(at) = self.pulls.as_deref().and_then(late) {
            self.take_answer(at, Answer::Late, cx);
        }
        self.end_asking(cx);
    }

    /// When an open question or a wait for answers is due.
    pub(super) fn questions_due(&self) -> Option<Instant> {
        let pulls = self.pulls.as_ref()?;
        let open = pulls
            .questions
            .iter()
            .filter(|question| !question.is_over());
        let until = open.map(|question| question.until);
        until.chain(pulls.asking.map(|(_, until)| until)).min()
    }
}
