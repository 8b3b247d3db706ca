//! What the components sent, and how often each of it was handled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

/// A kind of message that must be handled once, whoever does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// A DEA's sign of life, to one of the health managers.
    Heartbeat,
    /// A health manager's wish that an instance is started, to one of the cloud controllers.
    StartRequest,
    /// A cloud controller's order to a DEA.
    Start,
    /// A gateway's request, to one of the service nodes.
    Provision,
    /// The node's answer to it.
    Provisioned,
}

#[derive(Debug, Default)]
struct Ledger {
    next: u64,
    /// How often each number of a kind was handled.
    handled: BTreeMap<Kind, BTreeMap<u64, u32>>,
    over: bool,
    routes_pruned: u64,
    routes_registered: u64,
}

/// Shared by all components.
#[derive(Debug, Clone, Default)]
pub(crate) struct Books(Arc<Mutex<Ledger>>);

/// What became of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sum {
    pub(crate) sent: u64,
    pub(crate) missing: u64,
    pub(crate) double: u64,
}

impl Books {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.0.lock().expect("no panic with this lock held")
    }

    /// Nobody begins anything new.
    pub(crate) fn close(&self) {
        self.ledger().over = true;
    }

    pub(crate) fn is_open(&self) -> bool {
        !self.ledger().over
    }

    /// A new number, which somebody must handle.
    pub(crate) fn send(&self, kind: Kind) -> u64 {
        let mut ledger = self.ledger();
        ledger.next += 1;
        let number = ledger.next;
        ledger.handled.entry(kind).or_default().insert(number, 0);
        number
    }

    pub(crate) fn handle(&self, kind: Kind, number: u64) {
        *self
            .ledger()
            .handled
            .entry(kind)
            .or_default()
            .entry(number)
            .or_default() += 1;
    }

    pub(crate) fn note_registered(&self) {
        self.ledger().routes_registered += 1;
    }

    pub(crate) fn note_pruned(&self) {
        self.ledger().routes_pruned += 1;
    }

    pub(crate) fn routes(&self) -> (u64, u64) {
        let ledger = self.ledger();
        (ledger.routes_registered, ledger.routes_pruned)
    }

    pub(crate) fn sum(&self, kind: Kind) -> Sum {
        let ledger = self.ledger();
        let counts = ledger.handled.get(&kind);
        let mut sum = Sum {
            sent: 0,
            missing: 0,
            double: 0,
        };
        for count in counts.into_iter().flatten().map(|(_, count)| *count) {
            sum.sent += 1;
            sum.missing += u64::from(count == 0);
            sum.double += u64::from(count.saturating_sub(1));
        }
        sum
    }
}

#[test]
fn the_books_show_what_is_missing_and_what_is_double() {
    let books = Books::default();
    for times in [0, 1, 3] {
        let number = books.send(Kind::Start);
        (0..times).for_each(|_| books.handle(Kind::Start, number));
    }
    let expected = Sum {
        sent: 3,
        missing: 1,
        double: 2,
    };
    assert_eq!(books.sum(Kind::Start), expected);
}
