//! Brokers that live and serve nobody who is new: full, or without a verdict on CONNECT.
//!
//! An INFO says that a process listens, not that it serves. What a broker answers to one link
//! holds for all links of the bus, or of the identity whose account is full: they wait
//! together, and one of them asks again, with backoff. Nothing here holds for ever: each entry
//! ends with the first link that is accepted, or with the time that it is good for.

use std::collections::BTreeMap;
use std::time::Duration;

use super::backoff::Backoff;
use super::broker::BrokerId;
use super::failure::Failure;
use crate::clock::Instant;

/// Pause between two attempts at a broker that is full.
const FULL: Backoff = Backoff {
    first: Duration::from_millis(50),
    longest: Duration::from_secs(2),
};
/// Pause between two attempts at a broker that gives no verdict.
const MUTE: Backoff = Backoff {
    first: Duration::from_secs(1),
    longest: Duration::from_secs(30),
};
/// An entry that nobody has confirmed for this long is forgotten.
const GOOD_FOR: Duration = Duration::from_secs(60);
/// Entries kept; beyond that, an identity's own is not remembered.
const ENTRIES_MOST: usize = 4096;

/// The identity of a CONNECT: a salted digest of its credentials.
pub type IdentityDigest = u64;

/// One broker's refusal to serve.
#[derive(Clone, Debug)]
pub struct Trouble {
    /// [`Failure::Full`] or [`Failure::NoVerdict`].
    pub cause: Failure,
    /// The broker's text, where it gave one.
    pub text: Box<[u8]>,
    /// Since when.
    pub since: Instant,
    seen_at: Instant,
    failures: u32,
    /// When one link may ask again, and whether those that wait know.
    until: Instant,
    announced: bool,
}

/// The troubles of a bus's brokers.
#[derive(Debug, Default)]
pub(super) struct Troubles {
    /// By broker, and by identity where it concerns one alone.
    entries: BTreeMap<(BrokerId, Option<IdentityDigest>), Trouble>,
}

impl Troubles {
    /// A broker turned a link away. Returns whether it is news.
    pub(super) fn enter(
        &mut self,
        broker: BrokerId,
        identity: Option<IdentityDigest>,
        cause: Failure,
        text: &[u8],
        now: Instant,
    ) -> bool {
        let key = (broker, identity);
        if self.entries.len() >= ENTRIES_MOST && !self.entries.contains_key(&key) {
            return false;
        }
        let is_new = !self.entries.contains_key(&key);
        let entry = self.entries.entry(key).or_insert_with(|| Trouble {
            cause,
            text: text.into(),
            since: now,
            seen_at: now,
            failures: 0,
            until: now,
            announced: true,
        });
        // Links that were on their way when it began are no further attempts.
        if entry.until <= now {
            entry.failures = entry.failures.saturating_add(1);
            let pause = match cause {
                Failure::NoVerdict => MUTE,
                _ => FULL,
            };
            let seed = u64::from(broker.0) ^ identity.unwrap_or_default();
            entry.until = now + pause.delay(entry.failures, seed);
            entry.announced = false;
        }
        entry.seen_at = now;
        (entry.cause, entry.text) = (cause, text.into());
        is_new
    }

    /// A broker accepted a link of this identity. Returns whether anything ended.
    pub(super) fn end(&mut self, broker: BrokerId, identity: IdentityDigest) -> bool {
        let general = self.entries.remove(&(broker, None)).is_some();
        let own = self.entries.remove(&(broker, Some(identity))).is_some();
        general || own
    }

    /// A broker is down, or another process: what it said before is old.
    pub(super) fn forget(&mut self, broker: BrokerId) {
        self.entries.retain(|(id, _), _| *id != broker);
    }

    /// Whether a link of this identity may dial, where `dialing` others are on their way.
    pub(super) fn may_dial(
        &self,
        broker: BrokerId,
        identity: IdentityDigest,
        dialing: u32,
        now: Instant,
    ) -> bool {
        let mut met = self.of(broker, identity).peekable();
        if met.peek().is_none() {
            return true;
        }
        let general = self.entries.contains_key(&(broker, None));
        met.all(|trouble| trouble.until <= now) && (dialing == 0 || !general)
    }

    /// Returns the trouble that a link of this identity meets at a broker.
    pub(super) fn of(
        &self,
        broker: BrokerId,
        identity: IdentityDigest,
    ) -> impl Iterator<Item = &Trouble> {
        let general = self.entries.get(&(broker, None));
        let own = self.entries.get(&(broker, Some(identity)));
        general.into_iter().chain(own)
    }

    /// The trouble of a broker that serves nobody, as far as is known.
    pub(super) fn any_of(&self, broker: BrokerId) -> Option<&Trouble> {
        let from = self.entries.range((broker, None)..);
        let mut own = from.take_while(|((id, _), _)| *id == broker);
        own.next().map(|(_, trouble)| trouble)
    }

    /// When somebody may ask again, or an entry is to be forgotten.
    pub(super) fn due(&self) -> Option<Instant> {
        let dues = self.entries.values().map(|trouble| {
            if trouble.announced {
                trouble.seen_at + GOOD_FOR
            } else {
                trouble.until.min(trouble.seen_at + GOOD_FOR)
            }
        });
        dues.min()
    }

    /// Does what is due. Returns whether those that wait may find something new.
    pub(super) fn tick(&mut self, now: Instant) -> bool {
        let before = self.entries.len();
        self.entries
            .retain(|_, trouble| trouble.seen_at + GOOD_FOR > now);
        let mut news = self.entries.len() < before;
        for trouble in self.entries.values_mut() {
            if !trouble.announced && trouble.until <= now {
                trouble.announced = true;
                news = true;
            }
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: BrokerId = BrokerId(0);
    const B: BrokerId = BrokerId(1);

    #[test]
    fn one_asks_again_after_a_pause_that_grows() {
        let mut troubles = Troubles::default();
        let mut now = Instant::now();
        assert!(troubles.may_dial(A, 1, 0, now));
        let mut pauses = Vec::new();
        for _ in 0..10 {
            troubles.enter(A, None, Failure::Full, b"full", now);
            troubles.enter(A, None, Failure::Full, b"full", now);
            assert!(!troubles.may_dial(A, 1, 0, now) && troubles.may_dial(B, 1, 0, now));
            let due = troubles.due().expect("it is asked again");
            pauses.push(due.saturating_duration_since(now));
            now = due;
            assert!(troubles.tick(now) && !troubles.tick(now), "said once");
            assert!(troubles.may_dial(A, 1, 0, now));
            assert!(!troubles.may_dial(A, 1, 1, now), "one at a time");
        }
        assert!(pauses[0] <= FULL.first && pauses[9] > Duration::from_millis(900));
        assert!(pauses.iter().all(|pause| *pause <= FULL.longest));
        assert!(troubles.end(A, 1) && troubles.any_of(A).is_none());
    }

    #[test]
    fn a_full_account_concerns_its_identity_alone() {
        let mut troubles = Troubles::default();
        let now = Instant::now();
        troubles.enter(A, Some(1), Failure::Full, b"account", now);
        assert!(!troubles.may_dial(A, 1, 0, now));
        assert!(troubles.may_dial(A, 2, 9, now));
        assert!(!troubles.end(A, 2), "another's link says nothing of it");
        assert_eq!(troubles.of(A, 1).count(), 1);
        troubles.forget(A);
        assert!(troubles.may_dial(A, 1, 0, now));
    }

    #[test]
    fn what_nobody_confirms_is_forgotten() {
        let mut troubles = Troubles::default();
        let now = Instant::now();
        troubles.enter(A, None, Failure::NoVerdict, b"", now);
        assert!(troubles.tick(now + GOOD_FOR) && troubles.any_of(A).is_none());
    }
}
