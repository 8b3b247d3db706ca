//! Which broker this host uses, and which one a trunk dials (R12, R13, R29, R30).

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use super::{Broker, BrokerId, Health, Roster};
use crate::clock::Instant;
use crate::config::{BusConfig, Failback, Topology};
use crate::upstream::brokers::trouble::IdentityDigest;

/// A failure that is younger than this needs no second look.
const FRESH_FAILURE: Duration = Duration::from_millis(100);
/// Hosts come back at about the same time behind an outage that was over within this.
const FRESH_OUTAGE: Duration = Duration::from_secs(3);

/// A roster's answer to a trunk that wants a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pick {
    /// Dial this one.
    Dial(BrokerId),
    /// Its dials in flight are at their bound: wait for a turn.
    Queue,
    /// None is usable: wait until the roster changes.
    Wait,
}

/// Which of several live brokers a host uses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// Hosts spread: the order is rotated by a hash of the instance's name (R13).
    Spread {
        /// That hash.
        rotation: u64,
        /// The host goes back to the first of its order once that has been well for so long;
        /// `None`: not before the next failover.
        back: Option<Duration>,
    },
    /// All hosts use the first in configured order; one that has returned counts again after
    /// this time, or with `None` not before the next failover (R30).
    First(Option<Duration>),
}

impl Default for Placement {
    /// In configured order, and no way back.
    fn default() -> Self {
        Self::Spread {
            rotation: 0,
            back: None,
        }
    }
}

impl Placement {
    /// The placement of a bus on the host with this instance's name.
    pub fn of(name: &str, bus: &BusConfig) -> Self {
        match (bus.topology, bus.failback) {
            (Topology::Cluster, _) => {
                let mut rotation = DefaultHasher::new();
                name.hash(&mut rotation);
                Self::Spread {
                    rotation: rotation.finish(),
                    back: bus.rebalance.then_some(bus.timings.failback_delay),
                }
            }
            (Topology::Independent, Failback::Auto) => {
                Self::First(Some(bus.timings.failback_delay))
            }
            (Topology::Independent, Failback::Never) => Self::First(None),
        }
    }
}

/// A time without any broker.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outage {
    since: Instant,
    /// When one could be dialled again.
    over_at: Option<Instant>,
}

impl Roster {
    /// The broker to dial for a trunk that has no use for those in `avoid`. Where this
    /// host's broker can't be used at all, the choice moves on for all trunks.
    pub fn pick(&mut self, identity: IdentityDigest, avoid: &[BrokerId], now: Instant) -> Pick {
        self.reconsider(now);
        let possible = |&id: &BrokerId| {
            let broker = self.broker(id);
            let dialing = broker.dialing;
            let is_willing = || self.troubles.may_dial(id, identity, dialing, now);
            broker.accepts_dials() && !avoid.contains(&id) && is_willing()
        };
        let worth = |&id: &BrokerId| {
            let has_trouble = self.troubles.of(id, identity).next().is_some();
            (
                self.is_drained(id),
                has_trouble,
                self.broker(id).is_suspect(),
            )
        };
        let choice = self.in_order().filter(possible).min_by_key(worth);
        match choice {
            Some(id) if !self.has_turn(id) => Pick::Queue,
            Some(id) => {
                self.broker_mut(id).dialing += 1;
                Pick::Dial(id)
            }
            None => Pick::Wait,
        }
    }

    /// The brokers that a trunk with a link to each of `has` may dial now, and whether another
    /// must wait for its turn. Independent brokers get one link each.
    pub fn pick_all(
        &mut self,
        identity: IdentityDigest,
        has: &[BrokerId],
        now: Instant,
    ) -> (Vec<BrokerId>, bool) {
        let wanted = |&id: &BrokerId| {
            let broker = self.broker(id);
            let dialing = broker.dialing;
            let is_willing = || self.troubles.may_dial(id, identity, dialing, now);
            broker.accepts_dials() && !has.contains(&id) && is_willing()
        };
        let wanted: Vec<BrokerId> = self.order.iter().copied().filter(wanted).collect();
        let has_turn = |&id: &BrokerId| self.has_turn(id);
        let (dials, waits): (Vec<_>, Vec<_>) = wanted.into_iter().partition(has_turn);
        for &id in &dials {
            self.broker_mut(id).dialing += 1;
        }
        (dials, !waits.is_empty())
    }

    /// Moves this host's choice on where its broker can't be used. Where none can, what is
    /// known of the others may be old: they are asked again at once.
    pub(super) fn reconsider(&mut self, now: Instant) {
        let before = self.current;
        let accepts = |&id: &BrokerId| self.broker(id).accepts_dials();
        let usable = match self.placement {
            Placement::Spread { .. } => self.in_order().find(|&id| self.is_welcome(id, now)),
            Placement::First(failback) => self.first_usable(failback, now),
        };
        // Links that it refuses for a while stay where they are.
        let is_open = |id: &BrokerId| self.is_open(*id);
        let wanted = self.wanted().filter(is_open);
        let next = wanted
            .or(usable)
            .or_else(|| self.in_order().find(is_open))
            .or_else(|| self.in_order().find(accepts));
        match next {
            Some(next) => {
                self.changed |= next != self.current;
                self.current = next;
                if std::mem::take(&mut self.stranded)
                    && let Some(outage) = &mut self.outage
                {
                    outage.over_at = Some(now);
                }
            }
            None if !std::mem::replace(&mut self.stranded, true) => {
                let linked = |broker: &Broker| broker.has_links() && broker.health != Health::Down;
                if !self.brokers.iter().any(linked) {
                    let over_at = None;
                    self.outage.get_or_insert(Outage {
                        since: now,
                        over_at,
                    });
                }
                for broker in &mut self.brokers {
                    let fresh = |at: Instant| now.saturating_duration_since(at) < FRESH_FAILURE;
                    broker.failures = 0;
                    if !broker.failed_at.is_some_and(fresh) {
                        broker.probe_at = broker.probe_at.min(now);
                    }
                }
            }
            None => {}
        }
        self.review_steering(before, now);
    }

    /// R29, R30: the first usable one in configured order, of those that most hosts reach, that
    /// has not just returned. While none is better, the present one stays.
    fn first_usable(&self, failback: Option<Duration>, now: Instant) -> Option<BrokerId> {
        let usable = |id: &BrokerId| self.is_welcome(*id, now);
        let best = self.order.iter().copied().filter(usable);
        let best = best.min_by_key(|&id| self.worth(id, now))?;
        let current = self.current;
        if !self.order.contains(&current) || !self.is_welcome(current, now) {
            return Some(best);
        }
        let (missing, place) = (self.broker(current).missing, self.worth(current, now).2);
        let fewer = self.broker(best).missing < missing;
        let back = failback.is_some() && self.worth(best, now) < (missing, false, place);
        Some(if fewer || back { best } else { current })
    }

    /// The lower, the better: hosts that don't reach it, whether it has just returned, and its
    /// place in the order.
    fn worth(&self, id: BrokerId, now: Instant) -> (usize, bool, usize) {
        let place = self.order.iter().position(|other| *other == id);
        let place = place.unwrap_or(self.order.len());
        (self.broker(id).missing, !self.has_stayed(id, now), place)
    }

    /// Since when no broker was there, if that was so until lately; asked once.
    pub fn take_outage(&mut self, now: Instant) -> Option<Instant> {
        let outage = self.outage.take()?;
        let is_fresh = |over: Instant| now.saturating_duration_since(over) < FRESH_OUTAGE;
        outage.over_at.is_none_or(is_fresh).then_some(outage.since)
    }

    /// R29: how many hosts say that they don't reach a broker.
    pub fn weigh(&mut self, id: BrokerId, missing: usize) {
        self.broker_mut(id).missing = missing;
    }

    /// Looks at the choice again.
    pub fn review(&mut self, now: Instant) {
        self.reconsider(now);
    }

    /// A broker's place: the order counts last (R29, R30).
    pub fn place(&self, id: BrokerId, now: Instant) -> usize {
        let (missing, returned, place) = self.worth(id, now);
        let each = self.order.len() + 1;
        place + each * (usize::from(returned) + 2 * missing)
    }

    /// Whether a broker has not just returned.
    fn has_stayed(&self, id: BrokerId, now: Instant) -> bool {
        match (self.broker(id).returned_at, self.placement) {
            (None, _) | (_, Placement::Spread { .. }) => true,
            (Some(at), Placement::First(Some(delay))) => at + delay <= now,
            (Some(_), Placement::First(None)) => false,
        }
    }

    /// When publishes may go back to a broker that has returned (R30).
    pub(super) fn failback_due(&self) -> Option<Instant> {
        let Placement::First(Some(delay)) = self.placement else {
            return None;
        };
        let better = self.order.iter().take_while(|id| **id != self.current);
        let returned = better.filter_map(|&id| {
            let broker = self.broker(id);
            let settled = broker.returned_at? + delay;
            let usable = broker
                .held_until
                .map_or(settled, |until| until.max(settled));
            // Where fewer hosts are, it isn't better before that changes.
            let counts = broker.missing <= self.broker(self.current).missing;
            let is_fit = broker.accepts_dials() && !self.is_mute(id) && !self.is_drained(id);
            (counts && is_fit).then_some(usable)
        });
        returned.min()
    }

    pub(super) fn is_usable(&self, id: BrokerId, now: Instant) -> bool {
        let broker = self.broker(id);
        broker.accepts_dials()
            && !self.is_mute(id)
            && broker.held_until.is_none_or(|until| until <= now)
    }

    /// Whether a broker is one to use: nobody drains it.
    fn is_welcome(&self, id: BrokerId, now: Instant) -> bool {
        self.is_usable(id, now) && !self.is_drained(id)
    }

    /// This host's order, from its broker on and round to the one before it.
    fn in_order(&self) -> impl Iterator<Item = BrokerId> {
        let is_current = |&id: &BrokerId| id == self.current;
        let at = self.order.iter().position(is_current).unwrap_or(0);
        let (before, from) = self.order.split_at(at);
        from.iter().chain(before).copied()
    }

    /// Whether another broker than this one could be dialled now.
    pub fn has_spare(&self, id: BrokerId, identity: IdentityDigest, now: Instant) -> bool {
        let is_willing = |other| self.troubles.may_dial(other, identity, 0, now);
        self.brokers().any(|(other, broker)| {
            let is_up = broker.health == Health::Up && broker.accepts_dials();
            other != id && is_up && !broker.is_suspect() && is_willing(other)
        })
    }

    /// The one that this host uses, or would use.
    pub fn current(&self) -> BrokerId {
        self.current
    }
}
