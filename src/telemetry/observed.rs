//! How long things took, and how often for which reason.

use std::collections::BTreeMap;
use std::time::Duration;

/// Upper bounds of the buckets of every histogram, in seconds: from a fence on loopback up to
/// a failover that hangs. A last bucket has no bound.
const BOUNDS: [f64; 15] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    10.0,
];

/// Durations, counted in buckets.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Histogram {
    buckets: [u64; BOUNDS.len() + 1],
    sum: Duration,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.partition_point(|bound| *bound < seconds);
        self.buckets[bucket] += 1;
        self.sum += took;
    }

    /// The sum of all, in seconds.
    pub fn sum(&self) -> f64 {
        self.sum.as_secs_f64()
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// Each bucket's upper bound in seconds, `f64::INFINITY` for the last, and what is in it alone.
    pub fn buckets(&self) -> impl Iterator<Item = (f64, u64)> {
        let bounds = BOUNDS.into_iter().chain([f64::INFINITY]);
        bounds.zip(self.buckets)
    }
}

/// How often, for each reason of a closed set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally(BTreeMap<&'static str, u64>);

impl Tally {
    /// Counts one.
    pub fn count(&mut self, reason: &'static str) {
        *self.0.entry(reason).or_insert(0) += 1;
    }

    /// The reasons that there were.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(reason, count)| (*reason, *count))
    }
}

/// The distributions observed on one bus since start.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// From a fence to its answer, on any link.
    pub fences: Histogram,
    /// From a broker's last byte to the verdict that it is lost.
    pub detections: Histogram,
    /// From that verdict until the last trunk was attached again.
    pub failovers: Histogram,
    /// From a trunk's dead link until it was live on the next one.
    pub replays: Histogram,
    /// From a dead link until a consumer's open request was asked again on the next one (R44).
    pub pulls: Histogram,
    /// Failovers of the bus, by cause.
    pub failover_causes: Tally,
    /// Dials of trunks that failed, by cause.
    pub dial_failures: Tally,
    /// Sessions closed, by reason.
    pub closes: Tally,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_in_the_bucket_whose_bound_it_does_not_exceed() {
        let mut histogram = Histogram::default();
        for micros in [0, 100, 101, 9_999_999, 10_000_000, 10_000_001] {
            histogram.observe(Duration::from_micros(micros));
        }
        let filled: Vec<_> = histogram
            .buckets()
            .filter(|(_, count)| *count > 0)
            .collect();
        assert_eq!(
            filled,
            [(0.000_1, 2), (0.000_25, 1), (10.0, 2), (f64::INFINITY, 1)]
        );
        assert_eq!(histogram.count(), 6);
        assert!((histogram.sum() - 30.000_201).abs() < 1e-9);
    }

    #[test]
    fn reasons_are_counted_apart() {
        let mut tally = Tally::default();
        for reason in ["reset", "silent", "reset"] {
            tally.count(reason);
        }
        let counts: Vec<_> = tally.iter().collect();
        assert_eq!(counts, [("reset", 2), ("silent", 1)]);
    }
}
