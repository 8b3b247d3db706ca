//! The end of links: by failure, by plan (R19), and of the trunk itself.

use std::time::Duration;

use super::action::{Action, Report};
use super::link::{Link, LinkId, OkOwner, Phase};
use super::route::Lost;
use super::slot::{Finishing, Gate, Leaving};
use super::{CloseReason, Trunk, Verdict};
use crate::clock::Instant;
use crate::config::Delivery;
use crate::ledger::{Held, Settled, Subscriptions, settle};
use crate::proto::encode;
use crate::queue::Queue;
use crate::upstream::brokers::roster::{BrokerId, Failure, Health};
use crate::upstream::bus::{Bus, Turn};

/// The text that a component hears where brokers give no verdict, as from one that waits in vain.
const NO_VERDICT: &[u8] = b"Authentication Timeout";

/// How long a component that is new waits for a broker that turns newcomers away: shorter than
/// its own patience.
const NEWCOMER_PATIENCE: Duration = Duration::from_secs(1);

/// What a trunk without sessions costs the budget of waiting publishes, in bytes.
const ORPHAN_BYTES: usize = 4096;

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
            self.drop_link(id, false, cx.bus);
            return self.verify_all();
        }
        let link = self.drop_link(id, failure == Failure::Silent, cx.bus);
        let broker = link.broker;
        if link.phase == Phase::Standby {
            self.lose_standby(link, failure, cx);
        } else if link.is_attached() {
            self.lose(link, failure, cx);
        } else {
            self.note_failed_dial(&link, failure, cx);
            self.actions
                .push_back(Action::Report(Report::DialFailed { broker, failure }));
        }
        self.check_refused(cx);
        self.replay_if_free(cx);
        self.next_attempt(cx);
        self.choose_target(cx);
        self.check_done(cx);
    }

    fn note_failed_dial(&mut self, link: &Link, failure: Failure, cx: &mut Turn<'_>) {
        cx.bus.counters.dial_failures += 1;
        cx.bus.observed.dial_failures.count(failure.as_str());
        let mut avoided = None;
        match link.phase {
            // The broker didn't even introduce itself: dead for all trunks.
            Phase::Connecting | Phase::AwaitingInfo
                if !matches!(failure, Failure::OutOfFiles | Failure::Full) =>
            {
                cx.bus
                    .roster
                    .handle_trunk_failure(link.broker, failure, cx.now);
                self.route.pause(link.broker, self.id, cx);
            }
            // All links of the bus wait together for a broker that turns them away.
            _ if failure == Failure::Full => self.route.pause(link.broker, self.id, cx),
            _ if failure == Failure::NoVerdict => {
                cx.bus
                    .roster
                    .turn_away(link.broker, None, failure, NO_VERDICT, cx.now);
                self.route.pause(link.broker, self.id, cx);
            }
            _ => {
                cx.bus.roster.note_failure(link.broker, failure);
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
        if failure != Failure::Refused {
            cx.bus.admission.refresh(&self.connect, cx.now);
        }
        match failure {
            // The sentinel finds the broker silent too. One link alone may have a fault of its
            // own.
            Failure::Silent if suspect => {
                cx.bus.roster.handle_trunk_failure(broker, failure, cx.now)
            }
            Failure::Silent | Failure::Refused => {
                cx.bus.roster.note_failure(broker, failure);
                self.route.pause(broker, self.id, cx);
            }
            _ => cx.bus.roster.note_failure(broker, failure),
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
        cx.bus.counters.link_failures += u64::from(!failure.is_own());
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
            cause: failure,
            at: cx.now,
        });
        if !self.route.must_move() {
            self.route.moving = None;
        }
        let last_read = link.last_read_at;
        let greedy = self.find_greedy(failure, cx.now);
        let (settled, in_doubt) = self.settle(link, cx.bus);
        let first = !failure.is_own()
            && cx
                .bus
                .note_lost(broker, failure, last_read, &settled, in_doubt, cx.now);
        self.actions.push_back(Action::Report(Report::Lost {
            link: id,
            broker,
            failure,
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
        if self.route.moving.take().is_some() {
            self.abandon_joining(cx.bus);
            self.renew_links(cx);
        }
    }

    /// Counts a dead link's unproven publishes and carries its debts over (R1, R4, R20).
    pub(super) fn settle(&mut self, mut link: Link, bus: &mut Bus) -> (Settled, u64) {
        let repeat = bus.settings.delivery == Delivery::AtLeastOnce;
        let unproven = link.out.into_unproven();
        let own = bus.presence.prefix();
        let (start, written) = (unproven.start, unproven.written);
        let owners = link.owners.take();
        let owner = |end: usize| owners.as_ref()?.of(unproven.base + end as u64);
        let mut settled = settle(unproven.chunks, start, written, repeat, own, owner);
        let larger = link
            .too_large
            .then(|| settled.remove_larger(link.max_payload));
        let longer = link.longest_line.map(|most| settled.remove_longer(most));
        for closed_for in [larger, longer].into_iter().flatten() {
            let written = closed_for.min(settled.repeated);
            settled.repeated -= written;
            settled.moved -= closed_for - written;
            bus.counters.refused += closed_for;
            link.account.settled += closed_for;
        }
        let unsettled = link.account.unsettled();
        let unknown = unsettled.saturating_sub(settled.moved + settled.repeated);
        let refused = link.account.refused.min(unknown);
        let in_doubt = unknown - refused;
        bus.counters.moved += settled.moved;
        bus.counters.repeated += settled.repeated;
        bus.counters.refused += refused;
        bus.counters.in_doubt += in_doubt;
        // The publishes that wait will be answered by the next broker, if it is told to; but
        // not those that this one has answered and that are repeated.
        let again = settled.messages();
        let operations = link.oks.owed(OkOwner::Operation);
        let publishes = link.oks.owed(OkOwner::Publish);
        let (oks, unasked) = match self.connect.verbose {
            true => (
                publishes.saturating_sub(again),
                again.saturating_sub(publishes),
            ),
            false => (publishes, 0),
        };
        let oks = oks + operations;
        let retired = std::mem::take(&mut link.retired);
        for session in link.pings.into_askers().collect::<Vec<_>>() {
            self.ask_for(session);
        }
        let stood_by = link.phase == Phase::Standby;
        for slot in self.sessions.iter_mut() {
            slot.debts.oks += oks;
            slot.debts.unasked += unasked;
            if stood_by {
                continue;
            }
            slot.publishes_covered_by = 0;
            if slot.subs_covered_by > self.links.answered() {
                slot.subs_covered_by = u64::MAX;
            }
        }
        if self.links.any_attached() {
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
        bus.budgets.held.take(settled.bytes());
        let only = match self.shared {
            true => None,
            false => self.sessions.iter_mut().next(),
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

    /// The configuration or a lame duck makes a broker one to leave.
    pub(super) fn must_leave(broker: BrokerId, bus: &Bus) -> Option<Failure> {
        let broker = bus.roster.broker(broker);
        match broker.health() {
            _ if broker.is_removed() => Some(Failure::Removed),
            Health::LameDuck => Some(Failure::LameDuck),
            _ => None,
        }
    }

    /// Plans to leave the live link for another broker (R19).
    pub(super) fn start_move(&mut self, reason: Failure, cx: &mut Turn<'_>) {
        if self.live().is_some() && self.route.plan_move(reason, cx) {
            self.next_attempt(cx);
        }
    }

    /// The new link is accepted: unsubscribe everything on the old one and fence it.
    pub(super) fn leave_old_link(&mut self, cx: &mut Turn<'_>) {
        let old = self.links.find(|link| link.phase == Phase::Live);
        let Some(id) = old else {
            return;
        };
        let link = &mut self.links[id];
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
        link.deadline = Some(cx.now + cx.bus.settings.timings.link_timeout);
    }

    /// Everything that the old link owed has come: close it and replay on the new one.
    pub(super) fn left(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let reason = self
            .route
            .moving
            .map_or(Failure::Removed, |planned| planned.reason);
        let link = self.drop_link(id, false, cx.bus);
        let (broker, last_read) = (link.broker, link.last_read_at);
        self.route.lost = Some(Lost {
            broker,
            cause: reason,
            at: cx.now,
        });
        cx.bus.detached(self.id, broker, cx.now);
        let (settled, in_doubt) = self.settle(link, cx.bus);
        if reason.is_planned() {
            cx.bus
                .note_lost(broker, reason, last_read, &settled, in_doubt, cx.now);
        }
        self.requeue(settled, cx.bus);
        self.route.moving = None;
        self.replay_if_free(cx);
        self.next_attempt(cx);
    }

    /// Gives up a link that isn't live yet.
    pub(super) fn abandon_joining(&mut self, bus: &mut Bus) {
        while let Some(id) = self.links.find(|link| !link.is_attached()) {
            self.drop_link(id, false, bus);
        }
    }

    /// Takes a link out and has its socket closed.
    pub(super) fn drop_link(&mut self, id: LinkId, abort: bool, bus: &mut Bus) -> Link {
        self.give_room(id, bus);
        let mut link = self.links.remove(id);
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
        self.actions.push_back(Action::Close {
            link: link.id,
            abort,
        });
        link
    }

    /// Whether every broker that could be reached has refused the credentials (R15).
    pub(super) fn check_refused(&mut self, cx: &mut Turn<'_>) {
        if let Some(due) = self.turned_away_due(cx.bus)
            && due <= cx.now
            && let Some((trouble, _)) = cx.bus.roster.turned_away(self.identity(cx.bus))
        {
            let (text, broker) = (trouble.text.clone(), cx.bus.roster.current());
            self.route.attempts.refuse(broker, &text, cx.now);
            return self.refuse_sessions(cx);
        }
        let Some(due) = self.refused_due(cx.bus) else {
            return;
        };
        // A broker that went down just now may be back within the window, and accept.
        let window = cx.bus.settings.timings.refusal_window;
        let everywhere = cx.bus.roster.brokers().all(|(id, broker)| {
            let away = cx.now.saturating_duration_since(broker.since());
            let gone = broker.health() == Health::Down && away >= window;
            gone || self.route.attempts.is_refused_by(id)
        });
        if everywhere || cx.now >= due {
            self.refuse_sessions(cx);
        }
    }

    /// When a refusal reaches the sessions at the latest, if no broker accepts them.
    pub(super) fn refusal_due(&self, bus: &Bus) -> Option<Instant> {
        let due = self.refused_due(bus).into_iter();
        due.chain(self.turned_away_due(bus)).min()
    }

    /// When sessions hear that every broker that lives turns them away: those that are new soon,
    /// and those that were served behind `refusal_window`. An outage of verdicts is an outage for
    /// whoever was served.
    fn turned_away_due(&self, bus: &Bus) -> Option<Instant> {
        let needed = self
            .route
            .needed_since()
            .filter(|_| !self.sessions.is_empty())?;
        if self.links.any_attached() || self.done || self.refused {
            return None;
        }
        let (trouble, all_full) = bus.roster.turned_away(self.identity(bus))?;
        let window = bus.settings.timings.refusal_window;
        let is_new = !self.sessions.iter().any(|(_, slot)| slot.had_pong);
        let patience = match self.verdict {
            Verdict::Pending if all_full && is_new => window.min(NEWCOMER_PATIENCE),
            Verdict::Pending => window,
            Verdict::Admitted | Verdict::Accepted if all_full => window,
            Verdict::Admitted | Verdict::Accepted => return None,
        };
        let since = needed.max(trouble.since);
        // In time that natsmux ran (R9).
        let since = self.clock_floor.map_or(since, |floor| floor.max(since));
        Some(since + patience)
    }

    fn refused_due(&self, bus: &Bus) -> Option<Instant> {
        let since = self.route.attempts.refused_since()?;
        let attached = self.links.any_attached();
        (!attached).then(|| since + bus.settings.timings.refusal_window)
    }

    /// The brokers' refusal reaches the sessions; what they published is refused with them.
    pub(super) fn refuse_sessions(&mut self, cx: &mut Turn<'_>) {
        let Some(text) = self.route.attempts.take_refusal() else {
            return;
        };
        self.abandon_joining(cx.bus);
        self.route.moving = None;
        for session in self.sessions.ids() {
            let held = std::mem::take(&mut self.sessions[session].held);
            cx.bus.budgets.held.give(held.bytes());
            cx.bus.counters.refused += held.messages();
            self.sessions
                .close(session, CloseReason::Refused(text.clone()));
        }
        let orphans = std::mem::take(&mut self.orphans);
        cx.bus.budgets.held.give(orphans.bytes());
        cx.bus.counters.refused += orphans.messages();
        self.refused = true;
        self.check_done(cx);
    }

    /// Nobody is here any more, and what they published waits for a broker: within the
    /// daemon's budget, the trunk itself counted (R6).
    pub(super) fn wait_as_orphan(&mut self, bus: &mut Bus) {
        if self.orphans.is_empty() {
            return;
        }
        if bus.budgets.held.is_spent() {
            let orphans = std::mem::take(&mut self.orphans);
            bus.budgets.held.give(orphans.bytes());
            bus.counters.dropped += orphans.messages();
        } else if !std::mem::replace(&mut self.charged, true) {
            bus.budgets.held.take(ORPHAN_BYTES);
        }
    }

    /// Nothing waits here without a session any more.
    pub(super) fn give_back_charge(&mut self, bus: &Bus) {
        if std::mem::take(&mut self.charged) {
            bus.budgets.held.give(ORPHAN_BYTES);
        }
    }

    /// Ends the trunk once it has no session and owes no broker anything.
    pub(super) fn check_done(&mut self, cx: &mut Turn<'_>) {
        if self.done || !self.sessions.is_empty() || self.owes() || self.stays_idle(cx) {
            return;
        }
        while let Some(id) = self.links.first() {
            let link = self.drop_link(id, false, cx.bus);
            if link.is_attached() {
                cx.bus.detached(self.id, link.broker, cx.now);
                // Only a refused trunk leaves something unproven behind.
                let (settled, _) = self.settle(link, cx.bus);
                cx.bus.counters.refused += settled.messages();
            }
        }
        self.leave_bus(cx.bus);
    }

    /// Nobody drives the trunk any more, and what it knows can't be relied on: its sessions and
    /// its links are gone, and what it had of the bus is given back. What it published without
    /// proof is in doubt, what it held is dropped (R4).
    pub fn give_up(&mut self, cx: &mut Turn<'_>) {
        if self.done {
            return;
        }
        for link in self.links.remove_all() {
            if link.dialing {
                cx.bus.dial_ended(link.broker);
            }
            if link.in_barrier {
                cx.bus.leave_barrier();
            }
            let unsettled = link.account.unsettled();
            let refused = link.account.refused.min(unsettled);
            cx.bus.counters.refused += refused;
            cx.bus.counters.in_doubt += unsettled - refused;
            link.room.give(cx.bus);
        }
        self.actions = Queue::default();
        self.subscriptions = Subscriptions::default();
        let mut held = vec![std::mem::take(&mut self.orphans)];
        for slot in self.sessions.remove_all(cx.bus) {
            cx.bus.budgets.pending.give(slot.accounted);
            held.push(slot.held);
        }
        for held in held {
            cx.bus.budgets.held.give(held.bytes());
            cx.bus.counters.dropped += held.messages();
        }
        cx.bus.detach_everywhere(self.id, cx.now);
        self.leave_bus(cx.bus);
    }

    /// The end, for the bus.
    fn leave_bus(&mut self, bus: &mut Bus) {
        self.done = true;
        self.note_idle(None, bus);
        self.give_back_charge(bus);
        if self.route.is_failing_over() {
            bus.failovers.gone();
        }
        bus.remove(self.id);
        self.actions.push_back(Action::Done);
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
