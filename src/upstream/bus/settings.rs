//! The part of a bus's configuration that the machines read.

use std::time::Duration;

use crate::config::{
    Admit, BusConfig, BusLimits, Delivery, Identical, OutagePublishes, Sharing, Signed, Timings,
    Topology,
};

/// Fences per second, over all buses (R7).
const FENCES_PER_SECOND: u32 = 5_000;
/// Trunks of a bus that move by plan at once: a second link each.
const MOVES_AT_ONCE: usize = 256;
/// How long a broker's acceptance of credentials is believed of a session that joins others.
const BELIEVED_FOR: Duration = Duration::from_secs(60);

/// The part of a bus's configuration that the machines read.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Deadlines and intervals.
    pub timings: Timings,
    /// Bounds.
    pub limits: BusLimits,
    /// Whether open requests of JetStream consumers are asked again behind a failover (R44).
    pub resume_pulls: bool,
    /// How the brokers know each other.
    pub topology: Topology,
    /// Delivery of publishes that were written and not proven.
    pub delivery: Delivery,
    /// Whether publishes that wait survive an outage that components hear of (R37).
    pub outage_publishes: OutagePublishes,
    /// The meaning of byte-identical messages within a planned move (R41).
    pub move_identical: Identical,
    /// The components that may start while no broker is alive (R16).
    pub admit: Admit,
    /// Whether operations ahead of CONNECT are kept (R21).
    pub lenient_connect: bool,
    /// The fate of a component that signs with a key that natsmux doesn't hold (R40).
    pub signed: Signed,
    /// Whether identities show certificates of their own: what a broker says of one is nothing to
    /// the others.
    pub identities_have_certificates: bool,
    /// Which sessions share a trunk (R22).
    pub sharing: Sharing,
    /// The trunks that the sessions of one identity are spread over, where they share.
    pub trunks_per_identity: usize,
    /// How long a broker's acceptance of credentials is believed of a session that joins others.
    pub believed_for: Duration,
    /// Trunks that move by plan at once (R42).
    pub moves_at_once: usize,
    /// Fences that this bus sends per second at most, apart from the components' PINGs (R7).
    pub fences_per_second: u32,
}

impl Default for Settings {
    /// The settings of a bus that is configured with defaults, as the only one.
    fn default() -> Self {
        Self::of(&BusConfig::new("default", Vec::new()), 1)
    }
}

impl Settings {
    /// The settings of one of `buses` buses.
    pub fn of(bus: &BusConfig, buses: usize) -> Self {
        Self {
            timings: bus.timings,
            limits: bus.limits,
            resume_pulls: bus.resume_pulls,
            topology: bus.topology,
            delivery: bus.delivery,
            outage_publishes: bus.outage_publishes,
            move_identical: bus.move_identical,
            admit: bus.admit,
            lenient_connect: bus.lenient_connect,
            signed: bus.signed,
            identities_have_certificates: bus.identities_have_certificates(),
            sharing: bus.sharing,
            trunks_per_identity: bus.trunks_per_identity,
            believed_for: BELIEVED_FOR,
            moves_at_once: MOVES_AT_ONCE,
            fences_per_second: FENCES_PER_SECOND / buses.max(1) as u32,
        }
    }

    /// Whether brokers know nothing of each other: a trunk has a link to each (R26-R32).
    pub fn is_independent(&self) -> bool {
        self.topology == Topology::Independent
    }
}
