//! A pause of publishes, as an operator asks for one (R42).

use super::Bus;
use crate::clock::Instant;

impl Bus {
    /// Publishes wait from now on, until then at most; deliveries go on.
    pub fn pause(&mut self, until: Instant) {
        self.paused_until = Some(until);
    }

    /// Ends the pause. Returns whether there was one.
    pub fn unpause(&mut self) -> bool {
        let was_paused = self.paused_until.take().is_some();
        if was_paused {
            let trunks = self.brokers.roster.linked_trunks();
            self.trunks.woken.extend(trunks);
        }
        was_paused
    }

    /// When the pause ends by itself, if there is one.
    pub fn paused_until(&self) -> Option<Instant> {
        self.paused_until
    }

    /// Whether publishes wait.
    pub(in crate::upstream) fn is_paused(&self) -> bool {
        self.paused_until.is_some()
    }

    pub(super) fn end_due_pause(&mut self, now: Instant) {
        if self.paused_until.is_some_and(|until| until <= now) {
            self.unpause();
        }
    }
}
