//! The watch of a bus's trunks over its brokers (R7-R9): which trunks are attached where, and what
//! their fences say of each broker.

use std::time::Duration;

use super::Bus;
use super::tracked::Tracked;
use crate::clock::Instant;
use crate::upstream::brokers::liveness::{Liveness, TrunkId};
use crate::upstream::brokers::roster::BrokerId;
use crate::upstream::brokers::trouble::IdentityDigest;

impl Bus {
    /// A trunk's link to this broker went live.
    pub(in crate::upstream) fn attached(
        &mut self,
        trunk: TrunkId,
        identity: IdentityDigest,
        broker: BrokerId,
        now: Instant,
    ) {
        self.brokers.roster.attach(broker, trunk);
        self.brokers.unproven_said = false;
        if let Some(since) = self.brokers.roster.take_outage(now) {
            self.brokers.presence.gather(since, now);
        }
        let is_new = self.brokers.presence.is_on() && self.trunks.carriers.enter(trunk, identity);
        self.note_reach(broker, 1, is_new, now);
    }

    /// A trunk's live link to this broker is gone.
    pub(in crate::upstream) fn detached(&mut self, trunk: TrunkId, broker: BrokerId, now: Instant) {
        let next_sentinel = self.brokers.roster.detach(broker, trunk, now);
        self.trunks.woken.extend(next_sentinel);
        let is_gone =
            self.brokers.presence.is_on() && self.brokers.roster.brokers_of(trunk).is_empty();
        if is_gone {
            self.forget_carrier(trunk);
        }
        self.note_reach(broker, 0, is_gone, now);
        self.check_barrier();
    }

    /// A trunk announces the host no more: not as whom it was until now.
    pub(in crate::upstream) fn forget_carrier(&mut self, trunk: TrunkId) {
        self.brokers.presence.bury(trunk);
        self.trunks.carriers.leave(trunk);
    }

    /// All live links of this trunk are gone.
    pub(in crate::upstream) fn detach_everywhere(&mut self, trunk: TrunkId, now: Instant) {
        for broker in self.brokers.roster.brokers_of(trunk) {
            self.detached(trunk, broker, now);
        }
    }

    /// The watch over a broker (R7, R8).
    pub fn watch(&self, broker: BrokerId) -> &Liveness {
        self.brokers.roster.broker(broker).liveness()
    }

    pub(super) fn watch_mut(&mut self, broker: BrokerId) -> &mut Liveness {
        Tracked::quietly(&mut self.brokers.roster).liveness_mut(broker)
    }

    /// A trunk doesn't read its links for now (R33): it can't watch over brokers.
    pub(in crate::upstream) fn step_aside(&mut self, trunk: TrunkId, now: Instant) {
        let sentinels = Tracked::quietly(&mut self.brokers.roster).step_aside(trunk, now);
        self.trunks.woken.extend(sentinels);
    }

    /// A trunk reads its links again.
    pub(in crate::upstream) fn step_back(&mut self, trunk: TrunkId) {
        Tracked::quietly(&mut self.brokers.roster).step_back(trunk);
    }

    /// Something is published to this broker.
    pub(in crate::upstream) fn note_publish(&mut self, broker: BrokerId, now: Instant) {
        let sentinel = self.watch_mut(broker).note_publish(now);
        self.trunks.woken.extend(sentinel);
    }

    /// The broker's sentinel waits long for an answer: others are to ask as well.
    pub(in crate::upstream) fn call_witnesses(&mut self, broker: BrokerId, now: Instant) {
        let called = self.watch_mut(broker).call_witnesses(now);
        self.trunks.woken.extend(called);
    }

    /// The broker's sentinel waits too long for an answer (R8).
    pub(in crate::upstream) fn suspect(&mut self, broker: BrokerId, now: Instant) {
        self.counters.suspicions += 1;
        let concerned = self.brokers.roster.liveness_mut(broker).suspect(now);
        self.trunks.woken.extend(concerned);
    }

    /// A fence of `asked` was answered by this broker.
    pub(in crate::upstream) fn fence_answered(
        &mut self,
        trunk: TrunkId,
        broker: BrokerId,
        asked: Instant,
        now: Instant,
    ) {
        let round_trip = now.saturating_duration_since(asked);
        let watch = self.brokers.roster.liveness_mut(broker);
        let cleared = watch.answered(trunk, asked, now);
        watch.note_round_trip(trunk, round_trip);
        self.brokers.roster.handle_answer(broker, now);
        if let Some((suspected, concerned)) = cleared {
            self.counters.suspect_ms += suspected.as_millis() as u64;
            self.trunks.woken.extend(concerned);
            self.check_barrier();
        }
    }

    /// The smoothed round trip to the farthest broker.
    pub(in crate::upstream) fn longest_round_trip(&self) -> Duration {
        let brokers = self.brokers.roster.brokers();
        let trips = brokers.filter_map(|(id, _)| self.watch(id).round_trip());
        trips.max().unwrap_or_default()
    }
}
