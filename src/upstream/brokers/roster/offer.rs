//! The offer that brokers make together: components are told no more than every broker in use takes
//! (R17).

use super::{Broker, BrokerId, Health, Placement, Roster};
use crate::clock::Instant;
use crate::proto::info::{HeaderSupport, ServerInfo};
use std::time::Duration;

/// The bound of a nats-server that isn't configured otherwise, in bytes.
const DEFAULT_MAX_PAYLOAD: usize = 1024 * 1024;
/// How long a bound is remembered that a broker didn't tell, but enforced.
const LEARNED_FOR: Duration = Duration::from_secs(600);

/// Features that a session may count on, whatever broker it comes to (R17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Largest payload that every broker takes, in bytes.
    pub max_payload: usize,
    /// Support for headers at the least of the brokers.
    pub headers: HeaderSupport,
}

impl Default for Offer {
    /// Returns the offer of a nats-server that isn't configured otherwise.
    fn default() -> Self {
        Self {
            max_payload: DEFAULT_MAX_PAYLOAD,
            headers: HeaderSupport::On,
        }
    }
}

impl Roster {
    /// Whether a component must send credentials: a broker of this bus asks for them, or
    /// none was seen yet (R17).
    pub fn auth_required(&self) -> bool {
        !self.was_seen() || self.infos().any(|info| info.auth_required)
    }

    /// Returns the offer that a session may count on.
    pub fn offer(&self) -> Offer {
        self.offer
    }

    /// The longest control line that the brokers take, in bytes: their arguments, as brokers count.
    pub fn max_control_line(&self) -> usize {
        self.max_control_line
    }

    /// A broker closed a link for a control line that was longer than this. No INFO tells that
    /// bound, so it is remembered for a while.
    pub fn learn_line(&mut self, id: BrokerId, longest: usize, now: Instant) {
        let learned = &mut self.broker_mut(id).line_learned;
        let known = learned.map_or(usize::MAX, |(known, _)| known);
        *learned = Some((longest.min(known), now));
        self.note_infos();
    }

    /// Forgets bounds that were learned long ago: they may have been raised.
    pub(super) fn forget_lines(&mut self, now: Instant) {
        let old = |learned: &(usize, Instant)| learned.1 + LEARNED_FOR <= now;
        let mut news = false;
        for broker in &mut self.brokers {
            news |= broker
                .line_learned
                .take_if(|learned| old(learned))
                .is_some();
        }
        if news {
            self.note_infos();
        }
    }

    pub(super) fn lines_due(&self) -> Option<Instant> {
        let learned = self.brokers.iter().filter_map(|broker| broker.line_learned);
        learned.map(|(_, at)| at + LEARNED_FOR).min()
    }

    /// The INFOs that count for what components are told: of the broker in use what it takes, and
    /// of all that live where none is in use yet. What a dead broker said once holds for nobody.
    fn infos_that_count(&self) -> Vec<&ServerInfo> {
        let of = |counts: &dyn Fn(&Broker) -> bool| -> Vec<&ServerInfo> {
            let brokers = self.brokers().filter(|(_, broker)| counts(broker));
            brokers.filter_map(|(_, broker)| broker.info()).collect()
        };
        let independent = matches!(self.placement, Placement::First(_));
        let used = of(&|broker| broker.has_links() && !independent);
        if !used.is_empty() {
            return used;
        }
        let alive = of(&|broker| broker.health != Health::Down);
        if alive.is_empty() {
            self.infos().collect()
        } else {
            alive
        }
    }

    /// Works out what the brokers offer, which may be news.
    pub(super) fn note_infos(&mut self) {
        let infos = self.infos_that_count();
        let max_payload = infos.iter().map(|info| info.max_payload).min();
        let headers = infos.iter().map(|info| info.header_support()).min();
        let longest = infos.iter().map(|info| info.max_control_line()).min();
        let offer = Offer {
            max_payload: max_payload.unwrap_or(DEFAULT_MAX_PAYLOAD),
            headers: headers.unwrap_or(HeaderSupport::On),
        };
        self.offer_changed |= offer != self.offer;
        self.offer = offer;
        let counts = |broker: &&Broker| !broker.removed && broker.health != Health::Down;
        let learned = self.brokers.iter().filter(counts);
        let learned = learned
            .filter_map(|broker| broker.line_learned)
            .map(|(longest, _)| longest);
        let learned = learned.min().unwrap_or(usize::MAX);
        self.max_control_line = longest.unwrap_or(usize::MAX).min(learned);
    }

    /// Whether an INFO or a reload has changed the offer; asked once per change.
    pub fn take_offer_changed(&mut self) -> bool {
        std::mem::take(&mut self.offer_changed)
    }

    /// Whether every configured broker was seen and none asks for credentials (R16).
    pub fn no_auth_anywhere(&self) -> bool {
        self.brokers()
            .all(|(_, broker)| broker.info().is_some_and(|info| !info.auth_required))
    }

    /// The last INFO of each broker that has sent one.
    pub fn infos(&self) -> impl Iterator<Item = &ServerInfo> {
        self.brokers().filter_map(|(_, broker)| broker.info())
    }

    /// The brokers that aren't in use and offer less than what components are told.
    pub fn lesser(&self) -> impl Iterator<Item = BrokerId> {
        let offers_less = |info: &ServerInfo| {
            let headers = info.header_support() < self.offer.headers;
            info.max_payload < self.offer.max_payload || headers
        };
        self.brokers().filter_map(move |(id, broker)| {
            let is_spare = !broker.has_links() && broker.health != Health::Down;
            (is_spare && broker.info().is_some_and(offers_less)).then_some(id)
        })
    }

    /// The INFOs from which a component's is made (R17).
    pub fn offered(&self) -> Vec<&ServerInfo> {
        self.infos_that_count()
    }

    /// A broker's last INFO; of one that has never sent any, another's: they are mostly alike.
    pub fn info_like(&self, id: BrokerId) -> Option<&ServerInfo> {
        let own = self.broker(id).info();
        own.or_else(|| self.infos().next())
    }

    /// Whether two brokers have introduced themselves that aren't of one cluster, as they say.
    pub fn names_differ(&self) -> bool {
        let mut names = self.infos().map(|info| info.cluster.as_deref());
        let first = names.next().flatten();
        names.any(|name| name.is_none() || name != first)
    }

    /// Whether any broker has ever sent an INFO.
    pub fn was_seen(&self) -> bool {
        self.infos().next().is_some()
    }

    /// Whether all brokers that were seen are the Ruby server of 2012: the only one that names
    /// neither a protocol nor a version of Go.
    pub fn are_of_2012(&self) -> bool {
        self.was_seen()
            && self
                .infos()
                .all(|info| info.proto == 0 && info.go.is_none())
    }
}
