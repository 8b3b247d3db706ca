//! The end of a trunk: refused by its brokers, done, or given up.

use std::time::Duration;

use super::action::Action;
use super::{CloseReason, Trunk, Verdict};
use crate::clock::Instant;
use crate::ledger::{Held, SessionId, Subscriptions};
use crate::queue::Queue;
use crate::upstream::brokers::roster::Health;
use crate::upstream::bus::{Bus, Turn};

/// How long a component that is new waits for a broker that turns newcomers away: shorter than
/// its own patience.
const NEWCOMER_PATIENCE: Duration = Duration::from_secs(1);

/// The cost of a trunk without sessions to the budget of waiting publishes, in bytes.
const ORPHAN_BYTES: usize = 4096;

impl Trunk {
    /// Whether every broker that could be reached has refused the credentials (R15).
    pub(super) fn check_refused(&mut self, cx: &mut Turn<'_>) {
        if let Some(due) = self.turned_away_due(cx.bus)
            && due <= cx.now
            && let Some((trouble, _)) = cx.bus.roster().turned_away(self.identity(cx.bus))
        {
            let (text, broker) = (trouble.text.clone(), cx.bus.roster().current());
            self.route.attempts.refuse(broker, &text, cx.now);
            return self.refuse_sessions(cx);
        }
        let Some(due) = self.refused_due(cx.bus) else {
            return;
        };
        // A broker that went down just now may be back within the window, and accept.
        let window = cx.bus.settings().timings.refusal_window;
        let everywhere = cx.bus.roster().brokers().all(|(id, broker)| {
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
        let (trouble, all_full) = bus.roster().turned_away(self.identity(bus))?;
        let window = bus.settings().timings.refusal_window;
        let is_new = !self.sessions.iter().any(|(_, slot)| slot.had_pong);
        let patience = match self.verdict {
            Verdict::Pending if all_full && is_new => window.min(NEWCOMER_PATIENCE),
            Verdict::Pending => window,
            Verdict::Admitted | Verdict::Accepted if all_full => window,
            Verdict::Admitted | Verdict::Accepted => return None,
        };
        let since = self.in_running_time(needed.max(trouble.since));
        Some(since + patience)
    }

    fn refused_due(&self, bus: &Bus) -> Option<Instant> {
        let since = self.route.attempts.refused_since()?;
        let attached = self.links.any_attached();
        (!attached).then(|| since + bus.settings().timings.refusal_window)
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
            cx.bus.budgets().held.give(held.bytes());
            cx.bus.counters_mut().refused += held.messages();
            self.sessions
                .close(session, CloseReason::Refused(text.clone()));
        }
        let orphans = std::mem::take(&mut self.orphans);
        cx.bus.budgets().held.give(orphans.bytes());
        cx.bus.counters_mut().refused += orphans.messages();
        self.refused = true;
        self.check_done(cx);
    }

    /// R37: no broker has served for long, and a session's component is told so. What it published
    /// is kept, or given up.
    pub fn reveal_outage(&mut self, session: SessionId, bus: &mut Bus) {
        let Some(slot) = self.sessions.get_mut(session) else {
            return;
        };
        if bus.drops_publishes() {
            drop_held(&mut slot.held, bus);
        }
        self.sessions.close(session, CloseReason::Outage);
    }

    /// R37: what sessions left behind that are gone is kept in an outage, or given up.
    pub(super) fn meet_outage(&mut self, cx: &mut Turn<'_>) {
        if cx.bus.drops_publishes() && !self.orphans.is_empty() {
            drop_held(&mut self.orphans, cx.bus);
            self.check_done(cx);
        }
    }

    /// Nobody is here any more, and what they published waits for a broker: within the
    /// daemon's budget, the trunk itself counted (R6).
    pub(super) fn wait_as_orphan(&mut self, bus: &mut Bus) {
        if self.orphans.is_empty() {
            return;
        }
        if bus.budgets().held.is_spent() || bus.drops_publishes() {
            drop_held(&mut self.orphans, bus);
        } else if !std::mem::replace(&mut self.charged, true) {
            bus.budgets().held.take(ORPHAN_BYTES);
        }
    }

    /// Nothing waits here without a session any more.
    pub(super) fn give_back_charge(&mut self, bus: &Bus) {
        if std::mem::take(&mut self.charged) {
            bus.budgets().held.give(ORPHAN_BYTES);
        }
    }

    /// Ends the trunk once it has no session and owes no broker anything.
    pub(super) fn check_done(&mut self, cx: &mut Turn<'_>) {
        let waits = self.awaits_session() || self.stays_idle(cx);
        if self.done || !self.sessions.is_empty() || self.owes() || waits {
            return;
        }
        while let Some(id) = self.links.first() {
            let link = self.drop_link(id, cx.bus);
            if link.is_attached() {
                cx.bus.detached(self.id, link.broker, cx.now);
                // Only a refused trunk leaves something unproven behind.
                let (settled, _) = self.settle(link, cx.bus);
                cx.bus.counters_mut().refused += settled.messages();
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
        self.forget_overlap(cx.bus);
        self.pulls = None;
        for link in self.links.remove_all() {
            if link.dialing {
                cx.bus.dial_ended(link.broker);
            }
            if link.in_barrier {
                cx.bus.leave_barrier();
            }
            let unsettled = link.account.unsettled();
            let refused = link.account.refused.min(unsettled);
            cx.bus.counters_mut().refused += refused;
            cx.bus.counters_mut().in_doubt += unsettled - refused;
            link.room.give(cx.bus);
        }
        self.actions = Queue::default();
        self.subscriptions = Subscriptions::default();
        let mut held = vec![std::mem::take(&mut self.orphans)];
        for slot in self.sessions.remove_all(cx.bus) {
            cx.bus.budgets().pending.give(slot.accounted);
            held.push(slot.held);
        }
        for held in held {
            cx.bus.budgets().held.give(held.bytes());
            cx.bus.counters_mut().dropped += held.messages();
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
            bus.note_gone();
        }
        bus.remove(self.id);
        self.actions.push_back(Action::Done);
    }
}

/// Publishes that waited for a broker are given up.
fn drop_held(held: &mut Held, bus: &mut Bus) {
    let held = std::mem::take(held);
    bus.budgets().held.give(held.bytes());
    bus.counters_mut().dropped += held.messages();
}
