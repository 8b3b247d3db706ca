//! The brokers of a bus: which of them live, and which one this host uses (R11-R13).
//!
//! Pure: dials, probes and deaths are told to it, probes to make come out of
//! [`Roster::poll_probe`]. All trunks of a bus ask the same roster, so they leave a broker
//! together and choose the next together. A broker that is down is tried by the roster's
//! own probe only; the trunks wait for its answer instead of dialling, each by itself.

use core::net::IpAddr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use smallvec::SmallVec;

use super::backoff::Backoff;
pub use super::broker::{Broker, BrokerId, Failure, Health};
use super::trouble::{IdentityDigest, Trouble, Troubles};
use crate::clock::Instant;
use crate::config::{BrokerAddr, BusConfig, Failback, Topology};
use crate::proto::info::{HeaderSupport, ServerInfo};

/// What nats-server takes unless it is configured otherwise, in bytes.
const DEFAULT_MAX_PAYLOAD: usize = 1024 * 1024;
/// Pause between probes of a broker that doesn't answer, while the bus has no live link.
const PROBE_ALONE: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(2),
};
/// The same while another broker carries the bus.
const PROBE_SPARE: Backoff = Backoff {
    first: Duration::from_millis(100),
    longest: Duration::from_secs(10),
};
/// A broker that fails sooner than this after it came up is flapping.
const STABLE_AFTER: Duration = Duration::from_secs(10);
/// How long a flapping broker is passed over while another one lives.
const HOLD_DOWN: Backoff = Backoff {
    first: Duration::from_millis(250),
    longest: Duration::from_secs(2),
};
/// A failure that is younger than this needs no second look.
const FRESH_FAILURE: Duration = Duration::from_millis(100);
/// How long an independent broker that froze is left alone after its first word.
const THAWING: Duration = Duration::from_secs(1);
/// Hosts come back at about the same time behind an outage that was over within this.
const FRESH_OUTAGE: Duration = Duration::from_secs(3);
/// Answers in a row without an address after which that broker is left.
const UNNAMED_MOST: u32 = 3;
/// Addresses of one name that are brokers.
const ADDRESSES_MOST: usize = 16;

/// How long a bound is remembered that a broker didn't tell, but enforced.
const LEARNED_FOR: Duration = Duration::from_secs(600);

/// What a session may count on, whatever broker it comes to (R17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Largest payload that every broker takes, in bytes.
    pub max_payload: usize,
    /// What the least of the brokers knows of headers.
    pub headers: HeaderSupport,
}

/// What a roster says to a trunk that wants a link.
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
    /// Hosts spread: the order is rotated by this number, a hash of the instance's name, and
    /// there is no way back before the next failover (R13).
    Spread(u64),
    /// All hosts use the first in configured order; one that has returned counts again after
    /// this time, or with `None` not before the next failover (R30).
    First(Option<Duration>),
}

impl Placement {
    /// The placement of a bus on the host with this instance's name.
    pub fn of(name: &str, bus: &BusConfig) -> Self {
        match (bus.topology, bus.failback) {
            (Topology::Cluster, _) => {
                let mut rotation = DefaultHasher::new();
                name.hash(&mut rotation);
                Self::Spread(rotation.finish())
            }
            (Topology::Independent, Failback::Auto) => {
                Self::First(Some(bus.timings.failback_delay))
            }
            (Topology::Independent, Failback::Never) => Self::First(None),
        }
    }
}

/// The brokers of a bus.
#[derive(Debug)]
pub struct Roster {
    brokers: Vec<Broker>,
    /// As they are configured, in order.
    addrs: Vec<BrokerAddr>,
    /// In the order in which this host tries them.
    order: Vec<BrokerId>,
    /// The one that this host uses.
    current: BrokerId,
    placement: Placement,
    probe_interval: Duration,
    seed: u64,
    /// Whether a trunk that waits may find something new.
    changed: bool,
    /// What all brokers offer, and the longest control line that all take.
    offer: Offer,
    max_control_line: usize,
    /// Whether the offer has changed since it was asked for.
    offer_changed: bool,
    /// No broker can be dialled, and all were asked again because of that.
    stranded: bool,
    /// Since when, where no link was opened since.
    outage: Option<Outage>,
    /// Brokers that live and turn links away.
    troubles: Troubles,
    /// A broker is another process than before; asked once per change.
    renewed: bool,
    /// natsmux's own `server_id`s, by which a broker that is natsmux itself is known.
    own_ids: Vec<String>,
}

/// A time without any broker.
#[derive(Clone, Copy, Debug)]
struct Outage {
    since: Instant,
    /// When one could be dialled again.
    over_at: Option<Instant>,
}

impl Roster {
    /// A roster of `addrs` (at least one). `seed` feeds the jitter.
    pub fn new(
        addrs: &[BrokerAddr],
        placement: Placement,
        probe_interval: Duration,
        seed: u64,
        now: Instant,
    ) -> Self {
        let mut roster = Self {
            brokers: Vec::new(),
            addrs: Vec::new(),
            order: Vec::new(),
            current: BrokerId(0),
            placement,
            probe_interval,
            seed,
            changed: false,
            offer: Offer {
                max_payload: DEFAULT_MAX_PAYLOAD,
                headers: HeaderSupport::On,
            },
            max_control_line: usize::MAX,
            offer_changed: false,
            stranded: false,
            outage: None,
            troubles: Troubles::default(),
            renewed: false,
            own_ids: Vec::new(),
        };
        roster.configure(addrs, placement, probe_interval, now);
        roster.current = roster.order[0];
        roster
    }

    /// Takes a new list of brokers (reload) and returns those that were removed.
    pub fn configure(
        &mut self,
        addrs: &[BrokerAddr],
        placement: Placement,
        probe_interval: Duration,
        now: Instant,
    ) -> Vec<BrokerId> {
        self.placement = placement;
        self.probe_interval = probe_interval;
        self.addrs = addrs.to_vec();
        for addr in addrs {
            self.enlist(addr, now);
        }
        for broker in &mut self.brokers {
            broker.removed |= !addrs.contains(&broker.addr);
        }
        self.reorder()
    }

    /// Works out the order anew, and says which brokers aren't in it any more.
    fn reorder(&mut self) -> Vec<BrokerId> {
        let ids = |addr: &BrokerAddr| {
            let mut ids: Vec<BrokerId> = (0..self.brokers.len() as u16).map(BrokerId).collect();
            ids.retain(|id| {
                let broker = self.broker(*id);
                broker.addr == *addr && !broker.removed
            });
            // All hosts have the same order, whatever their name servers'.
            ids.sort_by_key(|id| self.broker(*id).ips.clone());
            ids
        };
        let mut order: Vec<BrokerId> = self.addrs.iter().flat_map(ids).collect();
        if let Placement::Spread(rotation) = self.placement {
            let turns = (rotation % order.len().max(1) as u64) as usize;
            order.rotate_left(turns);
        }
        let removed: Vec<BrokerId> = self
            .order
            .iter()
            .copied()
            .filter(|id| !order.contains(id))
            .collect();
        if removed.contains(&self.current) || !order.contains(&self.current) {
            self.current = order.first().copied().unwrap_or(self.current);
        }
        self.order = order;
        self.note_infos();
        self.changed = true;
        removed
    }

    /// The names that are configured as brokers' hosts, each with its port.
    pub fn names(&self) -> Vec<BrokerAddr> {
        let is_name = |addr: &&BrokerAddr| addr.host.parse::<IpAddr>().is_err();
        self.addrs.iter().filter(is_name).cloned().collect()
    }

    /// Whether names are to be asked soon: one has no address, or no broker lives.
    pub fn needs_names(&self) -> bool {
        let is_unknown = |(_, broker): (BrokerId, &Broker)| broker.ips.is_empty();
        !self.names().is_empty() && (!self.is_alive() || self.brokers().any(is_unknown))
    }

    /// A name means these addresses: each is a broker. One that isn't among them any more is left
    /// once it has been so for a while, since some name servers tell but a part at a time. Returns
    /// whether anything has changed.
    pub fn set_addresses(&mut self, addr: &BrokerAddr, ips: &[IpAddr], now: Instant) -> bool {
        if !self.addrs.contains(addr) {
            return false;
        }
        let groups = addresses(ips);
        let several = groups.len() > 1;
        let mut changed = false;
        for group in &groups {
            let is_it = |broker: &Broker| broker.addr == *addr && broker.ips == *group;
            if let Some(known) = self.brokers.iter_mut().find(|broker| is_it(broker)) {
                changed |= std::mem::take(&mut known.removed);
                known.unnamed = 0;
                continue;
            }
            changed = true;
            let id = self.place_for(addr, now);
            let broker = self.broker_mut(id);
            broker.ips.clone_from(group);
            broker.probe_at = now;
            if broker.health == Health::Down {
                (broker.health, broker.since) = (Health::Unknown, now);
            }
        }
        for broker in self
            .brokers
            .iter_mut()
            .filter(|broker| broker.addr == *addr)
        {
            broker.is_one_of_several = several;
            if groups.contains(&broker.ips) || broker.removed {
                continue;
            }
            broker.unnamed = broker.unnamed.saturating_add(1);
            let is_idle = broker.links == 0 && broker.health == Health::Down;
            if is_idle || broker.unnamed >= UNNAMED_MOST {
                broker.removed = true;
                changed = true;
            }
        }
        if changed {
            self.reorder();
            self.reconsider(now);
        }
        changed
    }

    /// A name has no address, or none yet. What it meant before holds. Returns the cause where it
    /// is news.
    pub fn name_failed(
        &mut self,
        addr: &BrokerAddr,
        is_slow: bool,
        now: Instant,
    ) -> Option<Failure> {
        let failure = match is_slow {
            true => Failure::NameTimeout,
            false => Failure::NameNotFound,
        };
        let unknown = |broker: &Broker| broker.addr == *addr && broker.ips.is_empty();
        let at = self.brokers.iter().position(unknown)?;
        let known = self.brokers[at].last_failure.replace(failure);
        if self.brokers[at].health != Health::Down {
            self.handle_failure(BrokerId(at as u16), failure, now);
        }
        (known != Some(failure)).then_some(failure)
    }

    /// The brokers in the order in which this host tries them.
    pub fn brokers(&self) -> impl Iterator<Item = (BrokerId, &Broker)> {
        self.order.iter().map(|&id| (id, self.broker(id)))
    }

    /// One broker.
    pub fn broker(&self, id: BrokerId) -> &Broker {
        &self.brokers[usize::from(id.0)]
    }

    /// The one that this host uses, or would use.
    pub fn current(&self) -> BrokerId {
        self.current
    }

    /// Whether at least one broker lives.
    pub fn is_alive(&self) -> bool {
        self.brokers().any(|(id, _)| self.serves(id))
    }

    /// Whether a broker serves, as far as is known: it lives, and has links or turns none away.
    pub fn serves(&self, id: BrokerId) -> bool {
        self.broker(id).lives() && !self.is_mute(id)
    }

    /// Whether a broker turns links away and has none.
    fn is_mute(&self, id: BrokerId) -> bool {
        self.broker(id).links == 0 && self.troubles.any_of(id).is_some()
    }

    /// Why a broker that lives serves nobody.
    pub fn trouble(&self, id: BrokerId) -> Option<&Trouble> {
        let broker = self.broker(id);
        let trouble = self.troubles.any_of(id);
        trouble.filter(|_| broker.lives() && broker.links == 0)
    }

    /// Whether at least one broker lives that takes newcomers: one that is about to leave
    /// doesn't.
    pub fn takes_newcomers(&self) -> bool {
        self.brokers().any(|(id, broker)| {
            let trouble = self.troubles.any_of(id);
            let is_mute = trouble.is_some_and(|trouble| trouble.cause == Failure::NoVerdict);
            broker.health == Health::Up && broker.accepts_dials() && !is_mute
        })
    }

    /// Whether at least one broker takes newcomers and turns nobody away.
    pub fn serves_newcomers(&self) -> bool {
        self.brokers().any(|(id, broker)| {
            let is_up = broker.health == Health::Up && broker.accepts_dials();
            is_up && self.troubles.any_of(id).is_none()
        })
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

    /// Whether every broker has answered, or failed to.
    pub fn was_asked(&self) -> bool {
        self.brokers()
            .all(|(_, broker)| broker.health != Health::Unknown)
    }

    /// Whether a component must send credentials: a broker of this bus asks for them, or
    /// none was seen yet (R17).
    pub fn auth_required(&self) -> bool {
        !self.was_seen() || self.infos().any(|info| info.auth_required)
    }

    /// What a session may count on.
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
    fn forget_lines(&mut self, now: Instant) {
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

    fn lines_due(&self) -> Option<Instant> {
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
        let used = of(&|broker| broker.links > 0 && !independent);
        if !used.is_empty() {
            return used;
        }
        let alive = of(&|broker| broker.health != Health::Down);
        match alive.is_empty() {
            true => self.infos().collect(),
            false => alive,
        }
    }

    /// Works out what the brokers offer, which may be news.
    fn note_infos(&mut self) {
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
            let is_spare = broker.links == 0 && broker.health != Health::Down;
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
            (has_trouble, self.broker(id).suspect)
        };
        let choice = self.in_order().filter(possible).min_by_key(worth);
        match choice {
            Some(id) if !self.broker(id).has_turn() => Pick::Queue,
            Some(id) => {
                self.broker_mut(id).dialing += 1;
                Pick::Dial(id)
            }
            None => Pick::Wait,
        }
    }

    /// Moves this host's choice on where its broker can't be used. Where none can, what is
    /// known of the others may be old: they are asked again at once.
    fn reconsider(&mut self, now: Instant) {
        let accepts = |&id: &BrokerId| self.broker(id).accepts_dials();
        let usable = match self.placement {
            Placement::Spread(_) => self.in_order().find(|&id| self.is_usable(id, now)),
            Placement::First(failback) => self.first_usable(failback, now),
        };
        let next = usable.or_else(|| self.in_order().find(accepts));
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
                let linked = |broker: &Broker| broker.links > 0 && broker.health != Health::Down;
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
    }

    /// R29, R30: the first usable one in configured order, of those that most hosts reach, that
    /// has not just returned. While none is better, the present one stays.
    fn first_usable(&self, failback: Option<Duration>, now: Instant) -> Option<BrokerId> {
        let usable = |id: &BrokerId| self.is_usable(*id, now);
        let best = self.order.iter().copied().filter(usable);
        let best = best.min_by_key(|&id| self.worth(id, now))?;
        let current = self.current;
        if !self.order.contains(&current) || !self.is_usable(current, now) {
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
        (self.broker(id).missing, !self.is_settled(id, now), place)
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

    /// Trunks that wait must look again.
    pub fn note_change(&mut self) {
        self.changed = true;
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
    fn is_settled(&self, id: BrokerId, now: Instant) -> bool {
        match (self.broker(id).returned_at, self.placement) {
            (None, _) | (_, Placement::Spread(_)) => true,
            (Some(at), Placement::First(Some(delay))) => at + delay <= now,
            (Some(_), Placement::First(None)) => false,
        }
    }

    /// When publishes may go back to a broker that has returned (R30).
    fn failback_due(&self) -> Option<Instant> {
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
            (counts && broker.accepts_dials() && !self.is_mute(id)).then_some(usable)
        });
        returned.min()
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
        let has_turn = |&id: &BrokerId| self.broker(id).has_turn();
        let (dials, waits): (Vec<_>, Vec<_>) = wanted.into_iter().partition(has_turn);
        for &id in &dials {
            self.broker_mut(id).dialing += 1;
        }
        (dials, !waits.is_empty())
    }

    /// A broker turned a link away: all links of the bus, or those of `identity`, wait together.
    pub fn turn_away(
        &mut self,
        id: BrokerId,
        identity: Option<IdentityDigest>,
        cause: Failure,
        text: &[u8],
        now: Instant,
    ) {
        self.broker_mut(id).last_failure = Some(cause);
        if self.troubles.enter(id, identity, cause, text, now) {
            self.changed = true;
            self.reconsider(now);
        }
    }

    /// A broker gave a verdict on a CONNECT, `took` after that was written.
    pub fn note_verdict(
        &mut self,
        id: BrokerId,
        identity: IdentityDigest,
        accepted: bool,
        took: Duration,
        now: Instant,
    ) {
        self.broker_mut(id).note_verdict(accepted, took, now);
        if accepted && self.troubles.end(id, identity) {
            self.changed = true;
        }
    }

    /// When this broker last gave a verdict on a CONNECT.
    pub fn last_verdict_at(&self, id: BrokerId) -> Option<Instant> {
        self.broker(id).last_verdict_at
    }

    /// Whether another broker than this one could be dialled now.
    pub fn has_spare(&self, id: BrokerId, identity: IdentityDigest, now: Instant) -> bool {
        let is_willing = |other| self.troubles.may_dial(other, identity, 0, now);
        self.brokers().any(|(other, broker)| {
            let is_up = broker.health == Health::Up && broker.accepts_dials();
            other != id && is_up && !broker.suspect && is_willing(other)
        })
    }

    /// The text with which every broker that lives turns this identity away, since when, and
    /// whether all are full: then nobody is served who isn't already.
    pub fn turned_away(&self, identity: IdentityDigest) -> Option<(&Trouble, bool)> {
        let mut last: Option<&Trouble> = None;
        let mut all_full = true;
        for (id, _) in self.brokers().filter(|(_, broker)| broker.accepts_dials()) {
            let trouble = self.troubles.of(id, identity).next()?;
            all_full &= trouble.cause == Failure::Full;
            if last.is_none_or(|last| last.since < trouble.since) {
                last = Some(trouble);
            }
        }
        last.map(|trouble| (trouble, all_full))
    }

    /// Whether a broker is another process than before; asked once per change.
    pub fn take_renewed(&mut self) -> bool {
        std::mem::take(&mut self.renewed)
    }

    /// natsmux's own `server_id`, which no broker has.
    pub fn know_own_id(&mut self, id: &str) {
        self.own_ids.push(id.to_owned());
    }

    /// Whether two names lead to one of several independent brokers.
    pub fn has_doubles(&self) -> bool {
        let is_double = |broker: &Broker| {
            broker.health == Health::Down && broker.last_failure == Some(Failure::SameBroker)
        };
        self.brokers().any(|(_, broker)| is_double(broker))
    }

    /// Why a broker can't be used, as its INFO says.
    pub fn unfit(&self, id: BrokerId, info: &ServerInfo) -> Option<Failure> {
        let is_own = |id: &String| *id == info.server_id || info.comes_through(id);
        if self.own_ids.iter().any(is_own) {
            return Some(Failure::Loop);
        }
        if info.tls_required {
            return Some(Failure::TlsRequired);
        }
        // Subscribed there twice, a component would get everything twice.
        let is_same = |(other, broker): (BrokerId, &Broker)| {
            let same = broker
                .info()
                .is_some_and(|known| known.server_id == info.server_id);
            other != id && broker.lives() && same && !info.server_id.is_empty()
        };
        let is_double = matches!(self.placement, Placement::First(_))
            && self.broker(id).links == 0
            && self.brokers().any(is_same);
        is_double.then_some(Failure::SameBroker)
    }

    /// Another dial to this broker begins, whatever its turn.
    pub fn begin_dial(&mut self, id: BrokerId) {
        self.broker_mut(id).dialing += 1;
    }

    /// A dial that [`Roster::pick`] started has ended, with a link or without.
    pub fn dial_ended(&mut self, id: BrokerId) {
        let broker = self.broker_mut(id);
        broker.dialing = broker.dialing.saturating_sub(1);
        if self.troubles.any_of(id).is_some() {
            // Others may be waiting for what became of this one.
            self.changed = true;
        }
    }

    /// A link to this broker is live.
    pub fn link_opened(&mut self, id: BrokerId) {
        self.broker_mut(id).links += 1;
        if self.broker(id).links == 1 {
            self.note_infos();
        }
    }

    /// A live link to this broker is gone. That alone doesn't make the broker dead: the
    /// next dial tells.
    pub fn link_closed(&mut self, id: BrokerId, now: Instant) {
        let broker = self.broker_mut(id);
        broker.links = broker.links.saturating_sub(1);
        broker.probe_at = broker.probe_at.min(now + Duration::from_millis(100));
        if broker.links == 0 {
            self.note_infos();
        }
    }

    /// Whether a broker was left for dead because it answered nothing.
    pub fn is_frozen(&self, id: BrokerId) -> bool {
        let broker = self.broker(id);
        broker.was_silent && broker.health == Health::Down
    }

    /// R30: whether an independent broker has been heard of for the first time since it froze.
    /// What it got before that has to pass before anybody is subscribed there again.
    fn must_thaw(&mut self, id: BrokerId, now: Instant) -> bool {
        let spare = self
            .order
            .iter()
            .any(|&other| other != id && self.is_usable(other, now));
        let first = matches!(self.placement, Placement::First(_));
        let broker = self.broker_mut(id);
        if !first || !spare || !broker.was_silent || broker.health != Health::Down {
            broker.thawed_at = None;
            return false;
        }
        let heard_at = *broker.thawed_at.get_or_insert(now);
        if now < heard_at + THAWING {
            broker.probing = false;
            broker.probe_at = heard_at + THAWING;
            return true;
        }
        (broker.was_silent, broker.thawed_at) = (false, None);
        false
    }

    /// A broker sent its INFO, to a dial or to a probe.
    pub fn handle_info(&mut self, id: BrokerId, info: ServerInfo, now: Instant) {
        if let Some(failure) = self.unfit(id, &info) {
            return self.handle_failure(id, failure, now);
        }
        if self.must_thaw(id, now) {
            return;
        }
        let known = self.broker(id).info.as_ref();
        if known.is_some_and(|known| known.server_id != info.server_id) {
            // Another process: what the last one said doesn't hold for it.
            self.troubles.forget(id);
            self.broker_mut(id).line_learned = None;
            self.renewed = true;
            self.changed = true;
            self.broker_mut(id).forget_verdicts();
        }
        let interval = self.probe_interval;
        let broker = self.broker_mut(id);
        broker.probing = false;
        broker.failures = 0;
        broker.probe_at = now + interval;
        let health = if info.ldm {
            Health::LameDuck
        } else {
            Health::Up
        };
        broker.info = Some(Box::new(info));
        let stays = broker.health == health;
        self.note_infos();
        if !stays {
            self.broker_mut(id).revive(health, now);
            self.changed = true;
            self.reconsider(now);
        }
    }

    /// A probe was answered, `took` after its dial.
    pub fn note_probe(&mut self, id: BrokerId, took: Duration) {
        self.broker_mut(id).probe_took = Some(took);
    }

    /// A broker answered a fence: whatever was thought of it, it lives.
    pub fn handle_answer(&mut self, id: BrokerId, now: Instant) {
        let broker = self.broker_mut(id);
        if broker.health == Health::Down {
            broker.revive(Health::Up, now);
            broker.failures = 0;
            self.changed = true;
            self.reconsider(now);
        }
    }

    /// A broker announced that it will go away.
    pub fn handle_lame_duck(&mut self, id: BrokerId, now: Instant) {
        let broker = self.broker_mut(id);
        if broker.health != Health::LameDuck {
            broker.health = Health::LameDuck;
            broker.since = now;
            self.changed = true;
            self.reconsider(now);
        }
    }

    /// A trunk's dial failed, or its link is dead by silence. Where the broker is down already,
    /// that is old news: the probe, which asks at its own pace, isn't put off by how many trunks
    /// found out.
    pub fn handle_trunk_failure(&mut self, id: BrokerId, failure: Failure, now: Instant) {
        let broker = self.broker_mut(id);
        if broker.health != Health::Down {
            return self.handle_failure(id, failure, now);
        }
        broker.last_failure = Some(failure);
        broker.was_silent |= failure == Failure::Silent;
    }

    /// A dial or a probe failed before the broker sent an INFO, or its fences went silent.
    pub fn handle_failure(&mut self, id: BrokerId, failure: Failure, now: Instant) {
        if failure == Failure::OutOfFiles {
            let broker = self.broker_mut(id);
            broker.probing = false;
            broker.last_failure = Some(failure);
            broker.probe_at = now + PROBE_ALONE.longest;
            return;
        }
        let first = matches!(self.placement, Placement::First(_));
        let broker = self.broker_mut(id);
        if first && broker.links > 0 && !broker.suspect && failure != Failure::Silent {
            // One dial: its links say how it is. Here they would all follow.
            broker.probing = false;
            broker.last_failure = Some(failure);
            return;
        }
        let alone = !self.brokers().any(|(_, broker)| broker.links > 0);
        let seed = self.seed ^ u64::from(id.0) << 32;
        // R30: every host must have found a broker that returned before one publishes to it.
        let most = match self.placement {
            Placement::First(Some(delay)) => delay / 3,
            _ => PROBE_SPARE.longest,
        };
        let broker = self.broker_mut(id);
        broker.probing = false;
        broker.failures = broker.failures.saturating_add(1);
        broker.last_failure = Some(failure);
        broker.failed_at = Some(now);
        broker.thawed_at = None;
        match failure {
            Failure::Silent => broker.was_silent = true,
            // Another process will answer.
            Failure::ConnectionRefused => broker.was_silent = false,
            _ => {}
        }
        let pause = if alone { PROBE_ALONE } else { PROBE_SPARE };
        let pause = pause.delay(broker.failures, seed).min(most);
        broker.probe_at = now + pause;
        if broker.health == Health::Down {
            return;
        }
        if broker.health == Health::Up && now - broker.since < STABLE_AFTER {
            broker.flaps = broker.flaps.saturating_add(1);
            broker.held_until = Some(now + HOLD_DOWN.delay(broker.flaps, seed));
        } else {
            broker.flaps = 0;
            broker.held_until = None;
        }
        broker.health = Health::Down;
        broker.since = now;
        self.note_infos();
        self.changed = true;
        self.reconsider(now);
    }

    /// Its sentinel waits too long, or doesn't any more: a suspect broker is tried last.
    pub fn set_suspect(&mut self, id: BrokerId, suspect: bool) {
        self.broker_mut(id).suspect = suspect;
    }

    /// A link failed for a reason that concerns its trunk only: remembered for operators.
    pub fn note_failure(&mut self, id: BrokerId, failure: Failure) {
        self.broker_mut(id).last_failure = Some(failure);
    }

    /// The next broker to probe now: connect, read the INFO, close.
    pub fn poll_probe(&mut self, now: Instant) -> Option<BrokerId> {
        if self.troubles.due().is_some_and(|at| at <= now) {
            self.changed |= self.troubles.tick(now);
        }
        if self.lines_due().is_some_and(|at| at <= now) {
            self.forget_lines(now);
        }
        if self.failback_due().is_some_and(|at| at <= now) {
            self.reconsider(now);
        }
        let due = self
            .order
            .iter()
            .copied()
            .find(|&id| self.broker(id).probe_due().is_some_and(|at| at <= now))?;
        self.broker_mut(due).probing = true;
        Some(due)
    }

    /// When [`Roster::poll_probe`] will have something to do.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let probes = self.brokers().filter_map(|(_, broker)| broker.probe_due());
        let others = [self.failback_due(), self.troubles.due(), self.lines_due()];
        probes.chain(others.into_iter().flatten()).min()
    }

    /// Whether trunks that wait for a broker should ask again; asked once per change.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn is_usable(&self, id: BrokerId, now: Instant) -> bool {
        let broker = self.broker(id);
        broker.accepts_dials()
            && !self.is_mute(id)
            && broker.held_until.is_none_or(|until| until <= now)
    }

    /// This host's order, from its broker on and round to the one before it.
    fn in_order(&self) -> impl Iterator<Item = BrokerId> {
        let is_current = |&id: &BrokerId| id == self.current;
        let at = self.order.iter().position(is_current).unwrap_or(0);
        let (before, from) = self.order.split_at(at);
        from.iter().chain(before).copied()
    }

    fn enlist(&mut self, addr: &BrokerAddr, now: Instant) {
        let mut known = false;
        for broker in self
            .brokers
            .iter_mut()
            .filter(|broker| broker.addr == *addr)
        {
            // Addresses that a name has lost meanwhile are found out.
            known |= broker.unnamed < UNNAMED_MOST;
            broker.removed = broker.unnamed >= UNNAMED_MOST;
        }
        if !known {
            self.place_for(addr, now);
        }
    }

    /// A place for another broker at `addr`: one that waits for its address, one that nobody uses
    /// any more, or a new one.
    fn place_for(&mut self, addr: &BrokerAddr, now: Instant) -> BrokerId {
        let waits = |broker: &Broker| broker.addr == *addr && broker.ips.is_empty();
        let is_free = |broker: &Broker| {
            broker.removed && broker.links == 0 && broker.dialing == 0 && !broker.probing
        };
        let mut brokers = self.brokers.iter();
        if let Some(at) = brokers.position(|broker| waits(broker) && !broker.removed) {
            return BrokerId(at as u16);
        }
        match self.brokers.iter().position(is_free) {
            Some(at) => {
                self.brokers[at] = Broker::new(addr.clone(), now);
                self.troubles.forget(BrokerId(at as u16));
                BrokerId(at as u16)
            }
            None => {
                self.brokers.push(Broker::new(addr.clone(), now));
                BrokerId((self.brokers.len() - 1) as u16)
            }
        }
    }

    fn broker_mut(&mut self, id: BrokerId) -> &mut Broker {
        &mut self.brokers[usize::from(id.0)]
    }
}

/// The addresses of a name as brokers: each is one, but for a single host of both families.
fn addresses(ips: &[IpAddr]) -> Vec<SmallVec<[IpAddr; 1]>> {
    match ips {
        [one, other] if one.is_ipv4() != other.is_ipv4() => vec![ips.into()],
        _ => ips
            .iter()
            .take(ADDRESSES_MOST)
            .map(|ip| [*ip].into_iter().collect())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: IdentityDigest = 7;
    const A: BrokerId = BrokerId(0);
    const B: BrokerId = BrokerId(1);

    fn roster(now: Instant) -> Roster {
        let addrs = ["10.0.0.1", "10.0.0.2"].map(|host| BrokerAddr {
            host: host.to_owned(),
            port: 4222,
        });
        Roster::new(&addrs, Placement::Spread(0), Duration::from_secs(3), 1, now)
    }

    fn info() -> ServerInfo {
        ServerInfo::parse(br#"{"server_id":"x","version":"2.9.10","max_payload":1048576}"#)
            .expect("valid")
    }

    fn info_of(id: BrokerId) -> ServerInfo {
        ServerInfo {
            server_id: format!("{id:?}"),
            ..info()
        }
    }

    #[test]
    fn two_names_of_one_independent_broker_are_one() {
        let now = Instant::now();
        let second = Duration::from_secs(1);
        for (placement, doubled) in [
            (Placement::Spread(0), false),
            (Placement::First(Some(second)), true),
        ] {
            let mut roster = roster(now);
            let addrs = [A, B].map(|id| roster.broker(id).addr().clone());
            roster.configure(&addrs, placement, second, now);
            roster.handle_info(A, info(), now);
            roster.handle_info(B, info(), now);
            assert_eq!(roster.has_doubles(), doubled);
            assert_eq!(roster.serves(B), !doubled);
            roster.handle_info(B, info_of(B), now);
            assert!(!roster.has_doubles(), "the name was mended");
        }
    }

    #[test]
    fn all_trunks_move_on_together_when_the_hosts_broker_is_down() {
        let now = Instant::now();
        let mut roster = roster(now);
        assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
        roster.handle_failure(A, Failure::ConnectionRefused, now);
        assert_eq!(roster.pick(ID, &[], now), Pick::Dial(B));
        roster.handle_info(A, info(), now);
        assert_eq!(roster.pick(ID, &[], now), Pick::Dial(B), "no move back");
    }

    #[test]
    fn a_reload_that_changes_the_offer_is_news() {
        let now = Instant::now();
        let mut roster = roster(now);
        let small = ServerInfo {
            max_payload: 65_536,
            ..info()
        };
        roster.handle_info(A, info(), now);
        roster.handle_info(B, small, now);
        let addrs: Vec<_> = roster
            .brokers()
            .map(|(_, broker)| broker.addr().clone())
            .collect();
        let mut reload = |addrs: &[BrokerAddr]| {
            roster.take_offer_changed();
            let interval = Duration::from_secs(3);
            roster.configure(addrs, Placement::Spread(0), interval, now);
            (roster.take_offer_changed(), roster.offer().max_payload)
        };
        assert_eq!(reload(&addrs), (false, 65_536));
        assert_eq!(reload(&addrs[..1]), (true, 1_048_576));
        assert_eq!(reload(&addrs), (true, 65_536), "known from before");
    }

    #[test]
    fn the_choice_moves_on_when_the_probe_finds_the_broker_dead() {
        let now = Instant::now();
        let mut roster = roster(now);
        roster.handle_info(A, info(), now);
        roster.handle_info(B, info(), now);
        // Its trunks may have left it already, and will not ask again.
        roster.handle_failure(A, Failure::ConnectionRefused, now);
        assert_eq!(roster.current(), B);
    }

    #[test]
    fn many_trunks_that_find_a_broker_dead_dont_put_off_its_probe() {
        let now = Instant::now();
        let mut roster = roster(now);
        roster.handle_info(A, info(), now);
        roster.handle_trunk_failure(A, Failure::ConnectionRefused, now);
        let probe = roster.poll_timeout();
        for _ in 0..1_000 {
            roster.handle_trunk_failure(A, Failure::ConnectionRefused, now);
            roster.handle_trunk_failure(A, Failure::Silent, now);
        }
        assert_eq!(roster.poll_timeout(), probe);
        assert_eq!(roster.broker(A).failures(), 1);
        assert!(roster.is_frozen(A), "one found it silent");
    }

    #[test]
    fn when_the_last_broker_dies_the_others_are_asked_at_once() {
        let now = Instant::now();
        let mut roster = roster(now);
        roster.handle_info(A, info(), now);
        roster.link_opened(A);
        let mut later = now;
        for _ in 0..10 {
            roster.handle_failure(B, Failure::ConnectionRefused, later);
            later = roster.poll_timeout().expect("a probe is planned");
        }
        roster.handle_failure(B, Failure::ConnectionRefused, later);
        let soon = later + Duration::from_secs(1);
        assert_eq!(roster.poll_probe(soon), None, "others live: every 10 s");
        roster.link_closed(A, soon);
        roster.handle_failure(A, Failure::ConnectionRefused, soon);
        assert_eq!(roster.poll_probe(soon), Some(B));
    }

    #[test]
    fn a_trunk_that_is_refused_goes_elsewhere_alone() {
        let now = Instant::now();
        let mut roster = roster(now);
        assert_eq!(roster.pick(ID, &[A], now), Pick::Dial(B));
        assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
        assert_eq!(roster.pick(ID, &[A, B], now), Pick::Wait);
    }

    #[test]
    fn a_dead_broker_is_left_to_the_probe() {
        let now = Instant::now();
        let mut roster = roster(now);
        for id in [A, B] {
            assert_eq!(roster.poll_probe(now), Some(id));
            roster.handle_failure(id, Failure::ConnectionRefused, now);
        }
        assert_eq!(roster.pick(ID, &[], now), Pick::Wait);
        assert_eq!(roster.poll_probe(now), None);
        let due = roster.poll_timeout().expect("a probe is planned");
        assert!(due <= now + Duration::from_millis(100));
        assert!(roster.poll_probe(due).is_some());
    }

    #[test]
    fn a_flapping_broker_is_passed_over_only_while_another_lives() {
        let now = Instant::now();
        let mut roster = roster(now);
        roster.handle_info(A, info(), now);
        roster.handle_failure(A, Failure::ConnectionRefused, now);
        roster.handle_info(A, info(), now);
        roster.handle_info(B, info(), now);
        assert_eq!(roster.pick(ID, &[], now), Pick::Dial(B));
        roster.handle_failure(B, Failure::ConnectionRefused, now);
        assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
    }

    #[test]
    fn dials_in_flight_are_bounded() {
        let now = Instant::now();
        let mut roster = roster(now);
        for _ in 0..roster.broker(A).dial_limit {
            assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
        }
        assert_eq!(roster.pick(ID, &[], now), Pick::Queue);
        roster.dial_ended(A);
        assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
    }

    #[test]
    fn hosts_spread_over_brokers_by_name() {
        let now = Instant::now();
        let addrs = ["10.0.0.1", "10.0.0.2"].map(|host| BrokerAddr {
            host: host.to_owned(),
            port: 4222,
        });
        let first = |rotation| {
            Roster::new(
                &addrs,
                Placement::Spread(rotation),
                Duration::from_secs(3),
                1,
                now,
            )
            .current()
        };
        assert_eq!((first(0), first(1)), (A, B));
    }

    #[test]
    fn a_removed_broker_is_named_and_never_picked() {
        let now = Instant::now();
        let mut roster = roster(now);
        let only_b = [roster.broker(B).addr().clone()];
        assert_eq!(
            roster.configure(&only_b, Placement::Spread(0), Duration::from_secs(3), now),
            [A]
        );
        assert_eq!(roster.pick(ID, &[], now), Pick::Dial(B));
        assert_eq!(roster.pick(ID, &[B], now), Pick::Wait);
    }

    #[test]
    fn an_independent_broker_that_froze_is_back_a_second_after_its_first_word() {
        let now = Instant::now();
        let mut roster = roster(now);
        let addrs = [A, B].map(|id| roster.broker(id).addr().clone());
        let second = Duration::from_secs(1);
        let placement = Placement::First(Some(10 * second));
        roster.configure(&addrs, placement, 3 * second, now);
        for id in [A, B] {
            roster.handle_info(id, info_of(id), now);
        }
        roster.handle_failure(A, Failure::Silent, now);
        assert_eq!(roster.current(), B);
        roster.handle_info(A, info_of(A), now);
        assert_eq!(roster.broker(A).health(), Health::Down);
        assert_eq!(roster.broker(A).probe_due(), Some(now + second));
        roster.handle_info(A, info_of(A), now + second);
        assert_eq!(roster.broker(A).health(), Health::Up);
        assert_eq!(roster.current(), B, "it gets publishes later");
        let back = now + 11 * second;
        roster.poll_probe(back);
        assert_eq!(roster.current(), A);

        roster.handle_failure(A, Failure::Silent, back);
        roster.handle_failure(A, Failure::ConnectionRefused, back);
        roster.handle_info(A, info_of(A), back);
        assert_eq!(roster.broker(A).health(), Health::Up, "another process");
    }

    #[test]
    fn a_broker_that_never_introduced_itself_is_taken_for_another() {
        let now = Instant::now();
        let mut roster = roster(now);
        assert!(roster.info_like(B).is_none());
        roster.handle_info(A, info(), now);
        assert_eq!(
            roster.info_like(B).map(|info| info.version.as_str()),
            Some("2.9.10")
        );
    }

    #[test]
    fn the_broker_that_most_hosts_reach_is_chosen() {
        let now = Instant::now();
        let mut roster = roster(now);
        let addrs = [A, B].map(|id| roster.broker(id).addr().clone());
        let placement = Placement::First(None);
        roster.configure(&addrs, placement, Duration::from_secs(3), now);
        for id in [A, B] {
            roster.handle_info(id, info_of(id), now);
        }
        assert_eq!(roster.current(), A);
        roster.weigh(A, 1);
        roster.review(now);
        assert_eq!(roster.current(), B);
        roster.weigh(B, 1);
        roster.review(now);
        assert_eq!(roster.current(), B, "no reason to change");
        roster.weigh(A, 0);
        roster.review(now);
        assert_eq!(roster.current(), A);
    }

    #[test]
    fn credentials_are_asked_for_until_a_broker_says_otherwise() {
        let now = Instant::now();
        let mut roster = roster(now);
        assert!(roster.auth_required());
        roster.handle_info(A, info(), now);
        assert!(!roster.auth_required());
        assert!(!roster.no_auth_anywhere());
        roster.handle_info(B, info(), now);
        assert!(roster.no_auth_anywhere());
    }

    #[test]
    fn dials_in_flight_follow_the_time_that_verdicts_take() {
        let mut now = Instant::now();
        let mut roster = roster(now);
        roster.handle_info(A, info(), now);
        let limit = |roster: &Roster| roster.broker(A).dial_limit;
        let mut verdict = |roster: &mut Roster, accepted, took| {
            now += Duration::from_secs(1);
            roster.note_verdict(A, ID, accepted, Duration::from_millis(took), now);
        };
        let first = limit(&roster);
        for _ in 0..1_000 {
            verdict(&mut roster, true, 1);
        }
        assert_eq!(limit(&roster), 128);
        verdict(&mut roster, false, 900);
        assert_eq!(limit(&roster), 128, "some take their time to refuse");
        for _ in 0..20 {
            verdict(&mut roster, true, 900);
        }
        assert_eq!(limit(&roster), 8);
        let other = ServerInfo {
            server_id: "another process".to_owned(),
            ..info()
        };
        roster.handle_info(A, other, now);
        assert_eq!(limit(&roster), first);
    }

    #[test]
    fn a_broker_that_requires_tls_or_is_natsmux_itself_is_down() {
        let now = Instant::now();
        let mut roster = roster(now);
        roster.know_own_id("NMX1");
        let tls = ServerInfo {
            tls_required: true,
            ..info()
        };
        let itself = ServerInfo {
            server_id: "NMX1".to_owned(),
            ..info()
        };
        let through = ServerInfo {
            server_id: "NMX2".to_owned(),
            natsmux_via: "NMX3,NMX1".to_owned(),
            ..info()
        };
        for (said, failure) in [
            (tls, Failure::TlsRequired),
            (itself, Failure::Loop),
            (through, Failure::Loop),
        ] {
            roster.handle_info(A, info(), now);
            assert!(roster.serves(A));
            roster.handle_info(A, said, now);
            assert!(!roster.serves(A) && !roster.is_alive());
            assert_eq!(roster.broker(A).last_failure(), Some(failure));
        }
    }

    #[test]
    fn a_broker_that_is_full_lives_and_serves_nobody() {
        let now = Instant::now();
        let mut roster = roster(now);
        roster.handle_info(A, info(), now);
        roster.handle_failure(B, Failure::ConnectionRefused, now);
        roster.turn_away(A, None, Failure::Full, b"full", now);
        assert!(!roster.is_alive() && roster.takes_newcomers());
        assert_eq!(roster.pick(ID, &[B], now), Pick::Wait);
        let (trouble, all_full) = roster.turned_away(ID).map_or_else(
            || panic!("B was never heard of"),
            |(trouble, all_full)| (trouble.text.clone(), all_full),
        );
        assert_eq!((&*trouble, all_full), (&b"full"[..], true));
        let later = roster.poll_timeout().expect("it is asked again") + Duration::from_secs(1);
        roster.poll_probe(later);
        assert_eq!(roster.pick(ID, &[B], later), Pick::Dial(A));
        assert_eq!(roster.pick(ID, &[B], later), Pick::Wait, "one at a time");
        roster.note_verdict(A, ID, true, Duration::ZERO, later);
        assert!(roster.is_alive());
    }

    #[test]
    fn each_address_of_a_name_is_a_broker() {
        let now = Instant::now();
        let addr = BrokerAddr {
            host: "nats.example".to_owned(),
            port: 4222,
        };
        let spread = Placement::Spread(0);
        let mut roster = Roster::new(
            std::slice::from_ref(&addr),
            spread,
            Duration::from_secs(3),
            1,
            now,
        );
        assert_eq!(roster.names(), std::slice::from_ref(&addr));
        assert_eq!(roster.pick(ID, &[], now), Pick::Wait, "no address yet");
        assert_eq!(roster.poll_probe(now), None);
        let slow = roster.name_failed(&addr, true, now);
        assert_eq!(slow, Some(Failure::NameTimeout));
        assert_eq!(roster.name_failed(&addr, true, now), None, "said once");
        let ips = [1, 2, 3].map(|last| IpAddr::from([10, 0, 0, last]));
        assert!(roster.set_addresses(&addr, &ips[..2], now));
        assert!(
            !roster.set_addresses(&addr, &[ips[1], ips[0]], now),
            "the same"
        );
        let labels: Vec<_> = roster.brokers().map(|(_, one)| one.label()).collect();
        let expected = [
            "nats.example:4222 (10.0.0.1)",
            "nats.example:4222 (10.0.0.2)",
        ];
        assert_eq!(labels, expected);
        for id in [A, B] {
            roster.handle_info(id, info_of(id), now);
        }
        assert_eq!(roster.pick(ID, &[], now), Pick::Dial(A));
        roster.handle_failure(A, Failure::Silent, now);
        assert_eq!(
            roster.pick(ID, &[], now),
            Pick::Dial(B),
            "the other address"
        );
        // The first has gone for good, and another one has come.
        assert!(roster.set_addresses(&addr, &ips[1..], now));
        let found: Vec<_> = roster.brokers().map(|(_, one)| one.ips()[0]).collect();
        assert_eq!(found, ips[1..]);
        // One that lives is left once it isn't named for a while.
        for times in 1..=UNNAMED_MOST {
            roster.set_addresses(&addr, &ips[2..], now);
            assert_eq!(roster.broker(B).is_removed(), times == UNNAMED_MOST);
        }
    }

    #[test]
    fn a_host_of_both_families_is_one_broker() {
        let [v4, v6]: [IpAddr; 2] = [[127, 0, 0, 1].into(), [0, 0, 0, 0, 0, 0, 0, 1].into()];
        assert_eq!(addresses(&[v4, v6]).len(), 1);
        assert_eq!(addresses(&[v4, [127, 0, 0, 2].into()]).len(), 2);
        assert_eq!(addresses(&[v4, [127, 0, 0, 2].into(), v6]).len(), 3);
    }
}
