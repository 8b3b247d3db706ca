//! Attribution of a broker's words on a link that several sessions share, where they name an
//! operation and no sid: violations of publishes and of SUBs that no ledger has, and the statuses
//! of requests that nobody answered (R24).
//!
//! Nothing is noted per message. The link's buffer keeps what no fence has proven, with the
//! offsets up to which each session has written; what a broker names is looked for there, in
//! the order in which it was written, as a broker answers in that order.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use crate::clock::Instant;
use crate::ledger::SessionId;
use crate::net::Outbox;
use crate::proto::client::{self, ClientLimits, ClientOp, Publish, Scan};

/// Which sessions wrote what on one link.
#[derive(Debug, Default)]
pub(super) struct Owners {
    /// Runs of publishes: the stream offset behind each, and whose it is.
    runs: VecDeque<(u64, Option<SessionId>)>,
    /// SUBs that the ledger doesn't have, each with the number of the PING that covers it.
    asked: VecDeque<(u64, Asked)>,
    /// The stream offset up to which everything is proven, and up to which errors were answered.
    proven: u64,
    errors: u64,
    /// Requests that aren't proven, once a status was looked for.
    requests: Requests,
    /// Bytes that were searched since this time: a search costs all others' time.
    searched: Option<(Instant, usize)>,
    /// A violation named what nobody published: until then, each run of publishes is proven for
    /// itself, so that the next one tells whose it is.
    isolates_until: Option<Instant>,
    /// The session that wrote last, and when that was last another one.
    last: Option<SessionId>,
    changed_at: Option<Instant>,
}

/// Bytes that may be searched within a time, for errors that name no session.
const SEARCHED_MOST: usize = 8 * 1024 * 1024;
const SEARCH_WINDOW: Duration = Duration::from_millis(100);
/// How long runs of publishes are proven for themselves behind a violation that nobody could be
/// told.
const ISOLATED_FOR: Duration = Duration::from_secs(60);

/// Two sessions that write within this time are in each other's way.
const CONTENTION: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Asked {
    /// Whether its subject is a valid one, so that its sid is what is wrong.
    is_valid: bool,
    session: SessionId,
    subject: Box<[u8]>,
    queue_group: Option<Box<[u8]>>,
}

/// The publish that is looked for.
#[derive(Clone, Copy, Debug)]
pub(super) enum Wanted<'a> {
    /// A publish that was refused for its subject.
    Subject(&'a [u8]),
    /// A publish that was refused for its reply.
    Reply(&'a [u8]),
}

impl Wanted<'_> {
    fn is(&self, publish: &Publish<'_>) -> bool {
        match self {
            Self::Subject(subject) => publish.subject == *subject,
            Self::Reply(reply) => publish.reply == Some(*reply),
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
        is_valid: bool,
        covered_by: u64,
    ) {
        let asked = Asked {
            is_valid,
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
        self.requests.prove(end);
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

    /// Returns the session whose publish ends at this stream offset.
    pub(super) fn of(&self, end: u64) -> Option<SessionId> {
        let at = self.runs.partition_point(|(last, _)| *last < end);
        self.runs.get(at)?.1
    }

    /// Finds the session of the oldest publish that a broker may mean, of those in `out` that are
    /// not proven. The outer `None` says that there is none, or that too much was searched of late.
    pub(super) fn find(
        &mut self,
        out: &Outbox,
        wanted: Wanted<'_>,
        now: Instant,
    ) -> Option<Option<SessionId>> {
        let from = self.errors.max(self.proven);
        let mut found = None;
        if self.may_search(out.end().saturating_sub(from), now) {
            found = find_from(out, from, wanted);
        }
        // A publish that was answered out of order is looked for from the beginning.
        if found.is_none() && from > self.proven && self.may_search(from - self.proven, now) {
            found = find_from(out, self.proven, wanted);
        }
        let end = found?;
        self.errors = end;
        Some(self.of(end))
    }

    /// Finds the session of the oldest request, of those in `out` that are not proven, that waits
    /// for an answer at `reply` and, where that is known, was published to `subject`. It is found
    /// once.
    pub(super) fn find_request(
        &mut self,
        out: &Outbox,
        reply: &[u8],
        subject: Option<&[u8]>,
    ) -> Option<Option<SessionId>> {
        let end = self.requests.take(out, self.proven, reply, subject)?;
        Some(self.of(end))
    }

    /// Whether so many bytes may be searched: no broker and no application may have natsmux search
    /// all the time.
    fn may_search(&mut self, bytes: u64, now: Instant) -> bool {
        let (since, searched) = self.searched.get_or_insert((now, 0));
        if now.saturating_duration_since(*since) >= SEARCH_WINDOW {
            (*since, *searched) = (now, 0);
        }
        *searched = searched.saturating_add(bytes as usize);
        *searched <= SEARCHED_MOST
    }

    /// The only session that has published what a broker may mean by an error that came before the
    /// PONG for the stream offset `upto`.
    pub(super) fn only_publisher(&self, upto: u64) -> Option<SessionId> {
        let (mut only, mut start) = (None, self.proven);
        for (end, owner) in &self.runs {
            if start >= upto {
                break;
            }
            start = *end;
            if only.is_some_and(|only| only != *owner) {
                return None;
            }
            only = Some(*owner);
        }
        only.flatten()
    }

    /// A violation named what nobody published.
    pub(super) fn isolate(&mut self, now: Instant) {
        self.isolates_until = Some(now + ISOLATED_FOR);
    }

    /// Whether each run of publishes is to be proven for itself.
    pub(super) fn isolates(&self, now: Instant) -> bool {
        self.isolates_until.is_some_and(|until| until > now)
    }

    /// Takes the session of the oldest SUB that asked for this subject and queue group.
    pub(super) fn take_asked(
        &mut self,
        subject: &[u8],
        queue_group: Option<&[u8]>,
    ) -> Option<SessionId> {
        self.take(|asked| *asked.subject == *subject && asked.queue_group.as_deref() == queue_group)
    }

    /// Takes the session of the oldest SUB of no valid subject.
    pub(super) fn take_invalid(&mut self) -> Option<SessionId> {
        self.take(|asked| !asked.is_valid)
    }

    /// Takes the session of the oldest SUB of a sid that it has.
    pub(super) fn take_taken(&mut self) -> Option<SessionId> {
        self.take(|asked| asked.is_valid)
    }

    fn take(&mut self, wanted: impl Fn(&Asked) -> bool) -> Option<SessionId> {
        let at = self.asked.iter().position(|(_, asked)| wanted(asked))?;
        let (_, asked) = self.asked.remove(at)?;
        Some(asked.session)
    }
}

/// An index of the requests on one link, built once a status is looked for, and then as publishes
/// come: each is read once more, however many statuses there are.
#[derive(Debug, Default)]
struct Requests(Option<Box<Index>>);

#[derive(Debug, Default)]
struct Index {
    /// The stream offset up to which it is complete.
    scanned: u64,
    /// By a digest of the reply: the offsets of each request's begin and end, oldest first.
    by_reply: HashMap<u64, VecDeque<(u64, u64)>>,
    /// All of these, in order.
    order: VecDeque<(u64, u64)>,
}

impl Requests {
    fn take(
        &mut self,
        out: &Outbox,
        proven: u64,
        reply: &[u8],
        subject: Option<&[u8]>,
    ) -> Option<u64> {
        let index = self.0.get_or_insert_default();
        index.scan(out, proven);
        let found = index.by_reply.get_mut(&digest(reply))?;
        let is_it = |(start, end): &(u64, u64)| {
            *end > proven
                && publish_at(out, *start).is_some_and(|publish| {
                    publish.reply == Some(reply)
                        && subject.is_none_or(|subject| publish.subject == subject)
                })
        };
        let at = found.iter().position(is_it)?;
        let (_, end) = found.remove(at)?;
        Some(end)
    }

    fn prove(&mut self, end: u64) {
        let Some(index) = &mut self.0 else {
            return;
        };
        while let Some((_, key)) = index.order.pop_front_if(|(last, _)| *last <= end) {
            if let Some(found) = index.by_reply.get_mut(&key) {
                while found.pop_front_if(|(_, last)| *last <= end).is_some() {}
                if found.is_empty() {
                    index.by_reply.remove(&key);
                }
            }
        }
        if index.order.is_empty() && index.scanned <= end {
            self.0 = None;
        }
    }
}

impl Index {
    fn scan(&mut self, out: &Outbox, proven: u64) {
        let from = self.scanned.max(proven);
        for (start, frame, publish) in publishes(out, from) {
            if let Some(reply) = publish.reply {
                let (key, end) = (digest(reply), start + frame.len() as u64);
                self.by_reply
                    .entry(key)
                    .or_default()
                    .push_back((start, end));
                self.order.push_back((end, key));
            }
        }
        self.scanned = out.end();
    }
}

fn digest(reply: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    reply.hash(&mut hasher);
    hasher.finish()
}

/// The publishes in memory from the stream offset `from` on: the offset of each, its frame, and what
/// that says.
pub(super) fn publishes(
    out: &Outbox,
    from: u64,
) -> impl Iterator<Item = (u64, &[u8], Publish<'_>)> {
    out.frames_from(from).flat_map(|(offset, frames)| {
        let mut used = 0;
        let whole = std::iter::from_fn(move || {
            let Scan::Op { op, len } = client::scan(&frames[used..], &ClientLimits::NONE) else {
                return None;
            };
            let start = used;
            used += len;
            Some((offset + start as u64, &frames[start..used], op))
        });
        whole.filter_map(|(start, frame, op)| match op {
            ClientOp::Publish(publish) => Some((start, frame, publish)),
            _ => None,
        })
    })
}

/// The publish that begins at a stream offset.
fn publish_at(out: &Outbox, start: u64) -> Option<Publish<'_>> {
    let (at, _, publish) = publishes(out, start).next()?;
    (at == start).then_some(publish)
}

/// The stream offset behind the first publish from `from` on that is wanted.
fn find_from(out: &Outbox, from: u64, wanted: Wanted<'_>) -> Option<u64> {
    let found = publishes(out, from).find(|(_, _, publish)| wanted.is(publish));
    found.map(|(start, frame, _)| start + frame.len() as u64)
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
        let now = Instant::now();
        let mut find = |wanted| owners.find(&out, wanted, now);
        assert_eq!(find(Wanted::Subject(b"x")), Some(Some(ALICE)));
        assert_eq!(find(Wanted::Subject(b"x")), Some(Some(BOB)));
        assert_eq!(find(Wanted::Reply(b"r")), Some(Some(BOB)));
        assert_eq!(find(Wanted::Reply(b"r")), Some(Some(ALICE)));
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
        assert_eq!(
            owners.find(&out, Wanted::Subject(b"a"), Instant::now()),
            Some(None)
        );
        owners.prove(2, 22);
        assert!(owners.runs.is_empty());
    }

    #[test]
    fn subs_that_the_ledger_has_not_are_answered_by_subject_or_in_turn() {
        let mut owners = Owners::default();
        owners.note_asked(ALICE, b"a", None, true, 1);
        owners.note_asked(ALICE, b"b..", None, false, 1);
        owners.note_asked(BOB, b"c..", None, false, 2);
        assert_eq!(owners.take_invalid(), Some(ALICE));
        assert_eq!(owners.take_asked(b"c..", None), Some(BOB));
        assert_eq!(owners.take_asked(b"c..", None), None);
        owners.note_asked(BOB, b"d", None, true, 3);
        owners.prove(2, 0);
        assert_eq!(owners.take_asked(b"a", None), None, "its PING was answered");
        assert_eq!(owners.take_asked(b"d", None), Some(BOB));
        owners.note_asked(ALICE, b"e..", None, false, 4);
        owners.note_asked(BOB, b"f", None, true, 4);
        assert_eq!(owners.take_taken(), Some(BOB), "its sid was taken");
    }

    #[test]
    fn a_request_is_found_once_by_its_reply_and_subject_until_it_is_proven() {
        let (mut out, mut owners) = (Outbox::new(Retention::UntilConfirmed), Owners::default());
        publish(&mut out, &mut owners, ALICE, b"PUB a r 0\r\n\r\n");
        publish(&mut out, &mut owners, BOB, b"PUB b r 0\r\n\r\n");
        let find = |owners: &mut Owners, out: &Outbox, subject: Option<&[u8]>| {
            owners.find_request(out, b"r", subject)
        };
        assert_eq!(find(&mut owners, &out, Some(b"c")), None);
        assert_eq!(find(&mut owners, &out, Some(b"b")), Some(Some(BOB)));
        assert_eq!(find(&mut owners, &out, Some(b"b")), None, "once");
        assert_eq!(find(&mut owners, &out, None), Some(Some(ALICE)));
        // Later publishes are read then.
        publish(&mut out, &mut owners, BOB, b"PUB c r 0\r\n\r\n");
        publish(&mut out, &mut owners, ALICE, b"PUB d r 0\r\n\r\n");
        out.advance(out.pending_bytes());
        out.confirm(39);
        owners.prove(1, 39);
        assert_eq!(find(&mut owners, &out, Some(b"c")), None, "it is proven");
        assert_eq!(find(&mut owners, &out, None), Some(Some(ALICE)));
        let end = out.end();
        out.confirm(end);
        owners.prove(2, end);
        assert!(owners.requests.0.is_none());
    }

    #[test]
    fn an_error_that_names_nothing_known_is_the_only_publishers() {
        let (mut out, mut owners) = (Outbox::new(Retention::UntilConfirmed), Owners::default());
        assert_eq!(owners.only_publisher(0), None);
        publish(&mut out, &mut owners, ALICE, b"PUB a 0\r\n\r\n");
        let first = out.end();
        publish(&mut out, &mut owners, BOB, b"PUB b 0\r\n\r\n");
        assert_eq!(owners.only_publisher(first), Some(ALICE));
        assert_eq!(owners.only_publisher(out.end()), None, "either");
        owners.prove(1, first);
        assert_eq!(owners.only_publisher(out.end()), Some(BOB));
        let now = Instant::now();
        owners.isolate(now);
        assert!(owners.isolates(now) && !owners.isolates(now + ISOLATED_FOR));
    }

    #[test]
    fn searching_is_bounded() {
        let (mut out, mut owners) = (Outbox::new(Retention::UntilConfirmed), Owners::default());
        publish(&mut out, &mut owners, ALICE, b"PUB a 0\r\n\r\n");
        let now = Instant::now();
        owners.searched = Some((now, SEARCHED_MOST));
        let wanted = Wanted::Subject(b"a");
        assert_eq!(owners.find(&out, wanted, now), None);
        let later = now + SEARCH_WINDOW;
        assert_eq!(owners.find(&out, wanted, later), Some(Some(ALICE)));
    }
}
