//! What is seen during a run, and what must be true of it.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::rc::Rc;

use natsmux::telemetry::Snapshot;

/// What a run came to.
#[derive(Debug, Default)]
pub struct Outcome {
    pub hash: u64,
    pub violation: Option<String>,
    pub marks: BTreeSet<&'static str>,
}

/// Who published, and its how many-th.
pub type Identity = (usize, u64);

/// Shared by all hosts of a run, which are on one thread.
#[derive(Clone, Default)]
pub struct Verdict(Rc<RefCell<Seen>>);

#[derive(Default)]
struct Seen {
    verbose: bool,
    outcome: Outcome,
    /// Publishes that were written whole, of components that stay.
    published: BTreeSet<Identity>,
    /// How often some broker processed each publish.
    processed: BTreeMap<Identity, u32>,
    /// The last that was processed of each publisher.
    last: BTreeMap<usize, u64>,
    /// The most publishes that a PONG left unprocessed.
    unproven: u64,
}

impl Verdict {
    pub fn new(verbose: bool) -> Self {
        let verdict = Self::default();
        verdict.0.borrow_mut().verbose = verbose;
        verdict
    }

    /// Records the first violation.
    pub fn fail(&self, rule: &str, what: impl Display) {
        self.note(&format!("{rule}: {what}"));
        let violation = &mut self.0.borrow_mut().outcome.violation;
        violation.get_or_insert_with(|| format!("{rule}: {what}"));
    }

    pub fn has_failed(&self) -> bool {
        self.0.borrow().outcome.violation.is_some()
    }

    pub fn mark(&self, name: &'static str) {
        self.0.borrow_mut().outcome.marks.insert(name);
    }

    /// A line of the trace: shown in a replay, and part of the hash (FNV-1a).
    pub fn note(&self, line: &str) {
        let now = turmoil::sim_elapsed().unwrap_or_default();
        let seen = &mut *self.0.borrow_mut();
        if seen.verbose {
            println!("{:>9.1} ms  {line}", now.as_secs_f64() * 1000.0);
        }
        for byte in now.as_micros().to_le_bytes().iter().chain(line.as_bytes()) {
            seen.outcome.hash =
                (seen.outcome.hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }

    /// A component that stays has written this.
    pub fn published(&self, identity: Identity) {
        self.0.borrow_mut().published.insert(identity);
    }

    /// A broker has processed this. `late`: what a frozen broker thaws with may come late.
    pub fn processed(&self, identity: Identity, at_least_once: bool, late: bool) {
        let times = {
            let seen = &mut *self.0.borrow_mut();
            let times = seen.processed.entry(identity).or_insert(0);
            *times += 1;
            *times
        };
        if at_least_once {
            return;
        }
        let last = self.0.borrow().last.get(&identity.0).copied();
        if times > 1 {
            self.fail("I6 no duplicates", format!("{identity:?}"));
        } else if !late && last.is_some_and(|last| identity.1 < last) {
            self.fail("I5 order", format!("{identity:?} behind {last:?}"));
        }
        let seen = &mut *self.0.borrow_mut();
        let last = seen.last.entry(identity.0).or_insert(0);
        *last = (*last).max(identity.1);
    }

    /// A component heard the PONG behind its publishes up to `count`.
    pub fn pong(&self, publisher: usize, count: u64) {
        let seen = &mut *self.0.borrow_mut();
        let processed = seen.processed.range((publisher, 0)..(publisher, count));
        let unproven = count - processed.count() as u64;
        seen.unproven = seen.unproven.max(unproven);
    }

    /// The end: what natsmux says of itself, and what was seen, must fit.
    pub fn judge(&self, natsmux: &Snapshot, at_least_once: bool, sessions: u64) {
        let bus = &natsmux.buses[0];
        let counters = &bus.counters;
        let (missing, unproven) = {
            let seen = self.0.borrow();
            let missing = seen.published.iter();
            let missing = missing.filter(|identity| !seen.processed.contains_key(identity));
            (missing.count() as u64, seen.unproven)
        };
        for (count, mark) in [
            (counters.failovers, "a failover"),
            (counters.in_doubt, "publishes in doubt"),
            (counters.moved, "publishes moved"),
            (counters.repeated, "publishes repeated"),
        ] {
            if count > 0 {
                self.mark(mark);
            }
        }
        let settled = counters.confirmed + counters.in_doubt + counters.refused + counters.dropped;
        if counters.published != settled + bus.waiting || bus.waiting > 0 {
            self.fail("R4 sum", format!("{counters:?}, {} wait", bus.waiting));
        }
        let excused = counters.in_doubt + counters.dropped + counters.refused;
        let allowed = if at_least_once { 0 } else { excused };
        if missing > allowed {
            self.fail("R4 loss", format!("{missing} missing, {allowed} excused"));
        }
        if unproven > excused && counters.pongs_unproven == 0 {
            self.fail("R1 PONG", format!("{unproven} unproven, {excused} excused"));
        }
        let open = (bus.sessions, bus.trunks, bus.links);
        if open != (sessions, sessions, sessions) {
            self.fail("I13 no leak", format!("{open:?} for {sessions} components"));
        }
        if bus.buffered_bytes > 0 {
            self.fail("I13 no leak", format!("{} bytes", bus.buffered_bytes));
        }
    }

    pub fn outcome(self) -> Outcome {
        std::mem::take(&mut self.0.borrow_mut().outcome)
    }
}
