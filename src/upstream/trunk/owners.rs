//! Whose is what a broker says of an operation without naming a sid, on a link that several
//! sessions share: violations of publishes and of SUBs that no ledger has, and the statuses of
//! requests that nobody answered (R24).
//!
//! Nothing is noted per message. The link's buffer keeps what no fence has proven, with the
//! offsets up to which each session has written; what a broker names is looked for there, in
//! the order in which it was written, as a broker answers in that order.

use std::collections::VecDeque;
use std::time::Duration;

use crate::clock::Instant;
use crate::ledger::SessionId;
use crate::net::Outbox;
use crate::proto::client::{self, ClientLimits, ClientOp, Publish, Scan};
use crate::proto::subject::is_valid_subscription;

/// Which sessions wrote what on one link.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Runs of publishes: the stream offset behind each, and whose it is.
    runs: VecDeque<(u64, Option<SessionId>)>,
    /// SUBs that the ledger doesn't have, each with the number of the PING that covers it.
    asked: VecDeque<(u64, Asked)>,
    /// The stream offset up to which everything is proven, and those up to which errors, and
    /// statuses, were answered.
    proven: u64,
    errors: u64,
    statuses: u64,
    /// Who wrote last, and when that was last somebody else.
    last: Option<SessionId>,
    changed_at: Option<Instant>,
}

/// Two sessions that write within this time are in each other's way.
const CONTENTION: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Asked {
    session: SessionId,
    subject: Box<[u8]>,
    queue_group: Option<Box<[u8]>>,
}

/// What is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted<'a> {
    /// A publish that was refused for its subject.
    Subject(&'a [u8]),
    /// A publish that was refused for its reply.
    Reply(&'a [u8]),
    /// A request that has no responders.
    Request(&'a [u8]),
}

impl Wanted<'_> {
    fn is(&self, publish: &Publish<'_>) -> bool {
        match self {
            Self::Subject(subject) => publish.subject == *subject,
            Self::Reply(reply) | Self::Request(reply) => publish.reply == Some(*reply),
        }
    }
}

impl Owners {
    /// Notes that the publishes up to the stream offset `end` are a session's; `None`: nobody's
    /// who is still there.
    pub(super) fn note(&mut self, session: Option<SessionId>, end: u64) {
        match self.runs.back_mut() {
            Some((last, owner)) if *owner == session => *last = end,
            _ => self.runs.push_back((end, session)),
        }
    }

    /// Notes that a session has written something.
    pub(super) fn note_turn(&mut self, session: SessionId, now: Instant) {
        let last = self.last.replace(session);
        if last.is_some_and(|last| last != session) {
            self.changed_at = Some(now);
        }
    }

    /// Whether more than one session has written of late.
    pub(super) fn is_contended(&self, now: Instant) -> bool {
        let since = |at: Instant| now.saturating_duration_since(at) < CONTENTION;
        self.changed_at.is_some_and(since)
    }

    /// Notes a SUB that the ledger doesn't have, and only a broker can answer.
    pub(super) fn note_asked(
        &mut self,
        session: SessionId,
        subject: &[u8],
        queue_group: Option<&[u8]>,
        covered_by: u64,
    ) {
        let asked = Asked {
            session,
            subject: subject.into(),
            queue_group: queue_group.map(Box::from),
        };
        self.asked.push_back((covered_by, asked));
    }

    /// The PING with the number `seq`, at the stream offset `end`, was answered.
    pub(super) fn prove(&mut self, seq: u64, end: u64) {
        while self.runs.pop_front_if(|(last, _)| *last <= end).is_some() {}
        while self.asked.pop_front_if(|(by, _)| *by <= seq).is_some() {}
        self.proven = end;
        if self.runs.is_empty() {
            self.runs.shrink_to(64);
        }
    }

    /// A session is gone.
    pub(super) fn disown(&mut self, session: SessionId) {
        for (_, owner) in &mut self.runs {
            owner.take_if(|owner| *owner == session);
        }
        self.asked.retain(|(_, asked)| asked.session != session);
    }

    /// Whose the publish is that ends at this stream offset.
    pub(super) fn of(&self, end: u64) -> Option<SessionId> {
        let at = self.runs.partition_point(|(last, _)| *last < end);
        self.runs.get(at)?.1
    }

    /// Whose the oldest publish is that a broker may mean, of those in `out` that are not
    /// proven. The outer `None` says that there is none.
    pub(super) fn find(&mut self, out: &Outbox, wanted: Wanted<'_>) -> Option<Option<SessionId>> {
        let cursor = match wanted {
            Wanted::Request(_) => self.statuses,
            _ => self.errors,
        };
        // What was answered out of order is looked for from the beginning.
        let again = || find_from(out, self.proven, wanted);
        let end = find_from(out, cursor.max(self.proven), wanted).or_else(again)?;
        match wanted {
            Wanted::Request(_) => self.statuses = end,
            _ => self.errors = end,
        }
        Some(self.of(end))
    }

    /// Whose the oldest SUB is that was asked with this subject and queue group.
    pub(super) fn take_asked(
        &mut self,
        subject: &[u8],
        queue_group: Option<&[u8]>,
    ) -> Option<SessionId> {
        self.take(|asked| *asked.subject == *subject && asked.queue_group.as_deref() == queue_group)
    }

    /// Whose the oldest SUB of no valid subject is.
    pub(super) fn take_invalid(&mut self) -> Option<SessionId> {
        self.take(|asked| !is_valid_subscription(&asked.subject))
    }

    fn take(&mut self, wanted: impl Fn(&Asked) -> bool) -> Option<SessionId> {
        let at = self.asked.iter().position(|(_, asked)| wanted(asked))?;
        let (_, asked) = self.asked.remove(at)?;
        Some(asked.session)
    }
}

/// The stream offset behind the first publish from `from` on that is wanted.
fn find_from(out: &Outbox, from: u64, wanted: Wanted<'_>) -> Option<u64> {
    for (offset, frames) in out.frames_from(from) {
        let mut at = 0;
        while let Scan::Op { op, len } = client::scan(&frames[at..], &ClientLimits::NONE) {
            at += len;
            if let ClientOp::Publish(publish) = op
                && wanted.is(&publish)
            {
                return Some(offset + at as u64);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::Retention;

    const ALICE: SessionId = SessionId(0);
    const BOB: SessionId = SessionId(1);

    fn publish(out: &mut Outbox, owners: &mut Owners, session: SessionId, frames: &[u8]) {
        out.push(frames);
        owners.note(Some(session), out.end());
    }

    #[test]
    fn errors_go_to_who_published_in_the_order_of_publishes() {
        let (mut out, mut owners) = (Outbox::new(Retention::UntilConfirmed), Owners::default());
        publish(
            &mut out,
            &mut owners,
            ALICE,
            b"PUB a 0\r\n\r\nPUB x 1\r\n1\r\n",
        );
        out.push(b"PING\r\n");
        publish(
            &mut out,
            &mut owners,
            BOB,
            b"PUB x 1\r\n2\r\nPUB x r 1\r\n3\r\n",
        );
        publish(&mut out, &mut owners, ALICE, b"PUB b r 1\r\n4\r\n");
        out.advance(out.pending_bytes());
        let mut find = |wanted| owners.find(&out, wanted);
        assert_eq!(find(Wanted::Subject(b"x")), Some(Some(ALICE)));
        assert_eq!(
            find(Wanted::Request(b"r")),
            Some(Some(BOB)),
            "a cursor of its own"
        );
        assert_eq!(find(Wanted::Subject(b"x")), Some(Some(BOB)));
        assert_eq!(find(Wanted::Reply(b"r")), Some(Some(BOB)));
        assert_eq!(find(Wanted::Reply(b"r")), Some(Some(ALICE)));
        assert_eq!(find(Wanted::Request(b"r")), Some(Some(ALICE)));
        assert_eq!(find(Wanted::Subject(b"nothing")), None);
        assert_eq!(
            find(Wanted::Subject(b"a")),
            Some(Some(ALICE)),
            "out of order"
        );
    }

    #[test]
    fn what_is_proven_and_who_is_gone_is_forgotten() {
        let (mut out, mut owners) = (Outbox::new(Retention::UntilConfirmed), Owners::default());
        publish(&mut out, &mut owners, ALICE, b"PUB a 0\r\n\r\n");
        publish(&mut out, &mut owners, BOB, b"PUB a 0\r\n\r\n");
        out.advance(22);
        out.confirm(11);
        owners.prove(1, 11);
        assert_eq!(owners.of(22), Some(BOB));
        owners.disown(BOB);
        assert_eq!(owners.find(&out, Wanted::Subject(b"a")), Some(None));
        owners.prove(2, 22);
        assert!(owners.runs.is_empty());
    }

    #[test]
    fn subs_that_the_ledger_has_not_are_answered_by_subject_or_in_turn() {
        let mut owners = Owners::default();
        owners.note_asked(ALICE, b"a", None, 1);
        owners.note_asked(ALICE, b"b..", None, 1);
        owners.note_asked(BOB, b"c..", None, 2);
        assert_eq!(owners.take_invalid(), Some(ALICE));
        assert_eq!(owners.take_asked(b"c..", None), Some(BOB));
        assert_eq!(owners.take_asked(b"c..", None), None);
        owners.note_asked(BOB, b"d", None, 3);
        owners.prove(2, 0);
        assert_eq!(owners.take_asked(b"a", None), None, "its PING was answered");
        assert_eq!(owners.take_asked(b"d", None), Some(BOB));
    }
}
