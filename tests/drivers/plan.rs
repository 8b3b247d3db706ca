//! What a seed decides before the run begins.

use std::net::IpAddr;
use std::time::Duration;

use natsmux::config::Config;

use super::rng::Rng;
use super::secured;

/// How a component behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Stays to the end.
    Steady,
    /// Sends what isn't the protocol.
    Garbage,
    /// Is gone in the middle of a frame.
    Dies,
    /// Closes its side behind a PING, and reads on.
    HalfCloses,
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A broker's process ends, and another begins after a while.
    Kill,
    /// What either side sends arrives only once this is over.
    Hold,
    /// Nothing arrives at the broker any more.
    LoseUp,
    /// Nothing arrives from the broker any more.
    LoseDown,
    /// Nothing arrives in either direction.
    Partition,
    /// The broker says so, and ends after a while.
    LameDuck,
}

/// A fault of one broker, from one time to another.
#[derive(Clone, Copy, Debug)]
pub struct Incident {
    pub broker: usize,
    pub fault: Fault,
    pub from: Duration,
    pub until: Duration,
}

/// The run's parameters.
#[derive(Clone, Debug)]
pub struct Plan {
    pub at_least_once: bool,
    /// Brokers speak TLS.
    pub tls: bool,
    pub manners: Vec<Manner>,
    pub incidents: Vec<Incident>,
    /// When faults and new work stop.
    pub calm_at: Duration,
    /// Longest time of a message on the network.
    pub latency: Duration,
    /// Longest pause of a component between two actions.
    pub pace: Duration,
    /// Segments that a connection takes before it is full.
    pub capacity: usize,
}

const MS: u64 = 1;

impl Plan {
    pub fn new(rng: &mut Rng) -> Self {
        let calm_at = rng.range(2_000, 5_000) * MS;
        let odd = [Manner::Garbage, Manner::Dies, Manner::HalfCloses];
        let mut manners = vec![Manner::Steady; rng.range(1, 3) as usize];
        for _ in 0..rng.below(3) {
            manners.push(*rng.pick(&odd));
        }
        let faults = [
            Fault::Kill,
            Fault::Kill,
            Fault::Hold,
            Fault::LoseUp,
            Fault::LoseDown,
            Fault::Partition,
            Fault::LameDuck,
        ];
        let mut incidents = Vec::new();
        // One after the other, so that a fault ends before the broker's next one begins.
        let mut at = 200 * MS;
        while at + 200 < calm_at && incidents.len() < 4 {
            let from = at + rng.below(800);
            let until = (from + rng.range(50, 3_500)).min(calm_at);
            if from >= until {
                break;
            }
            incidents.push(Incident {
                broker: rng.below(2) as usize,
                fault: *rng.pick(&faults),
                from: Duration::from_millis(from),
                until: Duration::from_millis(until),
            });
            at = until;
        }
        Self {
            at_least_once: rng.percent(30),
            tls: rng.percent(30),
            manners,
            incidents,
            calm_at: Duration::from_millis(calm_at),
            latency: Duration::from_millis(*rng.pick(&[2, 5, 20])),
            pace: Duration::from_millis(*rng.pick(&[5, 20, 100])),
            // Not fewer: turmoil loses a FIN that meets a full buffer.
            capacity: *rng.pick(&[128, 1024]),
        }
    }

    /// The configuration that natsmux gets.
    pub fn config(&self, brokers: &[IpAddr]) -> Config {
        let delivery = if self.at_least_once {
            "at-least-once"
        } else {
            "at-most-once"
        };
        let brokers: Vec<_> = brokers
            .iter()
            .map(|addr| format!("\"{addr}:4222\""))
            .collect();
        let mut text = format!(
            "name = \"host\"\n[[bus]]\nname = \"main\"\nlisten = [\"0.0.0.0:4222\"]\nbrokers = [{}]\ndelivery = \"{delivery}\"\n",
            brokers.join(", ")
        );
        if self.tls {
            let ca = secured::authority();
            text += "[bus.timings]\ntls_timeout = \"1s\"\n[bus.tls]\nserver_name = \"localhost\"\n";
            text += &format!("ca = \"{}\"\n", ca.display());
        }
        Config::parse(&text).expect("a valid configuration")
    }
}
