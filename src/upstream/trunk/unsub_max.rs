//! UNSUB max over several brokers, each of which counts for itself (R31).

use super::Trunk;
use super::link::{Link, LinkId, OkOwner};
use super::operations::NO_SID;
use crate::clock::Instant;
use crate::ledger::{SessionId, UpstreamSid};
use crate::proto::encode;
use crate::upstream::bus::{Bus, Turn};

impl Trunk {
    /// R31: a broker would count announcements towards its max.
    fn is_counted_here(&self, upstream: UpstreamSid, bus: &Bus) -> bool {
        let subject = self.subscriptions.subject(upstream);
        subject.is_some_and(|subject| bus.presence().may_match(subject))
    }

    /// R31: tells every broker how many more of a subscription are wanted.
    pub(super) fn send_limit(
        &mut self,
        session: SessionId,
        upstream: UpstreamSid,
        left: u64,
        cx: &Turn<'_>,
    ) {
        let counted_here = self.is_counted_here(upstream, cx.bus);
        let owner = self.note_operation(session);
        let covered_by = self.links.next_ping();
        let mut frame = std::mem::take(&mut self.scratch);
        for link in self.links.subscribed_mut() {
            let max = link.received(upstream) + left;
            if counted_here {
                encode::unsub(&mut frame, NO_SID, None);
            } else {
                encode::unsub(&mut frame, upstream.text().as_bytes(), Some(max));
            }
            let told = OkOwner::of_operation(Some(link.id) == owner);
            link.push_operation(&frame, told, covered_by, cx.now);
            frame.clear();
        }
        self.scratch = frame;
    }

    /// R31: the counts of the other brokers are old by now.
    pub(super) fn send_limits(&mut self, cx: &Turn<'_>) {
        let covered_by = self.links.next_ping();
        let limited: Vec<_> = self
            .subscriptions
            .iter()
            .filter(|(_, interest)| !cx.bus.presence().may_match(interest.subject))
            .filter_map(|(upstream, interest)| Some((upstream, interest.left?)))
            .collect();
        for (upstream, left) in limited {
            let mut frame = std::mem::take(&mut self.scratch);
            for link in self.links.subscribed_mut() {
                let max = link.received(upstream) + left;
                encode::unsub(&mut frame, upstream.text().as_bytes(), Some(max));
                link.push_operation(&frame, OkOwner::Nobody, covered_by, cx.now);
                frame.clear();
            }
            self.scratch = frame;
        }
    }

    /// Ends a subscription on all links but one whose broker has ended it already.
    pub(super) fn unsubscribe_but(
        &mut self,
        ended: Option<LinkId>,
        upstream: UpstreamSid,
        now: Instant,
    ) {
        let covered_by = self.links.next_ping();
        let mut holders = 0;
        let mut frame = std::mem::take(&mut self.scratch);
        encode::unsub(&mut frame, upstream.text().as_bytes(), None);
        let others = |link: &&mut Link| Some(link.id) != ended;
        for link in self.links.subscribed_mut().filter(others) {
            holders += 1;
            link.push_operation(&frame, OkOwner::Nobody, covered_by, now);
            link.operations.unsubscribe(upstream, covered_by);
            link.retired.push_back((covered_by, upstream));
        }
        self.subscriptions.hold(upstream, holders);
        frame.clear();
        self.scratch = frame;
    }
}
