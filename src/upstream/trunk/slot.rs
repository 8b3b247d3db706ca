//! A session as its trunk sees it.

use std::rc::Rc;

use super::debts::Debts;
use super::throttle::Throttle;
use crate::clock::Instant;
use crate::ledger::Held;
use crate::net::{Outbox, Retention};
use crate::proto::client::ClientFault;
use crate::proto::connect::ConnectInfo;
use crate::upstream::bus::lags::Lag;

/// Why a session ends. A closed set: it labels a metric and says what the component hears.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CloseReason {
    /// The component closed its connection.
    ComponentClosed,
    /// The component's connection broke.
    ComponentLost,
    /// The component sent what a broker would not accept.
    Fault(ClientFault),
    /// The component sent another operation before CONNECT, with `lenient_connect` off.
    ConnectExpected,
    /// The component sent no CONNECT in time.
    AuthTimeout,
    /// The time to authenticate is over, where the brokers are the Ruby server of 2012.
    AuthTimeoutOf2012,
    /// The component's input ahead of CONNECT is over its bound (R21).
    EarlyBytesExceeded,
    /// The brokers refused its credentials, with this text.
    Refused(Box<[u8]>),
    /// The component didn't read what was sent to it.
    SlowConsumer,
    /// The component answered no PING.
    Stale,
    /// Its CONNECT signs a broker's nonce, which can't be replayed (R18).
    Signed,
    /// No broker has served for `reveal_outage_after` (R37).
    Outage,
    /// The link is gone whose nonce its component signed (R40).
    RelayEnded,
    /// An operator closed it (R42).
    Killed,
    /// natsmux is shutting down.
    Drained,
    /// natsmux has a fault.
    Internal,
}

impl CloseReason {
    /// The text of the `-ERR` that the component hears; `None` closes silently.
    pub fn error_text(&self) -> Option<&[u8]> {
        match self {
            Self::Fault(fault) => fault.error_text().map(str::as_bytes),
            Self::ConnectExpected | Self::Signed => Some(b"Authorization Violation"),
            Self::AuthTimeout => Some(b"Authentication Timeout"),
            Self::AuthTimeoutOf2012 => Some(b"Authorization is required"),
            Self::Refused(text) => Some(text),
            Self::Stale => Some(b"Stale Connection"),
            Self::ComponentClosed
            | Self::ComponentLost
            | Self::EarlyBytesExceeded
            | Self::SlowConsumer
            | Self::Outage
            | Self::RelayEnded
            | Self::Killed
            | Self::Drained
            | Self::Internal => None,
        }
    }

    /// The label in metrics and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ComponentClosed => "component_closed",
            Self::ComponentLost => "component_lost",
            Self::Fault(_) => "protocol_error",
            Self::ConnectExpected => "connect_expected",
            Self::AuthTimeout | Self::AuthTimeoutOf2012 => "auth_timeout",
            Self::EarlyBytesExceeded => "early_bytes_exceeded",
            Self::Refused(_) => "refused",
            Self::SlowConsumer => "slow_consumer",
            Self::Stale => "stale",
            Self::Signed => "signed",
            Self::Outage => "outage",
            Self::RelayEnded => "relay_ended",
            Self::Killed => "killed",
            Self::Drained => "drained",
            Self::Internal => "internal_error",
        }
    }
}

/// Messages and the bytes of their payloads, each way, as nats-server counts them for a
/// client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// From the component.
    pub in_msgs: u64,
    /// From the component, headers included.
    pub in_bytes: u64,
    /// To the component.
    pub out_msgs: u64,
    /// To the component, headers included.
    pub out_bytes: u64,
}

impl Traffic {
    /// Counts a message to the component, of so many bytes.
    pub(super) fn count_out(&mut self, bytes: usize) {
        self.out_msgs += 1;
        self.out_bytes += bytes as u64;
    }

    /// Counts messages from the component, and the bytes of their payloads.
    pub(super) fn count_in(&mut self, messages: u64, bytes: u64) {
        self.in_msgs += messages;
        self.in_bytes += bytes;
    }
}

/// The end of a session that is answered first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Finishing {
    pub(super) reason: CloseReason,
    /// The PING whose answer is the last; `None` while no broker can be asked.
    pub(super) after: Option<u64>,
    /// When it ends without one. A component that is gone looks like one that has only closed
    /// its side, and there may be many in an outage.
    pub(super) until: Instant,
}

/// Whether a session ends.
#[derive(Debug, Default)]
pub(super) enum End {
    /// It doesn't.
    #[default]
    Open,
    /// It does, once it has its answers.
    Finishing(Box<Finishing>),
    /// It does: the driver flushes and closes.
    Closing(Box<CloseReason>),
}

/// Whether a session's next operation waits for the answer to those before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Gate {
    /// It doesn't.
    #[default]
    Open,
    /// It waits until the PING with this number is answered.
    Shut(u64),
    /// That is answered, and the operation has not come back yet.
    Passed,
}

impl Gate {
    /// It waits for the end of a planned move (R41): no PING has this number.
    pub(super) const UNTIL_MOVED: Self = Self::Shut(u64::MAX);

    pub(super) fn is_shut(self) -> bool {
        matches!(self, Self::Shut(_))
    }

    /// Opens for the operation that waits, where all PINGs up to `answered` are answered. Returns
    /// whether it did.
    pub(super) fn pass(&mut self, answered: u64) -> bool {
        let passes = matches!(self, Self::Shut(seq) if *seq <= answered);
        if passes {
            *self = Self::Passed;
        }
        passes
    }

    /// The operation has come back. Returns whether it had waited.
    pub(super) fn take_passed(&mut self) -> bool {
        let passed = *self == Self::Passed;
        if passed {
            *self = Self::Open;
        }
        passed
    }
}

/// One session's state in its trunk.
#[derive(Debug)]
pub(super) struct Slot {
    /// Output to the component.
    pub(super) out: Outbox,
    /// For monitoring.
    pub(super) traffic: Traffic,
    /// Bytes of `out` that the daemon's budget knows of (R25).
    pub(super) accounted: usize,
    /// Publishes that wait for a link.
    pub(super) held: Held,
    /// Answers that it is owed.
    pub(super) debts: Debts,
    /// Number of the first PING that covers the session's last SUB or UNSUB (R2).
    pub(super) subs_covered_by: u64,
    /// Number of the first PING that covers its last publish.
    pub(super) publishes_covered_by: u64,
    /// Its unproven bytes on a link that it shares: publishes, and operations by their weight.
    pub(super) unproven: Unproven,
    /// Whether it has ever got a PONG.
    pub(super) had_pong: bool,
    /// When a full buffer stops blocking the component (R6).
    pub(super) blocked_until: Option<Instant>,
    /// Whether further publishes are dropped (R6).
    pub(super) dropping: bool,
    /// Whether the next operation waits for a PONG.
    pub(super) gate: Gate,
    /// The driver waits for [`Trunk::wants_read`](super::Trunk::wants_read) to change.
    pub(super) parked: bool,
    /// It need not wait any more, and the driver doesn't know yet.
    pub(super) released: bool,
    /// Whether it ends.
    pub(super) end: End,
    /// Whether it is in the list of touched slots.
    pub(super) touched: bool,
    /// It joined a trunk without a link, whose identity only a link may let in (R16).
    pub(super) unverified: bool,
    /// Where it is about to go, from a trunk that it shares.
    pub(super) leaving: Option<Leaving>,
    /// Its throttle.
    pub(super) throttle: Throttle,
    /// How far its own component lags, on a shared link.
    pub(super) lag: Lag,
    /// Bytes that it had got before the present link was live.
    pub(super) got_before: u64,
    /// The CONNECT that it sent, where the trunk says something else to brokers.
    pub(super) label: Option<Rc<ConnectInfo>>,
}

/// Bytes of publishes that no PONG has proven, never too few: those that the next PING covers,
/// and those before, as if the last of them had come at once. Nothing is counted where a session
/// has its trunk for itself.
#[derive(Debug, Default)]
pub(super) struct Unproven(Option<Box<Counts>>);

#[derive(Debug, Default)]
struct Counts {
    next: (u64, usize),
    before: (u64, usize),
}

impl Unproven {
    /// Counts publishes that the PING with the number `covered_by` will cover, where the last one
    /// that was answered is `answered`.
    pub(super) fn add(&mut self, bytes: usize, covered_by: u64, answered: u64) {
        let counts = self.0.get_or_insert_default();
        if counts.next.0 != covered_by {
            let older = if counts.before.0 > answered {
                counts.before.1
            } else {
                0
            };
            counts.before = (counts.next.0, counts.next.1 + older);
            counts.next = (covered_by, 0);
        }
        counts.next.1 += bytes;
    }

    /// How many there are.
    pub(super) fn bytes(&self, answered: u64) -> usize {
        let counts = self.0.iter();
        let open = counts.flat_map(|counts| [counts.next, counts.before]);
        open.filter(|(by, _)| *by > answered)
            .map(|(_, bytes)| bytes)
            .sum()
    }
}

/// Why a session leaves a trunk for another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Leaving {
    /// Its component sent a second CONNECT.
    Reconnects,
    /// The broker takes no more subscriptions on this connection.
    Crowded,
    /// It gets more than the broker can write to one connection.
    Greedy,
}

impl Slot {
    pub(super) fn new(out: Outbox) -> Self {
        Self {
            out,
            traffic: Traffic::default(),
            accounted: 0,
            held: Held::default(),
            debts: Debts::default(),
            subs_covered_by: 0,
            publishes_covered_by: 0,
            unproven: Unproven::default(),
            had_pong: false,
            blocked_until: None,
            dropping: false,
            gate: Gate::Open,
            parked: false,
            released: false,
            end: End::Open,
            touched: false,
            unverified: false,
            leaving: None,
            throttle: Throttle::default(),
            lag: Lag::None,
            got_before: 0,
            label: None,
        }
    }

    /// Whether nothing that its component sends is looked at any more.
    pub(super) fn is_ending(&self) -> bool {
        !matches!(self.end, End::Open)
    }

    /// Whether it is decided that it closes.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.end, End::Closing(_))
    }

    /// Returns what it waits for before it closes.
    pub(super) fn finishing(&self) -> Option<&Finishing> {
        match &self.end {
            End::Finishing(end) => Some(end),
            End::Open | End::Closing(_) => None,
        }
    }

    /// Changes what it waits for before it closes.
    pub(super) fn finishing_mut(&mut self) -> Option<&mut Finishing> {
        match &mut self.end {
            End::Finishing(end) => Some(end),
            End::Open | End::Closing(_) => None,
        }
    }

    /// Why it closes now, where it waits for nothing more, as `is_over` says.
    pub(super) fn take_finished(
        &mut self,
        is_over: impl FnOnce(&Finishing) -> bool,
    ) -> Option<CloseReason> {
        self.finishing().filter(|end| is_over(end))?;
        match std::mem::take(&mut self.end) {
            End::Finishing(end) => Some(end.reason),
            End::Open | End::Closing(_) => None,
        }
    }

    /// Whether something of it happens once a PING is answered.
    pub(super) fn awaits_pong(&self) -> bool {
        self.gate.is_shut() || self.finishing().is_some() || self.debts.is_late()
    }

    /// Whether it isn't read for what it asked for itself, whatever its link can take.
    pub(super) fn waits_by_itself(&self) -> bool {
        self.gate.is_shut()
            || self.unverified
            || self.throttle.is_hasty()
            || self.leaving.is_some()
            || self.is_ending()
            || self.debts.are_many()
    }

    /// Whether something of it isn't behind an answered PING. `answered` is the number of
    /// the last one that was.
    pub(super) fn is_unproven(&self, answered: u64) -> bool {
        // A PONG comes behind the +OKs of what came before the PING (R20).
        !self.held.is_empty()
            || self.debts.oks > 0
            || self.subs_covered_by > answered
            || self.publishes_covered_by > answered
    }

    /// When this slot needs a timer.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let unasked = self.finishing().filter(|end| end.after.is_none());
        let timers = [
            self.debts.pongs_until(),
            self.blocked_until,
            unasked.map(|end| end.until),
            self.throttle.due(),
        ];
        timers.into_iter().flatten().min()
    }
}

impl Default for Slot {
    fn default() -> Self {
        Self::new(Outbox::new(Retention::UntilWritten))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_unproven_is_counted_until_its_pong() {
        let mut unproven = Unproven::default();
        unproven.add(10, 1, 0);
        unproven.add(5, 1, 0);
        unproven.add(7, 2, 0);
        assert_eq!(
            [0, 1, 2].map(|answered| unproven.bytes(answered)),
            [22, 7, 0]
        );
        unproven.add(1, 3, 0);
        assert_eq!(
            [0, 1, 2, 3].map(|answered| unproven.bytes(answered)),
            [23, 23, 1, 0]
        );
        unproven.add(100, 9, 8);
        assert_eq!(unproven.bytes(8), 100, "what came before is proven");
    }
}
