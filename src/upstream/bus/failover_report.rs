//! One line per failover, not one per trunk: what an operator reconstructs it from.
//!
//! Trunks of a bus lose their links to a broker within milliseconds of each other and go
//! live on the next one together. [`Failovers`] sums them up; the sum is reported once
//! everyone is attached again, and as it stands once it has taken `REPORT_AFTER`. A lame
//! duck or removed broker is left trunk by trunk, and reported when the last one is gone.

use std::time::Duration;

use crate::clock::Instant;
use crate::upstream::brokers::roster::{BrokerId, Cause};

/// A failover that takes longer is reported as it stands, and again at its end.
const REPORT_AFTER: Duration = Duration::from_secs(5);

/// Trunks of independent brokers that lose one within this do so together.
pub(super) const TOGETHER: Duration = Duration::from_millis(100);

/// The sum of a failover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// The broker that was lost.
    pub from: BrokerId,
    /// Why, as the first trunk saw it.
    pub cause: Cause,
    /// The broker that the last trunk went to; `None` while none has.
    pub to: Option<BrokerId>,
    /// From the last byte that the broker sent to the first trunk's verdict.
    pub detection: Duration,
    /// From that verdict until the last trunk was live again.
    pub took: Duration,
    /// Trunks that lost their link.
    pub trunks: u64,
    /// Of those, the ones that are live again.
    pub attached: u64,
    /// Subscriptions that were replayed.
    pub replayed: u64,
    /// Publishes that were never written to the lost broker, and went to the next.
    pub moved: u64,
    /// Publishes that were written, not proven, and not repeated.
    pub in_doubt: u64,
    /// Publishes that were written, not proven, and repeated.
    pub repeated: u64,
    /// Publishes that waited until the new links were live, moved ones included.
    pub held: u64,
    /// Publishes of the bus that brokers confirmed meanwhile.
    pub confirmed: u64,
    /// Whether all trunks are live again; else more is to come.
    pub complete: bool,
}

/// The failover that is going on, if any.
#[derive(Debug, Default)]
pub struct Failovers {
    current: Option<Current>,
}

#[derive(Debug)]
struct Current {
    since: Instant,
    sum: Failover,
    /// Publishes that the bus had confirmed at its begin.
    confirmed_before: u64,
    /// When a trunk last lost its link or went live.
    last: Instant,
    /// It was reported as it stood.
    overdue: bool,
}

/// Publishes that one trunk's dead link left.
#[derive(Clone, Copy, Debug)]
pub(super) struct LostLink {
    pub(super) broker: BrokerId,
    pub(super) cause: Cause,
    pub(super) last_read: Instant,
    pub(super) moved: u64,
    pub(super) in_doubt: u64,
    pub(super) repeated: u64,
    /// Publishes that the bus has confirmed so far.
    pub(super) confirmed: u64,
}

impl Failovers {
    /// A trunk lost its live link. Returns true for the first one of a failover.
    pub(super) fn lost(&mut self, link: LostLink, now: Instant) -> bool {
        let first = self.current.is_none();
        let Current { sum, last, .. } = self.current.get_or_insert_with(|| {
            let detection = if link.cause.is_planned() {
                Duration::ZERO
            } else {
                now.saturating_duration_since(link.last_read)
            };
            Current {
                since: now,
                sum: Failover::begin(link.broker, link.cause, detection),
                confirmed_before: link.confirmed,
                last: now,
                overdue: false,
            }
        });
        *last = now;
        sum.trunks += 1;
        sum.moved += link.moved;
        sum.in_doubt += link.in_doubt;
        sum.repeated += link.repeated;
        first
    }

    /// A trunk that had lost its link is live again.
    pub(crate) fn attached(&mut self, to: BrokerId, replayed: u64, held: u64, now: Instant) {
        if let Some(Current {
            since, sum, last, ..
        }) = &mut self.current
        {
            *last = now;
            sum.to = Some(to);
            sum.attached += 1;
            sum.replayed += replayed;
            sum.held += held;
            sum.took = now.saturating_duration_since(*since);
        }
    }

    /// A trunk that had lost its link ended instead.
    pub(crate) fn gone(&mut self) {
        if let Some(Current { sum, .. }) = &mut self.current {
            sum.trunks = sum.trunks.saturating_sub(1);
        }
    }

    /// The broker that trunks are leaving one by one, if they do.
    pub(super) fn leaving(&self) -> Option<BrokerId> {
        let sum = &self.current.as_ref()?.sum;
        sum.cause.is_planned().then_some(sum.from)
    }

    /// Whether there is one that wasn't reported as complete.
    pub(super) fn is_open(&self) -> bool {
        self.current.is_some()
    }

    /// The sum, once it is complete, and once when it is overdue. `confirmed` is what the bus
    /// has confirmed so far, `staying` the trunks that [`Failovers::leaving`]'s broker has. The
    /// next trunk may follow within `quiet`.
    pub(super) fn poll_report(
        &mut self,
        confirmed: u64,
        staying: usize,
        quiet: Duration,
        now: Instant,
    ) -> Option<Failover> {
        let current = self.current.as_mut()?;
        let busy = now.saturating_duration_since(current.last) < quiet;
        let waits = current.sum.attached < current.sum.trunks || staying > 0 || busy;
        let overdue = now.saturating_duration_since(current.since) >= REPORT_AFTER;
        if waits && (!overdue || std::mem::replace(&mut current.overdue, true)) {
            return None;
        }
        let mut sum = current.sum.clone();
        sum.confirmed = confirmed.saturating_sub(current.confirmed_before);
        sum.complete = !waits;
        if !waits {
            self.current = None;
        }
        Some(sum)
    }
}

impl Failover {
    fn begin(from: BrokerId, cause: Cause, detection: Duration) -> Self {
        Self {
            from,
            cause,
            to: None,
            detection,
            took: Duration::ZERO,
            trunks: 0,
            attached: 0,
            replayed: 0,
            moved: 0,
            in_doubt: 0,
            repeated: 0,
            held: 0,
            confirmed: 0,
            complete: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::brokers::roster::{Departure, Failure};

    fn link(last_read: Instant) -> LostLink {
        LostLink {
            broker: BrokerId(0),
            cause: Failure::Silent.into(),
            last_read,
            moved: 1,
            in_doubt: 2,
            repeated: 0,
            confirmed: 10,
        }
    }

    #[test]
    fn trunks_that_leave_and_arrive_together_make_one_report() {
        let start = Instant::now();
        let now = start + Duration::from_secs(2);
        let mut failovers = Failovers::default();
        assert!(failovers.lost(link(start), now));
        assert!(!failovers.lost(link(start), now));
        failovers.attached(BrokerId(1), 10, 3, now);
        assert_eq!(failovers.poll_report(11, 0, Duration::ZERO, now), None);
        failovers.attached(BrokerId(1), 5, 0, now + Duration::from_millis(7));
        let report = failovers
            .poll_report(17, 0, Duration::ZERO, now)
            .expect("complete");
        assert_eq!((report.confirmed, report.complete), (7, true));
        assert_eq!((report.trunks, report.replayed, report.held), (2, 15, 3));
        assert_eq!((report.moved, report.in_doubt), (2, 4));
        assert_eq!(report.detection, Duration::from_secs(2));
        assert_eq!(report.took, Duration::from_millis(7));
        assert_eq!(failovers.poll_report(17, 0, Duration::ZERO, now), None);
    }

    #[test]
    fn a_failover_that_hangs_is_reported_as_it_stands_and_at_its_end() {
        let now = Instant::now();
        let mut failovers = Failovers::default();
        failovers.lost(link(now), now);
        assert_eq!(failovers.poll_report(10, 0, Duration::ZERO, now), None);
        let late = now + REPORT_AFTER;
        let report = failovers
            .poll_report(10, 0, Duration::ZERO, late)
            .expect("overdue");
        assert_eq!((report.trunks, report.attached, report.to), (1, 0, None));
        assert!(!report.complete);
        assert_eq!(
            failovers.poll_report(10, 0, Duration::ZERO, late),
            None,
            "once"
        );
        failovers.attached(BrokerId(1), 0, 0, late);
        assert!(
            failovers
                .poll_report(10, 0, Duration::ZERO, late)
                .is_some_and(|end| end.complete)
        );
    }

    #[test]
    fn a_broker_that_is_left_trunk_by_trunk_makes_one_report() {
        let now = Instant::now();
        let mut failovers = Failovers::default();
        let duck = LostLink {
            cause: Departure::LameDuck.into(),
            ..link(now)
        };
        for staying in [1, 0] {
            failovers.lost(duck, now);
            assert_eq!(failovers.leaving(), Some(BrokerId(0)));
            failovers.attached(BrokerId(1), 1, 0, now);
            let report = failovers.poll_report(10, staying, Duration::ZERO, now);
            assert_eq!(report.map(|sum| sum.trunks), (staying == 0).then_some(2));
        }
    }

    #[test]
    fn trunks_that_go_on_at_once_one_by_one_make_one_report() {
        let now = Instant::now();
        let quiet = Duration::from_millis(100);
        let mut failovers = Failovers::default();
        for (number, at) in [(1, now), (2, now + quiet / 2)] {
            assert_eq!(failovers.lost(link(at), at), number == 1);
            failovers.attached(BrokerId(1), 1, 0, at);
            assert_eq!(failovers.poll_report(10, 0, quiet, at), None);
        }
        let report = failovers.poll_report(10, 0, quiet, now + 2 * quiet);
        let report = report.expect("complete");
        assert_eq!((report.trunks, report.took), (2, quiet / 2));
    }

    #[test]
    fn trunks_that_end_are_not_waited_for() {
        let now = Instant::now();
        let mut failovers = Failovers::default();
        failovers.lost(link(now), now);
        failovers.gone();
        assert!(failovers.poll_report(10, 0, Duration::ZERO, now).is_some());
    }
}
