//! The daemon's buffers: how many bytes of each kind it may hold, over all buses.

use std::cell::Cell;
use std::rc::Rc;

/// Bytes for open requests of JetStream consumers: some 100,000.
const PULLS: usize = 64 * 1024 * 1024;

/// The daemon's buffers, shared by its buses.
#[derive(Clone, Debug)]
pub struct Budgets {
    /// Publishes that wait for a link (R6).
    pub held: Rc<Budget>,
    /// Operations that came before CONNECT (R21).
    pub input: Rc<Budget>,
    /// Output that components have not taken yet (R25).
    pub pending: Rc<Budget>,
    /// Open requests of JetStream consumers (R44).
    pub pulls: Rc<Budget>,
}

impl Budgets {
    /// Budgets of so many bytes each.
    pub fn new(held: usize, input: usize, pending: usize) -> Self {
        let budget = |total| Rc::new(Budget::new(total));
        Self {
            held: budget(held),
            input: budget(input),
            pending: budget(pending),
            pulls: budget(PULLS),
        }
    }
}

/// Bytes of one kind that the daemon may hold, over all buses.
#[derive(Debug)]
pub struct Budget {
    used: Cell<usize>,
    total: Cell<usize>,
    charges: Cell<usize>,
}

/// Bytes that are taken from a budget, and given back at the end.
#[derive(Debug)]
pub struct Charge {
    budget: Rc<Budget>,
    bytes: usize,
}

impl Charge {
    /// Takes `bytes`, also beyond the total.
    pub fn new(budget: Rc<Budget>, bytes: usize) -> Self {
        budget.take(bytes);
        budget.charges.set(budget.charges.get() + 1);
        Self { budget, bytes }
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.give(self.bytes);
        self.budget.charges.set(self.budget.charges.get() - 1);
    }
}

impl Budget {
    /// A budget of `total` bytes.
    pub fn new(total: usize) -> Self {
        Self {
            used: Cell::new(0),
            total: Cell::new(total),
            charges: Cell::new(0),
        }
    }

    /// Changes the total (reload).
    pub fn set_total(&self, total: usize) {
        self.total.set(total);
    }

    /// Takes `bytes`, also beyond the total: what was read must be kept, and reading stops
    /// while [`Budget::is_spent`].
    pub fn take(&self, bytes: usize) {
        self.used.set(self.used.get() + bytes);
    }

    /// Gives `bytes` back.
    pub fn give(&self, bytes: usize) {
        debug_assert!(bytes <= self.used.get());
        self.used.set(self.used.get().saturating_sub(bytes));
    }

    /// Bytes in use.
    pub fn used(&self) -> usize {
        self.used.get()
    }

    /// Bytes that may be in use.
    pub fn total(&self) -> usize {
        self.total.get()
    }

    /// Whether so many more bytes are within `most`; the first [`Charge`] always may be taken.
    pub fn has_room(&self, bytes: usize, most: usize) -> bool {
        self.charges.get() == 0 || self.used.get().saturating_add(bytes) <= most
    }

    /// Whether more than half of the total is in use.
    pub fn is_scarce(&self) -> bool {
        self.used.get() > self.total.get() / 2
    }

    /// Returns the most that one user of the budget may have, in bytes, where others want some as
    /// well: a part of what is free. Whoever has more stops, so a user with little always finds
    /// some (R34).
    pub fn share(&self) -> usize {
        const PARTS: usize = 8;
        let free = self.total.get().saturating_sub(self.used.get());
        free.saturating_mul(PARTS)
    }

    /// Whether the total is reached.
    pub fn is_spent(&self) -> bool {
        self.used.get() >= self.total.get()
    }
}
