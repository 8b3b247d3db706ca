//! A session as its trunk sees it.

use std::rc::Rc;
use std::time::Duration;

use super::allowance::Allowance;
use super::flow::Flow;
use crate::clock::Instant;
use crate::ledger::Held;
use crate::net::{Outbox, Retention};
use crate::proto::client::ClientFault;
use crate::proto::connect::ConnectInfo;
use crate::queue::Queue;
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
    /// The same, where the brokers are the Ruby server of 2012.
    AuthTimeoutOf2012,
    /// What the component sent ahead of CONNECT is over its bound (R21).
    EarlyBytesExceeded,
    /// The brokers refused its credentials, with this text.
    Refused(Box<[u8]>),
    /// The component didn't read what was sent to it.
    SlowConsumer,
    /// The component answered no PING.
    Stale,
    /// Its CONNECT signs a broker's nonce, which can't be replayed (R18).
    Signed,
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
            Self::Drained => "drained",
            Self::Internal => "internal_error",
        }
    }
}

/// PONGs, and `+OK`s of a verbose session, that a component may be owed before it isn't read.
const PONGS_MOST: u32 = 10_000;
const OKS_MOST: u64 = 10_000;

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

/// One session's state in its trunk.
#[derive(Debug)]
pub(super) struct Slot {
    /// What goes to the component.
    pub(super) out: Outbox,
    /// For monitoring.
    pub(super) traffic: Traffic,
    /// Bytes of `out` that the daemon's budget knows of (R25).
    pub(super) accounted: usize,
    /// Publishes that wait for a link.
    pub(super) held: Held,
    /// PONGs owed from before the present link, or from while there was none.
    pub(super) owed_pongs: u32,
    /// `+OK`s owed from the same time (verbose sessions).
    pub(super) owed_oks: u64,
    /// How many of the publishes that wait must not be answered by the next broker: they
    /// were published under other options than it is told (R20).
    pub(super) held_unasked: u64,
    /// Number of the first PING that covers the session's last SUB or UNSUB (R2).
    pub(super) subs_covered_by: u64,
    /// The same for its last publish.
    pub(super) publishes_covered_by: u64,
    /// What it has on a link that it shares: publishes, and operations by their weight.
    pub(super) unproven: Unproven,
    /// Whether it has ever got a PONG.
    pub(super) had_pong: bool,
    /// PONGs that brokers still owe it on a live link.
    pub(super) asked: u32,
    /// PINGs that the live link has answered, and one that stands by has not yet (R27).
    pub(super) late: Queue<u64>,
    /// When owed PONGs are released unproven (R3).
    pub(super) pongs_until: Option<Instant>,
    /// When a full buffer stops blocking the component (R6).
    pub(super) blocked_until: Option<Instant>,
    /// Whether further publishes are dropped (R6).
    pub(super) dropping: bool,
    /// The next operation waits until the PING with this number is answered.
    pub(super) gate: Option<u64>,
    /// It has been, and the operation has not come back yet.
    pub(super) gate_passed: bool,
    /// The driver waits for [`Trunk::wants_read`](super::Trunk::wants_read) to change.
    pub(super) parked: bool,
    /// It need not wait any more, and the driver doesn't know yet.
    pub(super) released: bool,
    /// It ends once it has its answers.
    pub(super) finishing: Option<Box<Finishing>>,
    /// Decided; the driver flushes and closes.
    pub(super) closing: Option<Box<CloseReason>>,
    /// Whether it is in the list of touched slots.
    pub(super) touched: bool,
    /// It joined a trunk without a link, whose identity only a link may let in (R16).
    pub(super) unverified: bool,
    /// Where it is about to go, from a trunk that it shares.
    pub(super) leaving: Option<Leaving>,
    /// Its second CONNECTs, where there were any.
    pub(super) reconnects: Option<Box<Allowance>>,
    /// Its SUBs and UNSUBs, where there were any beside others.
    pub(super) operations: Option<Box<Allowance>>,
    /// What it has published of late, where a component of the bus lags.
    pub(super) flow: Option<Box<Flow>>,
    /// How far its own component lags, on a shared link.
    pub(super) lag: Lag,
    /// Bytes that it had got before the present link was live.
    pub(super) got_before: u64,
    /// What it said in CONNECT, where the trunk says something else to brokers.
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
            owed_pongs: 0,
            owed_oks: 0,
            held_unasked: 0,
            subs_covered_by: 0,
            publishes_covered_by: 0,
            unproven: Unproven::default(),
            had_pong: false,
            asked: 0,
            late: Queue::default(),
            pongs_until: None,
            blocked_until: None,
            dropping: false,
            gate: None,
            gate_passed: false,
            parked: false,
            released: false,
            finishing: None,
            closing: None,
            touched: false,
            unverified: false,
            leaving: None,
            reconnects: None,
            operations: None,
            flow: None,
            lag: Lag::None,
            got_before: 0,
            label: None,
        }
    }

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

    /// What it has asked for too often, until when it waits.
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

    /// Whether something of it happens once a PING is answered.
    pub(super) fn awaits_pong(&self) -> bool {
        self.gate.is_some() || self.finishing.is_some() || !self.late.is_empty()
    }

    /// Whether it isn't read for what it asked for itself, whatever its link can take.
    pub(super) fn waits_by_itself(&self) -> bool {
        let pongs = self.owed_pongs.saturating_add(self.asked) + self.late.len() as u32;
        self.gate.is_some()
            || self.unverified
            || self.is_hasty()
            || self.owed_oks >= OKS_MOST
            || self.leaving.is_some()
            || self.closing.is_some()
            || self.finishing.is_some()
            || pongs >= PONGS_MOST
    }

    /// Whether something of it isn't behind an answered PING. `answered` is the number of
    /// the last one that was.
    pub(super) fn is_unproven(&self, answered: u64) -> bool {
        // A PONG comes behind the +OKs of what came before the PING (R20).
        !self.held.is_empty()
            || self.owed_oks > 0
            || self.subs_covered_by > answered
            || self.publishes_covered_by > answered
    }

    /// When this slot needs a timer.
    pub(super) fn timeout(&self) -> Option<Instant> {
        let unasked = self.finishing.as_ref().filter(|end| end.after.is_none());
        let finish = unasked.map(|end| end.until);
        let slowed = self.flow.as_ref().and_then(|flow| flow.until);
        let allowances = [&self.reconnects, &self.operations].into_iter().flatten();
        let hasty = allowances.filter_map(|allowance| allowance.until).min();
        let timers = [self.pongs_until, self.blocked_until, finish, slowed, hasty];
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
    fn second_connects_are_paced_by_what_they_cost() {
        let mut slot = Slot::default();
        let now = Instant::now();
        for _ in 0..RECONNECTS_AT_ONCE {
            assert_eq!(slot.note_reconnect(0, now), None);
        }
        assert_eq!(slot.note_reconnect(0, now), Some(now + RECONNECT_EVERY));
        assert!(slot.is_hasty());
        let second = Duration::from_secs(1);
        let late = RECONNECT_EVERY + second;
        assert_eq!(slot.note_reconnect(20_000, now), Some(now + late));
        assert_eq!(slot.note_reconnect(0, now + RECONNECT_EVERY), None);
        assert!(slot.note_reconnect(0, now + RECONNECT_EVERY).is_some());
        for _ in 0..RECONNECTS_AT_ONCE {
            assert_eq!(slot.note_reconnect(0, now + 60 * second), None);
        }
        assert!(
            slot.note_reconnect(0, now + 60 * second).is_some(),
            "no more"
        );
    }

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
