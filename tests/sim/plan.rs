//! What a seed decides before the run begins.

use std::time::Duration;

use natsmux::config::{BusLimits, Delivery, PongHold, Sharing, Timings, TlsMode, Topology};
use natsmux::upstream::Settings;
use natsmux::upstream::brokers::roster::Placement;

use super::broker::Flavour;
use super::net::{MS, SECOND, Time, Weather};
use super::rng::Rng;

/// What a broker with a smaller limit takes, in bytes.
pub const SMALL_PAYLOAD: usize = 3_000;

/// The run's parameters.
#[derive(Clone, Debug)]
pub struct Plan {
    pub auth: bool,
    pub flavours: Vec<Flavour>,
    /// Brokers know nothing of each other (R26-R32), and whether publishes go back to one
    /// that has returned.
    pub independent: Option<Placement>,
    /// Hosts authenticate what they announce.
    pub has_key: bool,
    /// The largest payload that each broker takes, in bytes.
    pub max_payload: Vec<usize>,
    /// Hosts with a natsmux each.
    pub hosts: usize,
    pub at_least_once: bool,
    pub components: usize,
    /// Sessions share trunks.
    pub is_shared: bool,
    /// How links are spoken on.
    pub tls: TlsMode,
    /// Components hear of outages that last.
    pub reveals: bool,
    /// Whether natsmux holds the credentials, and how often they are renewed.
    pub identities: bool,
    pub renewals: u64,
    /// No fault, and no bound that matters.
    pub is_flawless: bool,
    pub faults: u64,
    /// Planned moves: brokers that announce that they leave (R41).
    pub moves: u64,
    /// Commands of an operator (R42).
    pub orders: u64,
    /// Hosts go back to their own broker after so long (R13).
    pub rebalances: Option<Duration>,
    /// A component may have several equal subscriptions.
    pub twins: bool,
    /// When faults and new work stop.
    pub safety_end: Time,
    pub weather: Weather,
    pub route_delay: Time,
    /// Bytes that may be on their way to a broker, and to a component.
    pub windows: (usize, usize),
    /// Bytes that all components together may leave unread.
    pub pending_total: usize,
    pub settings: Settings,
    /// Longest pause between two actions of a component.
    pub pace: Time,
}

impl Plan {
    pub fn new(rng: &mut Rng) -> Self {
        let latency = rng.range(100, 400);
        let at_least_once = rng.percent(25);
        let (old, new) = (Flavour::V2_9, Flavour::V2_15);
        let flavours = match rng.below(8) {
            0 | 1 => vec![old; 2],
            2 | 3 => vec![new; 2],
            4 | 5 => vec![old, new],
            6 => vec![new, old, new],
            _ => vec![*rng.pick(&[Flavour::V0_4, new])],
        };
        let independent = (flavours.len() > 1 && rng.percent(30)).then(|| {
            let delay = *rng.pick(&[None, Some(50), Some(300), Some(1_000)]);
            Placement::First(delay.map(Duration::from_millis))
        });
        let twins = rng.percent(4) && independent.is_none();
        let mut max_payload = vec![1 << 20; flavours.len()];
        if rng.percent(15) {
            let small = rng.below(flavours.len() as u64) as usize;
            max_payload[small] = SMALL_PAYLOAD;
        }
        let hosts = *rng.pick(&[1, 1, 1, 2, 2, 3]);
        Self {
            auth: rng.percent(60),
            flavours,
            independent,
            has_key: hosts == 2,
            max_payload,
            hosts,
            at_least_once,
            components: *rng.pick(&[1, 1, 2, 3]) + hosts - 1,
            moves: 0,
            orders: 0,
            rebalances: None,
            faults: if twins { 0 } else { rng.range(1, 7) },
            twins,
            is_shared: false,
            tls: TlsMode::Off,
            reveals: false,
            identities: false,
            renewals: 0,
            is_flawless: false,
            safety_end: *rng.pick(&[300 * MS, 300 * MS, 600 * MS, 600 * MS, SECOND, 4 * SECOND]),
            weather: Weather {
                latency,
                jitter: *rng.pick(&[0, 100, 2000]),
                chop: *rng.pick(&[0, 0, 0, 1, 4]),
            },
            // A route is quicker than a failover, or messages would overtake each other in
            // ways that no client could tell from a broker's.
            route_delay: latency,
            windows: (
                *rng.pick(&[1_500, 8_000, 1_000_000]),
                *rng.pick(&[4_000, 16_000, 1_000_000]),
            ),
            pending_total: *rng.pick(&[60_000, 1 << 20]),
            settings: settings(rng, at_least_once, independent),
            pace: *rng.pick(&[20 * MS, 60 * MS, 200 * MS]),
        }
    }

    /// Lets the sessions of each host share trunks (R22): more of them, with less between them.
    pub fn share(&mut self, rng: &mut Rng) {
        self.settings.sharing = Sharing::Identity;
        self.settings.trunks_per_identity = *rng.pick(&[1, 1, 1, 2]);
        self.settings.timings.trunk_idle_timeout = *rng.pick(&[
            Duration::from_millis(1),
            Duration::from_millis(200),
            Duration::from_secs(60),
        ]);
        // A PONG that proves nothing is nothing to judge by.
        self.settings.timings.pong_hold = PongHold::default_for(self.settings.delivery);
        self.settings.believed_for =
            *rng.pick(&[Duration::from_millis(50), Duration::from_secs(60)]);
        self.components = rng.range(3, 7) as usize + self.hosts;
        self.twins = true;
        self.is_shared = true;
        if rng.percent(40) {
            self.be_flawless();
            let is_cluster = self.independent.is_none() && self.flavours.len() > 1;
            if is_cluster && rng.percent(60) {
                self.moves = rng.range(1, 4);
            }
        } else {
            self.faults = rng.range(1, 7);
        }
    }

    /// Has links speak TLS.
    pub fn secure(&mut self, rng: &mut Rng) {
        if !self.flavours.contains(&Flavour::V0_4) {
            self.tls = *rng.pick(&[TlsMode::Required, TlsMode::Required, TlsMode::First]);
            self.settings.timings.tls_timeout = Duration::from_millis(500);
        }
    }

    /// Nothing goes wrong, and nothing is too little: each message must arrive.
    fn be_flawless(&mut self) {
        self.is_flawless = true;
        self.faults = 0;
        self.windows = (1_000_000, 1_000_000);
        self.pending_total = 1 << 24;
        self.settings.limits.publish_buffer = 1 << 20;
        self.settings.limits.max_pending = 1 << 22;
        self.max_payload = vec![1 << 20; self.flavours.len()];
        if self.independent.is_some() {
            self.independent = Some(Placement::First(None));
        }
    }

    /// Whether brokers know of headers.
    pub fn has_headers(&self) -> bool {
        !self.flavours.contains(&Flavour::V0_4)
    }

    /// Whether a second CONNECT means the same at all brokers.
    pub fn is_uniform(&self) -> bool {
        self.flavours
            .iter()
            .all(|flavour| *flavour == self.flavours[0])
    }
}

fn settings(rng: &mut Rng, at_least_once: bool, independent: Option<Placement>) -> Settings {
    let failback = match independent {
        Some(Placement::First(Some(delay))) => delay,
        _ => Timings::default().failback_delay,
    };
    let delivery = if at_least_once {
        Delivery::AtLeastOnce
    } else {
        Delivery::AtMostOnce
    };
    let pong_hold = match rng.below(3) {
        0 if !at_least_once => PongHold::After(Duration::from_millis(300)),
        _ => PongHold::default_for(delivery),
    };
    let small = rng.percent(20);
    let ping_interval = *rng.pick(&[Duration::from_millis(400), Duration::from_secs(120)]);
    Settings {
        timings: Timings {
            pong_hold,
            ping_interval,
            block_for: if small {
                Duration::from_millis(250)
            } else {
                Duration::from_secs(30)
            },
            write_deadline: Duration::from_secs(2),
            failback_delay: failback,
            switch_settle: Duration::from_millis(20),
            move_overlap: Duration::from_millis(3),
            ..Timings::default()
        },
        limits: BusLimits {
            publish_buffer: if small { 4096 } else { 1 << 20 },
            max_pending: 64 * 1024,
            fence_messages: *rng.pick(&[1, 4, 256]),
            fence_bytes: *rng.pick(&[1024, 64 * 1024]),
            ..BusLimits::default()
        },
        topology: match independent {
            Some(_) => Topology::Independent,
            None => Topology::Cluster,
        },
        delivery,
        ..Settings::default()
    }
}
