//! A planned move without loss, doubles or a deaf moment (R41).
//!
//! The old link proves what it was told; the new one is told the ledger; both have it for a while;
//! the old one is unsubscribed and asked; behind its PONG the new one is live. SUBs and second
//! CONNECTs wait meanwhile. [`overlap`](super::overlap) tells copies.

use super::Trunk;
use super::link::{Link, LinkId, Phase};
use super::overlap::{Ask, Overlap, Stage, Straggling};
use super::slot::Gate;
use crate::clock::Instant;
use crate::ledger::{SessionId, UpstreamSid};
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
        let old = if self.route.is_independent() {
            let broker = self.links[new].broker;
            let is_it = |link: &Link| link.broker == broker && link.phase.is_subscribed();
            self.links.find(is_it)
        } else {
            self.links.live().filter(|_| self.route.moving.is_some())
        };
        let Some(old) = old else {
            return false;
        };
        let is_same_broker = self.links[old].broker == self.links[new].broker;
        let settings = cx.bus.settings();
        let strips = self.links[old].headers != self.links[new].headers;
        let overlap = Overlap::new(
            (old, new),
            (is_same_broker, strips),
            settings,
            cx.bus.admission().salt(),
            cx.now,
        );
        self.overlap = Some(Box::new(overlap));
        let independent = self.links[new].independent.get_or_insert_default();
        independent.received = Default::default();
        self.go_on_overlapping(cx);
        true
    }

    /// SUBs wait from now on, and the old link proves those that came.
    fn settle_old(&mut self, old: LinkId, cx: &mut Turn<'_>) {
        let link = &self.links[old];
        // What the component publishes must not come back to it on the other link.
        let may_echo = self.may_hear_itself(old) && link.account.unsettled() > 0;
        let seq = if may_echo || !link.has_proven_operations() {
            self.links.fence(old, cx)
        } else {
            0
        };
        self.set_stage(Stage::Settling(seq, None));
        self.go_on_overlapping(cx);
    }

    /// Whether a component that asks for no echo, or asked for none before its second CONNECT, could
    /// hear itself on the link that replaces this one.
    fn may_hear_itself(&self, old: LinkId) -> bool {
        !self.connect.echo || self.links[old].is_outdated()
    }

    /// Whether publishes wait: for an operator (R42), for what went to the old broker to be everywhere, or since a
    /// component that asked for no echo would hear itself on a link that isn't the one that it
    /// publishes on.
    pub(super) fn holds_publishes(&self, bus: &Bus) -> bool {
        let is_asking = self.pulls.as_deref().is_some_and(|pulls| pulls.is_asking());
        is_asking || self.holds_otherwise(bus)
    }

    /// The same, but for what brokers are asked about consumers (R44).
    pub(super) fn holds_otherwise(&self, bus: &Bus) -> bool {
        bus.is_paused()
            || self.overlap.as_deref().is_some_and(|overlap| {
                let may_echo = !self.connect.echo && overlap.holds_subscriptions();
                may_echo || overlap.holds_publishes()
            })
    }

    /// The link that a move leaves, while it is there.
    pub(super) fn old_link(&self) -> Option<LinkId> {
        let overlap = self.overlap.as_ref()?;
        self.links.has(overlap.old).then_some(overlap.old)
    }

    /// Whether a link is left that stood by: publishes go to another broker.
    pub(super) fn is_leaving_standby(&self, id: LinkId) -> bool {
        let overlap = self.overlap.as_deref();
        let is_it = overlap.is_some_and(|overlap| overlap.old == id && overlap.stood_by);
        is_it && matches!(self.links[id].phase, Phase::Leaving(_))
    }

    /// Whether the link is left that publishes went to: the next one has to wait for its PONG.
    pub(super) fn is_leaving_live(&self) -> bool {
        let leaving = |link: &Link| matches!(link.phase, Phase::Leaving(_));
        let left = self.links.find(leaving);
        left.is_some_and(|id| !self.is_leaving_standby(id))
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
                let echo = self.may_hear_itself(old).then(|| cx.now + lasts);
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
            Stage::Limiting(seq) if self.links[new].answered >= seq => self.end_overlap(new, cx),
            Stage::Limiting(_)
            | Stage::Recording(_)
            | Stage::Joining(_)
            | Stage::Both(_)
            | Stage::Leaving => {}
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
            Stage::Leaving | Stage::Limiting(_) => None,
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
        let asked = self.links[id].last_ping_at;
        overlap.note_pace(cx.now.saturating_duration_since(asked));
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

    /// Whether a message that a broker sent goes to components now: it is neither held until the
    /// old link has brought all, nor a copy.
    #[cold]
    #[inline(never)]
    pub(super) fn goes_out_now(
        &mut self,
        id: LinkId,
        upstream: UpstreamSid,
        msg: &Msg<'_>,
        cx: &mut Turn<'_>,
    ) -> bool {
        let old = self.old_link();
        let is_plain = self.subscriptions.is_plain(upstream);
        let Some(overlap) = &mut self.overlap else {
            return true;
        };
        let is_new = id == overlap.new;
        // Of independent brokers' links, each counts by itself.
        if is_new && is_plain.is_some() && !self.route.is_independent() {
            let independent = self.links[id].independent.get_or_insert_default();
            independent.received.note(upstream);
        }
        // Each message of a queue group goes to one of the two.
        if is_plain != Some(true) {
            return true;
        }
        let is_old = Some(id) == old;
        if is_old {
            overlap.remember(msg);
        } else if is_new && old.is_some() {
            overlap.hold(msg, self.links[id].seen());
        } else {
            return !(is_new && overlap.take_copy(msg));
        }
        let more = overlap.bytes().saturating_sub(overlap.charged);
        overlap.charged += more;
        cx.bus.budgets().pending.take(more);
        if overlap.is_full() {
            self.go_on_overlapping(cx);
        }
        is_old
    }

    /// Whether a link isn't read: much is held until the old one has brought all.
    pub(super) fn is_held_back(&self, id: LinkId) -> bool {
        let overlap = self.overlap.as_ref();
        let holds = overlap.is_some_and(|overlap| overlap.new == id && overlap.holds_back());
        holds && self.old_link().is_some()
    }

    /// Delivers what the new link held, but for copies.
    fn release_held(&mut self, cx: &mut Turn<'_>) {
        let Some(overlap) = &mut self.overlap else {
            return;
        };
        let (held, frames) = overlap.take_held();
        let new = overlap.new;
        self.sessions.note_released(held.len());
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
            if overlap.take_copy(&msg) || overlap.has_ended(upstream) {
                continue;
            }
            if self.pulls.is_none() || self.heed_pull(new, upstream, &msg, cx) {
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
        let overlap = self.overlap.as_deref().filter(|overlap| is_new(overlap));
        if overlap.is_none_or(Overlap::has_moved) {
            return;
        }
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
        self.go_on_asking(new, &mut straggling.late, cx);
        let Some(overlap) = &mut self.overlap else {
            return;
        };
        if straggling.early == Ask::Answered {
            overlap.forget_early();
        }
        overlap.stage = Stage::Behind(straggling);
        if straggling.late != Ask::Answered {
            return;
        }
        overlap.forget_copies();
        overlap.stage = Stage::Limiting(0);
        if self.any_limited {
            self.send_limits(cx);
            let seq = self.links.fence(new, cx);
            self.set_stage(Stage::Limiting(seq));
        }
        self.go_on_overlapping(cx);
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

    /// Nothing comes twice any more, and the new link's broker knows what is left of each max: it
    /// counts for itself from now on.
    fn end_overlap(&mut self, new: LinkId, cx: &mut Turn<'_>) {
        self.forget_overlap(cx.bus);
        if self.route.is_independent() {
            // The next one with old credentials, if there is any.
            return self.next_attempt(cx);
        }
        let independent = &mut self.links[new].independent;
        let received = independent.as_mut().map(|own| &mut own.received);
        let received = received.map(std::mem::take).unwrap_or_default();
        // Nothing else is kept there for long, but for what its broker refused.
        independent.take_if(|own| own.lacks.is_empty());
        self.subscriptions
            .rebase_by(|upstream| received.of(upstream));
        self.leave_where_due(cx);
        if self.route.must_move() {
            self.next_attempt(cx);
        }
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
            slot.gate = Gate::UNTIL_MOVED;
            self.sessions.await_pong(session);
        }
        holds
    }

    fn open_move_gates(&mut self) {
        for session in self.sessions.ids() {
            let slot = &mut self.sessions[session];
            if slot.gate == Gate::UNTIL_MOVED {
                slot.gate = Gate::Open;
                self.sessions.release(session);
            }
        }
    }

    /// Subscriptions ended: the old link, where it is still subscribed, brings all there is.
    pub(super) fn note_ended(&mut self, upstream: UpstreamSid) {
        if let Some(overlap) = &mut self.overlap
            && let Some(old) = self.links.get(overlap.old)
            && old.phase.is_subscribed()
        {
            overlap.end(upstream);
        }
    }
}
