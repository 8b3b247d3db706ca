//! The time in which two links of a planned move both have the subscriptions (R41).
//!
//! A broker handles one message of a publisher after the other and puts each to all subscriptions
//! that match. So what the old link brings of a publisher is a first part of its messages and what
//! the new one brings a last part, and both have what came in between. What the old one brings is
//! delivered at once and remembered by a keyed digest; what the new one brings is held until the
//! old one has brought all, and is then delivered but for what both brought.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use super::link::LinkId;
use crate::clock::Instant;
use crate::config::Identical;
use crate::ledger::{Seen, UpstreamSid};
use crate::proto::server::Msg;
use crate::upstream::bus::Settings;

/// The most that a move of one trunk keeps in memory, in bytes: beyond, the old link is left at once.
pub(super) const OVERLAP_BYTES: usize = 4 * 1024 * 1024;
/// The most that the new link may bring ahead of the PONG that says that it has the ledger.
const FLOOD_BYTES: usize = 4 * OVERLAP_BYTES;
/// The cost of a digest there.
const DIGEST_BYTES: usize = 32;
/// The overlap of two links to one broker: it puts a message to both in one go, but for the
/// scheduling of its threads.
const SAME_BROKER: Duration = Duration::from_millis(5);
/// How many overlaps long copies may still be on their way between brokers.
const STRAGGLERS: u32 = 10;

/// A broker tells the others of SUBs within so many times of what it took to answer them, and that
/// makes an overlap longer by this factor at most.
const SLOWER: u32 = 3;
const SLOWER_MOST: u32 = 5;

/// How far a planned move has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// Messages of the old link are remembered until then: they may be on their way to the new
    /// one's broker, and arrive there once that has the ledger.
    Recording(Instant),
    /// The old link proves what it was told last: the PING with this number. By then the next stage
    /// begins.
    Settling(u64, Option<Instant>),
    /// The new link has been told the ledger, and says so until then.
    Joining(Instant),
    /// Both links have it, until then.
    Both(Instant),
    /// The old link is unsubscribed, or gone: what it still brings comes before its last PONG.
    Leaving,
    /// The new link is live. Copies may come until a PING is answered that is sent then.
    Behind(Straggling),
    /// No copy comes any more. The new link's broker was told what is left of each max, and proves
    /// it: the PING with this number.
    Limiting(u64),
}

/// The wait for copies of what the old link has brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Straggling {
    /// Until when publishes wait: what went to the old broker comes first everywhere.
    pub(super) publish_at: Option<Instant>,
    /// The wait for what the old link brought before the new one had the ledger.
    pub(super) early: Ask,
    /// And for the rest.
    pub(super) late: Ask,
}

/// A PING that tells that a broker has brought all that it had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// It is to be sent then.
    At(Instant),
    /// It has this number.
    Asked(u64),
    Answered,
}

impl Ask {
    /// When it is to be sent, if it isn't.
    pub(super) fn due(self) -> Option<Instant> {
        match self {
            Self::At(at) => Some(at),
            Self::Asked(_) | Self::Answered => None,
        }
    }
}

/// A planned move of one trunk.
#[derive(Debug)]
pub(super) struct Overlap {
    pub(super) old: LinkId,
    pub(super) new: LinkId,
    pub(super) stage: Stage,
    /// Whether the old link stood by when it was left: publishes go to another broker.
    pub(super) stood_by: bool,
    /// Of two brokers, how long both are subscribed.
    lasts: Duration,
    is_same_broker: bool,
    /// Whether one of the two links gets no headers.
    strips: bool,
    identical: Identical,
    key: RandomState,
    /// How often the old link brought each message, before the new one had proven the ledger and
    /// since then.
    early: HashMap<u64, u32>,
    late: HashMap<u64, u32>,
    /// Messages that the old link brought more than once.
    repeated: HashSet<u64>,
    /// Since when the new one has the ledger.
    pub(super) proven_at: Option<Instant>,
    /// Frames that the new link brought, each with its length and how far that link was.
    held: Vec<u8>,
    frames: Vec<(usize, Seen)>,
    /// Subscriptions that ended while the old link was subscribed: that one has brought all.
    ended: HashSet<UpstreamSid>,
    /// Bytes that the daemon's budget counts.
    pub(super) charged: usize,
    /// Byte-identical messages that came within it.
    pub(super) ambiguous: u64,
}

impl Overlap {
    pub(super) fn new(
        (old, new): (LinkId, LinkId),
        (is_same_broker, strips): (bool, bool),
        settings: &Settings,
        key: RandomState,
        now: Instant,
    ) -> Self {
        let between = settings.timings.move_overlap;
        let (lasts, ahead) = if is_same_broker {
            (between.min(SAME_BROKER), Duration::ZERO)
        } else {
            (between, between)
        };
        Self {
            old,
            new,
            stage: Stage::Recording(now + ahead),
            stood_by: false,
            is_same_broker,
            strips,
            lasts,
            identical: settings.move_identical,
            key,
            early: HashMap::new(),
            late: HashMap::new(),
            repeated: HashSet::new(),
            proven_at: None,
            held: Vec::new(),
            frames: Vec::new(),
            ended: HashSet::new(),
            charged: 0,
            ambiguous: 0,
        }
    }

    /// The new link's broker took so long to take the ledger: one that is busy tells the others as
    /// late.
    pub(super) fn note_pace(&mut self, took: Duration) {
        if !self.is_same_broker {
            let most = self.lasts * SLOWER_MOST;
            self.lasts = self.lasts.max((took * SLOWER).min(most));
        }
    }

    /// How long both links are subscribed.
    pub(super) fn lasts(&self) -> Duration {
        self.lasts
    }

    /// How long publishes wait behind it: most of the time that a message takes from broker to
    /// broker is over by the old link's PONG.
    pub(super) fn settles(&self) -> Option<Duration> {
        (!self.is_same_broker).then_some(self.lasts * 2 / 5)
    }

    /// Whether publishes wait although the new link is live.
    pub(super) fn holds_publishes(&self) -> bool {
        matches!(
            self.stage,
            Stage::Behind(Straggling {
                publish_at: Some(_),
                ..
            })
        )
    }

    /// How long copies may be on their way behind it.
    pub(super) fn straggles(&self) -> Duration {
        if self.is_same_broker {
            self.lasts
        } else {
            self.lasts * STRAGGLERS
        }
    }

    /// Whether SUBs wait: one that came now would begin on the two links at different messages.
    pub(super) fn holds_subscriptions(&self) -> bool {
        !matches!(
            self.stage,
            Stage::Recording(_) | Stage::Behind(_) | Stage::Limiting(_)
        )
    }

    /// Whether the new link's broker has been told what is left of each max.
    pub(super) fn has_told_limits(&self) -> bool {
        matches!(self.stage, Stage::Limiting(_))
    }

    /// Whether the new link is live, or stands by.
    pub(super) fn has_moved(&self) -> bool {
        matches!(self.stage, Stage::Behind(_) | Stage::Limiting(_))
    }

    /// Whether the new link has been told nothing yet.
    pub(super) fn is_to_begin(&self) -> bool {
        matches!(self.stage, Stage::Recording(_) | Stage::Settling(..))
    }

    /// Whether nothing may come twice any more, so far as is known.
    pub(super) fn is_over(&self) -> bool {
        self.early.is_empty() && self.late.is_empty()
    }

    /// Bytes that it keeps.
    pub(super) fn bytes(&self) -> usize {
        self.held.len() + (self.early.len() + self.late.len()) * DIGEST_BYTES
    }

    pub(super) fn is_full(&self) -> bool {
        self.bytes() >= OVERLAP_BYTES
    }

    /// Whether the new link brings so much before it says that it has the ledger that the move is
    /// given up.
    pub(super) fn is_flooded(&self) -> bool {
        self.proven_at.is_none() && self.bytes() >= FLOOD_BYTES
    }

    /// Whether the new link isn't read until the old one has brought all.
    pub(super) fn holds_back(&self) -> bool {
        self.is_full() && matches!(self.stage, Stage::Both(_) | Stage::Leaving)
    }

    /// Versions of brokers differ in the blanks of a line.
    fn digest(&self, msg: &Msg<'_>) -> u64 {
        let header_len = if self.strips { 0 } else { msg.header_len };
        let body = &msg.payload[msg.header_len - header_len..];
        self.key
            .hash_one((msg.sid, msg.subject, msg.reply, header_len, body))
    }

    /// The old link brought a message of a plain subscription.
    pub(super) fn remember(&mut self, msg: &Msg<'_>) {
        if self.is_same_broker && self.is_to_begin() || self.is_full() {
            return;
        }
        let digest = self.digest(msg);
        let is_known = self.early.contains_key(&digest) || self.late.contains_key(&digest);
        if is_known {
            self.ambiguous += 1;
            self.repeated.insert(digest);
        }
        let copies = match self.proven_at {
            Some(_) => &mut self.late,
            None => &mut self.early,
        };
        *copies.entry(digest).or_default() += 1;
    }

    /// The new link brought a message while the old one is there.
    pub(super) fn hold(&mut self, msg: &Msg<'_>, seen: Seen) {
        self.held.extend_from_slice(msg.frame);
        self.frames.push((msg.frame.len(), seen));
    }

    /// A subscription ended while the old link was subscribed.
    pub(super) fn end(&mut self, upstream: UpstreamSid) {
        self.ended.insert(upstream);
    }

    /// Whether what the new link held of a subscription is nobody's.
    pub(super) fn has_ended(&self, upstream: UpstreamSid) -> bool {
        self.ended.contains(&upstream)
    }

    /// Whether the old link brought what the new one brings now: it is one copy less then.
    pub(super) fn take_copy(&mut self, msg: &Msg<'_>) -> bool {
        if self.is_over() {
            return false;
        }
        let digest = self.digest(msg);
        if self.identical == Identical::Twice && self.repeated.contains(&digest) {
            return false;
        }
        // Of identical ones, those stay that the new link may never have had.
        take_one(&mut self.late, digest) || take_one(&mut self.early, digest)
    }

    /// What is held, in order.
    pub(super) fn take_held(&mut self) -> (Vec<u8>, Vec<(usize, Seen)>) {
        let (held, frames) = (&mut self.held, &mut self.frames);
        (std::mem::take(held), std::mem::take(frames))
    }

    /// The new link never brings what the old one brought before it had the ledger, if it hasn't
    /// by now.
    pub(super) fn forget_early(&mut self) {
        self.early = HashMap::new();
    }

    /// Nothing that the old link brought comes any more.
    pub(super) fn forget_copies(&mut self) {
        self.forget_early();
        self.late = HashMap::new();
    }
}

fn take_one(copies: &mut HashMap<u64, u32>, digest: u64) -> bool {
    let Some(count) = copies.get_mut(&digest) else {
        return false;
    };
    *count -= 1;
    if *count == 0 {
        copies.remove(&digest);
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::server::{ServerLimits, ServerOp, ServerScan, scan};

    fn overlap(identical: Identical) -> Overlap {
        let links = (LinkId(0), LinkId(1));
        let settings = Settings {
            move_identical: identical,
            ..Settings::default()
        };
        let (key, now) = (RandomState::new(), Instant::now());
        let mut overlap = Overlap::new(links, (false, false), &settings, key, now);
        overlap.stage = Stage::Joining(Instant::now());
        overlap
    }

    fn with<T>(frame: &[u8], work: impl FnOnce(&Msg<'_>) -> T) -> T {
        match scan(frame, &ServerLimits::default()) {
            ServerScan::Op {
                op: ServerOp::Msg(msg),
                ..
            } => work(&msg),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_broker_that_is_busy_makes_an_overlap_longer_within_a_bound() {
        let ms = Duration::from_millis;
        for (took, lasts) in [(ms(5), ms(50)), (ms(40), ms(120)), (ms(2_000), ms(250))] {
            let mut overlap = overlap(Identical::Once);
            overlap.note_pace(took);
            assert_eq!(overlap.lasts(), lasts);
        }
    }

    #[test]
    fn each_copy_is_taken_once() {
        let mut overlap = overlap(Identical::Once);
        let frame = b"MSG a 0 1\r\nx\r\n";
        with(frame, |msg| {
            overlap.remember(msg);
            overlap.proven_at = Some(Instant::now());
            overlap.remember(msg);
            assert_eq!(overlap.ambiguous, 1);
            assert!(overlap.take_copy(msg) && overlap.take_copy(msg));
            assert!(!overlap.take_copy(msg));
        });
        assert!(overlap.is_over());
    }

    #[test]
    fn what_differs_in_one_byte_is_another_message() {
        let mut overlap = overlap(Identical::Once);
        with(b"MSG a 0 r 1\r\nx\r\n", |msg| overlap.remember(msg));
        for other in [
            &b"MSG a 0 r 1\r\ny\r\n"[..],
            b"MSG b 0 r 1\r\nx\r\n",
            b"MSG a 1 r 1\r\nx\r\n",
            b"MSG a 0 s 1\r\nx\r\n",
            b"MSG a 0 1\r\nx\r\n",
        ] {
            assert!(!with(other, |msg| overlap.take_copy(msg)));
        }
        assert!(with(b"MSG a 0 r 1\r\nx\r\n", |msg| overlap.take_copy(msg)));
    }

    #[test]
    fn identical_messages_may_be_wanted_twice() {
        let mut overlap = overlap(Identical::Twice);
        with(b"MSG a 0 1\r\nx\r\n", |msg| {
            overlap.remember(msg);
            overlap.remember(msg);
            assert!(!overlap.take_copy(msg));
        });
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let mut overlap = overlap(Identical::Once);
        let payload = vec![b'x'; 64 * 1024];
        let frame = [b"MSG a 0 65536\r\n", &payload[..], b"\r\n"].concat();
        let mut count = 0;
        while !overlap.is_full() {
            with(&frame, |msg| overlap.hold(msg, Seen(0)));
            count += 1;
        }
        assert!((60..=64).contains(&count), "{count}");
        let (held, frames) = overlap.take_held();
        assert_eq!((held.len(), frames.len()), (count * frame.len(), count));
        assert!(!overlap.is_full());
    }
}
