//! R42: an operator who moves, drains and pauses while all the rest goes on.

use std::time::Duration;

use natsmux::upstream::brokers::roster::{BrokerId, Placement};

use super::net::MS;
use super::plan::{Plan, SMALL_PAYLOAD};
use super::rng::Rng;
use super::world::{Event, World};

/// Between probes: brokers are asked what they offer within the time in which all gets well.
const PROBES: Duration = Duration::from_millis(100);
/// The longest pause that an operator asks for.
const LONGEST_PAUSE: u64 = 400 * MS;

impl Plan {
    /// An operator is at work.
    pub fn operate(&mut self, rng: &mut Rng) {
        self.orders = rng.range(1, 6);
        self.settings.timings.probe_interval = PROBES;
        self.settings.moves_at_once = *rng.pick(&[1, 1, 2, 256]);
        if self.independent.is_none() && rng.percent(40) {
            let delay = Duration::from_millis(*rng.pick(&[20, 100, 400]));
            self.settings.timings.failback_delay = delay;
            self.rebalances = Some(delay);
        }
    }

    /// The brokers' order on all hosts.
    pub fn placement(&self) -> Placement {
        self.independent.unwrap_or(Placement::Spread {
            rotation: 0,
            back: self.rebalances,
        })
    }
}

impl World {
    /// Schedules what the operator does.
    pub fn schedule_orders(&mut self) {
        for _ in 0..self.plan.orders {
            let at = self.operator.below(self.plan.safety_end);
            self.at(at, Event::Order);
        }
    }

    /// One command at one host.
    pub fn order(&mut self) {
        if self.calm {
            return;
        }
        let host = self.operator.below(self.plan.hosts as u64) as usize;
        self.focus(host);
        let broker = self.operator.below(self.brokers.len() as u64) as usize;
        let addr = format!("127.0.0.1:{}", 4301 + broker);
        let now = self.instant();
        match self.operator.below(6) {
            0 => {
                let drained = self.daemon.bus.roster_mut().drain(&addr, now);
                self.trace(|| format!("natsmux {host} is to drain broker {broker}: {drained:?}"));
                if drained.is_ok() {
                    self.oracle.mark("operator: drained");
                }
            }
            1 => {
                let undrained = self.daemon.bus.roster_mut().undrain(&addr, now);
                self.trace(|| format!("natsmux {host} is to undrain {broker}: {undrained:?}"));
                if undrained == Ok(true) {
                    self.oracle.mark("operator: undrained");
                }
            }
            2 => {
                let to = self.operator.percent(70).then_some(addr.as_str());
                let moved = self.daemon.bus.roster_mut().steer(to, now);
                self.trace(|| format!("natsmux {host} is to move to {to:?}: {moved:?}"));
                if moved.is_ok() {
                    self.oracle.mark("operator: moved");
                }
            }
            3 => {
                let pause = self.operator.range(MS, LONGEST_PAUSE);
                self.trace(|| format!("natsmux {host} holds publishes for {} ms", pause / MS));
                self.oracle.mark("operator: paused");
                self.daemon.bus.pause(now + Duration::from_micros(pause));
            }
            4 => self.reload_broker(broker),
            _ => {
                let was_paused = self.daemon.bus.unpause();
                self.trace(|| format!("natsmux {host} goes on: {was_paused}"));
            }
        }
        self.touch(host);
    }

    /// R43: a broker takes larger or smaller payloads, and says so to nobody.
    fn reload_broker(&mut self, no: usize) {
        let fitting = if self.plan.is_flawless {
            1 << 19
        } else {
            SMALL_PAYLOAD
        };
        let most = &mut self.plan.max_payload[no];
        *most = if *most == fitting { 1 << 20 } else { fitting };
        let most = *most;
        self.trace(|| format!("broker {no} takes {most} bytes from now on"));
        self.oracle.mark("operator: a broker reloads");
    }

    /// R43: whether every trunk knows what its broker takes.
    fn judge_offers(&mut self) {
        let is_cluster = self.plan.independent.is_none();
        for (id, io) in self.daemon.trunks.iter().filter(|_| is_cluster) {
            let Some(broker) = io.machine.broker() else {
                continue;
            };
            let (knows, takes) = (
                io.machine.max_payload(),
                self.plan.max_payload[usize::from(broker.0)],
            );
            if knows != takes {
                self.oracle.fail(
                    "R43 offers",
                    format!("trunk {}: {takes} bytes are taken, and {knows} known", id.0),
                );
            }
        }
    }

    /// R42: what must be true at rest of this host's choice.
    pub fn judge_choice(&mut self) {
        let roster = self.daemon.bus.roster();
        let brokers: Vec<BrokerId> = roster.brokers().map(|(id, _)| id).collect();
        let has_links = |id: &BrokerId| roster.broker(*id).links() > 0;
        let drained = |id: &BrokerId| roster.is_drained(*id);
        let is_cluster = self.plan.independent.is_none();
        let has_refuge = brokers.iter().any(|id| !drained(id));
        if is_cluster && has_refuge && brokers.iter().any(|id| drained(id) && has_links(id)) {
            self.oracle
                .fail("R42 draining", "a drained broker still has links");
        }
        if self.plan.orders > 0 {
            self.judge_offers();
        }
        let waits = self.daemon.bus.paused_until().is_some() || self.daemon.bus.movers() > 0;
        if waits {
            self.oracle
                .fail("R42 an end", "a pause or a move goes on for ever");
        }
    }
}
