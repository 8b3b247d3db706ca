//! A planned move without loss, doubles or a deaf moment (R41).
//!
//! The old link proves what it was told; the new one is told the ledger; both have it for a while;
//! the old one is unsubscribed and asked; behind its PONG the new one is live. SUBs and second
//! CONNECTs wait meanwhile. What [`overlap`](super::overlap) keeps says what is a copy.

use super::Trunk;
use super::link::{LinkId, OkOwner, Phase};
use super::operations::NO_SID;
use super::overlap::{Arrival, Ask, Overlap, Stage, Straggling};
use super::slot::Gate;
use crate::clock::Instant;
use crate::ledger::{SessionId, UpstreamSid};
use crate::proto::encode;
use crate::proto::server::{Msg, ServerLimits, ServerOp, ServerScan, scan};
use crate::upstream::brokers::roster::Failure;
use crate::upstream::bus::{Bus, Turn};

/// How many times the time for a link's silence its broker has to take the ledger.
const JOINING_TIMEOUTS: u32 = 2;

impl Trunk {
    /// Whether SUBs wait for the end of a move: a session that brings some goes elsewhere.
    pub fn is_moving(&self) -> bool {
        let overlap = self.overlap.as_deref();
        overlap.is_some_and(Overlap::holds_subscriptions)
    }

    /// A broker accepted the link that a planned move asked for. Returns whether both links are to
    /// be subscribed for a while.
    pub(super) fn begin_overlap(&mut self, new: LinkId, cx: &mut Turn<'_>) -> bool {
        let Some(old) = self.live().filter(|_| self.route.moving.is_some()) else {
            return false;
        };
        self.end_overlap(cx);
        let is_same_broker = self.links[old].broker == self.links[new].broker;
        let settings = cx.bus.settings();
        let mut overlap = Overlap::new(
            (old, new),
            is_same_broker,
            settings.timings.move_overlap,
            settings.move_identical,
            cx.bus.admission().salt(),
        );
        if !is_same_broker {
            overlap.stage = Stage::Recording(cx.now + overlap.lasts());
        }
        self.overlap = Some(Box::new(overlap));
        let independent = self.links[new].independent.get_or_insert_default();
        independent.received = Default::default();
        if is_same_broker {
            self.settle_old(old, cx);
        }
        true
    }

    /// SUBs wait from now on, and the old link proves those that came.
    fn settle_old(&mut self, old: LinkId, cx: &mut Turn<'_>) {
        let link = &self.links[old];
        // What the component publishes must not come back to it on the other link.
        let may_echo = !self.connect.echo && link.account.unsettled() > 0;
        let seq = if may_echo || !link.has_proven_operations() {
            self.links.fence(old, cx)
        } else {
            0
        };
        self.set_stage(Stage::Settling(seq, None));
        self.go_on_overlapping(cx);
    }

    /// Whether publishes wait: for what went to the old broker to be everywhere, or since a
    /// component that asked for no echo would hear itself on a link that isn't the one that it
    /// publishes on.
    pub(super) fn holds_publishes(&self) -> bool {
        self.overlap.as_deref().is_some_and(|overlap| {
            let may_echo = !self.connect.echo && overlap.holds_subscriptions();
            may_echo || overlap.holds_publishes()
        })
    }

    /// The link that a move leaves, while it is there.
    fn old_link(&self) -> Option<LinkId> {
        let overlap = self.overlap.as_ref()?;
        self.links.has(overlap.old).then_some(overlap.old)
    }

    /// Takes the next steps of a planned move.
    pub(super) fn go_on_overlapping(&mut self, cx: &mut Turn<'_>) {
        let Some(overlap) = &self.overlap else {
            return;
        };
        let (old, new, lasts) = (overlap.old, overlap.new, overlap.lasts());
        match overlap.stage {
            Stage::Recording(until) if until <= cx.now => self.settle_old(old, cx),
            Stage::Settling(seq, from) => {
                if self.links[old].answered < seq {
                    return;
                }
                // A broker that has a SUB has told the others soon.
                let last = self.subscribed_at.map(|at| at + lasts);
                let echo = (!self.connect.echo).then(|| cx.now + lasts);
                let from = from.or(last.into_iter().chain(echo).max());
                if from.is_some_and(|from| from > cx.now) {
                    self.set_stage(Stage::Settling(seq, from));
                    return;
                }
                let patience = JOINING_TIMEOUTS * cx.bus.settings().timings.link_timeout;
                self.set_stage(Stage::Joining(cx.now + patience));
                self.replay(new, cx);
            }
            // Its broker says other things, or its output is so much: the old link stays.
            Stage::Joining(until) if until <= cx.now || overlap.is_flooded() => {
                self.fail(new, Failure::Silent, cx);
            }
            Stage::Both(until) if until <= cx.now || overlap.is_full() => {
                if until > cx.now {
                    cx.bus.counters_mut().moves_cut_short += 1;
                }
                self.set_stage(Stage::Leaving);
                self.leave_old_link(cx);
            }
            Stage::Behind(straggling) => self.await_stragglers(new, straggling, cx),
            Stage::Recording(_) | Stage::Joining(_) | Stage::Both(_) | Stage::Leaving => {}
        }
    }

    fn set_stage(&mut self, stage: Stage) {
        if let Some(overlap) = &mut self.overlap {
            overlap.stage = stage;
        }
    }

    /// When the next step of a planned move is due.
    pub(super) fn overlap_due(&self) -> Option<Instant> {
        let overlap = self.overlap.as_ref()?;
        match overlap.stage {
            Stage::Settling(seq, from) => from.filter(|_| self.links[overlap.old].answered >= seq),
            Stage::Recording(until) | Stage::Joining(until) | Stage::Both(until) => Some(until),
            Stage::Behind(straggling) => {
                let asks = [straggling.early.due(), straggling.late.due()];
                let asks = asks.into_iter().flatten();
                straggling.publish_at.into_iter().chain(asks).min()
            }
            Stage::Leaving => None,
        }
    }

    /// The new link has the ledger. Returns whether the old one has it too: then nothing else
    /// happens yet.
    pub(super) fn both_have_ledger(&mut self, id: LinkId, cx: &mut Turn<'_>) -> bool {
        let is_old_there = self.old_link().is_some();
        let has_any = !self.subscriptions.is_empty();
        let Some(overlap) = &mut self.overlap else {
            return false;
        };
        let is_joining = matches!(overlap.stage, Stage::Joining(_));
        if overlap.new != id || !is_joining || !is_old_there {
            return false;
        }
        overlap.proven_at = Some(cx.now);
        let lasts = if has_any {
            overlap.lasts()
        } else {
            Default::default()
        };
        overlap.stage = Stage::Both(cx.now + lasts);
        let link = &mut self.links[id];
        (link.phase, link.deadline) = (Phase::Overlapping, None);
        self.go_on_overlapping(cx);
        true
    }

    /// What becomes of a message that a broker sent.
    pub(super) fn sort_arrival(
        &mut self,
        id: LinkId,
        upstream: UpstreamSid,
        msg: &Msg<'_>,
        cx: &mut Turn<'_>,
    ) -> Arrival {
        let old = self.old_link();
        let Some(overlap) = &mut self.overlap else {
            return Arrival::Deliver;
        };
        if id == overlap.new && self.subscriptions.knows(upstream) {
            let independent = self.links[id].independent.get_or_insert_default();
            independent.received.note(upstream);
        }
        // Each message of a queue group goes to one of the two.
        if self.subscriptions.is_plain(upstream) != Some(true) {
            return Arrival::Deliver;
        }
        if Some(id) == old {
            overlap.remember(msg);
        } else if id == overlap.new && old.is_some() {
            overlap.hold(msg, self.links[id].seen());
        } else {
            let is_copy = id == overlap.new && overlap.take_copy(msg);
            return if is_copy {
                Arrival::Drop
            } else {
                Arrival::Deliver
            };
        }
        let bytes = overlap.bytes();
        cx.bus
            .budgets()
            .pending
            .take(bytes - overlap.charged.min(bytes));
        overlap.charged = overlap.charged.max(bytes);
        if overlap.is_full() {
            self.go_on_overlapping(cx);
        }
        if Some(id) == old {
            Arrival::Deliver
        } else {
            Arrival::Hold
        }
    }

    /// Whether a link isn't read: much is held until the old one has brought all.
    pub(super) fn is_held_back(&self, id: LinkId) -> bool {
        let overlap = self.overlap.as_ref();
        let holds = overlap.is_some_and(|overlap| overlap.new == id && overlap.holds_back());
        holds && self.old_link().is_some()
    }

    /// The old link has brought all: what the new one held is delivered, but for copies.
    pub(super) fn release_held(&mut self, cx: &mut Turn<'_>) {
        let Some(overlap) = &mut self.overlap else {
            return;
        };
        let (held, frames) = overlap.take_held();
        let new = overlap.new;
        // What left a shared subscription meanwhile has had all from the old link.
        let mut rest = &held[..];
        for (len, seen) in frames {
            let (frame, behind) = rest.split_at(len);
            rest = behind;
            let scanned = scan(frame, &ServerLimits::default());
            let ServerScan::Op {
                op: ServerOp::Msg(msg),
                ..
            } = scanned
            else {
                continue;
            };
            let Some(upstream) = UpstreamSid::parse(msg.sid) else {
                continue;
            };
            let Some(overlap) = &mut self.overlap else {
                return;
            };
            if !overlap.take_copy(&msg) && !overlap.has_ended(upstream) {
                self.deliver_message(new, upstream, &msg, (true, seen), cx);
            }
        }
        if let Some(overlap) = &mut self.overlap {
            let charged = std::mem::take(&mut overlap.charged);
            cx.bus.budgets().pending.give(charged);
        }
    }

    /// The new link is live: copies of what the old one brought may still come.
    pub(super) fn begin_straggling(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let is_new = |overlap: &Overlap| overlap.new == id;
        if !self.overlap.as_deref().is_some_and(is_new) {
            return;
        }
        self.release_held(cx);
        cx.bus.counters_mut().gapless_moves += 1;
        if let Some(overlap) = &mut self.overlap {
            let proven_at = overlap.proven_at.unwrap_or(cx.now);
            overlap.stage = Stage::Behind(Straggling {
                publish_at: overlap.settles().map(|settles| cx.now + settles),
                early: Ask::At(cx.now.max(proven_at + overlap.lasts())),
                late: Ask::At(cx.now + overlap.straggles()),
            });
        }
        self.open_move_gates();
        self.go_on_overlapping(cx);
    }

    fn await_stragglers(&mut self, new: LinkId, mut straggling: Straggling, cx: &mut Turn<'_>) {
        if straggling.publish_at.take_if(|at| *at <= cx.now).is_some() {
            self.set_stage(Stage::Behind(straggling));
            self.resume_open(cx);
        }
        self.go_on_asking(new, &mut straggling.early, cx);
        if straggling.early == Ask::Answered
            && let Some(overlap) = &mut self.overlap
        {
            overlap.forget_early();
        }
        self.go_on_asking(new, &mut straggling.late, cx);
        self.set_stage(Stage::Behind(straggling));
        if straggling.late == Ask::Answered {
            self.end_overlap(cx);
            self.leave_where_due(cx);
        }
    }

    fn go_on_asking(&mut self, new: LinkId, ask: &mut Ask, cx: &mut Turn<'_>) {
        match *ask {
            Ask::At(at) if at <= cx.now => *ask = Ask::Asked(self.links.fence(new, cx)),
            Ask::Asked(seq) if seq <= self.links[new].answered => *ask = Ask::Answered,
            _ => {}
        }
    }

    /// What waited goes on, where publishes may be written now.
    fn resume_open(&mut self, cx: &mut Turn<'_>) {
        if let Some(id) = self.open(cx.bus) {
            self.resume(id, cx);
        }
    }

    /// Nothing comes twice any more: the new link's broker counts for itself from now on.
    pub(super) fn end_overlap(&mut self, cx: &mut Turn<'_>) {
        let Some(overlap) = self.overlap.as_ref() else {
            return;
        };
        let (new, held) = (overlap.new, overlap.holds_publishes());
        self.forget_overlap(cx.bus);
        let Some(link) = self.links.get_mut(new) else {
            return;
        };
        let independent = link.independent.as_mut();
        let received = independent.map(|own| std::mem::take(&mut own.received));
        let received = received.unwrap_or_default();
        self.subscriptions
            .rebase_by(link.told_from, |upstream| received.of(upstream));
        if self.any_limited {
            self.limits_covered_by = self.links.next_ping();
            self.tell_limits(new, cx);
        }
        if held {
            self.resume_open(cx);
        }
    }

    /// Whether a link's broker may not know yet how many more of a subscription are wanted.
    pub(super) fn waits_for_limits(&self, id: LinkId) -> bool {
        let link = self.links.get(id);
        link.is_some_and(|link| link.answered < self.limits_covered_by)
    }

    /// Tells the only link's broker how many more of a subscription are wanted.
    fn tell_limits(&mut self, id: LinkId, cx: &Turn<'_>) {
        let covered_by = self.links.next_ping();
        let limited: Vec<_> = self
            .subscriptions
            .limited_before(self.links[id].told_from)
            .collect();
        let mut frame = std::mem::take(&mut self.scratch);
        for (upstream, max) in limited {
            encode::unsub(&mut frame, upstream.text().as_bytes(), Some(max));
            self.links[id].push_operation(&frame, OkOwner::Nobody, covered_by, cx.now);
            frame.clear();
        }
        self.scratch = frame;
    }

    /// A move is over, or off: nothing waits for it, and what it kept is given back.
    pub(super) fn forget_overlap(&mut self, bus: &mut Bus) {
        let Some(overlap) = self.overlap.take() else {
            return;
        };
        bus.counters_mut().moves_ambiguous += overlap.ambiguous;
        bus.budgets().pending.give(overlap.charged);
        self.open_move_gates();
    }

    /// The old link has brought all that it ever will.
    pub(super) fn release_before_loss(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        if self.old_link() == Some(id) {
            self.release_held(cx);
        }
    }

    /// A link is gone: so is a move that can't go on. What the new link held is delivered once the
    /// old one, which is unsubscribed by then, has brought all.
    pub(super) fn note_overlap_without(&mut self, id: LinkId, bus: &mut Bus) {
        let Some(overlap) = &self.overlap else {
            return;
        };
        let is_over = if id == overlap.new {
            overlap.stage != Stage::Leaving || self.old_link().is_none()
        } else {
            let is_pointless = overlap.is_to_begin() || !self.links.has(overlap.new);
            id == overlap.old && is_pointless
        };
        if is_over {
            self.forget_overlap(bus);
        }
    }

    /// The old link is gone, and the new one has the ledger, or soon will.
    pub(super) fn promote_new(&mut self, cx: &mut Turn<'_>) {
        let Some(overlap) = &self.overlap else {
            return;
        };
        let new = overlap.new;
        if self.old_link().is_some() || !self.links.has(new) {
            return;
        }
        let link = &mut self.links[new];
        match link.phase {
            Phase::Overlapping => {
                link.phase = Phase::Fenced;
                self.pass_barrier(cx);
            }
            Phase::Replaying if !link.in_barrier => {
                link.in_barrier = true;
                cx.bus.join_barrier();
            }
            _ => {}
        }
    }

    /// A move is off, and what waited for it goes on.
    pub(super) fn resume_old(&mut self, cx: &mut Turn<'_>) {
        if !self.connect.echo && self.overlap.is_none() {
            self.resume_open(cx);
        }
    }

    /// Whether a SUB, or a second CONNECT, waits for the end of a move.
    pub(super) fn waits_for_move(&mut self, session: SessionId) -> bool {
        let holds = self.is_moving();
        if holds && let Some(slot) = self.sessions.get_mut(session) {
            slot.gate = Gate::Shut(u64::MAX);
            self.sessions.await_pong(session);
        }
        holds
    }

    fn open_move_gates(&mut self) {
        for session in self.sessions.ids() {
            let slot = &mut self.sessions[session];
            if slot.gate == Gate::Shut(u64::MAX) {
                slot.gate = Gate::Open;
                self.sessions.release(session);
            }
        }
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
        // Each message of a queue group comes once.
        let is_member = self.subscriptions.is_plain(upstream) == Some(false);
        let owner = self.note_operation(session);
        let covered_by = self.links.next_ping();
        let mut frame = std::mem::take(&mut self.scratch);
        for link in self.links.subscribed_mut() {
            let is_owner = Some(link.id) == owner;
            if Some(link.id) == old {
                encode::unsub(&mut frame, upstream.text().as_bytes(), Some(max));
            } else if is_member && let Some(left) = left {
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

    /// Subscriptions ended: the old link, where it is still subscribed, brings all there is.
    pub(super) fn note_ended(&mut self, upstream: UpstreamSid) {
        let live = self.links.live();
        if let Some(overlap) = &mut self.overlap
            && live == Some(overlap.old)
        {
            overlap.end(upstream);
        }
    }
}
