//! How large a scenario is: short by default, full with `FAILOVER=full`, a soak with
//! `FAILOVER=soak`; every number has a variable of its own, such as `FAILOVER_KILLS=7`.

use std::env;
use std::io::{self, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};

static TURN: Mutex<()> = Mutex::new(());

/// Scenarios run one after the other, since they measure time on the same cores.
pub(crate) fn turn() -> MutexGuard<'static, ()> {
    // A scenario that failed leaves nothing behind that the next could trip over.
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A number of a scenario, such as `number("kills", [5, 50, 50])` for short, full and soak.
pub(crate) fn number(name: &str, sizes: [u64; 3]) -> u64 {
    let own = format!("FAILOVER_{}", name.to_uppercase());
    match env::var(&own) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|error| panic!("{own}={text}: {error}")),
        Err(_) => sizes[kind()],
    }
}

fn kind() -> usize {
    match env::var("FAILOVER").as_deref() {
        Err(_) | Ok("" | "short") => 0,
        Ok("full") => 1,
        Ok("soak") => 2,
        Ok(other) => panic!("FAILOVER={other} is neither short, full nor soak"),
    }
}

/// One line of figures, past the test runner's capture: figures are what this is for.
pub(crate) fn figures(line: &str) {
    let _ = writeln!(io::stdout(), "failover: {line}");
}

/// The value that `percent` of all are at most, as in "p99".
pub(crate) fn percentile(values: &mut [u64], percent: usize) -> u64 {
    assert!(!values.is_empty(), "nothing was measured");
    values.sort_unstable();
    let rank = (values.len() * percent).div_ceil(100).max(1);
    values[rank - 1]
}

/// `p50/p99/max` of microseconds, in milliseconds.
pub(crate) fn spread(values: &mut [u64]) -> String {
    let [half, most, all] = [50, 99, 100].map(|p| percentile(values, p) as f64 / 1000.0);
    format!("{half:.1}/{most:.1}/{all:.1} ms (p50/p99/max)")
}

/// Numbers without pattern that are the same in every run.
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// 0 to `below` - 1.
    pub(crate) fn roll(&mut self, below: u64) -> u64 {
        // xorshift64.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % below.max(1)
    }
}
