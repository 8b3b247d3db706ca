//! R37: an outage that components are told of, since applications have logic for one.

use std::time::Duration;

use super::Bus;
use crate::clock::Instant;
use crate::config::OutagePublishes;

/// An outage is looked at as often as this, or natsmux didn't run (R9).
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How late a look may be.
const LATE: Duration = Duration::from_millis(250);

/// How long a bus has had no broker, and whether its components know.
#[derive(Debug, Default)]
pub(super) struct Outage {
    /// Since when no broker serves, in time in which natsmux ran.
    since: Option<Instant>,
    /// When that was last looked at.
    looked_at: Option<Instant>,
    /// A broker seems to serve again, since then.
    lull: Option<Lull>,
    is_revealed: bool,
    /// Nobody has been told of the last change.
    is_news: bool,
}

/// A time in which a broker seems to serve: no link has proven it yet.
#[derive(Clone, Copy, Debug)]
struct Lull {
    since: Instant,
    dials: Dials,
}

/// Dials of the bus, counted since it began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Dials {
    opened: u64,
    failed: u64,
}

impl Outage {
    /// Takes what is known of the brokers now; `limit` is how long components aren't told.
    fn review(&mut self, serves: bool, dials: Dials, limit: Option<Duration>, now: Instant) {
        if limit.is_some() && !self.is_revealed {
            self.skip_stop(now);
        }
        if serves {
            self.lull.get_or_insert(Lull { since: now, dials });
        } else {
            if let Some(Lull { since, dials: then }) = self.lull.take() {
                let is_short = limit.is_some_and(|limit| now < since + limit);
                let let_nobody_in = dials.opened == then.opened && dials.failed > then.failed;
                self.since = self.since.filter(|_| is_short && let_nobody_in);
            }
            self.since.get_or_insert(now);
        }
        self.looked_at = (!serves).then_some(now);
        let is_revealed = !serves && self.due(limit).is_some_and(|due| due <= now);
        self.is_news |= is_revealed != self.is_revealed;
        self.is_revealed = is_revealed;
    }

    /// Leaves out time in which natsmux was stopped: brokers couldn't be asked. To be called where
    /// looks are due each second.
    fn skip_stop(&mut self, now: Instant) {
        if let (Some(since), Some(looked_at)) = (self.since, self.looked_at)
            && now > looked_at + LOOK_EVERY + LATE
        {
            let stopped = now.saturating_duration_since(looked_at + LOOK_EVERY);
            self.since = Some(since + stopped);
        }
    }

    /// When components are told, unless a broker serves by then.
    fn due(&self, limit: Option<Duration>) -> Option<Instant> {
        self.lull.is_none().then_some(self.since? + limit?)
    }
}

impl Bus {
    /// Ends a pause that is over, and looks at whether any broker serves, and whether components
    /// are to know that none does.
    pub fn review(&mut self, now: Instant) {
        self.end_due_pause(now);
        // Whoever is served stays, though no broker takes anybody else.
        let roster = &self.brokers.roster;
        let serves = roster.is_alive() || roster.has_links();
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

    /// Whether components are to be cut off, and weren't told yet; asked once.
    pub fn take_outage_news(&mut self) -> bool {
        let outage = &mut self.brokers.outage;
        std::mem::take(&mut outage.is_news) && outage.is_revealed
    }

    pub(super) fn has_outage_news(&self) -> bool {
        self.brokers.outage.is_news
    }

    /// When the roster, or an outage, wants to be looked at.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let outage = &self.brokers.outage;
        let revealed_at = outage.due(self.outage_limit()).and_then(|due| {
            let next_look = outage.looked_at? + LOOK_EVERY;
            (!outage.is_revealed).then_some(due.min(next_look))
        });
        let due = [
            self.brokers.roster.poll_timeout(),
            revealed_at,
            self.paused_until(),
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

    /// Looks at it each second up to then.
    fn wait(outage: &mut Outage, at: &impl Fn(u64) -> Instant, from: u64, to: u64) {
        for second in from..=to {
            outage.review(false, NO_DIALS, LIMIT, at(second));
        }
    }

    #[test]
    fn it_is_told_once_it_has_lasted_and_over_when_a_broker_serves() {
        let (mut outage, at) = begun();
        wait(&mut outage, &at, 1, 59);
        assert!(!outage.is_revealed && !outage.is_news);
        wait(&mut outage, &at, 60, 60);
        assert!(outage.is_revealed && std::mem::take(&mut outage.is_news));
        outage.review(true, NO_DIALS, LIMIT, at(61));
        assert!(!outage.is_revealed && outage.is_news);
    }

    #[test]
    fn without_a_limit_nobody_hears_of_it() {
        let (mut outage, at) = begun();
        outage.review(false, NO_DIALS, None, at(1));
        assert!(!outage.is_revealed && outage.due(None).is_none());
    }

    #[test]
    fn a_broker_that_lets_nobody_in_does_not_end_it() {
        let (mut outage, at) = begun();
        wait(&mut outage, &at, 1, 29);
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
    fn a_broker_that_nobody_dialled_ends_it_and_so_does_one_that_stays() {
        let (mut outage, at) = begun();
        outage.review(true, NO_DIALS, LIMIT, at(1));
        assert_eq!(outage.due(LIMIT), None);
        outage.review(false, NO_DIALS, LIMIT, at(2));
        assert_eq!(outage.due(LIMIT), Some(at(62)));
        outage.review(true, NO_DIALS, LIMIT, at(3));
        let failed = Dials {
            failed: 1,
            ..NO_DIALS
        };
        outage.review(false, failed, LIMIT, at(63));
        assert_eq!(outage.due(LIMIT), Some(at(123)));
    }

    /// Brokers that don't answer at all are probed less than once a second.
    #[test]
    fn a_revealed_outage_stays_so_however_seldom_it_is_looked_at() {
        let (mut outage, at) = begun();
        wait(&mut outage, &at, 1, 60);
        for second in [63, 70, 600] {
            outage.review(false, NO_DIALS, LIMIT, at(second));
            assert!(outage.is_revealed, "after {second} s");
            assert_eq!(outage.since, Some(at(0)));
        }
    }

    #[test]
    fn an_outage_that_nobody_hears_of_is_counted_in_full() {
        let (mut outage, at) = begun();
        outage.review(false, NO_DIALS, None, at(3));
        outage.review(false, NO_DIALS, None, at(30));
        assert_eq!(outage.since, Some(at(0)));
    }

    #[test]
    fn time_in_which_natsmux_was_stopped_does_not_count() {
        let (mut outage, at) = begun();
        wait(&mut outage, &at, 1, 10);
        wait(&mut outage, &at, 41, 89);
        assert!(!outage.is_revealed, "it ran for 59 s");
        wait(&mut outage, &at, 90, 90);
        assert!(outage.is_revealed);
    }
}
