//! An operator's word on which broker this host uses: drained ones, and the one that all links move
//! to (R42). Within a cluster, a host's own broker that has returned is such a word too (R13).

use core::net::IpAddr;
use std::time::Duration;

use thiserror::Error;

use super::{Broker, BrokerId, Departure, Health, Placement, Roster};
use crate::clock::Instant;
use crate::config::BrokerAddr;
use crate::upstream::brokers::backoff::unit;
use crate::upstream::brokers::liveness::TrunkId;

/// How long trunks try to get to the broker that all are to move to: what it refuses stays where it
/// is.
const TRIED_FOR: Duration = Duration::from_secs(60);
/// The part of `failback_delay` over which hosts that go back to their own broker spread.
const SPREAD: f64 = 0.2;

/// An operator's word on the choice of broker.
#[derive(Debug, Default)]
pub(super) struct Steering {
    drained: Vec<Drained>,
    wanted: Option<Wanted>,
    /// An operator has chosen the present broker: the host's own isn't gone back to before the
    /// next failover.
    by_hand: bool,
    /// Whether a broker that isn't drained could be dialled, when that was looked at last.
    had_refuge: bool,
    /// Links are to move that weren't; asked once.
    is_news: bool,
}

/// A broker that is drained. Its number may change at a reload.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Drained {
    addr: BrokerAddr,
    /// Where the name has several addresses: this one.
    ip: Option<IpAddr>,
}

/// The broker that links to all others move to.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    to: BrokerId,
    reason: Departure,
    until: Instant,
}

/// Why a broker can't be steered to, or away from.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum SteeringError {
    /// It isn't one of the bus.
    #[error("no broker {0}; the brokers are {1}")]
    Unknown(String, String),
    /// It can't be dialled.
    #[error("{0} is {1}")]
    Unusable(String, String),
    /// No other one can be dialled.
    #[error("no other broker is up: {0} stays in use")]
    Alone(String),
    /// Independent brokers are used in their order (R30).
    #[error("independent brokers are used in their order: drain the one in use instead")]
    Ordered,
}

impl Drained {
    /// Whether an operator means it.
    fn is_called(&self, text: &str) -> bool {
        let label = match self.ip {
            Some(ip) => format!("{} ({ip})", self.addr),
            None => self.addr.to_string(),
        };
        label == text || is_address(text, &self.addr)
    }

    fn is(&self, broker: &Broker) -> bool {
        broker.addr == self.addr && self.ip.is_none_or(|ip| broker.ips.contains(&ip))
    }
}

/// Whether a text is a broker's address, however it is spoken to.
fn is_address(text: &str, addr: &BrokerAddr) -> bool {
    let written: Option<BrokerAddr> = text.parse().ok();
    written.is_some_and(|written| written.host == addr.host && written.port == addr.port)
}

impl Roster {
    /// The brokers that an operator means: by address, or by the label of one of several addresses
    /// of a name.
    ///
    /// # Errors
    /// [`SteeringError::Unknown`] names all there are.
    pub fn find(&self, text: &str) -> Result<Vec<BrokerId>, SteeringError> {
        let is_it = |broker: &Broker| broker.label() == text || is_address(text, &broker.addr);
        let found = self.brokers().filter(|(_, broker)| is_it(broker));
        let found: Vec<BrokerId> = found.map(|(id, _)| id).collect();
        if found.is_empty() {
            let all: Vec<String> = self.brokers().map(|(_, broker)| broker.label()).collect();
            return Err(SteeringError::Unknown(text.to_owned(), all.join(", ")));
        }
        Ok(found)
    }

    /// Leaves a broker, and doesn't come back before [`Roster::undrain`]. It is still used where no
    /// other can be.
    ///
    /// # Errors
    /// [`SteeringError`], where the bus hasn't that broker, or no other is up.
    pub fn drain(&mut self, text: &str, now: Instant) -> Result<(), SteeringError> {
        for id in self.to_drain(text)? {
            if !self.is_drained(id) {
                let drained = self.drained(id, text);
                self.steering.drained.push(drained);
            }
        }
        self.note_steering(now);
        Ok(())
    }

    /// The brokers that would be drained.
    ///
    /// # Errors
    /// As [`Roster::drain`].
    pub fn to_drain(&self, text: &str) -> Result<Vec<BrokerId>, SteeringError> {
        let found = self.find(text)?;
        let is_spare = |(id, _): (BrokerId, &Broker)| self.is_fit(id) && !found.contains(&id);
        if !self.brokers().any(is_spare) {
            return Err(SteeringError::Alone(text.to_owned()));
        }
        Ok(found)
    }

    /// Uses a broker again that was drained. Returns whether any was.
    ///
    /// # Errors
    /// [`SteeringError::Unknown`], where the bus hasn't that broker.
    pub fn undrain(&mut self, text: &str, now: Instant) -> Result<bool, SteeringError> {
        // Its address may be another by now.
        let is_meant = |drained: &Drained| drained.is_called(text);
        let any = self.steering.drained.iter().any(is_meant);
        if !any {
            return self.find(text).map(|_| false);
        }
        let drained = self.order.iter().copied();
        let drained: Vec<BrokerId> = drained.filter(|id| self.is_drained(*id)).collect();
        self.steering.drained.retain(|drained| !is_meant(drained));
        for id in drained {
            if !self.is_drained(id) {
                // Whoever drained it has done something with it.
                self.broker_mut(id).returned_at = Some(now);
            }
        }
        self.note_steering(now);
        Ok(true)
    }

    /// Moves all links to one broker: the one that is named, or else the host's own or the next in
    /// its order. Returns which.
    ///
    /// # Errors
    /// [`SteeringError`], where there is no such broker, or it can't be used.
    pub fn steer(&mut self, to: Option<&str>, now: Instant) -> Result<BrokerId, SteeringError> {
        if matches!(self.placement, Placement::First(_)) {
            return Err(SteeringError::Ordered);
        }
        let is_fit = |id: &BrokerId| self.is_fit(*id);
        let to = match to {
            Some(text) => {
                let found = self.find(text)?;
                found.iter().copied().find(is_fit).ok_or_else(|| {
                    let state = self.state_in_words(found[0]);
                    SteeringError::Unusable(text.to_owned(), state)
                })?
            }
            None => {
                let others = self.order.iter().copied().filter(|id| *id != self.current);
                let next = others.into_iter().find(is_fit);
                next.ok_or_else(|| SteeringError::Alone(self.broker(self.current).label()))?
            }
        };
        self.current = to;
        self.steering.by_hand = true;
        self.want(to, Departure::Moved, now);
        Ok(to)
    }

    fn state_in_words(&self, id: BrokerId) -> String {
        let broker = self.broker(id);
        let state = match self.trouble(id) {
            _ if self.is_drained(id) => "drained",
            Some(_) => "turning connections away",
            None => broker.health.as_str(),
        };
        match broker
            .last_failure
            .filter(|_| broker.health == Health::Down)
        {
            Some(failure) => format!("{state} ({})", failure.as_str()),
            None => state.to_owned(),
        }
    }

    /// Whether a broker is drained.
    pub fn is_drained(&self, id: BrokerId) -> bool {
        let broker = self.broker(id);
        let mut drained = self.steering.drained.iter();
        drained.any(|drained| drained.is(broker))
    }

    /// One address of a name, where that is meant, or else all that it has and will have.
    fn drained(&self, id: BrokerId, text: &str) -> Drained {
        let broker = self.broker(id);
        let is_one = broker.is_one_of_several && broker.label() == text;
        let ip = broker.ips.first().copied();
        Drained {
            addr: broker.addr.clone(),
            ip: ip.filter(|_| is_one),
        }
    }

    /// Why links to a broker are to move to another, if they are.
    pub fn must_leave(&self, id: BrokerId) -> Option<Departure> {
        let broker = self.broker(id);
        if broker.removed {
            return Some(Departure::Removed);
        }
        if broker.health == Health::LameDuck {
            return Some(Departure::LameDuck);
        }
        if self.is_drained(id) && self.has_refuge() {
            return Some(Departure::Drained);
        }
        let wanted = self.steering.wanted.filter(|wanted| wanted.to != id)?;
        Some(wanted.reason)
    }

    /// The broker that links are to move to, where it is one and no other.
    pub fn wanted(&self) -> Option<BrokerId> {
        self.steering.wanted.map(|wanted| wanted.to)
    }

    /// Whether a broker is up and takes everybody, and nobody drains it.
    fn is_fit(&self, id: BrokerId) -> bool {
        self.is_open(id) && self.broker(id).health == Health::Up && !self.is_mute(id)
    }

    /// Whether a broker can be dialled and isn't drained.
    pub(super) fn is_open(&self, id: BrokerId) -> bool {
        self.broker(id).accepts_dials() && !self.is_drained(id)
    }

    /// Whether a broker can be used by those that leave drained ones.
    fn has_refuge(&self) -> bool {
        self.order.iter().any(|id| self.is_open(*id))
    }

    /// Whether links are to move that weren't when this was asked last.
    pub fn take_steered(&mut self) -> bool {
        std::mem::take(&mut self.steering.is_news)
    }

    /// The trunks whose links are to move.
    pub fn leaving_trunks(&self) -> Vec<TrunkId> {
        let ids = (0..self.brokers.len() as u16).map(BrokerId);
        let left = ids.filter(|id| self.must_leave(*id).is_some());
        left.flat_map(|id| self.broker(id).liveness.trunks())
            .collect()
    }

    /// The trunks with links, be it to brokers that aren't configured any more.
    pub fn linked_trunks(&self) -> Vec<TrunkId> {
        let brokers = self.brokers.iter();
        brokers
            .flat_map(|broker| broker.liveness.trunks())
            .collect()
    }

    fn note_steering(&mut self, now: Instant) {
        self.steering.is_news = true;
        self.changed = true;
        self.reconsider(now);
    }

    fn want(&mut self, to: BrokerId, reason: Departure, now: Instant) {
        let until = now + TRIED_FOR;
        self.steering.wanted = Some(Wanted { to, reason, until });
        self.steering.is_news = true;
        self.changed = true;
    }

    /// The choice was looked at: a broker that can't be used any more isn't waited for, and the
    /// host's own may have come back (R13).
    pub(super) fn review_steering(&mut self, before: BrokerId, now: Instant) {
        let current = self.current;
        if before != current {
            self.steering.by_hand = false;
        }
        let is_over = |wanted: &mut Wanted| wanted.to != current || wanted.until <= now;
        self.steering.wanted.take_if(is_over);
        if !self.steering.drained.is_empty() {
            // A drained one that was the last resort may be left now.
            let has_refuge = self.has_refuge();
            let had_refuge = std::mem::replace(&mut self.steering.had_refuge, has_refuge);
            self.steering.is_news |= has_refuge && !had_refuge;
        }
        if let Some(own) = self.own_that_returned()
            && self.is_usable(own, now)
            && self.settles_at(own).is_some_and(|at| at <= now)
        {
            self.current = own;
            self.want(own, Departure::Rebalanced, now);
        }
    }

    /// The host's own broker, where it is well, another is in use, and the host goes back by itself.
    fn own_that_returned(&self) -> Option<BrokerId> {
        let Placement::Spread { back: Some(_), .. } = self.placement else {
            return None;
        };
        let own = *self.order.first()?;
        let is_free = !self.steering.by_hand && own != self.current;
        (is_free && self.is_fit(own)).then_some(own)
    }

    /// When the host's own broker has been well for long enough; hosts spread.
    fn settles_at(&self, own: BrokerId) -> Option<Instant> {
        let Placement::Spread {
            back: Some(delay), ..
        } = self.placement
        else {
            return None;
        };
        let broker = self.broker(own);
        let since = broker.returned_at.unwrap_or(broker.since);
        let settled = since + delay + delay.mul_f64(SPREAD * unit(self.seed));
        Some(
            broker
                .held_until
                .map_or(settled, |until| until.max(settled)),
        )
    }

    /// When the choice is to be looked at for what [`Roster::review_steering`] does.
    pub(super) fn steering_due(&self) -> Option<Instant> {
        let tried = self.steering.wanted.map(|wanted| wanted.until);
        let own = self.own_that_returned();
        let back = own.and_then(|own| self.settles_at(own));
        tried.into_iter().chain(back).min()
    }

    /// Brokers that aren't configured any more were drained as others.
    pub(super) fn forget_drained(&mut self) {
        let addrs = &self.addrs;
        let drained = &mut self.steering.drained;
        drained.retain(|drained| addrs.contains(&drained.addr));
    }
}
