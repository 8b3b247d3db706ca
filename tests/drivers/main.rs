//! The drivers on a simulated network: the whole data path of a natsmux, seeded, on virtual
//! time, between model brokers and components.
//!
//! The simulation of the machines judges what natsmux decides; this one judges that its
//! tasks do it: wiring, time-outs, cancellation, half-close, partitions. `SEEDS=n` sets how
//! many schedules a batch runs, `FIRST=x` with which it begins, `SEED=x` replays one.

#![expect(unreachable_pub, reason = "a test is a crate of its own")]

mod broker;
#[path = "../support/certificates.rs"]
#[allow(dead_code, reason = "shared with the tests on real brokers")]
mod certificates;
mod component;
#[path = "../oracle/frames.rs"]
#[allow(dead_code, reason = "shared with the oracle")]
mod frames;
mod plan;
#[path = "../sim/rng.rs"]
mod rng;
mod schedule;
mod secured;
mod verdict;

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::str::FromStr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use verdict::Outcome;

/// Schedules of a batch, where nothing says otherwise.
const SEEDS: u64 = if cfg!(debug_assertions) { 100 } else { 500 };
/// Every this many seeds, one is run twice.
const REPEAT_EVERY: u64 = 50;
/// Below this many seeds, a mark may be missed by chance.
const MARKS_FROM: u64 = 100;
/// Violations after which a batch ends.
const ENOUGH: usize = 5;

/// What a batch must come across.
const MARKS: &[&str] = &[
    "a component dies in a frame",
    "a failover",
    "a half-close",
    "a link hears nothing",
    "a link is held",
    "broker killed",
    "drained",
    "TLS: a handshake stalls",
    "TLS: a link is secured",
    "garbage",
    "lame duck",
    "one direction lost",
    "publishes in doubt",
    "publishes repeated",
];

fn main() -> ExitCode {
    if let Some(seed) = number("SEED") {
        return replay(seed);
    }
    std::panic::set_hook(Box::new(|_| {}));
    batch(
        number("FIRST").unwrap_or(1),
        number("SEEDS").unwrap_or(SEEDS),
    )
}

fn number<T: FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn replay(seed: u64) -> ExitCode {
    let outcome = run(seed, true);
    println!("seed {seed}: trace hash {:016x}", outcome.hash);
    match outcome.violation {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("seed {seed} violates {violation}");
            ExitCode::FAILURE
        }
    }
}

fn run(seed: u64, verbose: bool) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| schedule::run(seed, verbose))).unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        Outcome {
            violation: Some(format!("panic: {}", text.unwrap_or_default())),
            ..Outcome::default()
        }
    })
}

fn batch(first: u64, seeds: u64) -> ExitCode {
    let start = Instant::now();
    let next = AtomicU64::new(0);
    let marks = Mutex::new(BTreeMap::<&'static str, u64>::new());
    let violations = Mutex::new(BTreeSet::new());
    let work = || {
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let mut found = violations.lock().expect("no thread panics").len();
            if at >= seeds || found >= ENOUGH {
                return;
            }
            let seed = first + at;
            let outcome = run(seed, false);
            let mut violation = outcome.violation;
            if at.is_multiple_of(REPEAT_EVERY) && run(seed, false).hash != outcome.hash {
                violation.get_or_insert("I25 determinism: another trace the second time".into());
            }
            let mut marks = marks.lock().expect("no thread panics");
            for mark in outcome.marks {
                *marks.entry(mark).or_insert(0) += 1;
            }
            if let Some(violation) = violation {
                found += 1;
                println!("violation {found}: seed {seed} violates {violation}");
                let mut violations = violations.lock().expect("no thread panics");
                violations.insert(seed);
            }
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| {
        for _ in 0..threads.min(8) {
            scope.spawn(work);
        }
    });
    let marks = marks.into_inner().expect("no thread panics");
    for (mark, count) in &marks {
        println!("mark {count:>6}  {mark}");
    }
    let violations = violations.into_inner().expect("no thread panics").len();
    let missed = MARKS.iter().filter(|mark| !marks.contains_key(**mark));
    let missed: Vec<_> = missed
        .filter(|_| seeds >= MARKS_FROM && violations == 0)
        .collect();
    for mark in &missed {
        println!("never reached: {mark}");
    }
    let ran = next.into_inner().min(seeds);
    let seconds = start.elapsed().as_secs_f64();
    println!("{ran} schedules, {violations} violations, {seconds:.1} seconds");
    if violations == 0 && missed.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
