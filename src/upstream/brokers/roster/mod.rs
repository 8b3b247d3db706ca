//! The brokers of a bus: which of them live, and which one this host uses (R11-R13).
//!
//! Pure: dials, probes and deaths are told to it, probes to make come out of
//! [`Roster::poll_probe`]. All trunks of a bus ask the same roster, so they leave a broker
//! together and choose the next together. A broker that is down is tried by the roster's
//! own probe only; the trunks wait for its answer instead of dialling, each by itself.

mod choice;
mod health;
mod offer;
mod steering;

pub use choice::{Pick, Placement};
pub use offer::Offer;
pub use steering::SteeringError;

use core::net::IpAddr;
use std::time::{Duration, SystemTime};

use smallvec::SmallVec;

use choice::Outage;
use steering::Steering;

pub use super::broker::{Broker, BrokerId, Health};
pub use super::failure::{Cause, Departure, Failure};
use super::liveness::{Liveness, TrunkId};
use super::trouble::{Trouble, Troubles};
use crate::clock::Instant;
use crate::config::{BrokerAddr, TlsMode};

/// Answers in a row without an address after which that broker is left.
const UNNAMED_MOST: u32 = 3;
/// TLS handshakes with a broker on their way at once.
const HANDSHAKES_MOST: u32 = 16;
/// Addresses of one name that are brokers.
const ADDRESSES_MOST: usize = 16;

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
    /// The offer of all brokers, and the longest control line that all take.
    offer: Offer,
    max_control_line: usize,
    /// Whether the offer has changed since it was asked for.
    offer_changed: bool,
    /// An operator's word on the choice.
    steering: Steering,
    /// No broker can be dialled, and all were asked again because of that.
    stranded: bool,
    /// Since when, where no link was opened since.
    outage: Option<Outage>,
    /// Brokers that live and turn links away.
    troubles: Troubles,
    /// A broker is another process than before; asked once per change.
    renewed: bool,
    /// Brokers that offer other things to links that they have (R43).
    revised: Vec<BrokerId>,
    /// How brokers are spoken to that are written without `tls://`.
    tls: TlsMode,
    /// natsmux has a certificate to show to them.
    has_certificate: bool,
    /// natsmux's own `server_id`s, by which a broker that is natsmux itself is known.
    own_ids: Vec<String>,
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
            offer: Offer::default(),
            max_control_line: usize::MAX,
            offer_changed: false,
            steering: Steering::default(),
            stranded: false,
            outage: None,
            troubles: Troubles::default(),
            renewed: false,
            revised: Vec::new(),
            tls: TlsMode::Off,
            has_certificate: false,
            own_ids: Vec::new(),
        };
        roster.configure(addrs, placement, probe_interval, now);
        roster.current = roster.order[0];
        roster
    }

    /// Says how brokers are spoken to that are written without `tls://`.
    pub fn set_tls(&mut self, mode: TlsMode) {
        self.tls = mode;
    }

    /// Says whether natsmux has a certificate to show to brokers that verify.
    pub fn set_has_certificate(&mut self, has_certificate: bool) {
        self.has_certificate = has_certificate;
    }

    /// How brokers are spoken to that are written without `tls://`.
    pub fn tls(&self) -> TlsMode {
        self.tls
    }

    /// Has every link opened anew, as if all brokers were others now: what natsmux says to them, or
    /// believes, has changed. To be followed by [`Roster::configure`].
    pub fn renew(&mut self) {
        for broker in &mut self.brokers {
            broker.renew();
        }
    }

    /// Has brokers without a link asked anew, as [`Roster::renew`] does; links to the others give way
    /// one after the other.
    pub fn renew_unused(&mut self) {
        for broker in self.brokers.iter_mut().filter(|broker| broker.links() == 0) {
            broker.renew();
        }
    }

    /// Whether another dial to a broker may be on its way (R12): fewer where each costs the broker
    /// a TLS handshake.
    pub fn has_turn(&self, id: BrokerId) -> bool {
        let most = match self.tls_mode(id) {
            TlsMode::Off => u32::MAX,
            TlsMode::Required | TlsMode::First => HANDSHAKES_MOST,
        };
        self.broker(id).has_turn(most)
    }

    /// When the certificate ends that a broker has shown.
    pub fn note_certificate(&mut self, id: BrokerId, ends: Option<SystemTime>) {
        self.broker_mut(id).certificate_ends = ends;
    }

    /// How a broker is spoken to.
    pub fn tls_mode(&self, id: BrokerId) -> TlsMode {
        self.tls.towards(&self.broker(id).addr)
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
        self.forget_drained();
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
        if let Placement::Spread { rotation, .. } = self.placement {
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
            .filter(|broker| broker.addr == *addr && !broker.is_outdated)
        {
            broker.is_one_of_several = several;
            if groups.contains(&broker.ips) || broker.removed {
                continue;
            }
            broker.unnamed = broker.unnamed.saturating_add(1);
            let is_idle = !broker.has_links() && broker.health == Health::Down;
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
        failure: Failure,
        now: Instant,
    ) -> Option<Failure> {
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

    /// Whether at least one broker lives.
    pub fn is_alive(&self) -> bool {
        self.brokers().any(|(id, _)| self.serves(id))
    }

    /// Whether any link is live, be it to a broker that is removed.
    pub fn has_links(&self) -> bool {
        self.brokers.iter().any(Broker::has_links)
    }

    /// Whether a broker serves, as far as is known: it lives, and has links or turns none away.
    pub fn serves(&self, id: BrokerId) -> bool {
        self.broker(id).lives() && !self.is_mute(id)
    }

    /// Whether a broker turns links away and has none.
    fn is_mute(&self, id: BrokerId) -> bool {
        !self.broker(id).has_links() && self.troubles.any_of(id).is_some()
    }

    /// Why a broker that lives serves nobody.
    pub fn trouble(&self, id: BrokerId) -> Option<&Trouble> {
        let broker = self.broker(id);
        let trouble = self.troubles.any_of(id);
        trouble.filter(|_| broker.lives() && !broker.has_links())
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

    /// Whether every broker has answered, or failed to.
    pub fn was_asked(&self) -> bool {
        self.brokers()
            .all(|(_, broker)| broker.health != Health::Unknown)
    }

    /// Trunks that wait must look again.
    pub fn note_change(&mut self) {
        self.changed = true;
    }

    /// Whether a broker is another process than before; asked once per change.
    pub fn take_renewed(&mut self) -> bool {
        std::mem::take(&mut self.renewed)
    }

    /// The trunks whose links know too little of what their brokers offer; asked once per change.
    pub fn take_revised(&mut self) -> Vec<TrunkId> {
        let revised = std::mem::take(&mut self.revised);
        let trunks = revised.iter().map(|id| self.broker(*id).liveness.trunks());
        trunks.flatten().collect()
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

    /// A trunk's link to this broker is live.
    pub fn attach(&mut self, id: BrokerId, trunk: TrunkId) {
        let had_links = self.broker(id).has_links();
        self.broker_mut(id).liveness.attach(trunk);
        if !had_links {
            self.note_infos();
        }
    }

    /// A trunk's live link to this broker is gone. That alone doesn't make the broker dead: the
    /// next dial tells. Returns the sentinel that takes over.
    pub fn detach(&mut self, id: BrokerId, trunk: TrunkId, now: Instant) -> Option<TrunkId> {
        let broker = self.broker_mut(id);
        let next_sentinel = broker.liveness.detach(trunk);
        broker.probe_at = broker.probe_at.min(now + Duration::from_millis(100));
        if !broker.has_links() {
            self.note_infos();
        }
        next_sentinel
    }

    /// A trunk doesn't read its links for now (R33). Returns the sentinels that take over from it.
    pub fn step_aside(&mut self, trunk: TrunkId, now: Instant) -> Vec<TrunkId> {
        let all = self.brokers.iter_mut();
        all.filter_map(|broker| broker.liveness.step_aside(trunk, now))
            .collect()
    }

    /// A trunk reads its links again.
    pub fn step_back(&mut self, trunk: TrunkId) {
        for broker in &mut self.brokers {
            broker.liveness.step_back(trunk);
        }
    }

    /// The brokers to which this trunk has a live link.
    pub fn brokers_of(&self, trunk: TrunkId) -> Vec<BrokerId> {
        let ids = (0..).map(BrokerId).zip(&self.brokers);
        let attached = ids.filter(|(_, broker)| broker.liveness.is_attached(trunk));
        attached.map(|(id, _)| id).collect()
    }

    /// The watch over a broker, to change it.
    pub fn liveness_mut(&mut self, id: BrokerId) -> &mut Liveness {
        &mut self.broker_mut(id).liveness
    }

    /// Whether trunks that wait for a broker should ask again; asked once per change.
    pub fn take_changed(&mut self) -> bool {
        std::mem::take(&mut self.changed)
    }

    fn enlist(&mut self, addr: &BrokerAddr, now: Instant) {
        let mut known = false;
        for broker in self
            .brokers
            .iter_mut()
            .filter(|broker| broker.addr == *addr && !broker.is_outdated)
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
            broker.removed && !broker.has_links() && broker.dialing == 0 && !broker.probing
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
mod tests;
