//! The throttle of a session: of what it asks for too often, and of what it publishes while a
//! component lags.

use std::time::Duration;

use super::allowance::Allowance;
use super::flow::Flow;
use crate::clock::Instant;

/// Second CONNECTs that a session may send at once, and the time that each further one takes: so
/// much, and so much for each subscription that is told again. Each is a dial and a replay, for
/// sixty bytes.
const RECONNECTS_AT_ONCE: u32 = 4;
const RECONNECT_EVERY: Duration = Duration::from_millis(100);
const RECONNECT_EACH: Duration = Duration::from_micros(50);

/// SUBs and UNSUBs that a session may send at once where others write on the same link, the time
/// that each further one takes, and how many are waited for at a time. A broker works on all of a
/// link in turn.
const OPERATIONS_AT_ONCE: u32 = 4096;
const OPERATION_EVERY: Duration = Duration::from_micros(16);
const OPERATIONS_PAUSE: u32 = 64;

/// Rates of a session's requests. Few sessions have any.
#[derive(Debug, Default)]
pub(super) struct Throttle {
    /// Its second CONNECTs, where there were any.
    reconnects: Option<Box<Allowance>>,
    /// Its SUBs and UNSUBs, where there were any beside others.
    operations: Option<Box<Allowance>>,
    /// Its publishes of late, where a component of the bus lags.
    flow: Option<Box<Flow>>,
}

impl Throttle {
    /// Notes a second CONNECT, whose replay has `count` subscriptions. Returns when it may be acted
    /// upon, where that isn't now.
    pub(super) fn note_reconnect(&mut self, count: usize, now: Instant) -> Option<Instant> {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        let every = RECONNECT_EVERY + RECONNECT_EACH.saturating_mul(count);
        let most = RECONNECTS_AT_ONCE;
        let full = || Box::new(Allowance::new(most, now));
        let reconnects = self.reconnects.get_or_insert_with(full);
        reconnects.take(most, every, 1, now)
    }

    /// Notes a SUB or UNSUB beside others that write on the same link. Returns until when the
    /// session isn't read, where there were too many of late.
    pub(super) fn note_operation_beside_others(&mut self, now: Instant) -> Option<Instant> {
        let most = OPERATIONS_AT_ONCE;
        let full = || Box::new(Allowance::new(most, now));
        let operations = self.operations.get_or_insert_with(full);
        operations.take(most, OPERATION_EVERY, OPERATIONS_PAUSE, now)
    }

    /// Iterates over the rates of what it asks for too often.
    pub(super) fn allowances(&mut self) -> impl Iterator<Item = &mut Allowance> {
        let operations = self.operations.as_deref_mut();
        self.reconnects.as_deref_mut().into_iter().chain(operations)
    }

    /// Whether it has asked for too much too soon, and waits.
    pub(super) fn is_hasty(&self) -> bool {
        let is_used_up = |allowance: &Option<Box<Allowance>>| {
            allowance
                .as_ref()
                .is_some_and(|allowance| allowance.is_used_up())
        };
        is_used_up(&self.reconnects) || is_used_up(&self.operations)
    }

    /// Returns its publishes of late; nothing is known where no component lagged.
    pub(super) fn flow(&self) -> Option<&Flow> {
        self.flow.as_deref()
    }

    /// Returns the count of its publishes while a component lags, begun at need.
    pub(super) fn flow_mut(&mut self, now: Instant) -> &mut Flow {
        self.flow.get_or_insert_with(|| Box::new(Flow::new(now)))
    }

    /// Has a session that is slowed down looked at again at `until`. Returns whether that is new.
    pub(super) fn look_again(&mut self, until: Instant) -> bool {
        let Some(flow) = self.flow.as_mut().filter(|flow| flow.until.is_none()) else {
            return false;
        };
        flow.until = Some(until);
        true
    }

    /// Whether a time is over that the session waited for.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let mut is_over = false;
        for allowance in self.allowances() {
            is_over |= allowance.until.take_if(|until| *until <= now).is_some();
        }
        if let Some(flow) = &mut self.flow {
            is_over |= flow.until.take_if(|until| *until <= now).is_some();
        }
        is_over
    }

    /// When the session is looked at again.
    pub(super) fn due(&self) -> Option<Instant> {
        let slowed = self.flow.as_ref().and_then(|flow| flow.until);
        let allowances = [&self.reconnects, &self.operations].into_iter().flatten();
        let hasty = allowances.filter_map(|allowance| allowance.until);
        hasty.chain(slowed).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_connects_are_paced_by_what_they_cost() {
        let mut throttle = Throttle::default();
        let now = Instant::now();
        for _ in 0..RECONNECTS_AT_ONCE {
            assert_eq!(throttle.note_reconnect(0, now), None);
        }
        assert_eq!(throttle.note_reconnect(0, now), Some(now + RECONNECT_EVERY));
        assert!(throttle.is_hasty());
        let second = Duration::from_secs(1);
        let late = RECONNECT_EVERY + second;
        assert_eq!(throttle.note_reconnect(20_000, now), Some(now + late));
        assert_eq!(throttle.note_reconnect(0, now + RECONNECT_EVERY), None);
        assert!(throttle.note_reconnect(0, now + RECONNECT_EVERY).is_some());
        for _ in 0..RECONNECTS_AT_ONCE {
            assert_eq!(throttle.note_reconnect(0, now + 60 * second), None);
        }
        assert!(
            throttle.note_reconnect(0, now + 60 * second).is_some(),
            "no more"
        );
    }
}
