//! One connection to one broker, as the trunk sees it. It is never repaired.

use std::collections::VecDeque;
use std::time::Instant;

use crate::ledger::{Account, Pings, UpstreamSid};
use crate::net::{Outbox, Partial, Retention};
use crate::upstream::roster::BrokerId;

/// A link's number: ever-growing within its trunk, its generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkId(pub u32);

/// How far a link has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// The TCP connection is being opened.
    Connecting,
    /// Open; the broker speaks first.
    AwaitingInfo,
    /// CONNECT and PING were sent.
    Authenticating,
    /// Accepted; the link that it replaces has not been left yet (R19).
    Authenticated,
    /// The ledger and a fence were sent.
    Replaying,
    /// The ledger is in place; waits for the neighbours (R14).
    Fenced,
    /// Publishes go here.
    Live,
    /// Everything was unsubscribed; delivers up to the PONG of the PING with this number.
    Leaving(u64),
}

/// Who is told of a `+OK`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum OkOwner {
    /// The component, for its publish.
    Publish,
    /// The component, for another operation.
    Operation,
    /// Nobody: it belongs to a replay or to natsmux.
    Nobody,
}

/// The answers that a verbose broker still owes, in order.
#[derive(Debug, Default)]
pub(super) struct Oks {
    runs: VecDeque<(OkOwner, u64)>,
}

impl Oks {
    pub(super) fn push(&mut self, owner: OkOwner, count: u64) {
        match self.runs.back_mut() {
            Some((last, run)) if *last == owner => *run += count,
            _ if count > 0 => self.runs.push_back((owner, count)),
            _ => {}
        }
    }

    /// The operation that the next `+OK` or `-ERR` answers.
    pub(super) fn pop(&mut self) -> Option<OkOwner> {
        let (owner, run) = self.runs.front_mut()?;
        let owner = *owner;
        *run -= 1;
        if *run == 0 {
            self.runs.pop_front();
        }
        Some(owner)
    }

    /// Answers of this kind that were still to come.
    pub(super) fn owed(&self, owner: OkOwner) -> u64 {
        let runs = self.runs.iter().filter(|(owed, _)| *owed == owner);
        runs.map(|(_, run)| run).sum()
    }
}

/// One link.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) broker: BrokerId,
    pub(super) phase: Phase,
    /// When the present phase must be over.
    pub(super) deadline: Option<Instant>,
    /// Whether the roster counts it as a dial in flight.
    pub(super) dialing: bool,
    /// Whether it holds up the barrier (R14).
    pub(super) in_barrier: bool,
    pub(super) out: Outbox,
    pub(super) partial: Partial,
    pub(super) pings: Pings,
    pub(super) account: Account,
    pub(super) oks: Oks,
    /// Unsubscribed sids and the number of the PING whose PONG frees them.
    pub(super) retired: VecDeque<(u64, UpstreamSid)>,
    pub(super) unfenced_bytes: usize,
    pub(super) unfenced_messages: u64,
    /// When the first operation was appended that no PING covers.
    pub(super) unfenced_since: Option<Instant>,
    pub(super) opened_at: Instant,
    pub(super) last_read_at: Instant,
    pub(super) last_ping_at: Instant,
    /// When the PING was appended that was answered last.
    pub(super) proven_at: Option<Instant>,
    /// When the kernel was last asked for its unacknowledged bytes, and the last answer.
    pub(super) measured_at: Option<Instant>,
    pub(super) unacked: Option<(u64, Instant)>,
    /// When that number last shrank (R9).
    pub(super) progress_at: Option<Instant>,
    pub(super) replayed: u64,
    pub(super) max_payload: usize,
    /// Whether its CONNECT asked for an answer to every operation.
    pub(super) verbose: bool,
}

impl Link {
    pub(super) fn new(
        id: LinkId,
        broker: BrokerId,
        retention: Retention,
        deadline: Instant,
        now: Instant,
    ) -> Self {
        Self {
            id,
            broker,
            phase: Phase::Connecting,
            deadline: Some(deadline),
            dialing: true,
            in_barrier: false,
            out: Outbox::new(retention),
            partial: Partial::default(),
            pings: Pings::default(),
            account: Account::default(),
            oks: Oks::default(),
            retired: VecDeque::new(),
            unfenced_bytes: 0,
            unfenced_messages: 0,
            unfenced_since: None,
            opened_at: now,
            last_read_at: now,
            last_ping_at: now,
            proven_at: None,
            measured_at: None,
            unacked: None,
            progress_at: None,
            replayed: 0,
            max_payload: usize::MAX,
            verbose: false,
        }
    }

    /// Whether a broker has accepted it, so that its end is the end of a link and not a
    /// failed dial.
    pub(super) fn is_attached(&self) -> bool {
        matches!(self.phase, Phase::Live | Phase::Leaving(_))
    }

    /// Whether SUBs and UNSUBs go to it.
    pub(super) fn takes_subscriptions(&self) -> bool {
        matches!(self.phase, Phase::Replaying | Phase::Fenced | Phase::Live)
    }

    /// Notes an operation that the next PING will cover.
    pub(super) fn note_unfenced(&mut self, bytes: usize, messages: u64, now: Instant) {
        self.unfenced_bytes += bytes;
        self.unfenced_messages += messages;
        self.unfenced_since.get_or_insert(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn oks_are_answered_in_order() {
        let mut oks = Oks::default();
        oks.push(OkOwner::Nobody, 1);
        oks.push(OkOwner::Publish, 1);
        oks.push(OkOwner::Publish, 2);
        oks.push(OkOwner::Nobody, 0);
        assert_eq!(oks.owed(OkOwner::Publish), 3);
        assert_eq!(oks.pop(), Some(OkOwner::Nobody));
        assert_eq!(oks.pop(), Some(OkOwner::Publish));
        assert_eq!(oks.owed(OkOwner::Publish), 2);
        assert_eq!(oks.owed(OkOwner::Operation), 0);
    }
}
