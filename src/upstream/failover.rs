//! One line per failover, not one per trunk: what an operator reconstructs it from.
//!
//! Trunks of a bus lose their links to a broker within milliseconds of each other and go
//! live on the next one together. [`Failovers`] sums them up; the sum is reported once
//! everyone is attached again, or once it has taken [`REPORT_AFTER`].

use std::time::{Duration, Instant};

use super::roster::{BrokerId, Failure};

/// A failover that takes longer is reported as it stands.
const REPORT_AFTER: Duration = Duration::from_secs(5);

/// The sum of a failover.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failover {
    /// The broker that was lost.
    pub from: BrokerId,
    /// Why, as the first trunk saw it.
    pub cause: Failure,
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
}

/// The failover that is going on, if any.
#[derive(Debug, Default)]
pub struct Failovers {
    current: Option<(Instant, Failover)>,
}

/// What one trunk's dead link left.
#[derive(Clone, Copy, Debug)]
pub(super) struct LostLink {
    pub(super) broker: BrokerId,
    pub(super) cause: Failure,
    pub(super) last_read: Instant,
    pub(super) moved: u64,
    pub(super) in_doubt: u64,
    pub(super) repeated: u64,
}

impl Failovers {
    /// A trunk lost its live link. Returns true for the first one of a failover.
    pub(super) fn lost(&mut self, link: LostLink, now: Instant) -> bool {
        let first = self.current.is_none();
        let (_, sum) = self.current.get_or_insert_with(|| {
            let detection = now.saturating_duration_since(link.last_read);
            (now, Failover::begin(link.broker, link.cause, detection))
        });
        sum.trunks += 1;
        sum.moved += link.moved;
        sum.in_doubt += link.in_doubt;
        sum.repeated += link.repeated;
        first
    }

    /// A trunk that had lost its link is live again.
    pub(super) fn attached(&mut self, to: BrokerId, replayed: u64, held: u64, now: Instant) {
        if let Some((since, sum)) = &mut self.current {
            sum.to = Some(to);
            sum.attached += 1;
            sum.replayed += replayed;
            sum.held += held;
            sum.took = now.saturating_duration_since(*since);
        }
    }

    /// A trunk that had lost its link ended instead.
    pub(super) fn gone(&mut self) {
        if let Some((_, sum)) = &mut self.current {
            sum.trunks = sum.trunks.saturating_sub(1);
        }
    }

    /// The sum, once it is complete or overdue.
    pub fn poll_report(&mut self, now: Instant) -> Option<Failover> {
        let (since, sum) = self.current.as_ref()?;
        let overdue = now.saturating_duration_since(*since) >= REPORT_AFTER;
        if sum.attached < sum.trunks && !overdue {
            return None;
        }
        let (_, sum) = self.current.take()?;
        Some(sum)
    }
}

impl Failover {
    fn begin(from: BrokerId, cause: Failure, detection: Duration) -> Self {
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(last_read: Instant) -> LostLink {
        LostLink {
            broker: BrokerId(0),
            cause: Failure::Silent,
            last_read,
            moved: 1,
            in_doubt: 2,
            repeated: 0,
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
        assert_eq!(failovers.poll_report(now), None);
        failovers.attached(BrokerId(1), 5, 0, now + Duration::from_millis(7));
        let report = failovers.poll_report(now).expect("complete");
        assert_eq!((report.trunks, report.replayed, report.held), (2, 15, 3));
        assert_eq!((report.moved, report.in_doubt), (2, 4));
        assert_eq!(report.detection, Duration::from_secs(2));
        assert_eq!(report.took, Duration::from_millis(7));
        assert_eq!(failovers.poll_report(now), None);
    }

    #[test]
    fn a_failover_that_hangs_is_reported_as_it_stands() {
        let now = Instant::now();
        let mut failovers = Failovers::default();
        failovers.lost(link(now), now);
        assert_eq!(failovers.poll_report(now), None);
        let report = failovers.poll_report(now + REPORT_AFTER).expect("overdue");
        assert_eq!((report.trunks, report.attached, report.to), (1, 0, None));
    }

    #[test]
    fn trunks_that_end_are_not_waited_for() {
        let now = Instant::now();
        let mut failovers = Failovers::default();
        failovers.lost(link(now), now);
        failovers.gone();
        assert!(failovers.poll_report(now).is_some());
    }
}
