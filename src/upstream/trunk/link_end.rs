//! The end of links: by failure, by plan (R19), and of the trunk itself.

use super::action::{Action, Report};
use super::link::{Link, LinkId, OkOwner, Phase};
use super::route::Lost;
use super::slot::{Finishing, Gate, Leaving};
use super::{CloseReason, Trunk};
use crate::config::Delivery;
use crate::ledger::{Held, Settled, settle};
use crate::proto::encode;
use crate::upstream::brokers::roster::{BrokerId, Cause, Departure, Failure};
use crate::upstream::bus::{Bus, Turn};

/// The text that a component hears whose identity's certificate a broker refuses.
const CERTIFICATE_REFUSED: &[u8] = b"Authorization Violation";

/// The text that a component hears where brokers give no verdict, as from one that waits in vain.
const NO_VERDICT: &[u8] = b"Authentication Timeout";

impl Trunk {
    /// A link's socket is dead, or its dial failed. Everything that could still be read was
    /// handled before (R10).
    pub fn handle_link_failed(&mut self, id: LinkId, failure: Failure, cx: &mut Turn<'_>) {
        if self.links.has(id) {
            self.fail(id, failure, cx);
        }
    }

    /// Ends a link that natsmux finds to be bad.
    pub(super) fn fail(&mut self, id: LinkId, failure: Failure, cx: &mut Turn<'_>) {
        if self.links[id].is_check {
            // No verdict: the one that is old holds on, and the next session asks again.
            self.put_off_renewal(cx.now);
            self.drop_link(id, cx.bus);
            return self.verify_all();
        }
        self.release_before_loss(id, cx);
        self.stand_by_again(id);
        let link = if failure == Failure::Silent {
            self.reset_link(id, cx.bus)
        } else {
            self.drop_link(id, cx.bus)
        };
        let broker = link.broker;
        if link.phase == Phase::Greeted {
            // Its component took its time: no fault of the broker's.
            return self.close_relay(cx);
        }
        if link.phase == Phase::Standby {
            self.lose_standby(link, failure, cx);
        } else if link.is_attached() {
            self.lose(link, failure, cx);
        } else {
            self.note_failed_dial(&link, failure, cx);
            self.actions
                .push_back(Action::Report(Report::DialFailed { broker, failure }));
            self.resume_old(cx);
        }
        self.check_refused(cx);
        self.promote_new(cx);
        self.replay_if_free(cx);
        self.next_attempt(cx);
        self.choose_target(cx);
        self.check_done(cx);
    }

    fn note_failed_dial(&mut self, link: &Link, failure: Failure, cx: &mut Turn<'_>) {
        cx.bus.counters_mut().dial_failures += 1;
        cx.bus.observed_mut().dial_failures.count(failure.as_str());
        let mut avoided = None;
        let is_own = failure == Failure::CertificateRefused
            && cx.bus.settings().identities_have_certificates;
        if is_own {
            // Another identity's certificate may be good: it is these components that are refused.
            self.route
                .attempts
                .refuse(link.broker, CERTIFICATE_REFUSED, cx.now);
        }
        match link.phase {
            // The broker didn't even introduce itself: dead for all trunks.
            Phase::Connecting | Phase::AwaitingInfo | Phase::Securing
                if !is_own
                    && !matches!(
                        failure,
                        Failure::OutOfFiles | Failure::Full | Failure::Throttled
                    ) =>
            {
                cx.bus
                    .roster_mut()
                    .handle_trunk_failure(link.broker, failure, cx.now);
                self.route.pause(link.broker, self.id, cx);
            }
            // All links of the bus wait together for a broker that turns them away.
            _ if failure == Failure::Full => self.route.pause(link.broker, self.id, cx),
            _ if failure == Failure::NoVerdict => {
                cx.bus
                    .roster_mut()
                    .turn_away(link.broker, None, failure, NO_VERDICT, cx.now);
                self.route.pause(link.broker, self.id, cx);
            }
            _ => {
                cx.bus.roster_mut().note_failure(link.broker, failure);
                self.route.pause(link.broker, self.id, cx);
                avoided = (!self.route.is_independent()).then_some(link.broker);
            }
        }
        self.route.attempts.fail(avoided);
    }

    /// A live link to this broker is gone: what that says of the broker.
    pub(super) fn note_lost_link(&mut self, broker: BrokerId, failure: Failure, cx: &mut Turn<'_>) {
        let suspect = cx.bus.watch(broker).suspect_since().is_some();
        cx.bus.detached(self.id, broker, cx.now);
        if failure != Failure::Refused && !self.is_relay() {
            cx.bus.admission_mut().refresh(&self.connect, cx.now);
        }
        match failure {
            // The sentinel finds the broker silent too. One link alone may have a fault of its
            // own.
            Failure::Silent if suspect => cx
                .bus
                .roster_mut()
                .handle_trunk_failure(broker, failure, cx.now),
            Failure::Silent | Failure::Refused => {
                cx.bus.roster_mut().note_failure(broker, failure);
                self.route.pause(broker, self.id, cx);
            }
            _ => cx.bus.roster_mut().note_failure(broker, failure),
        }
    }

    /// A live link is gone: sort its publishes, keep its debts, look for another.
    fn lose(&mut self, link: Link, failure: Failure, cx: &mut Turn<'_>) {
        let (id, broker) = (link.id, link.broker);
        let failure = if link.is_at_fault {
            Failure::OwnFault
        } else {
            failure
        };
        let brief = cx.now.saturating_duration_since(link.opened_at) < super::route::BRIEF;
        self.route.attempts.begin(cx.now);
        if !self.route.must_move() {
            // From a move that is off: the next handshake decides.
            self.route.attempts.forget_refusals();
        }
        cx.bus.counters_mut().link_failures += u64::from(!failure.is_own());
        let suspect = cx.bus.watch(broker).suspect_since().is_some();
        self.note_lost_link(broker, failure, cx);
        if let Some(several) = self.route.several_mut() {
            several.cancel_switch();
        }
        if brief {
            self.route.pause(broker, self.id, cx);
        }
        if brief || (failure == Failure::Silent && !suspect) {
            self.route.attempts.fail(Some(broker));
        }
        self.route.lost = Some(Lost {
            broker,
            cause: failure.into(),
            at: cx.now,
        });
        if !self.route.must_move() {
            self.route.moving = None;
        }
        self.lose_pulls(&link, failure == Failure::Silent, cx);
        let last_read = link.last_read_at;
        let greedy = self.find_greedy(failure, cx.now);
        let (settled, in_doubt) = self.settle(link, cx.bus);
        let cause = Cause::from(failure);
        let first = !cause.is_own()
            && cx
                .bus
                .note_lost(broker, cause, last_read, &settled, in_doubt, cx.now);
        self.actions.push_back(Action::Report(Report::Lost {
            link: id,
            broker,
            cause,
            first,
        }));
        self.requeue(settled, cx.bus);
        for session in self.sessions.ids() {
            let slot = &mut self.sessions[session];
            slot.gate.pass(u64::MAX);
            // One that isn't read is looked at anew: what it waited for is over.
            if slot.gate == Gate::Passed || slot.parked {
                self.sessions.release(session);
            }
            let slot = &mut self.sessions[session];
            let owed = slot.debts.has_pongs() || slot.debts.is_late();
            // The next broker is asked for what this one owed.
            let is_wanted = |end: &Finishing| owed && end.reason == CloseReason::ComponentClosed;
            if let Some(reason) = slot.take_finished(|end| !is_wanted(end)) {
                self.sessions.close(session, reason);
                continue;
            }
            if let Some(end) = slot.finishing_mut() {
                end.after = None;
                end.until = cx.now + super::FINISH_WITHIN;
                let until = end.until;
                self.sessions.note_timeout(until);
            }
            if owed {
                self.arm_pong_hold(session, cx);
            }
        }
        if let Some(session) = greedy {
            self.depart(session, Leaving::Greedy, cx);
        }
        self.route.moving = None;
        if self.links.any(Link::is_outdated) {
            self.abandon_joining(cx.bus);
            self.renew_links(Departure::NewConnect, cx);
        }
    }

    /// Counts a dead link's unproven publishes and carries its debts over (R1, R4, R20).
    pub(super) fn settle(&mut self, mut link: Link, bus: &mut Bus) -> (Settled, u64) {
        let repeat = bus.settings().delivery == Delivery::AtLeastOnce;
        let unproven = link.out.into_unproven();
        let own = bus.presence().prefix();
        let (start, written) = (unproven.start, unproven.written);
        let owners = link.owners.take();
        let owner = |end: usize| owners.as_ref()?.of(unproven.base + end as u64);
        let apart = std::mem::take(&mut link.apart);
        let reached = unproven.base + written as u64;
        let is_own = |end: usize, subject: &[u8]| {
            let is_presence = !own.is_empty() && subject.starts_with(own);
            is_presence || apart.has(unproven.base + end as u64, reached)
        };
        let mut settled = settle(unproven.chunks, start, written, repeat, is_own, owner);
        let larger = link
            .too_large
            .then(|| settled.remove_larger(link.max_payload));
        let longer = link.longest_line.map(|most| settled.remove_longer(most));
        for closed_for in [larger, longer].into_iter().flatten() {
            let written = closed_for.min(settled.repeated);
            settled.repeated -= written;
            settled.moved -= closed_for - written;
            bus.counters_mut().refused += closed_for;
            link.account.settled += closed_for;
        }
        let unsettled = link.account.unsettled();
        let unknown = unsettled.saturating_sub(settled.moved + settled.repeated);
        let refused = link.account.refused.min(unknown);
        let in_doubt = unknown - refused;
        bus.counters_mut().moved += settled.moved;
        bus.counters_mut().repeated += settled.repeated;
        bus.counters_mut().refused += refused;
        bus.counters_mut().in_doubt += in_doubt;
        // The publishes that wait will be answered by the next broker, if it is told to; but
        // not those that this one has answered and that are repeated.
        let again = settled.messages();
        let operations = link.oks.owed(OkOwner::Operation);
        let publishes = link.oks.owed(OkOwner::Publish);
        let (oks, unasked) = if self.connect.verbose {
            (
                publishes.saturating_sub(again),
                again.saturating_sub(publishes),
            )
        } else {
            (publishes, 0)
        };
        let oks = oks + operations;
        let retired = std::mem::take(&mut link.retired);
        for session in link.pings.into_askers().collect::<Vec<_>>() {
            self.ask_for(session);
        }
        let stood_by = link.phase == Phase::Standby;
        // The new link of a move was told as well, and answers for itself.
        let moves = self
            .overlap
            .as_ref()
            .is_some_and(|overlap| overlap.old == link.id);
        let is_told_elsewhere = moves && self.links.any(Link::takes_subscriptions);
        for slot in self.sessions.iter_mut() {
            slot.debts.oks += oks;
            slot.debts.unasked += unasked;
            if stood_by {
                continue;
            }
            slot.publishes_covered_by = 0;
            if slot.subs_covered_by > self.links.answered() && !is_told_elsewhere {
                slot.subs_covered_by = u64::MAX;
            }
        }
        if is_told_elsewhere || self.links.any_attached() {
            for (_, upstream) in retired {
                self.subscriptions.forget(upstream);
            }
        } else {
            self.subscriptions.forget_retired();
        }
        (settled, in_doubt)
    }

    /// Puts publishes that a dead link never wrote in front of those that wait.
    pub(super) fn requeue(&mut self, settled: Settled, bus: &mut Bus) {
        bus.budgets().held.take(settled.bytes());
        let only = if self.is_shared() {
            None
        } else {
            self.sessions.iter_mut().next()
        };
        put_in_front(
            only.map_or(&mut self.orphans, |slot| &mut slot.held),
            settled.waiting,
        );
        for (session, waiting) in settled.owned {
            let slot = self.sessions.get_mut(session);
            let held = slot.map_or(&mut self.orphans, |slot| &mut slot.held);
            put_in_front(held, waiting);
        }
    }

    /// Plans to leave the live link for another broker (R19).
    pub(super) fn start_move(&mut self, reason: Departure, cx: &mut Turn<'_>) {
        // One that isn't over is followed by the next one.
        let is_free = self.overlap.is_none() && self.live().is_some();
        if is_free && self.route.plan_move(self.id, reason, cx) {
            self.next_attempt(cx);
        }
    }

    /// The new link is accepted: unsubscribe everything on the old one and fence it.
    pub(super) fn leave_old_link(&mut self, cx: &mut Turn<'_>) {
        let old = match &self.overlap {
            Some(_) => self.old_link(),
            None => self.links.live(),
        };
        let Some(id) = old else {
            return;
        };
        let link = &mut self.links[id];
        if let Some(overlap) = &mut self.overlap {
            overlap.stood_by = link.phase == Phase::Standby;
        }
        for upstream in self.subscriptions.live_sids() {
            encode::unsub(&mut self.scratch, upstream.text().as_bytes(), None);
            if link.verbose {
                link.oks.push(OkOwner::Nobody, 1);
            }
        }
        link.out.push(&self.scratch);
        self.scratch.clear();
        let seq = self.links.fence(id, cx);
        let link = &mut self.links[id];
        link.phase = Phase::Leaving(seq);
        link.deadline = Some(cx.now + cx.bus.settings().timings.link_timeout);
    }

    /// A link that is left is again what it was, where it stood by: its end moves no publishes.
    /// Returns whether that is so.
    fn stand_by_again(&mut self, id: LinkId) -> bool {
        let stood_by = self.is_leaving_standby(id);
        if stood_by {
            self.links[id].phase = Phase::Standby;
        }
        stood_by
    }

    /// Everything that the old link owed has come: close it and replay on the new one.
    pub(super) fn left(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let reason = self.route.moving.as_ref().map(|planned| planned.reason);
        let reason = reason.or(self.links[id].gives_way);
        let reason = reason.unwrap_or(Departure::Removed);
        let cause = Cause::from(reason);
        if reason == Departure::Revised {
            // Components hear what the broker takes now.
            self.sessions.release_all();
        }
        self.release_before_loss(id, cx);
        if self.stand_by_again(id) {
            self.leave(id, reason, cx);
            return self.promote_new(cx);
        }
        let link = self.drop_link(id, cx.bus);
        let (broker, last_read) = (link.broker, link.last_read_at);
        self.route.lost = Some(Lost {
            broker,
            cause,
            at: cx.now,
        });
        cx.bus.detached(self.id, broker, cx.now);
        let (settled, in_doubt) = self.settle(link, cx.bus);
        if cause.is_planned() {
            cx.bus
                .note_lost(broker, cause, last_read, &settled, in_doubt, cx.now);
        }
        self.requeue(settled, cx.bus);
        self.route.moving = None;
        self.promote_new(cx);
        self.replay_if_free(cx);
        self.next_attempt(cx);
        self.choose_target(cx);
    }

    /// Gives up a link that isn't live yet.
    pub(super) fn abandon_joining(&mut self, bus: &mut Bus) {
        while let Some(id) = self.links.find(|link| !link.is_attached()) {
            self.drop_link(id, bus);
        }
    }

    /// Takes a link out and has its socket closed.
    pub(super) fn drop_link(&mut self, id: LinkId, bus: &mut Bus) -> Link {
        let link = self.take_link(id, bus);
        match link.gives_way {
            Some(Departure::Renewed) => bus.counters_mut().renewed_links += 1,
            Some(Departure::Revised) => bus.counters_mut().revised_links += 1,
            _ => {}
        }
        self.actions.push_back(Action::Close {
            link: id,
            abort: false,
        });
        link
    }

    /// Takes a link out and has its socket reset: what the kernel still holds for a silent broker
    /// is of no use.
    fn reset_link(&mut self, id: LinkId, bus: &mut Bus) -> Link {
        let link = self.take_link(id, bus);
        self.actions.push_back(Action::Close {
            link: id,
            abort: true,
        });
        link
    }

    fn take_link(&mut self, id: LinkId, bus: &mut Bus) -> Link {
        self.give_room(id, bus);
        let mut link = self.links.remove(id);
        self.forget_questions(id);
        self.note_overlap_without(id, bus);
        if std::mem::take(&mut link.dialing) {
            bus.dial_ended(link.broker);
        }
        if std::mem::take(&mut link.in_barrier) {
            bus.leave_barrier();
        }
        if !link.is_attached() {
            for (_, upstream) in std::mem::take(&mut link.retired) {
                self.subscriptions.forget(upstream);
            }
        }
        if link.takes_subscriptions() && !link.is_attached() {
            // It took operations of a verbose session before it was live (R20).
            let oks = link.oks.owed(OkOwner::Operation);
            for slot in self.sessions.iter_mut() {
                slot.debts.oks += oks;
            }
        }
        link
    }

    /// The link's number, if it is being dialled or open.
    pub fn has_link(&self, id: LinkId) -> bool {
        self.links.has(id)
    }
}

fn put_in_front(held: &mut Held, mut waiting: Held) {
    waiting.append(std::mem::take(held));
    *held = waiting;
}
