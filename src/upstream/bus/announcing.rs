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
