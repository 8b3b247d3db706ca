//! Requests that are published again, and the SUBs in front of them.

use std::time::Duration;

use super::Stage;
use super::pull::{ASK_EVERY, Place, Pull, QUIET_FOR};
use super::questions::Answer;
use crate::clock::Instant;
use crate::ledger::{SessionId, UpstreamSid};
use crate::proto::encode;
use crate::proto::pull::ConsumerInfo;
use crate::upstream::bus::{Bus, Turn};
use crate::upstream::trunk::Trunk;
use crate::upstream::trunk::link::{Link, LinkId, OkOwner};

/// While publishes wait for something else, a request that is due waits too.
const AGAIN_SOON: Duration = Duration::from_millis(20);
/// An answer to a question that was asked for a request that is due comes within this.
const ANSWER_COMES: Duration = Duration::from_secs(1);

impl Trunk {
    pub(super) fn pull_mut(&mut self, upstream: UpstreamSid) -> Option<&mut Pull> {
        self.pulls.as_mut()?.open.get_mut(&upstream)
    }

    pub(super) fn note_pull_due(&mut self, upstream: UpstreamSid) {
        if let Some(pulls) = &mut self.pulls {
            pulls.note_due_of(upstream);
        }
    }

    /// Goes on with requests about whose consumer a question was asked on a link.
    pub(super) fn go_on_with(
        &mut self,
        upstream: UpstreamSid,
        (id, asked_at): (LinkId, Instant),
        answer: Answer,
        cx: &mut Turn<'_>,
    ) {
        let Some(stage) = self.pull_mut(upstream).map(|pull| pull.stage) else {
            return;
        };
        let was_withheld = stage == Stage::Asked;
        match stage {
            Stage::Asked => self.subscribe_withheld(upstream, id, cx.now),
            Stage::Leaderless(_) => {}
            // Something has come meanwhile.
            Stage::Served | Stage::Lost | Stage::Withheld | Stage::Quiet(_) => return,
        }
        let proven = self.links.get(id).map_or(0, |link| link.proven_offset);
        let Some(pull) = self.pull_mut(upstream) else {
            return;
        };
        let (mut is_gone, mut may_live) = (false, false);
        match answer {
            _ if !pull.has_rest(cx.now) => pull.be_served(),
            Answer::Late => pull.ask_at(cx.now),
            Answer::Info(ConsumerInfo::Unavailable) => pull.wait_for_leader(cx.now),
            Answer::Info(ConsumerInfo::Missing) => pull.requests.clear(),
            Answer::Forbidden => {
                pull.may_ask = false;
                pull.be_quiet(cx.now);
            }
            // The brokers have looked for interest while there was none.
            Answer::Info(ConsumerInfo::Waiting { .. }) if was_withheld && !pull.lingers => {
                is_gone = true;
            }
            Answer::Info(ConsumerInfo::Waiting { requests: 0, .. }) => is_gone = true,
            // Those that wait are of others: messages do as well, and none came here.
            Answer::Info(ConsumerInfo::Waiting { messages, .. })
                if messages > 0 && !was_withheld =>
            {
                may_live = true;
                is_gone = true;
            }
            Answer::Info(ConsumerInfo::Waiting { .. }) => pull.be_quiet_again(cx.now),
        }
        if is_gone {
            let are_any = pull.drop_old(asked_at, (id, proven));
            cx.bus.counters_mut().pulls_repeated += u64::from(may_live && are_any);
            self.publish_pulls(upstream, id, cx);
        }
        if let Some(pulls) = &mut self.pulls {
            if pulls.open.get(&upstream).is_some_and(Pull::is_over) {
                pulls.open.remove(&upstream);
            }
            pulls.note_due_of(upstream);
        }
    }

    /// Has the SUB sent that waits for an answer, of a subscription that is about to end.
    pub(in crate::upstream::trunk) fn subscribe_ending(
        &mut self,
        session: SessionId,
        sid: Option<&[u8]>,
        now: Instant,
    ) {
        let Some(pulls) = self.pulls.as_deref().filter(|pulls| pulls.withholds_any) else {
            return;
        };
        let own = pulls
            .open
            .iter()
            .filter(|(_, pull)| pull.session == session);
        let withheld = own.filter(|(upstream, _)| pulls.withholds(**upstream));
        let ends = |upstream: UpstreamSid| {
            sid.is_none_or(|sid| self.subscriptions.is_named(upstream, sid))
        };
        let ending = withheld
            .map(|(upstream, _)| *upstream)
            .filter(|sid| ends(*sid));
        for upstream in ending.collect::<Vec<_>>() {
            if let Some(id) = self.links.find(Link::takes_subscriptions) {
                self.subscribe_withheld(upstream, id, now);
            }
            if let Some(pull) = self.pull_mut(upstream) {
                pull.stage = Stage::Quiet(now + QUIET_FOR);
            }
            self.note_pull_due(upstream);
        }
    }

    /// Sends the SUB that was left out of the replay.
    pub(super) fn subscribe_withheld(&mut self, upstream: UpstreamSid, id: LinkId, now: Instant) {
        let covered_by = self.links.next_ping();
        let Some(interest) = self.subscriptions.interest_of(upstream) else {
            return;
        };
        let Some(link) = self
            .links
            .get_mut(id)
            .filter(|link| link.takes_subscriptions())
        else {
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
        link.push_operation(&frame, OkOwner::Nobody, covered_by, now);
        if link.verbose {
            link.oks.push(OkOwner::Nobody, operations - 1);
        }
        link.operations.subscribe(upstream, covered_by);
        self.subscribed_at = Some(now);
        for session in self.subscriptions.sessions_of(upstream) {
            if let Some(slot) = self.sessions.get_mut(session) {
                slot.subs_covered_by = covered_by;
            }
        }
        self.subscriptions.expect(upstream, covered_by);
        frame.clear();
        self.scratch = frame;
    }

    /// Whether requests may be published to a link now.
    fn takes_pulls(&self, id: LinkId, bus: &Bus) -> bool {
        let is_open = self.live() == Some(id) && !self.links.is_suspect(id, bus);
        is_open && !self.route.is_switching() && !self.holds_otherwise(bus)
    }

    /// Publishes requests that no broker has, as their session would.
    pub(super) fn publish_pulls(&mut self, upstream: UpstreamSid, id: LinkId, cx: &mut Turn<'_>) {
        let is_here = self.subscriptions.interest_of(upstream).is_some();
        let is_open = self.takes_pulls(id, cx.bus);
        let Some(pulls) = &mut self.pulls else {
            return;
        };
        let Some(pull) = pulls.open.get_mut(&upstream).filter(|_| is_here) else {
            pulls.open.remove(&upstream);
            return;
        };
        let count = pull.take_stock(cx.now);
        if !is_open && count > 0 {
            pull.stage = Stage::Leaderless(cx.now + AGAIN_SOON);
            return pulls.note_due_of(upstream);
        }
        pull.be_served();
        if count == 0 {
            return;
        }
        if let Some(lost_at) = pull.lost_at.take() {
            let took = cx.now.saturating_duration_since(lost_at);
            cx.bus.observed_mut().pulls.observe(took);
        }
        let (session, total) = (pull.session, pull.requests.len());
        for at in 0..total {
            self.publish_pull(upstream, at, session, id, cx);
        }
    }

    /// Publishes one request again, where no broker has it.
    fn publish_pull(
        &mut self,
        upstream: UpstreamSid,
        at: usize,
        session: SessionId,
        id: LinkId,
        cx: &mut Turn<'_>,
    ) {
        let covered_by = self.links.next_ping();
        let pulls = self.pulls.as_mut();
        let Some(pull) = pulls.and_then(|pulls| pulls.open.get_mut(&upstream)) else {
            return;
        };
        if pull.requests[at].place == Place::Nowhere {
            let mut frame = std::mem::take(&mut self.scratch);
            pull.requests[at].encode(&mut frame, &pull.subject, cx.now);
            cx.bus.counters_mut().published += 1;
            cx.bus.counters_mut().pulls_resumed += 1;
            let link = &mut self.links[id];
            let bytes = link.push_publishes(&frame, 1, cx.bus.counters_mut());
            link.note_owner(Some(session));
            if link.verbose {
                link.oks.push(OkOwner::Nobody, 1);
            }
            link.requested_by = covered_by;
            let end = link.published_end;
            pull.note_resumed(at, (id, end), cx.now);
            self.set_request_apart(id, end, cx);
            if let Some(slot) = self.sessions.get_mut(session) {
                slot.publishes_covered_by = covered_by;
            }
            self.note_bytes(session, id, bytes, cx.now);
            self.appended_publishes(id, bytes, 1, cx);
            frame.clear();
            self.scratch = frame;
        }
    }

    /// When something is due for an open request; may be too early.
    pub(in crate::upstream::trunk) fn pulls_due(&self) -> Option<Instant> {
        self.pulls.as_ref()?.due()
    }

    /// Does what is due for open requests.
    pub(in crate::upstream::trunk) fn handle_pull_timeouts(&mut self, cx: &mut Turn<'_>) {
        if self.pulls_due().is_none_or(|due| due > cx.now) {
            return;
        }
        self.end_late_questions(cx);
        let is_due = |pull: &Pull| pull.due().is_some_and(|at| at <= cx.now);
        let pulls = self.pulls.iter().flat_map(|pulls| &pulls.open);
        let due = pulls
            .filter(|(_, pull)| is_due(pull))
            .map(|(upstream, _)| *upstream);
        for upstream in due.collect::<Vec<_>>() {
            self.go_on_when_due(upstream, cx);
        }
        let questions = self.questions_due();
        if let Some(pulls) = &mut self.pulls {
            let pulls_due = pulls.open.values().filter_map(Pull::due);
            pulls.due = pulls_due.chain(questions).min();
        }
    }

    fn go_on_when_due(&mut self, upstream: UpstreamSid, cx: &mut Turn<'_>) {
        let Some(id) = self.live().filter(|id| self.takes_pulls(*id, cx.bus)) else {
            if let Some(pull) = self.pull_mut(upstream) {
                pull.stage = match pull.stage {
                    Stage::Quiet(_) => Stage::Quiet(cx.now + AGAIN_SOON),
                    _ => Stage::Leaderless(cx.now + AGAIN_SOON),
                };
            }
            return;
        };
        let proven = (id, self.links[id].proven_offset);
        let Some(pull) = self.pull_mut(upstream) else {
            return;
        };
        if !pull.may_ask {
            // The old one may live: this is the one more that can't be ruled out.
            let may_live = pull.drop_old(cx.now - QUIET_FOR, proven);
            cx.bus.counters_mut().pulls_repeated += u64::from(may_live);
            self.publish_pulls(upstream, id, cx);
            return;
        }
        let is_asked = self.ask_about(upstream, id, false, cx);
        let patience = if is_asked { ANSWER_COMES } else { ASK_EVERY };
        if let Some(pull) = self.pull_mut(upstream) {
            pull.stage = Stage::Leaderless(cx.now + patience);
        }
    }
}
