//! How busy the worker is, as its runtime counts it.

use std::cell::Cell;
use std::time::Duration;

use tokio::runtime::Handle;

use crate::clock::Instant;

/// The shortest time that is looked back on: a ratio over less says little.
const WINDOW: Duration = Duration::from_secs(1);

/// A meter of the part of the time in which the worker had something to do.
#[derive(Debug)]
pub(super) struct BusyMeter(Cell<Sample>);

#[derive(Clone, Copy, Debug)]
struct Sample {
    at: Instant,
    /// Time in passes since the runtime began.
    busy: Duration,
    ratio: f64,
}

impl BusyMeter {
    pub(super) fn new(now: Instant) -> Self {
        Self(Cell::new(Sample {
            at: now,
            busy: Duration::ZERO,
            ratio: 0.0,
        }))
    }

    /// The ratio, from 0 to 1, since it was asked last, or as it was then where that was less than a
    /// second ago. Called on the worker.
    pub(super) fn ratio(&self, now: Instant) -> f64 {
        let metrics = Handle::current().metrics();
        self.sample(metrics.worker_total_busy_duration(0), now)
    }

    fn sample(&self, busy: Duration, now: Instant) -> f64 {
        let last = self.0.get();
        let wall = now.saturating_duration_since(last.at);
        if wall < WINDOW {
            return last.ratio;
        }
        let spent = busy.saturating_sub(last.busy);
        let ratio = (spent.as_secs_f64() / wall.as_secs_f64()).min(1.0);
        self.0.set(Sample {
            at: now,
            busy,
            ratio,
        });
        ratio
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ratio_is_of_the_time_since_it_was_asked_last() {
        let start = Instant::now();
        let meter = BusyMeter::new(start);
        let at = |ms| start + Duration::from_millis(ms);
        let busy = Duration::from_millis;
        assert!((meter.sample(busy(500), at(2_000)) - 0.25).abs() < 1e-9);
        let again = meter.sample(busy(1_200), at(2_900));
        assert!((again - 0.25).abs() < 1e-9, "too soon");
        assert!((meter.sample(busy(1_500), at(3_000)) - 1.0).abs() < 1e-9);
        assert!(meter.sample(busy(1_500), at(9_000)).abs() < 1e-9);
    }
}
