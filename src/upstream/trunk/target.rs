//! The target of publishes among independent brokers, and the links that stand by (R26-R30).

use super::Trunk;
use super::action::{Action, Report};
use super::link::{Link, LinkId, OkOwner, Phase};
use super::route::{Choice, Lost, Several};
use crate::clock::Instant;
use crate::ledger::Settled;
use crate::upstream::brokers::roster::{Cause, Departure, Failure};
use crate::upstream::bus::{Bus, Turn};

impl Trunk {
    /// Lets the best link that there is become the live one: at once where there is none, and
    /// in order where another lives (R30).
    pub(super) fn choose_target(&mut self, cx: &mut Turn<'_>) {
        if self.done || self.route.moving.is_some() || self.is_leaving_live() {
            return;
        }
        let was_live = self.route.lost.is_some();
        let Some(several) = self.route.several_mut() else {
            return;
        };
        match several.choose(&self.links, was_live, cx) {
            Choice::Stay => {}
            Choice::Wait { is_ready: false } => {}
            Choice::Wait { is_ready: true } => self.make_ready(),
            Choice::Promote(id) => self.go_live(id, cx),
            Choice::Switch(to) => {
                if let Some(live) = self.links.live() {
                    let after = self.links.fence(live, cx);
                    if let Some(several) = self.route.several_mut() {
                        several.plan_switch(to, after);
                    }
                }
            }
            Choice::Cancel => self.resume_live(cx),
        }
    }

    /// Publishes go on to the live link.
    fn resume_live(&mut self, cx: &mut Turn<'_>) {
        if let Some(live) = self.live() {
            self.resume(live, cx);
        }
    }

    /// When something is due that only independent brokers need.
    pub(super) fn target_due(&self, bus: &Bus) -> Option<Instant> {
        let several = self.route.several()?;
        several.due(bus).into_iter().chain(self.lacks_due()).min()
    }

    /// Does what is due with independent brokers.
    pub(super) fn handle_target_timeout(&mut self, cx: &mut Turn<'_>) {
        if cx.bus.presence().due().is_some_and(|due| due <= cx.now) {
            // Behind an outage, others publish once this host says that it is there: all of it.
            let replaying =
                cx.bus.presence().is_gathering(cx.now) && cx.bus.barrier_opens_at(cx.now).is_some();
            if replaying {
                cx.bus.presence_mut().put_off(cx.now);
            } else {
                cx.bus.begin_announcing(cx.now);
            }
            self.announce(cx);
        }
        self.ask_where_due(cx);
        let Some(several) = self.route.several_mut() else {
            return;
        };
        if several.end_due_pauses(cx.now) {
            self.next_attempt(cx);
        }
        if self
            .route
            .several()
            .is_some_and(|several| several.must_choose(cx.now))
        {
            self.choose_target(cx);
        }
        let switch = self.route.several_mut();
        if let Some(to) = switch.and_then(|several| several.take_switch(cx.now)) {
            self.switch_to(to, cx);
        }
    }

    /// Makes a planned change of target.
    fn switch_to(&mut self, new: LinkId, cx: &mut Turn<'_>) {
        let Some(old) = self.live().filter(|_| self.links.has(new)) else {
            return;
        };
        if self.links.is_suspect(new, cx.bus) {
            self.resume(old, cx);
            return;
        }
        let link = &mut self.links[old];
        link.phase = Phase::Standby;
        let from = link.broker;
        // Natsmux answers for it what it hasn't answered to a verbose session, as behind a failover
        // (R20).
        let oks = link.oks.owed(OkOwner::Operation);
        link.oks.disown();
        let reason = cx
            .bus
            .roster()
            .must_leave(from)
            .unwrap_or(Departure::Failback);
        let cause = Cause::from(reason);
        self.route.lost = Some(Lost {
            broker: from,
            cause,
            at: cx.now,
        });
        let last_read = link.last_read_at;
        cx.bus
            .note_lost(from, cause, last_read, &Settled::default(), 0, cx.now);
        for slot in self.sessions.iter_mut() {
            slot.debts.oks += oks;
        }
        self.go_live(new, cx);
        let removed: Vec<LinkId> = Several::removed(&self.links, cx.bus).collect();
        for link in removed {
            self.leave(link, Departure::Removed, cx);
        }
    }

    /// A link's ledger is in place.
    pub(super) fn stand_by(&mut self, id: LinkId, cx: &mut Turn<'_>) {
        let link = &mut self.links[id];
        link.phase = Phase::Standby;
        link.deadline = None;
        if let Some(several) = self.route.several_mut() {
            several.end_pause(link.broker);
        }
        self.begin_straggling(id, cx);
        self.review_credentials(cx);
    }

    /// Gives up a link that publishes don't go to.
    pub(super) fn leave(&mut self, id: LinkId, reason: Departure, cx: &mut Turn<'_>) {
        let link = self.drop_link(id, cx.bus);
        if link.is_attached() {
            cx.bus.detached(self.id, link.broker, cx.now);
            cx.bus.admission_mut().refresh(&self.connect, cx.now);
            self.end_standby(link, reason.into(), cx);
        }
    }

    /// A link that stood by failed.
    pub(super) fn lose_standby(&mut self, link: Link, failure: Failure, cx: &mut Turn<'_>) {
        let broker = link.broker;
        let brief = cx.now.saturating_duration_since(link.opened_at) < super::route::BRIEF;
        cx.bus.counters_mut().link_failures += 1;
        self.note_lost_link(broker, failure, cx);
        if brief {
            self.route.pause(broker, self.id, cx);
        }
        self.end_standby(link, failure.into(), cx);
    }

    /// A link that stood by is gone.
    fn end_standby(&mut self, link: Link, cause: Cause, cx: &mut Turn<'_>) {
        let (id, broker) = (link.id, link.broker);
        let (settled, _) = self.settle(link, cx.bus);
        self.requeue(settled, cx.bus);
        self.actions.push_back(Action::Report(Report::Lost {
            link: id,
            broker,
            cause,
            first: false,
        }));
        let switch = self.route.several_mut();
        if switch.is_some_and(|several| several.cancel_switch_to(id)) {
            self.resume_live(cx);
        }
        self.release_late(cx.bus);
        self.replay_if_free(cx);
    }

    /// All links are opened anew: under other options (R20), or with other credentials.
    pub(super) fn renew_links(&mut self, reason: Departure, cx: &mut Turn<'_>) {
        self.route.moving = None;
        if let Some(several) = self.route.several_mut() {
            several.cancel_switch();
        }
        while let Some(id) = self.links.first() {
            let link = self.drop_link(id, cx.bus);
            if !link.is_attached() {
                continue;
            }
            // Of a failover that isn't over, the operator is still told the sum.
            self.route.lost.get_or_insert(Lost {
                broker: link.broker,
                cause: reason.into(),
                at: cx.now,
            });
            cx.bus.detached(self.id, link.broker, cx.now);
            let (settled, _) = self.settle(link, cx.bus);
            self.requeue(settled, cx.bus);
        }
        self.release_late(cx.bus);
    }

    /// R27: asks the links that stand by, or soon will, as well, ahead of the live one. One
    /// that is suspect is waited for if it isn't by then.
    pub(super) fn ping_standbys(&mut self, cx: &mut Turn<'_>) {
        for id in self.links.ids() {
            let link = &self.links[id];
            if link.takes_subscriptions() && link.phase != Phase::Live {
                self.links.fence(id, cx);
            }
        }
    }

    /// Asks every link that takes SUBs and UNSUBs; returns the live one's PING.
    pub(super) fn ping_everywhere(&mut self, cx: &mut Turn<'_>) -> Option<u64> {
        self.unmarked = None;
        self.ping_standbys(cx);
        let live = self.live();
        live.map(|at| self.links.fence(at, cx))
    }

    /// Whether every link, but for those that stand by and are suspect, has answered what it was
    /// asked before the PING with this number (R27).
    pub(super) fn all_answered(&self, seq: u64, bus: &Bus) -> bool {
        self.concerned(bus).all(|link| {
            let oldest = link.pings.oldest();
            oldest.is_none_or(|oldest| oldest.seq > seq)
        })
    }

    /// Whether all of these have proven every SUB and UNSUB.
    pub(super) fn has_proven_operations(&self, bus: &Bus) -> bool {
        self.concerned(bus).all(Link::has_proven_operations)
    }

    fn concerned(&self, bus: &Bus) -> impl Iterator<Item = &Link> {
        let links = self.links.iter();
        links.filter(|link| match link.phase {
            Phase::Live => true,
            Phase::Standby => !self.links.is_suspect(link.id, bus),
            _ => false,
        })
    }

    /// Gives the PONGs that waited for links that stand by.
    pub(super) fn release_late(&mut self, bus: &Bus) {
        if !self.route.is_independent() {
            return;
        }
        for session in self.sessions.awaiting_pong() {
            loop {
                let slot = self.sessions.get(session);
                let Some(seq) = slot.and_then(|slot| slot.debts.first_late()) else {
                    break;
                };
                if !self.all_answered(seq, bus) {
                    break;
                }
                self.sessions[session].debts.pop_late();
                self.sessions.deliver_pong(session, bus);
            }
        }
        self.close_finished();
    }
}
