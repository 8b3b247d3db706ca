//! Announcements (R29) on the bus: which trunks carry them, when they are due, and what those of
//! other hosts change.

use super::Bus;
use crate::clock::Instant;
use crate::config::Topology;
use crate::upstream::brokers::liveness::TrunkId;
use crate::upstream::brokers::presence::Heard;
use crate::upstream::brokers::roster::BrokerId;
use crate::upstream::brokers::trouble::IdentityDigest;

impl Bus {
    /// Whether this trunk announces the host (R29).
    pub(in crate::upstream) fn is_carrier(
        &self,
        trunk: TrunkId,
        identity: IdentityDigest,
        now: Instant,
    ) -> bool {
        let permits = |identity| self.brokers.presence.permits(identity, now);
        self.trunks.carriers.includes(trunk, identity, permits)
    }

    /// The trunks that may announce the host, and those that did until an older one came.
    fn wake_carriers(&mut self, now: Instant) {
        let permits = |identity| self.brokers.presence.permits(identity, now);
        self.trunks
            .woken
            .extend(self.trunks.carriers.oldest(permits));
    }

    /// All carriers announce now.
    pub(in crate::upstream) fn begin_announcing(&mut self, now: Instant) {
        self.brokers.presence.announced(now);
        self.brokers.presence.expire(now);
        self.weigh(now);
        self.wake_carriers(now);
    }

    /// A trunk came to a broker, or left it: announced where it was the first or the last, or
    /// where another one announces from now on.
    pub(super) fn note_reach(
        &mut self,
        broker: BrokerId,
        edge: usize,
        is_news: bool,
        now: Instant,
    ) {
        let news = self.watch(broker).attached() == edge || is_news;
        if news && self.brokers.presence.is_on() {
            self.brokers.presence.change(now);
            self.wake_carriers(now);
        }
    }

    /// The brokers on which this host is subscribed, by their `server_id`.
    pub(in crate::upstream) fn reaches(&self) -> Vec<String> {
        let reached = self
            .brokers
            .roster
            .brokers()
            .filter(|(id, _)| self.watch(*id).attached() > 0);
        let infos = reached.filter_map(|(_, broker)| broker.info());
        infos.map(|info| info.server_id.clone()).collect()
    }

    /// A broker doesn't permit presence to this identity. Returns whether that is to be said.
    pub(in crate::upstream) fn forbid_presence(
        &mut self,
        identity: IdentityDigest,
        now: Instant,
    ) -> bool {
        let new = self.brokers.presence.forbid(identity, now);
        // Others of its account deferred to it.
        for trunk in self.trunks.carriers.of(identity) {
            self.brokers.presence.bury(trunk);
        }
        self.brokers.presence.change(now);
        self.wake_carriers(now);
        new
    }

    /// An announcement came from the broker with this `server_id`.
    pub(in crate::upstream) fn hear(
        &mut self,
        json: &[u8],
        from: &str,
        (trunk, identity): (TrunkId, IdentityDigest),
        now: Instant,
    ) -> Heard {
        let heard = self.brokers.presence.hear(json, from, trunk, now);
        match heard {
            Heard::Nothing => {}
            Heard::ByElder(elder) => {
                let permits = |identity| self.brokers.presence.permits(identity, now);
                let speaks = self.trunks.carriers.speaks_for(elder, identity, permits);
                if speaks && self.brokers.presence.defer(identity, elder) {
                    self.trunks.woken.push(trunk);
                }
            }
            Heard::Refused => self.counters.announcements_refused += 1,
            Heard::News => {
                self.weigh(now);
                if self.brokers.presence.is_gathering(now) {
                    // Publishes may have waited for this host.
                    self.brokers.roster.note_change();
                }
                // It may have to be answered.
                self.wake_carriers(now);
            }
            Heard::Routed => self.brokers.roster.note_change(),
        }
        heard
    }

    /// Other hosts that are subscribed on a broker.
    pub fn hosts_at(&self, broker: BrokerId) -> usize {
        let info = self.brokers.roster.broker(broker).info();
        info.map_or(0, |info| self.brokers.presence.present(&info.server_id))
    }

    /// R26: independent brokers are routed to each other, or those of a cluster name different
    /// clusters, or none.
    pub fn has_wrong_topology(&self) -> bool {
        match self.settings.topology {
            Topology::Independent => {
                self.brokers.presence.is_routed() || self.brokers.roster.has_doubles()
            }
            Topology::Cluster => self.brokers.roster.names_differ(),
        }
    }

    /// Tells the roster which brokers the other hosts reach.
    pub(in crate::upstream) fn weigh(&mut self, now: Instant) {
        let brokers: Vec<(BrokerId, usize)> = self
            .brokers
            .roster
            .brokers()
            .map(|(id, broker)| {
                let known = broker
                    .info()
                    .map(|info| self.brokers.presence.missing(&info.server_id));
                (id, known.unwrap_or(0))
            })
            .collect();
        for (id, missing) in brokers {
            self.brokers.roster.weigh(id, missing);
        }
        self.brokers.roster.review(now);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::RandomState;
    use std::time::Duration;

    use super::*;
    use crate::upstream::brokers::admission::Admission;
    use crate::upstream::brokers::presence::Presence;
    use crate::upstream::brokers::roster::{Placement, Roster};
    use crate::upstream::bus::{Budgets, Settings};

    const OLD: (TrunkId, IdentityDigest) = (TrunkId(1), 1);
    const YOUNG: (TrunkId, IdentityDigest) = (TrunkId(2), 2);

    /// Returns a bus of independent brokers with both trunks attached.
    fn bus(now: Instant) -> Bus {
        let addrs = ["127.0.0.1:4222".parse().expect("an address")];
        let interval = Duration::from_secs(3);
        let roster = Roster::new(&addrs, Placement::First(None), interval, 1, now);
        let settings = Settings {
            topology: Topology::Independent,
            ..Settings::default()
        };
        let budgets = Budgets::new(1 << 20, 1 << 20, 1 << 20);
        let admission = Admission::new(RandomState::new());
        let mut bus = Bus::new(settings, roster, admission, budgets, now);
        *bus.presence_mut() = Presence::new("_P", "me");
        bus.presence_mut().configure(1, None);
        for (trunk, identity) in [OLD, YOUNG] {
            bus.attached(trunk, identity, BrokerId(0), now);
        }
        bus
    }

    /// The younger trunk hears what the older one announced.
    fn hear_elder(bus: &mut Bus, now: Instant) {
        let json = bus.presence().announcement("A", OLD.0, &[], now);
        bus.hear(&json, "A", YOUNG, now);
    }

    #[test]
    fn who_deferred_speaks_again_where_the_elder_may_not_any_more() {
        let now = Instant::now();
        let mut bus = bus(now);
        let speaks = |bus: &Bus, (trunk, identity)| bus.is_carrier(trunk, identity, now);
        hear_elder(&mut bus, now);
        assert!(speaks(&bus, OLD) && !speaks(&bus, YOUNG));
        bus.forbid_presence(OLD.1, now);
        assert!(!speaks(&bus, OLD) && speaks(&bus, YOUNG));
    }

    #[test]
    fn an_announcement_of_a_trunk_that_is_gone_silences_nobody() {
        let now = Instant::now();
        let mut bus = bus(now);
        bus.detached(OLD.0, BrokerId(0), now);
        hear_elder(&mut bus, now);
        assert!(bus.is_carrier(YOUNG.0, YOUNG.1, now));
    }
}
