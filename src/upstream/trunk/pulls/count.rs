//! Requests as they are published, and what comes of them.

use super::pull::{Heed, Place, Pull};
use super::{may_be_pull, read};
use crate::ledger::{SessionId, UpstreamSid};
use crate::proto::client::{self, ClientLimits, ClientOp, Publish, Scan};
use crate::proto::pull::PullStatus;
use crate::proto::server::Msg;
use crate::upstream::bus::Turn;
use crate::upstream::trunk::link::{Link, LinkId};
use crate::upstream::trunk::slot::Slot;
use crate::upstream::trunk::{Delivery, Trunk};

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
        let (hint, most) = (pulls.last, pulls.may_look(cx.now));
        let (found, looks) = self.subscriptions.find_reply(session, reply, hint, most);
        pulls.note_looks(looks);
        let Some(upstream) = found else {
            return;
        };
        let is_held = |slot: &Slot| !slot.held.is_empty();
        let place = match self.links.live() {
            Some(id) if !self.sessions.get(session).is_some_and(is_held) => {
                Place::On(id, self.links[id].published_end)
            }
            _ => Place::Held,
        };
        pulls.prune(|upstream| self.subscriptions.interest_of(upstream).is_some());
        let is_kept = pulls.note((session, upstream), publish, place, cx.bus, cx.now);
        if let Place::On(id, end) = place
            && is_kept
        {
            self.set_request_apart(id, end, cx);
        }
    }

    /// With at-least-once, a request that may be at a broker isn't repeated as other publishes are.
    pub(super) fn set_request_apart(&mut self, id: LinkId, end: u64, cx: &Turn<'_>) {
        if cx.bus.settings().delivery == Delivery::AtLeastOnce {
            self.links[id].note_request(end);
        }
    }

    /// A chunk of publishes that waited is about to be appended to a link: its requests are there
    /// then.
    pub(in crate::upstream::trunk) fn place_held_pulls(
        &mut self,
        session: SessionId,
        id: LinkId,
        chunk: &[u8],
        cx: &Turn<'_>,
    ) {
        let holds_any = |pulls: &super::Pulls| pulls.holds_any(session);
        if !self.pulls.as_deref().is_some_and(holds_any) {
            return;
        }
        let base = self.links[id].out.end();
        let mut at = 0;
        while let Scan::Op { op, len } = client::scan(&chunk[at..], &ClientLimits::NONE) {
            at += len;
            let ClientOp::Publish(publish) = op else {
                continue;
            };
            let asked = read(&publish).filter(|_| may_be_pull(&publish));
            let Some((asked, pulls)) = asked.zip(self.pulls.as_mut()) else {
                continue;
            };
            let end = base + at as u64;
            let mut own = pulls
                .open
                .values_mut()
                .filter(|pull| pull.session == session);
            let note =
                |pull: &mut Pull| pull.note_sent((asked.reply, asked.body), (id, end), cx.now);
            if own.any(note) {
                self.set_request_apart(id, end, cx);
            }
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
        let status = PullStatus::of(msg);
        if status == PullStatus::Message && msg.reply.is_none() {
            // A consumer's messages say how they are acknowledged.
            return true;
        }
        let size = msg.subject.len() + msg.reply.map_or(0, <[u8]>::len) + msg.size;
        let proven = (id, self.links[id].proven_offset);
        let heed = pull.heed((status, msg.subject), size, proven, cx.now);
        if pull.is_over() {
            pulls.open.remove(&upstream);
        }
        pulls.note_due_of(upstream);
        if heed == Heed::Resume {
            self.publish_pulls(upstream, id, cx);
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
        // What is behind it waits for the next link.
        let written = link.out.written();
        // Of a planned move, the next link has all SUBs.
        let is_told = self.links.any(Link::takes_subscriptions);
        let Some(pulls) = &mut self.pulls else {
            return;
        };
        for pull in pulls.open.values_mut() {
            pull.lose(link.id, written, silent, cx.now);
            if is_told && pull.stage == super::Stage::Lost {
                pull.stage = super::Stage::Leaderless(cx.now);
            }
        }
        pulls.note_due(is_told.then_some(cx.now));
    }
}
