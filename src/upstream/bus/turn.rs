//! A turn of a machine: the time, and the bus that its trunk belongs to.

use super::Bus;
use crate::clock::Instant;

/// One call of a machine: everything in it happens at one point in time.
#[derive(Debug)]
pub struct Turn<'a> {
    /// When.
    pub now: Instant,
    /// The bus.
    pub bus: &'a mut Bus,
}

impl<'a> Turn<'a> {
    /// A call at `now`.
    pub fn new(now: Instant, bus: &'a mut Bus) -> Self {
        Self { now, bus }
    }
}
