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
    /// Since when a broker seems to serve again: no link has proven it yet.
    over_at: Option<Instant>,
    /// Links that had been opened when it began.
    links_opened: u64,
    is_revealed: bool,
    /// Nobody has been told of the last change.
    is_news: bool,
}

impl Outage {
    /// Takes what is known of the brokers now; `limit` is how long components aren't told.
    fn review(&mut self, serves: bool, opened: u64, limit: Option<Duration>, now: Instant) {
        if serves {
            let over_at = *self.over_at.get_or_insert(now);
            let has_lasted = limit.is_none_or(|limit| over_at + limit <= now);
            if opened > self.links_opened || has_lasted {
                self.since = None;
            }
        } else {
            self.over_at = None;
            if self.since.is_none() {
                (self.since, self.links_opened) = (Some(now), opened);
            }
            if let (Some(limit), Some(since)) = (limit, self.since)
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
        Some(self.since? + limit?)
    }
}

impl Bus {
    /// Looks at whether any broker serves, and whether components are to know that none does.
    pub fn review_outage(&mut self, now: Instant) {
        let serves = self.brokers.roster.is_alive();
        let (opened, limit) = (self.counters.links_opened, self.outage_limit());
        let outage = &mut self.brokers.outage;
        let was_revealed = outage.is_revealed;
        outage.review(serves, opened, limit, now);
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
        let since = outage.since.filter(|_| outage.over_at.is_none())?;
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
        let limit = self.outage_limit();
        let waits = !outage.is_revealed && outage.over_at.is_none();
        let revealed_at = outage.due(limit).filter(|_| waits);
        let proven_at = outage.over_at.filter(|_| outage.since.is_some());
        let proven_at = proven_at.and_then(|at| Some(at + limit?));
        let due = [self.brokers.roster.poll_timeout(), revealed_at, proven_at];
        due.into_iter().flatten().min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Option<Duration> = Some(Duration::from_secs(60));

    /// An outage that has lasted for nothing, and the seconds since it began.
    fn begun() -> (Outage, impl Fn(u64) -> Instant) {
        let start = Instant::now();
        let mut outage = Outage::default();
        outage.review(false, 0, LIMIT, start);
        (outage, move |seconds| start + Duration::from_secs(seconds))
    }

    #[test]
    fn it_is_told_once_it_has_lasted_and_over_when_a_broker_serves() {
        let (mut outage, at) = begun();
        outage.review(false, 0, LIMIT, at(59));
        assert!(!outage.is_revealed && !outage.is_news);
        outage.review(false, 0, LIMIT, at(60));
        assert!(outage.is_revealed && std::mem::take(&mut outage.is_news));
        outage.review(true, 0, LIMIT, at(61));
        assert!(!outage.is_revealed && outage.is_news);
    }

    #[test]
    fn without_a_limit_nobody_hears_of_it() {
        let (mut outage, at) = begun();
        outage.review(false, 0, None, at(9_999));
        assert!(!outage.is_revealed && outage.due(None).is_none());
    }

    #[test]
    fn a_broker_that_lets_nobody_in_doesn_t_end_it() {
        let (mut outage, at) = begun();
        outage.review(true, 0, LIMIT, at(30));
        outage.review(false, 0, LIMIT, at(31));
        outage.review(false, 0, LIMIT, at(60));
        assert!(outage.is_revealed);
    }

    #[test]
    fn a_link_ends_it_and_so_does_a_broker_that_stays() {
        let (mut outage, at) = begun();
        outage.review(true, 1, LIMIT, at(30));
        outage.review(false, 1, LIMIT, at(31));
        outage.review(false, 1, LIMIT, at(90));
        assert!(!outage.is_revealed, "it began at 31");
        outage.review(true, 1, LIMIT, at(90));
        outage.review(true, 1, LIMIT, at(150));
        outage.review(false, 1, LIMIT, at(151));
        assert_eq!(outage.due(LIMIT), Some(at(211)));
    }

    #[test]
    fn time_in_which_natsmux_did_not_run_is_no_outage() {
        let (mut outage, at) = begun();
        outage.review(false, 0, LIMIT, at(600));
        assert!(!outage.is_revealed);
        outage.review(false, 0, LIMIT, at(605));
        assert!(outage.is_revealed);
    }
}
