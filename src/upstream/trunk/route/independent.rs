//! The way to independent brokers: a link to each, and the target of publishes among them
//! (R26-R30).

use std::time::Duration;

use super::attempts::RETRY;
use super::{Step, Steps};
use crate::clock::Instant;
use crate::proto::connect::ConnectInfo;
use crate::upstream::brokers::liveness::TrunkId;
use crate::upstream::brokers::roster::BrokerId;
use crate::upstream::bus::{Bus, Turn};
use crate::upstream::trunk::link::{Link, LinkId, Phase};
use crate::upstream::trunk::links::Links;

/// How long a new trunk waits for the link to a better broker.
const START_PATIENCE: Duration = Duration::from_millis(300);

/// The longest that a planned change waits for what is on its way to other hosts, where the
/// configuration asks for less.
const SETTLE_MOST: Duration = Duration::from_secs(1);

/// A planned change of the broker that publishes go to (R30).
#[derive(Clone, Copy, Debug)]
struct Switch {
    to: LinkId,
    /// The PING on the present link that must be answered.
    after: u64,
    /// When the change is made, once that is.
    settled_at: Option<Instant>,
}

/// A broker that turned the trunk away, and is asked again later.
#[derive(Clone, Copy, Debug)]
struct Pause {
    broker: BrokerId,
    failures: u32,
    /// `None`: it may be asked.
    until: Option<Instant>,
}

/// Which link publishes should go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::upstream::trunk) enum Choice {
    /// No change.
    Stay,
    /// This one from now on: there was none.
    Promote(LinkId),
    /// A better one is on its way, or other hosts are: publishes wait, and components needn't
    /// where `is_ready`.
    Wait { is_ready: bool },
    /// This one, once the live link has answered a PING.
    Switch(LinkId),
    /// The live link, although a change was planned.
    Cancel,
}

/// The links to several brokers of which one is the target of publishes.
#[derive(Debug, Default)]
pub(in crate::upstream::trunk) struct Several {
    switch: Option<Switch>,
    /// When the first target is chosen, whatever is on its way.
    choose_at: Option<Instant>,
    /// Brokers that turned the trunk away.
    pauses: Vec<Pause>,
    /// Whether the trunk announces the host, and the last announcement that it made (R29).
    pub(in crate::upstream::trunk) carries: bool,
    pub(in crate::upstream::trunk) announced: u64,
}

impl Several {
    /// Leaves brokers that are gone, and dials every one that has no link and may have one.
    pub(super) fn next(
        &self,
        trunk: TrunkId,
        connect: &ConnectInfo,
        links: &Links,
        cx: &mut Turn<'_>,
    ) -> Steps {
        let removed = Self::removed(links, cx.bus);
        let mut steps: Steps = removed.map(Step::Leave).collect();
        if let Some(stuck) = self.stuck(links, cx.bus) {
            if links[stuck].phase == Phase::Live {
                return Steps::from_slice(&[Step::Reopen]);
            }
            steps.push(Step::Leave(stuck));
        }
        if let Some(stale) = self.stale(links) {
            steps.push(Step::Redial(stale));
        }
        let frozen = |link: &Link| {
            let stays = !steps.contains(&Step::Leave(link.id));
            stays && link.is_attached() && cx.bus.roster().is_frozen(link.broker)
        };
        if let Some(frozen) = links.find(frozen) {
            steps.push(Step::Fail(frozen));
            return steps;
        }
        let stays = |link: &&Link| !steps.contains(&Step::Leave(link.id));
        let linked: Vec<BrokerId> = links.iter().filter(stays).map(|link| link.broker).collect();
        let is_routed = cx.bus.presence().is_routed();
        if is_routed && !linked.is_empty() {
            // R26: as in a cluster, one link has all that there is.
            if let Some(live) = links.live() {
                if links[live].is_outdated() {
                    return Steps::from_slice(&[Step::Reopen]);
                }
                let broker = links[live].broker;
                let others = links.iter().filter(|link| link.broker != broker);
                steps.retain(|step| *step == Step::Redial(broker));
                steps.extend(others.map(|link| Step::Leave(link.id)));
            }
            return steps;
        }
        let paused = self.pauses.iter().filter(|pause| pause.until.is_some());
        let paused = paused.map(|pause| pause.broker);
        let has: Vec<BrokerId> = linked.iter().copied().chain(paused).collect();
        let identity = cx.bus.admission().digest(connect);
        let dials = if is_routed {
            cx.bus.pick_one(trunk, identity, &has, cx.now)
        } else {
            cx.bus.pick_all(trunk, identity, &has, cx.now)
        };
        if linked.is_empty() && dials.is_empty() {
            steps.push(Step::Wait);
        }
        steps.extend(dials.into_iter().map(Step::Dial));
        steps
    }

    /// Links to brokers that are no longer configured, where publishes don't go.
    pub(in crate::upstream::trunk) fn removed(
        links: &Links,
        bus: &Bus,
    ) -> impl Iterator<Item = LinkId> {
        let is_removed = |link: &&Link| {
            link.phase == Phase::Standby && bus.roster().broker(link.broker).is_removed()
        };
        links.iter().filter(is_removed).map(|link| link.id)
    }

    /// The broker of a link with old credentials or options, which is to be opened anew: one at a
    /// time, the live one first (R20, R38).
    fn stale(&self, links: &Links) -> Option<BrokerId> {
        let is_pair = |link: &Link| beside(links, link).next().is_some();
        if links.any(|link| !link.phase.is_subscribed() && is_pair(link)) {
            return None;
        }
        let is_stale = |link: &Link| link.gives_way.is_some() && !self.rests(link.broker);
        live_first(links, is_stale).map(|id| links[id].broker)
    }

    /// A link with options that its component doesn't want any more, whose broker takes no other:
    /// nobody waits for that.
    fn stuck(&self, links: &Links, bus: &Bus) -> Option<LinkId> {
        // One that gives way already is waited for.
        let gives_way = |link: &Link| {
            let mut others = beside(links, link);
            others.any(|other| other.phase >= Phase::Authenticated)
        };
        let is_stuck = |link: &Link| {
            let serves = matches!(link.phase, Phase::Live | Phase::Standby);
            let is_suspect = bus.watch(link.broker).suspect_since().is_some();
            let takes_none = is_suspect || self.rests(link.broker);
            link.is_outdated() && serves && takes_none && !gives_way(link)
        };
        live_first(links, is_stuck)
    }

    /// Whether a broker turned the trunk away a short while ago.
    fn rests(&self, broker: BrokerId) -> bool {
        let mut pauses = self.pauses.iter();
        pauses.any(|pause| pause.broker == broker && pause.until.is_some())
    }

    /// A broker turned the trunk away, or hung up at once.
    pub(super) fn pause(&mut self, broker: BrokerId, trunk: TrunkId, cx: &Turn<'_>) {
        let at = self.pauses.iter().position(|pause| pause.broker == broker);
        let failures = at.map_or(0, |at| self.pauses.swap_remove(at).failures) + 1;
        let third = cx.bus.settings().timings.failback_delay / 3;
        let delay = RETRY.delay(failures, trunk.0).min(third);
        self.pauses.push(Pause {
            broker,
            failures,
            until: Some(cx.now + delay),
        });
    }

    /// A broker has accepted the trunk: it isn't avoided any more.
    pub(in crate::upstream::trunk) fn end_pause(&mut self, broker: BrokerId) {
        self.pauses.retain(|pause| pause.broker != broker);
    }

    /// Ends the pauses that are over. Returns whether there was any.
    pub(in crate::upstream::trunk) fn end_due_pauses(&mut self, now: Instant) -> bool {
        let mut any = false;
        for pause in &mut self.pauses {
            any |= pause.until.take_if(|until| *until <= now).is_some();
        }
        any
    }

    /// Which link publishes should go to: the best at once where there is none, and in order
    /// where another lives (R30). `was_live` says whether one was before.
    pub(in crate::upstream::trunk) fn choose(
        &mut self,
        links: &Links,
        was_live: bool,
        cx: &Turn<'_>,
    ) -> Choice {
        self.choose_at = None;
        let rank = |link: &Link| rank(link, cx);
        let subscribed = links.iter().filter(|link| link.phase.is_subscribed());
        let Some(best) = subscribed.min_by_key(|link| rank(link)) else {
            return Choice::Stay;
        };
        let best_rank = rank(best);
        let Some(live) = links.live() else {
            // At the start, a better one that is on its way is waited for.
            let patience = |link: &Link| link.opened_at + START_PATIENCE;
            let coming = links.iter().filter(|link| {
                let joining = !link.phase.is_subscribed() && patience(link) > cx.now;
                joining && !was_live && rank(link) < best_rank
            });
            let coming = coming.map(patience).min();
            // Behind an outage, so are the hosts that were there before it.
            let awaited = cx.bus.presence().awaits(best.server_id(), cx.now);
            self.choose_at = coming.into_iter().chain(awaited).min();
            return match self.choose_at {
                // Publishes wait for those hosts, and components needn't.
                Some(_) => Choice::Wait {
                    is_ready: coming.is_none(),
                },
                None => Choice::Promote(best.id),
            };
        };
        let worth = best_rank < rank(&links[live]);
        let is_sound = !links.is_suspect(live, cx.bus) && !best_rank.0;
        let is_planned = self.switch.is_some_and(|switch| switch.to == best.id);
        if worth && is_sound && !is_planned {
            Choice::Switch(best.id)
        } else if !worth && self.switch.take().is_some() {
            Choice::Cancel
        } else {
            Choice::Stay
        }
    }

    /// Whether publishes wait for a planned change.
    pub(super) fn is_switching(&self) -> bool {
        self.switch.is_some()
    }

    /// Plans to publish to another link once the PING with this number is answered.
    pub(in crate::upstream::trunk) fn plan_switch(&mut self, to: LinkId, after: u64) {
        self.switch = Some(Switch {
            to,
            after,
            settled_at: None,
        });
    }

    /// Gives up a planned change.
    pub(in crate::upstream::trunk) fn cancel_switch(&mut self) {
        self.switch = None;
    }

    /// Gives up a planned change to this link. Returns whether there was one.
    pub(in crate::upstream::trunk) fn cancel_switch_to(&mut self, link: LinkId) -> bool {
        self.switch.take_if(|switch| switch.to == link).is_some()
    }

    /// The live link has answered all PINGs up to this number: a planned change may be due soon.
    pub(in crate::upstream::trunk) fn handle_answer(&mut self, answered: u64, cx: &Turn<'_>) {
        if let Some(switch) = &mut self.switch
            && switch.settled_at.is_none()
            && switch.after <= answered
        {
            let settle = cx.bus.settings().timings.switch_settle;
            let farthest = cx.bus.longest_round_trip();
            // A link that stalled looks far away: publishes don't wait for that.
            let farthest = (2 * farthest).min(SETTLE_MOST);
            switch.settled_at = Some(cx.now + settle.max(farthest));
        }
    }

    /// The link that publishes go to from now on, where a planned change is due.
    pub(in crate::upstream::trunk) fn take_switch(&mut self, now: Instant) -> Option<LinkId> {
        let is_due = |switch: &mut Switch| switch.settled_at.is_some_and(|at| at <= now);
        self.switch.take_if(is_due).map(|switch| switch.to)
    }

    /// Whether the first target is to be chosen now, whatever is on its way.
    pub(in crate::upstream::trunk) fn must_choose(&self, now: Instant) -> bool {
        self.choose_at.is_some_and(|at| at <= now)
    }

    /// When a planned change, the choice of the first target, an announcement or another attempt
    /// is due.
    pub(in crate::upstream::trunk) fn due(&self, bus: &Bus) -> Option<Instant> {
        // Asked of few: the first trunk that finds it due has all carriers announce.
        let announcement = bus.presence().due().filter(|_| self.carries);
        let switch = self.switch.and_then(|switch| switch.settled_at);
        let pauses = self.pauses.iter().filter_map(|pause| pause.until);
        let others = [switch, self.choose_at, announcement];
        pauses.chain(others.into_iter().flatten()).min()
    }
}

/// Other links to a link's broker.
fn beside<'l>(links: &'l Links, link: &'l Link) -> impl Iterator<Item = &'l Link> {
    let is_other = |other: &&Link| other.id != link.id && other.broker == link.broker;
    links.iter().filter(is_other)
}

/// A link that is so: the live one, if it is.
fn live_first(links: &Links, is_so: impl Fn(&Link) -> bool) -> Option<LinkId> {
    let live = links.live().filter(|live| is_so(&links[*live]));
    live.or_else(|| links.find(is_so))
}

/// The lower, the better: suspect, about to leave, not the bus's choice, its place.
fn rank(link: &Link, cx: &Turn<'_>) -> (bool, bool, bool, usize) {
    let suspect = cx.bus.watch(link.broker).suspect_since().is_some();
    let leaving = cx.bus.roster().must_leave(link.broker).is_some();
    let chosen = cx.bus.roster().current() == link.broker;
    let place = cx.bus.roster().place(link.broker, cx.now);
    (suspect, leaving, !chosen, place)
}
