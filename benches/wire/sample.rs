//! One measurement.

use std::fmt;
use std::time::Duration;

use crate::cpu::Used;

/// One run of a scenario on one way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sample {
    /// In the scenario's unit.
    pub(crate) value: f64,
    /// 99th percentile, where the unit is a time.
    pub(crate) p99: Option<f64>,
    pub(crate) messages: u64,
    pub(crate) took: Duration,
    pub(crate) used: Used,
    pub(crate) lost: u64,
    pub(crate) misplaced: u64,
}

impl Sample {
    /// So many things in this time.
    pub(crate) fn rate(count: u64, took: Duration, used: Used) -> Self {
        Self {
            value: count as f64 / took.as_secs_f64(),
            messages: count,
            took,
            used,
            ..Self::default()
        }
    }

    /// The times of all that were answered, in microseconds.
    pub(crate) fn latency(mut times: Vec<f64>, count: u64, used: Used) -> Self {
        times.sort_by(f64::total_cmp);
        Self {
            value: percentile(&times, 50),
            p99: Some(percentile(&times, 99)),
            messages: count,
            used,
            ..Self::default()
        }
    }

    pub(crate) fn bytes(value: f64, used: Used) -> Self {
        Self {
            value,
            used,
            ..Self::default()
        }
    }

    pub(crate) fn with_faults(self, lost: u64, misplaced: u64) -> Self {
        Self {
            lost,
            misplaced,
            ..self
        }
    }

    /// Seconds of processor time for a million messages.
    pub(crate) fn per_million(&self, nanoseconds: u64) -> f64 {
        match self.messages {
            0 => 0.0,
            messages => nanoseconds as f64 / 1_000.0 / messages as f64,
        }
    }
}

impl fmt::Display for Sample {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.0}", self.value)?;
        if let Some(p99) = self.p99 {
            write!(f, " (p99 {p99:.0})")?;
        }
        write!(f, ", lost {}, misplaced {}", self.lost, self.misplaced)
    }
}

fn percentile(sorted: &[f64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or(f64::NAN)
}
