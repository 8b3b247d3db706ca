//! Simulation of the pure machines: seeded, virtual time, model brokers and components.
//!
//! `SEEDS=n` sets how many seeds a batch runs, `FIRST=x` with which it begins, `VIOLATIONS=n`
//! after how many it ends, `HASHES=yes` prints the hash of each trace, `SEED=x` replays one with
//! a readable trace. A run has a safety phase with faults and then a phase without, in which
//! everything must heal; the oracle judges every frame. A batch fails on any violation, on a
//! seed that doesn't repeat itself, and where an interesting state was never reached.
//!
//! A change that only moves code leaves the hash of all traces as it was.

#![expect(unreachable_pub, reason = "a test is a crate of its own")]

#[path = "../oracle/mod.rs"]
mod oracle;

mod broker;
mod component;
mod daemon;
mod faults;
mod handshake;
mod identity;
mod net;
mod operator;
mod outage;
mod plan;
mod pulls;
mod rng;
mod witness;
mod world;

use natsmux::clock::Instant;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use world::World;

/// Seeds of a batch, where nothing says otherwise.
const SEEDS: u64 = if cfg!(debug_assertions) { 200 } else { 10_000 };
/// Every this many seeds, one is run twice.
const REPEAT_EVERY: u64 = 50;
/// Every this many seeds, components pull from a JetStream consumer in a world of its own.
const PULLS_EVERY: u64 = 3;
/// Below this many seeds, a mark may be missed by chance.
const MARKS_FROM: u64 = 1_000;

/// States that a batch must reach.
const MARKS: &[&str] = &[
    "TLS: a handshake fails",
    "TLS: a handshake stalls",
    "TLS: a link is secured",
    "TLS: throttled",
    "a component without CONNECT",
    "a full broker's words",
    "broker frozen",
    "broker killed",
    "closed by an error about the link",
    "component dies",
    "component not read for want of room",
    "credentials ran out",
    "cut inside a broker's frame",
    "dead by a write",
    "dead by silence",
    "failover with held publishes",
    "frame moved after a partial write",
    "garbage from a component",
    "half-close",
    "identity: ran out before it was renewed",
    "identity: removed at one broker",
    "identity: renewed",
    "independent: a lame duck left",
    "independent: another broker took over",
    "independent: failback",
    "lame-duck move",
    "link cut",
    "link not read for want of room",
    "maximum connections exceeded",
    "move: a copy",
    "move: a lame duck and no fault",
    "move: a message is held",
    "natsmux paused",
    "no broker alive",
    "no responders",
    "one direction lost",
    "operations before CONNECT",
    "operator: a broker reloads",
    "operator: drained",
    "operator: left a drained broker",
    "operator: left for an offer",
    "operator: moved",
    "operator: moved by command",
    "operator: paused",
    "operator: rebalanced",
    "operator: undrained",
    "outage: revealed",
    "outage: turned away",
    "owed PONG over a failover",
    "payload too large for a broker",
    "payload too large for natsmux",
    "PONG released unproven",
    "publish in doubt",
    "publish moved",
    "publish refused",
    "publish repeated",
    "publishes dropped",
    "publishes of a refused session",
    "pulls: a leader dies",
    "pulls: asked again",
    "pulls: asked again in doubt",
    "pulls: no responders",
    "queue group over several hosts",
    "read out behind a write error",
    "second CONNECT",
    "second CONNECT: nothing missing",
    "session refused",
    "sharing: coalesced",
    "sharing: no responders",
    "sharing: publish refused",
    "sharing: second CONNECT",
    "subscribers on several hosts",
    "subscription refused",
    "UNSUB remainder replayed",
];

/// What a run came to.
struct Outcome {
    hash: u64,
    events: u64,
    violation: Option<String>,
    marks: Vec<&'static str>,
}

fn main() -> ExitCode {
    let base = Instant::now();
    if let Some(seed) = number("SEED") {
        return replay(seed, base);
    }
    std::panic::set_hook(Box::new(|_| {}));
    batch(
        number("FIRST").unwrap_or(1),
        number("SEEDS").unwrap_or(SEEDS),
        base,
    )
}

fn number<T: std::str::FromStr>(name: &str) -> Option<T> {
    std::env::var(name).ok()?.parse().ok()
}

fn replay(seed: u64, base: Instant) -> ExitCode {
    let outcome = run(seed, true, base);
    println!(
        "seed {seed}: {} events, trace hash {:016x}",
        outcome.events, outcome.hash
    );
    let pulls = seed
        .is_multiple_of(PULLS_EVERY)
        .then(|| pulls::run(seed, true, base));
    match outcome
        .violation
        .or(pulls.and_then(|(violation, _)| violation))
    {
        None => ExitCode::SUCCESS,
        Some(violation) => {
            println!("seed {seed} violates {violation}");
            ExitCode::FAILURE
        }
    }
}

fn run(seed: u64, verbose: bool, base: Instant) -> Outcome {
    let mut world = World::new(seed, verbose, base);
    let panicked = catch_unwind(AssertUnwindSafe(|| world.run())).err();
    let panic = panicked.map(|cause| {
        let text = cause.downcast_ref::<String>().cloned();
        let text = text.or_else(|| cause.downcast_ref::<&str>().map(|text| (*text).to_owned()));
        format!("panic: {}", text.unwrap_or_default())
    });
    Outcome {
        hash: world.hash,
        events: world.events,
        violation: panic.or(world.violation()),
        marks: world.marks().into_iter().collect(),
    }
}

/// What the threads of a batch share.
#[derive(Default)]
struct Tally {
    /// Violations after which a batch ends.
    enough: usize,
    prints_hashes: bool,
    /// The hashes of all traces, added up.
    hash: AtomicU64,
    next: AtomicU64,
    events: AtomicU64,
    stop: AtomicBool,
    marks: Mutex<BTreeMap<&'static str, u64>>,
    violations: Mutex<Vec<(u64, String)>>,
}

fn batch(first: u64, seeds: u64, base: Instant) -> ExitCode {
    let tally = Tally {
        enough: number("VIOLATIONS").unwrap_or(10),
        prints_hashes: std::env::var_os("HASHES").is_some(),
        ..Tally::default()
    };
    let threads = std::thread::available_parallelism()
        .map_or(1, usize::from)
        .min(8);
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| work(first, seeds, base, &tally));
        }
    });
    report(first, seeds, base, &tally)
}

fn work(first: u64, seeds: u64, base: Instant, tally: &Tally) {
    let mut marks = BTreeMap::new();
    while !tally.stop.load(Ordering::Relaxed) {
        let at = tally.next.fetch_add(1, Ordering::Relaxed);
        if at >= seeds {
            break;
        }
        let seed = first + at;
        let outcome = run(seed, false, base);
        tally.events.fetch_add(outcome.events, Ordering::Relaxed);
        tally.hash.fetch_add(outcome.hash, Ordering::Relaxed);
        if tally.prints_hashes {
            println!("seed {seed} hash {:016x}", outcome.hash);
        }
        let mut violation = outcome.violation;
        let mut reached = outcome.marks;
        if seed.is_multiple_of(PULLS_EVERY) {
            let (violated, marks) = pulls::run(seed, false, base);
            violation = violation.or(violated);
            reached.extend(marks);
        }
        for mark in reached {
            *marks.entry(mark).or_insert(0) += 1;
        }
        if at.is_multiple_of(REPEAT_EVERY) && run(seed, false, base).hash != outcome.hash {
            violation.get_or_insert("I25 determinism: another trace the second time".into());
        }
        if let Some(violation) = violation {
            let mut violations = tally.violations.lock().expect("no thread panics");
            violations.push((seed, violation));
            if violations.len() >= tally.enough {
                tally.stop.store(true, Ordering::Relaxed);
            }
        }
    }
    let mut all = tally.marks.lock().expect("no thread panics");
    for (mark, count) in marks {
        *all.entry(mark).or_insert(0) += count;
    }
}

fn report(first: u64, seeds: u64, base: Instant, tally: &Tally) -> ExitCode {
    let marks = tally.marks.lock().expect("no thread panics");
    for (mark, count) in marks.iter() {
        println!("mark {count:>7}  {mark}");
    }
    let mut violations = tally.violations.lock().expect("no thread panics").clone();
    violations.sort();
    for (seed, violation) in &violations {
        println!("seed {seed} violates {violation}");
    }
    let mut missed = 0;
    if seeds >= MARKS_FROM && violations.is_empty() {
        for mark in MARKS.iter().filter(|mark| !marks.contains_key(**mark)) {
            println!("never reached: {mark}");
            missed += 1;
        }
    }
    let ran = tally.next.load(Ordering::Relaxed).min(seeds);
    let events = tally.events.load(Ordering::Relaxed);
    let hash = tally.hash.load(Ordering::Relaxed);
    println!("from seed {first} on, {events} events, trace hash {hash:016x}");
    println!(
        "{ran} seeds, {} violations, {:.1} seconds",
        violations.len(),
        (Instant::now() - base).as_secs_f64()
    );
    if violations.is_empty() && missed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
