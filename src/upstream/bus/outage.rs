//! R37: an outage that components are told of, since applications have logic for one.

use std::time::Duration;

use super::Bus;
use crate::clock::Instant;
use crate::config::OutagePublishes;

/// A look that is later than this behind the time at which it was due shows that natsmux didn't
/// run (R9), or that the outage was thought to be over.
const LATE: Duration = Duration::from_millis(250);
/// How long brokers have to answer before components hear of an outage then.
const SECOND_LOOK: Duration = Duration::from_secs(5);

/// How long a bus has had no broker, and whether its components know.
#[derive(Debug, Default)]
pub(super) struct Outage {
    since: Option<Instant>,
    /// A broker seems to serve again, since this was so.
    lull: Option<Dials>,
    is_revealed: bool,
    /// Nobody has been told of the last change.
    is_news: bool,
}

/// What has come of the bus's dials so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dials {
    opened: u64,
    failed: u64,
}

impl Outage {
    /// Takes what is known of the brokers now; `limit` is how long components aren't told.
    fn review(&mut self, serves: bool, dials: Dials, limit: Option<Duration>, now: Instant) {
        if serves {
            self.lull.get_or_insert(dials);
        } else {
            if let Some(lull) = self.lull.take() {
                let let_nobody_in = dials.opened == lull.opened && dials.failed > lull.failed;
                self.since = self.since.filter(|_| let_nobody_in);
            }
            let since = *self.since.get_or_insert(now);
            if let Some(limit) = limit
                && !self.is_revealed
                && since + limit + LATE < now
            {
                self.since = Some(now - (limit - SECOND_LOOK.min(limit)));
            }
        }
        let is_over_limit = self.due(limit).is_some_and(|due| due <= now);
        let is_revealed = !serves && is_over_limit;
        self.is_news |= is_revealed != self.is_revealed;
        self.is_revealed = is_revealed;
    }

    /// When components are told, unless a broker serves by then.
    fn due(&self, limit: Option<Duration>) -> Option<Instant> {
        self.lull.is_none().then_some(self.since? + limit?)
    }
}

impl Bus {
    /// Looks at whether any broker serves, and whether components are to know that none does.
    pub fn review_outage(&mut self, now: Instant) {
        let serves = self.brokers.roster.is_alive();
        let dials = Dials {
            opened: self.counters.links_opened,
            failed: self.counters.dial_failures,
        };
        let limit = self.outage_limit();
        let outage = &mut self.brokers.outage;
        let was_revealed = outage.is_revealed;
        outage.review(serves, dials, limit, now);
        if outage.is_revealed && !was_revealed {
            self.counters.outages_revealed += 1;
        }
    }

    fn outage_limit(&self) -> Option<Duration> {
        let limit = self.settings.timings.reveal_outage_after;
        (!limit.is_zero()).then_some(limit)
    }

    /// Whether components are disconnected, and nobody is let in, until a broker serves.
    pub fn reveals_outage(&self) -> bool {
        self.brokers.outage.is_revealed
    }

    /// For how long no broker has served.
    pub fn outage_lasts(&self, now: Instant) -> Option<Duration> {
        let outage = &self.brokers.outage;
        let since = outage.since.filter(|_| outage.lull.is_none())?;
        Some(now.saturating_duration_since(since))
    }

    /// Whether publishes that wait for a broker are given up.
    pub(in crate::upstream) fn drops_publishes(&self) -> bool {
        self.reveals_outage() && self.settings.outage_publishes == OutagePublishes::Drop
    }

    /// Whether components were cut off, or are taken again; asked once.
    pub fn take_outage_news(&mut self) -> Option<bool> {
        let outage = &mut self.brokers.outage;
        std::mem::take(&mut outage.is_news).then_some(outage.is_revealed)
    }

    pub(super) fn has_outage_news(&self) -> bool {
        self.brokers.outage.is_news
    }

    /// When the roster, or an outage, wants to be looked at.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let outage = &self.brokers.outage;
        let revealed_at = outage.due(self.outage_limit());
        let due = [
            self.brokers.roster.poll_timeout(),
            revealed_at.filter(|_| !outage.is_revealed),
        ];
        due.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

    const NO_DIALS: Dials = Dials {
        opened: 0,
        failed: 0,
    };

    /// An outage that has begun just now, and the time so many seconds later.
    fn begun() -> (Outage, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let mut outage = Outage::default();
        outage.review(false, NO_DIALS, LIMIT, start);
        (outage, move |seconds| start + Duration::from_secs(seconds))
    }

    #[test]
    fn it_is_told_once_it_has_lasted_and_over_when_a_broker_serves() {
        let (mut outage, at) = begun();
        outage.review(false, NO_DIALS, LIMIT, at(59));
        assert!(!outage.is_revealed && !outage.is_news);
        outage.review(false, NO_DIALS, LIMIT, at(60));
        assert!(outage.is_revealed && std::mem::take(&mut outage.is_news));
        outage.review(true, NO_DIALS, LIMIT, at(61));
        assert!(!outage.is_revealed && outage.is_news);
    }

    #[test]
    fn without_a_limit_nobody_hears_of_it() {
        let (mut outage, at) = begun();
        outage.review(false, NO_DIALS, None, at(9_999));
        assert!(!outage.is_revealed && outage.due(None).is_none());
    }

    #[test]
    fn a_broker_that_lets_nobody_in_does_not_end_it() {
        let (mut outage, at) = begun();
        outage.review(true, NO_DIALS, LIMIT, at(30));
        let failed = Dials {
            failed: 1,
            ..NO_DIALS
        };
        outage.review(false, failed, LIMIT, at(31));
        assert_eq!(outage.due(LIMIT), Some(at(60)));
        outage.review(true, failed, LIMIT, at(32));
        let both = Dials {
            opened: 1,
            failed: 2,
        };
        outage.review(false, both, LIMIT, at(33));
        assert_eq!(outage.due(LIMIT), Some(at(93)), "it let one in");
    }

    #[test]
    fn a_broker_that_nobody_dialled_ends_it() {
        let (mut outage, at) = begun();
        outage.review(true, NO_DIALS, LIMIT, at(30));
        assert_eq!(outage.due(LIMIT), None);
        outage.review(false, NO_DIALS, LIMIT, at(31));
        assert_eq!(outage.due(LIMIT), Some(at(91)));
    }

    #[test]
    fn time_in_which_natsmux_did_not_run_is_no_outage() {
        let (mut outage, at) = begun();
        outage.review(false, NO_DIALS, LIMIT, at(600));
        assert!(!outage.is_revealed);
        outage.review(false, NO_DIALS, LIMIT, at(605));
        assert!(outage.is_revealed);
    }
}
