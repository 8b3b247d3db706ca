//! UNSUB max over several brokers, each of which counts for itself (R31), and over the two links of
//! a planned move (R41).

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
        let awaits = self.awaits_limits(upstream);
        for link in self.links.subscribed_mut() {
            let max = link.received(upstream) + left;
            if counted_here || awaits == Some(link.id) {
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
            let awaits = self.awaits_limits(upstream);
            let told = |link: &&mut Link| awaits != Some(link.id);
            for link in self.links.subscribed_mut().filter(told) {
                let max = link.received(upstream) + left;
                encode::unsub(&mut frame, upstream.text().as_bytes(), Some(max));
                link.push_operation(&frame, OkOwner::Nobody, covered_by, cx.now);
                frame.clear();
            }
            self.scratch = frame;
        }
    }

    /// The link whose broker isn't told a max of this subscription yet: copies of what the old link
    /// has brought would count.
    fn awaits_limits(&self, upstream: UpstreamSid) -> Option<LinkId> {
        let overlap = self.overlap.as_deref()?;
        let is_plain = self.subscriptions.is_plain(upstream) == Some(true);
        let comes_twice = is_plain && self.is_counted_alone(upstream);
        (comes_twice && !overlap.has_told_limits()).then_some(overlap.new)
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

    /// Whether natsmux alone counts a subscription's messages towards its max: two brokers have it,
    /// or the one that has it counts copies.
    pub(super) fn is_counted_alone(&self, upstream: UpstreamSid) -> bool {
        let Some(overlap) = &self.overlap else {
            return false;
        };
        if overlap.is_to_begin() {
            return false;
        }
        let new = self.links.get(overlap.new);
        let told_from = new.map_or(u64::MAX, |new| new.told_from);
        self.subscriptions.is_from_before(upstream, told_from)
    }

    /// Whether natsmux ends a subscription by itself: its broker doesn't know how much came.
    pub(super) fn is_ended_here(&self, upstream: UpstreamSid) -> bool {
        self.route.is_independent() || self.is_counted_alone(upstream)
    }

    /// A max for a subscription of two links: the old one's broker is told, which counts as it did.
    pub(super) fn limit_beside_move(
        &mut self,
        session: SessionId,
        upstream: UpstreamSid,
        max: u64,
        now: Instant,
    ) {
        let old = self.old_link();
        let left = self.subscriptions.left(upstream);
        // Its broker has been told the others by now.
        let is_late = self
            .overlap
            .as_ref()
            .is_some_and(|overlap| overlap.has_told_limits());
        // Each message of a queue group comes once.
        let is_member = self.subscriptions.is_plain(upstream) == Some(false);
        let owner = self.note_operation(session);
        let covered_by = self.links.next_ping();
        let mut frame = std::mem::take(&mut self.scratch);
        for link in self.links.subscribed_mut() {
            let is_owner = Some(link.id) == owner;
            if Some(link.id) == old {
                encode::unsub(&mut frame, upstream.text().as_bytes(), Some(max));
            } else if (is_member || is_late)
                && let Some(left) = left
            {
                let max = link.received(upstream) + left;
                encode::unsub(&mut frame, upstream.text().as_bytes(), Some(max));
            } else if is_owner {
                encode::unsub(&mut frame, NO_SID, None);
            } else {
                continue;
            }
            link.push_operation(&frame, OkOwner::of_operation(is_owner), covered_by, now);
            frame.clear();
        }
        self.scratch = frame;
    }
}
