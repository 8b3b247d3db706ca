//! Log lines about a whole bus, each said once for all of its trunks.

use std::collections::{BTreeMap, BTreeSet};

use tracing::{error, info, warn};

use super::log_limit::LogLimit;
use crate::clock::Instant;
use crate::upstream::brokers::roster::{BrokerId, Failure};
use crate::upstream::bus::Bus;

/// The news of a bus that the operator was last told.
#[derive(Debug)]
pub(super) struct OperatorLog {
    name: String,
    /// Texts that may come often.
    pub(super) limit: LogLimit,
    /// Whether the bus has a live broker.
    alive: Option<bool>,
    /// Whether components know that it has none.
    revealed: bool,
    /// Whether the brokers aren't routed as configured.
    wrong: bool,
    /// The brokers that live and serve nobody, and why.
    troubles: BTreeMap<BrokerId, Failure>,
    /// The spares that offer less than the broker in use.
    lesser: BTreeSet<BrokerId>,
}

impl OperatorLog {
    pub(super) fn new(name: String) -> Self {
        Self {
            name,
            limit: LogLimit::default(),
            alive: None,
            revealed: false,
            wrong: false,
            troubles: BTreeMap::new(),
            lesser: BTreeSet::new(),
        }
    }

    /// Tells the operator what concerns the whole bus.
    pub(super) fn report(&mut self, bus: &mut Bus, now: Instant) {
        let addr = |bus: &Bus, id| bus.roster().broker(id).label();
        if let Some(failover) = bus.poll_failover(now) {
            info!(
                bus = self.name,
                from = addr(bus, failover.from),
                to = failover.to.map(|to| addr(bus, to)),
                cause = failover.cause.as_str(),
                detection_ms = failover.detection.as_millis() as u64,
                took_ms = failover.took.as_millis() as u64,
                trunks = failover.trunks,
                attached = failover.attached,
                replayed = failover.replayed,
                moved = failover.moved,
                in_doubt = failover.in_doubt,
                repeated = failover.repeated,
                held = failover.held,
                confirmed = failover.confirmed,
                complete = failover.complete,
                "failover"
            );
        }
        self.report_troubles(bus);
        let wrong = bus.has_wrong_topology();
        if !std::mem::replace(&mut self.wrong, wrong) && wrong && !bus.settings().is_independent() {
            warn!(
                bus = self.name,
                "wrong topology: brokers name different clusters, or none"
            );
        }
        self.report_life(bus);
        self.report_outage(bus, now);
    }

    /// Tells the operator that the bus has a live broker, or none.
    fn report_life(&mut self, bus: &Bus) {
        let alive = bus.roster().is_alive();
        if self.alive == Some(alive) {
            return;
        }
        self.alive = Some(alive);
        if alive {
            info!(bus = self.name, "bus has a live broker");
        } else if bus.roster().was_asked() {
            error!(bus = self.name, "bus has no live broker");
        } else {
            self.alive = None;
        }
    }

    /// Tells the operator that components are cut off, or taken again (R37).
    fn report_outage(&mut self, bus: &Bus, now: Instant) {
        let revealed = bus.reveals_outage();
        if std::mem::replace(&mut self.revealed, revealed) == revealed {
            return;
        }
        if revealed {
            let lasts = bus.outage_lasts(now).unwrap_or_default().as_secs();
            error!(
                bus = self.name,
                lasts_s = lasts,
                "outage revealed: components are disconnected until a broker serves"
            );
        } else {
            info!(bus = self.name, "components are taken again");
        }
    }

    /// Tells the operator which brokers began, or ceased, to turn everybody away, and which spares
    /// offer less than the broker in use.
    fn report_troubles(&mut self, bus: &Bus) {
        let known = &mut self.troubles;
        for (id, broker) in bus.roster().brokers() {
            match bus.roster().trouble(id) {
                Some(trouble) if known.insert(id, trouble.cause) != Some(trouble.cause) => {
                    let text = String::from_utf8_lossy(&trouble.text);
                    let (text, cause) = (text.escape_debug(), trouble.cause.as_str());
                    let broker = broker.label();
                    warn!(bus = self.name, broker, cause, %text, "broker serves nobody");
                }
                Some(_) => {}
                None => {
                    if known.remove(&id).is_some() {
                        let broker = broker.label();
                        info!(bus = self.name, broker, "broker serves again, or is gone");
                    }
                }
            }
        }
        let lesser: BTreeSet<BrokerId> = bus.roster().lesser().collect();
        for id in lesser.difference(&self.lesser) {
            let broker = bus.roster().broker(*id);
            let max_payload = broker.info().map(|info| info.max_payload);
            let broker = broker.label();
            warn!(
                bus = self.name,
                broker, max_payload, "broker offers less than the one in use"
            );
        }
        self.lesser = lesser;
    }
}
