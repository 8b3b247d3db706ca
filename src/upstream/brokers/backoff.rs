//! How long to wait before the next attempt: doubling, bounded, with jitter.
//!
//! Jitter comes from a seed that the caller passes in, so that a simulation repeats.

use std::time::Duration;

/// A doubling delay between two bounds.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    /// The delay after the first failure.
    pub first: Duration,
    /// The longest delay.
    pub longest: Duration,
}

impl Backoff {
    /// The delay after `failures` failures in a row (from 1 on), shortened by up to a half
    /// as `seed` says, so that those who failed together don't come back together.
    pub fn delay(self, failures: u32, seed: u64) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let full = self.first.saturating_mul(1 << doublings).min(self.longest);
        full.mul_f64(1.0 - 0.5 * unit(seed ^ u64::from(failures)))
    }
}

/// A number in 0..1 that depends on `seed` alone (splitmix64's mixing function).
pub fn unit(seed: u64) -> f64 {
    let mut mixed = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKOFF: Backoff = Backoff {
        first: Duration::from_millis(100),
        longest: Duration::from_secs(2),
    };

    #[test]
    fn delays_double_up_to_the_longest() {
        for seed in 0..1000 {
            for (failures, full) in [(1, 100), (2, 200), (5, 1600), (6, 2000), (u32::MAX, 2000)] {
                let delay = BACKOFF.delay(failures, seed).as_millis();
                assert!(delay <= full && delay >= full / 2, "{failures}: {delay}");
            }
        }
    }

    #[test]
    fn seeds_spread_the_delays() {
        let delays: std::collections::BTreeSet<_> =
            (0..100).map(|seed| BACKOFF.delay(3, seed)).collect();
        assert!(delays.len() > 90);
    }
}
