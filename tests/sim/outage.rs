//! R37: outages that components hear of, and when they may.

use std::time::Duration;

use natsmux::config::{Delivery, OutagePublishes};
use natsmux::upstream::CloseReason;

use super::net::{MS, SECOND, Time};
use super::plan::Plan;
use super::rng::Rng;
use super::world::{Event, World};

/// How long an outage is hidden, where it isn't for ever.
const HIDDEN: Time = SECOND;
/// Between probes there: brokers are asked often enough to be found.
const PROBES: Duration = Duration::from_millis(200);
/// How long natsmux may take to find a broker that is back.
const UNFOUND: Time = 2 * SECOND;

impl Plan {
    /// Has outages happen, of which components hear.
    pub fn reveal(&mut self, rng: &mut Rng) {
        if self.is_flawless {
            return;
        }
        self.reveals = true;
        self.settings.timings.reveal_outage_after = Duration::from_micros(HIDDEN);
        self.settings.timings.probe_interval = PROBES;
        if self.settings.delivery == Delivery::AtMostOnce && rng.percent(50) {
            self.settings.outage_publishes = OutagePublishes::Drop;
        }
        self.safety_end = self.safety_end.max(3 * SECOND);
    }
}

impl World {
    /// Every broker dies, for longer than components are kept in the dark.
    pub fn black_out(&mut self) {
        for broker in 0..self.brokers.len() {
            self.kill(broker);
            self.brokers[broker].plan += 1;
            let plan = self.brokers[broker].plan;
            let pause = HIDDEN + self.rng.range(100 * MS, SECOND);
            self.after(pause, Event::Restart { broker, plan });
        }
    }

    /// Notes whether any broker would serve now.
    pub fn note_outage(&mut self) {
        if !self.plan.reveals {
            return;
        }
        let serves = |broker: &super::broker::Broker| broker.willing_since.is_some();
        if self.brokers.iter().any(serves) {
            if let Some(since) = self.outage_since.take() {
                self.last_outage = Some((since, self.now));
            }
            return;
        }
        let since = *self.outage_since.get_or_insert(self.now);
        if self.now >= since + HIDDEN {
            self.outage_at = Some(self.now);
        }
    }

    /// I15: whether components may hear of an outage now.
    pub fn may_reveal(&self) -> bool {
        // While natsmux pauses it doesn't find a broker that is back.
        let is_fresh = |at: Time| self.now <= at.max(self.daemon.paused_until) + UNFOUND;
        let lasted = self.outage_at.is_some_and(is_fresh);
        // Natsmux doesn't know at once that one is over.
        let is_over = |(since, end): (Time, Time)| self.now >= since + HIDDEN && is_fresh(end);
        let lasted = lasted || self.last_outage.is_some_and(is_over);
        // What dies before it has let anybody in hasn't ended an outage.
        let served_at = self.daemon.served.1;
        let lasts = self.outage_since.is_some() && self.now >= served_at + HIDDEN;
        self.plan.reveals && (lasts || lasted)
    }

    /// Whether a component that connects now is let go before INFO.
    pub fn turns_away(&mut self) -> bool {
        let reveals = self.daemon.bus.reveals_outage();
        if reveals {
            self.oracle.mark("outage: turned away");
            if !self.may_reveal() {
                self.oracle
                    .fail("R37 revealing", "turned away though a broker serves");
            }
        }
        reveals
    }

    /// Looks at the outage, as the prober does. Returns whether components are to hear of one.
    pub fn review_outage(&mut self) -> bool {
        let now = self.instant();
        let opened = self.daemon.bus.counters().links_opened;
        if opened > self.daemon.served.0 {
            self.daemon.served = (opened, self.now);
        }
        self.daemon.bus.review(now);
        let is_revealed = self.daemon.bus.take_outage_news();
        if is_revealed {
            self.trace(|| "components hear of an outage".into());
            self.oracle.mark("outage: revealed");
            self.tell_of_outage();
        }
        is_revealed
    }

    /// I15: why a session may end that knows nothing of itself to blame.
    pub fn may_close_in_outage(&self, reason: &CloseReason) -> bool {
        matches!(reason, CloseReason::Outage) && self.may_reveal()
    }
}
