//! One broker of a bus, and its health.

use core::net::IpAddr;
use std::time::{Duration, SystemTime};

use smallvec::SmallVec;

use super::failure::Failure;
use super::liveness::Liveness;
use crate::clock::Instant;
use crate::config::BrokerAddr;
use crate::proto::info::ServerInfo;

/// A broker's place in the roster. Never reused while the bus lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BrokerId(pub u16);

/// The health of a broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Not asked yet.
    Unknown,
    /// It sent an INFO, and nothing since says otherwise.
    Up,
    /// It announced that it will go away.
    LameDuck,
    /// It couldn't be reached, or said nothing.
    Down,
}

impl Health {
    /// The word for operators.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Up => "up",
            Self::LameDuck => "lame duck",
            Self::Down => "down",
        }
    }
}

/// Dials in flight to one broker: at first, at least and at most.
const DIALS_FIRST: u32 = 64;
const DIALS_LEAST: u32 = 8;
const DIALS_MOST: u32 = 128;
/// A verdict that takes this long makes room for one more, or takes half away.
const VERDICT_QUICK: Duration = Duration::from_millis(250);
const VERDICT_SLOW: Duration = Duration::from_millis(500);

/// One broker.
#[derive(Debug)]
pub struct Broker {
    pub(super) addr: BrokerAddr,
    /// Addresses of its name, or the address that is written: none while no answer has come. Mostly
    /// one; of a host with both families, one of each.
    pub(super) ips: SmallVec<[IpAddr; 1]>,
    /// Whether the name has other addresses too, so that this one is told from those.
    pub(super) is_one_of_several: bool,
    /// Answers in a row in which it wasn't.
    pub(super) unnamed: u32,
    pub(super) health: Health,
    pub(super) since: Instant,
    /// Hosts that aren't subscribed there, as they say (R29).
    pub(super) missing: usize,
    /// It died of silence: its process may go on where it stood.
    pub(super) was_silent: bool,
    /// When it was first heard of again since then.
    pub(super) thawed_at: Option<Instant>,
    /// When it came back from the dead last.
    pub(super) returned_at: Option<Instant>,
    pub(super) last_failure: Option<Failure>,
    pub(super) failed_at: Option<Instant>,
    pub(super) info: Option<Box<ServerInfo>>,
    /// Failures since it last answered, for the probe's backoff; 0 again once no broker is left.
    pub(super) failures: u32,
    /// Failures shortly after it came up, for the hold-down.
    pub(super) flaps: u32,
    pub(super) held_until: Option<Instant>,
    pub(super) probe_at: Instant,
    pub(super) probing: bool,
    /// When it is asked although links tell how it is: what it offers may have changed.
    pub(super) look_at: Instant,
    /// Whether the present probe is for that.
    pub(super) looking: bool,
    /// `max_payload` and headers of its process that links are told of.
    pub(super) offer: (usize, bool),
    /// Counts changes of these.
    pub(super) revision: u32,
    /// When they changed last.
    pub(super) revised_at: Option<Instant>,
    /// How long the last probe took that was answered.
    pub(super) probe_took: Option<Duration>,
    pub(crate) dialing: u32,
    /// Dials that may be in flight: as many as it gives verdicts on in good time.
    pub(super) dial_limit: u32,
    pub(super) limit_cut_at: Option<Instant>,
    /// When it last gave a verdict on a CONNECT.
    pub(super) last_verdict_at: Option<Instant>,
    /// The longest control line that it takes, where it has closed a link for a longer one, and
    /// when that was.
    pub(super) line_learned: Option<(usize, Instant)>,
    /// The watch over it, by the trunks with a live link there.
    pub(super) liveness: Liveness,
    pub(super) removed: bool,
    /// When the certificate ends that it showed last.
    pub(super) certificate_ends: Option<SystemTime>,
    /// Its links speak as natsmux did before a reload.
    pub(super) is_outdated: bool,
}

impl Broker {
    /// It is another one from now on: what natsmux says to it, or believes, has changed.
    pub(super) fn renew(&mut self) {
        (self.removed, self.is_outdated) = (true, true);
    }

    /// A broker that wasn't asked yet, and is to be asked now.
    pub(super) fn new(addr: BrokerAddr, now: Instant) -> Self {
        Self {
            ips: addr.host.parse().into_iter().collect(),
            is_one_of_several: false,
            unnamed: 0,
            addr,
            health: Health::Unknown,
            since: now,
            missing: 0,
            was_silent: false,
            thawed_at: None,
            returned_at: None,
            last_failure: None,
            failed_at: None,
            info: None,
            failures: 0,
            flaps: 0,
            held_until: None,
            probe_at: now,
            probing: false,
            probe_took: None,
            dialing: 0,
            dial_limit: DIALS_FIRST,
            limit_cut_at: None,
            last_verdict_at: None,
            line_learned: None,
            liveness: Liveness::default(),
            removed: false,
            certificate_ends: None,
            is_outdated: false,
            look_at: now,
            looking: false,
            offer: (0, false),
            revision: 0,
            revised_at: None,
        }
    }

    /// As it is configured.
    pub fn addr(&self) -> &BrokerAddr {
        &self.addr
    }

    /// The addresses to dial, in order.
    pub fn ips(&self) -> &[IpAddr] {
        &self.ips
    }

    /// Returns its name for operators: as it is configured, and the address where the name has
    /// several.
    pub fn label(&self) -> String {
        match self.ips.first().filter(|_| self.is_one_of_several) {
            Some(ip) => format!("{} ({ip})", self.addr),
            None => self.addr.to_string(),
        }
    }

    /// Returns its health.
    pub fn health(&self) -> Health {
        self.health
    }

    /// Since when its health is what it is.
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Its last failure.
    pub fn last_failure(&self) -> Option<Failure> {
        self.last_failure
    }

    /// Its last INFO.
    pub fn info(&self) -> Option<&ServerInfo> {
        self.info.as_deref()
    }

    /// Live links to it.
    pub fn links(&self) -> u32 {
        self.liveness.attached() as u32
    }

    /// Whether any trunk has a live link to it.
    pub(super) fn has_links(&self) -> bool {
        self.liveness.attached() > 0
    }

    /// The watch over it.
    pub fn liveness(&self) -> &Liveness {
        &self.liveness
    }

    /// Whether its sentinel waits too long for an answer (R8).
    pub fn is_suspect(&self) -> bool {
        self.liveness.suspect_since().is_some()
    }

    /// How long the last probe took that was answered, from its dial to the INFO.
    pub fn probe_took(&self) -> Option<Duration> {
        self.probe_took
    }

    /// When the certificate ends that it showed last, or one between it and its authority.
    pub fn certificate_ends(&self) -> Option<SystemTime> {
        self.certificate_ends
    }

    /// Failures since it last answered, or since no broker was left.
    pub fn failures(&self) -> u32 {
        self.failures
    }

    /// Whether it is no longer configured.
    pub fn is_removed(&self) -> bool {
        self.removed
    }

    /// Whether trunks may dial it.
    pub(super) fn accepts_dials(&self) -> bool {
        let is_known = !self.ips.is_empty();
        !self.removed && is_known && matches!(self.health, Health::Unknown | Health::Up)
    }

    /// Whether it answers.
    pub(super) fn lives(&self) -> bool {
        matches!(self.health, Health::Up | Health::LameDuck)
    }

    /// It is another process: how fast the last one gave verdicts says nothing of it.
    pub(super) fn forget_verdicts(&mut self) {
        self.dial_limit = DIALS_FIRST;
    }

    /// Whether another dial may be on its way, of `most` (R12).
    pub(super) fn has_turn(&self, most: u32) -> bool {
        self.dialing < self.dial_limit.min(most)
    }

    /// It refused a CONNECT. That says nothing of its pace: some brokers take their time for those
    /// whom they refuse.
    pub(super) fn note_refusal(&mut self, now: Instant) {
        self.last_verdict_at = Some(now);
    }

    /// It accepted a CONNECT, `took` after that was written.
    pub(super) fn note_acceptance(&mut self, took: Duration, now: Instant) {
        self.last_verdict_at = Some(now);
        let began = now - took;
        if took <= VERDICT_QUICK {
            self.dial_limit = (self.dial_limit + 1).min(DIALS_MOST);
        } else if took >= VERDICT_SLOW && self.limit_cut_at.is_none_or(|cut| cut <= began) {
            self.dial_limit = (self.dial_limit / 2).max(DIALS_LEAST);
            self.limit_cut_at = Some(now);
        }
    }

    /// The health of one that answers. A lame duck takes no dials, and answers on the links that it
    /// has.
    pub(super) fn health_of_living(&self) -> Health {
        match &self.info {
            Some(info) if info.ldm => Health::LameDuck,
            _ => Health::Up,
        }
    }

    /// Notes that it is up, or about to leave.
    pub(super) fn revive(&mut self, health: Health, now: Instant) {
        if self.health == Health::Down {
            self.returned_at = Some(now);
        }
        (self.was_silent, self.thawed_at) = (false, None);
        self.health = health;
        self.since = now;
    }

    /// When to probe it; `None` while a probe is on its way. While links tell how it is, it is only
    /// asked what it offers.
    pub(super) fn probe_due(&self) -> Option<Instant> {
        let is_known = !self.ips.is_empty();
        // A look that hangs mustn't keep others from finding out how it is.
        let is_asked = self.probing && (!self.looking || self.has_links());
        let due = if self.has_links() {
            self.look_at
        } else {
            self.probe_at
        };
        (!is_asked && !self.removed && is_known).then_some(due)
    }

    /// A process says what it offers. Returns whether its links are to be told: not more often than
    /// each `interval`, since one that says something else each time would have them moved for ever.
    pub(super) fn revise(
        &mut self,
        offer: (usize, bool),
        is_same: bool,
        interval: Duration,
        now: Instant,
    ) -> bool {
        let is_known = !is_same || self.offer == offer;
        let is_early = self.revised_at.is_some_and(|at| now < at + interval);
        if !is_known && is_early {
            return false;
        }
        self.offer = offer;
        if !is_known {
            self.revision = self.revision.wrapping_add(1);
            self.revised_at = Some(now);
        }
        !is_known
    }

    /// How often it has changed what it offers to links that it has: one that was opened before
    /// the last change isn't told of it (R43).
    pub fn revision(&self) -> u32 {
        self.revision
    }
}
